"""An aligner with random weights and random batches, for measurements without a checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vtalign_jax.array_types import MAX_ANCESTORS, Batch, Identity
from vtalign_jax.config import Config
from vtalign_jax.models import parameters
from vtalign_jax.models.aligner import AlignerModel
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.training import trainable

# About 1 : 2 between the work of tower and decoder, as in the 2.2B model; seconds on two CPU cores.
SMALL = {
    "model_type": "smolvlm",
    "image_token_id": 3,
    "scale_factor": 4,
    "vision_config": {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 3,
        "patch_size": 16,
        "image_size": 128,
    },
    "text_config": {
        "model_type": "llama",
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "vocab_size": 512,
    },
}

# The numbers of SmolVLM2-2.2B-Instruct.
FULL_SIZE = {
    "model_type": "smolvlm",
    "image_token_id": 49190,
    "scale_factor": 3,
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 384,
    },
    "text_config": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 130000.0,
        "vocab_size": 49280,
        "pad_token_id": 2,
    },
}


def make_aligner(config: Config, base: SmolVLMConfig) -> tuple:
    """Return (bind, trainable leaves, frozen leaves) with random values."""

    def make_model() -> AlignerModel:
        adapters = trainable.adapter_config(config.tune)
        return AlignerModel(config.model, base, adapters, rngs=nnx.Rngs(0))

    bind, _ = parameters.abstract(make_model)
    values = jax.jit(lambda: parameters.parameters_of(make_model()))()
    return bind, *trainable.split(values, config.model, config.tune)


def make_identity(rows: int) -> Identity:
    """Return strangers: rows of as many recordings, with texts of their own."""
    index = np.arange(rows, dtype=np.int32)
    spans = np.stack([10.0 * index, 10.0 * index + 4.0], axis=1).astype(np.float32)
    return Identity(
        row_mask=np.ones(rows, bool),
        record=index,
        recording=index,
        uid=index,
        level=np.zeros(rows, np.int32),
        order=index,
        node=index,
        ancestors=np.full((rows, MAX_ANCESTORS), -1, np.int32),
        text=index,
        window=spans,
        span=spans,
        signature=np.zeros((rows, 0), np.float32),
    )


def make_batch(
    base: SmolVLMConfig,
    rows: int,
    frames: int,
    text_tokens: int,
    clip_words: int = 16,
    captions: int = 0,
) -> Batch:
    """Return a batch of noise: all frames and tokens are real.

    Args:
      base: numbers of the model.
      rows: B.
      frames: of a clip.
      text_tokens: of a text's turn.
      clip_words: tokens of a clip's turn beside the image tokens.
      captions: tokens after that, all of them to be predicted.
    """
    rng = np.random.default_rng(0)
    edge = base.vision.image_size
    images = frames * base.tokens_per_frame

    def words(count: int) -> np.ndarray:
        drawn = rng.integers(4, base.text.vocab_size, (rows, count))
        return np.where(drawn == base.image_token_id, 4, drawn)

    shown = np.full((rows, images), base.image_token_id)
    clip_ids = np.concatenate([shown, words(clip_words), words(captions)], axis=1)
    is_turn = np.broadcast_to(np.arange(clip_ids.shape[1]) < images + clip_words, clip_ids.shape)
    text_ids = words(text_tokens)
    return Batch(
        frames=rng.integers(0, 256, (rows, frames, edge, edge, 3), np.uint8),
        frame_mask=np.ones((rows, frames), bool),
        clip_ids=clip_ids.astype(np.int32),
        clip_mask=is_turn,
        caption_mask=~is_turn,
        text_ids=text_ids.astype(np.int32),
        text_mask=np.ones(text_ids.shape, bool),
        identity=make_identity(rows),
    )


def on_device(tree: object) -> object:
    """Return the arrays on the default device."""
    return jax.tree.map(jnp.asarray, tree)
