"""A small aligner with random weights, every adapter alive, and random batches for it."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.objectives.identities import make_identity
from vtalign_jax.array_types import Batch
from vtalign_jax.config import Config, resolve
from vtalign_jax.models import parameters
from vtalign_jax.models.aligner import AlignerModel
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.training import trainable

IMAGE_TOKEN = 3
TOKENS_PER_FRAME = 4

HF_CONFIG = {
    "model_type": "smolvlm",
    "image_token_id": IMAGE_TOKEN,
    "scale_factor": 2,
    "vision_config": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "patch_size": 4,
        "image_size": 16,
    },
    "text_config": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 72,
    },
}


def make_config(**sections) -> Config:
    """Return a float32 configuration of the small model; sections override its fields."""
    values = {
        "model": {"embedding_dim": 20, "compute_dtype": "float32", "frozen_dtype": "float32"},
        "tune": {"text_blocks": 2, "rank": 3, "alpha": 6.0, "dropout": 0.1},
    }
    for name, fields in sections.items():
        values[name] = values.get(name, {}) | fields
    return resolve(values)


def make_aligner(config: Config, seed: int = 0):
    """Return (bind, trainable, frozen): the model's arrays, LoRA B drawn instead of zero.

    A leaf's values depend on its path and the seed alone. They are drawn in NumPy: JAX would
    compile a dozen programs for each shape.
    """
    base = SmolVLMConfig.from_hf(HF_CONFIG)
    adapters = trainable.adapter_config(config.tune)

    def make_model() -> AlignerModel:
        return AlignerModel(
            config.model,
            base,
            adapters,
            rngs=nnx.Rngs(seed),
            has_matching_head=config.objective.itm_weight > 0,
        )

    bind, abstract = parameters.abstract(make_model)
    values = {"log_temperature": jnp.float32(np.log(config.model.temperature_init))}
    for path in abstract.keys() - values.keys():
        leaf = abstract[path]
        values[path] = jnp.asarray(_draw(path, leaf.shape, seed), leaf.dtype)
    return bind, *trainable.split(values, config.model, config.tune)


def _draw(path: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return values of a leaf as large as those that the model itself draws."""
    rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
    name = path.rpartition(".")[2]
    if name in ("scale", "bias"):
        return np.full(shape, name == "scale")
    if name == "lora_a":
        return rng.uniform(-1, 1, shape) * shape[-2] ** -0.5
    if name == "lora_b":
        return 0.1 * rng.standard_normal(shape)
    size = 0.02 if path.startswith("base.") else shape[0] ** -0.5
    return size * rng.standard_normal(shape)


def make_batch(
    rows: int,
    real: int | None = None,
    frames: int = 2,
    seed: int = 0,
    *,
    has_captions: bool = False,
) -> Batch:
    """Return a batch of random frames and tokens; four recordings, some equal texts."""
    rng = np.random.default_rng(seed)
    real = rows if real is None else real
    image_tokens = [IMAGE_TOKEN] * (frames * TOKENS_PER_FRAME)
    clip_ids = np.array([[5, *image_tokens, *rng.integers(6, 72, 3)] for _ in range(rows)])
    lengths = rng.integers(3, 8, rows)
    index = np.arange(rows)
    identity = make_identity(
        recording=index % 4,
        uid=index % 4,
        order=index // 4 * 2,
        text=np.where(index % 5 == 4, 0, index),
        real=real,
    )
    batch = Batch(
        frames=rng.integers(0, 256, (rows, frames, 16, 16, 3)).astype(np.uint8),
        frame_mask=np.ones((rows, frames), bool),
        clip_ids=clip_ids.astype(np.int32),
        clip_mask=np.ones(clip_ids.shape, bool),
        caption_mask=np.zeros(clip_ids.shape, bool),
        text_ids=rng.integers(6, 72, (rows, 7)).astype(np.int32),
        text_mask=np.arange(7)[None] < lengths[:, None],
        identity=identity,
    )
    return _captioned(batch, rng) if has_captions else batch


def _captioned(batch: Batch, rng: np.random.Generator) -> Batch:
    """Return the batch with `Assistant: ` (two tokens), 2 to 5 to be predicted, and padding."""
    rows, start = batch.clip_ids.shape
    place = np.arange(start + 8)
    end = start + 2 + rng.integers(2, 6, rows)
    ids = np.zeros((rows, start + 8), np.int32)
    ids[:, :start] = batch.clip_ids
    caption = np.concatenate([np.full((rows, 2), 4), rng.integers(6, 72, (rows, 6))], axis=1)
    ids[:, start:] = np.where(place[start:] < end[:, None], caption, 0)
    return batch._replace(
        clip_ids=ids,
        clip_mask=np.broadcast_to(place < start, ids.shape),
        caption_mask=(place >= start + 2) & (place < end[:, None]),
    )


def relative_error(ours: jax.Array, theirs: jax.Array) -> float:
    """Return max|a - b| / max|b|."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.max(np.abs(ours - theirs)) / max(np.max(np.abs(theirs)), 1e-30))
