"""Clip and text embeddings: the base model, pooling, projection head and temperature."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vtalign_jax.config import ModelConfig
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.models.lora import AdapterConfig
from vtalign_jax.models.smolvlm import SmolVLM

MIN_TEMPERATURE = 0.01  # 1 / tau <= 100, as CLIP (Radford et al., 2021) clips it
MIN_LOG_TEMPERATURE = float(np.log(np.float32(MIN_TEMPERATURE)))
PIXEL_MEAN, PIXEL_STD = 0.5, 0.5  # Hugging Face IMAGENET_STANDARD_*, of every SmolVLM processor


class Captions(NamedTuple):
    """What the base says after each clip, where it is to say the caption; C positions a row.

    Attributes:
      hidden: float[B, C, D], hidden states whose next token is to be predicted.
      tokens: int32[B, C], those next tokens.
      mask: bool[B, C].
    """

    hidden: jax.Array
    tokens: jax.Array
    mask: jax.Array


class ProjectionHead(nnx.Module):
    """MLP hidden -> hidden -> E with exact GELU and unit norm, in float32."""

    def __init__(self, hidden_size: int, embedding_dim: int, *, rngs: nnx.Rngs):
        precision = jax.lax.Precision.HIGHEST  # a TPU's default float32 product is one bf16 pass
        self.fc1 = nnx.Linear(hidden_size, hidden_size, precision=precision, rngs=rngs)
        self.fc2 = nnx.Linear(hidden_size, embedding_dim, precision=precision, rngs=rngs)

    def __call__(self, pooled: jax.Array) -> jax.Array:
        hidden = nnx.gelu(self.fc1(pooled), approximate=False)  # [B, D]
        return unit_norm(self.fc2(hidden))  # [B, E]


class MatchingHead(nnx.Module):
    """MLP 2 E -> E -> 1 with exact GELU, in float32: does the text describe the clip?"""

    def __init__(self, embedding_dim: int, *, rngs: nnx.Rngs):
        precision = jax.lax.Precision.HIGHEST
        self.fc1 = nnx.Linear(2 * embedding_dim, embedding_dim, precision=precision, rngs=rngs)
        self.fc2 = nnx.Linear(embedding_dim, 1, precision=precision, rngs=rngs)
        # Entries of about 1: those of a unit vector would leave GELU all but linear, and a linear
        # head cannot compare a clip with a text.
        self.scale = embedding_dim**0.5

    def __call__(self, pairs: jax.Array) -> jax.Array:
        """Return the logits float32[N] of float32[N, 2 E], clips and texts side by side."""
        hidden = nnx.gelu(self.fc1(self.scale * pairs), approximate=False)  # [N, E]
        return self.fc2(hidden)[:, 0]


class AlignerModel(nnx.Module):
    """SmolVLM with a projection head for clips and texts and a learnable temperature.

    Attributes:
      base: the adapted `SmolVLM`.
      head: the shared head; with `head="per_modality"` it is `video_head` and `text_head` instead.
      matching_head: see `MatchingHead`, if there is one.
      log_temperature: float32[], natural logarithm of tau.
    """

    def __init__(
        self,
        config: ModelConfig,
        base_config: SmolVLMConfig,
        adapters: AdapterConfig | None,
        *,
        rngs: nnx.Rngs,
        has_matching_head: bool = False,
    ):
        self.base = SmolVLM(
            base_config,
            adapters,
            rngs=rngs,
            param_dtype=config.frozen_dtype,
            compute_dtype=config.compute_dtype,
            remat="full" if config.remat == "auto" else config.remat,  # where nobody has chosen
        )
        sizes = (base_config.text.hidden_size, config.embedding_dim)
        if config.head == "shared":
            self.head = ProjectionHead(*sizes, rngs=rngs)
        else:
            self.video_head = ProjectionHead(*sizes, rngs=rngs)
            self.text_head = ProjectionHead(*sizes, rngs=rngs)
        if has_matching_head:  # drawn last: the others' values do not depend on it
            self.matching_head = MatchingHead(config.embedding_dim, rngs=rngs)
        log_temperature = jnp.log(jnp.float32(config.temperature_init))
        self.log_temperature = nnx.Param(jnp.maximum(log_temperature, MIN_LOG_TEMPERATURE))
        self.pooling = config.pooling
        self.is_shared = config.head == "shared"

    def clip_prefix(
        self, clip_ids: jax.Array, clip_mask: jax.Array, frames: jax.Array, depth: str
    ) -> jax.Array:
        """Return the part of a clip's pass below some depth, from which `pooled_clips` goes on.

        Args:
          clip_ids: int32[B, S].
          clip_mask: bool[B, S].
          frames: uint8[B, F, H, W, 3], valid frames first, at the model's image size.
          depth: "tower" for the vision tower's features, float[B, F, P, V]; "connector" for the
            image tokens, float[B, F, Q, D]; "decoder" for what enters the blocks with adapters,
            float[B, S, D]. Tokens and mask matter to the last alone.
        """
        if depth == "tower":
            return self.base.patch_features(normalise(frames))
        if depth == "connector":
            return self.base.image_features(normalise(frames))
        return self.base.lower_states(clip_ids, clip_mask, normalise(frames))

    def pooled_clips(
        self,
        clip_ids: jax.Array,
        clip_mask: jax.Array,
        frames: jax.Array | None,
        dropout_keys: jax.Array | None = None,
        *,
        prefix: jax.Array | None = None,
        depth: str = "tower",
    ) -> jax.Array:
        """Return the pooled hidden state of each clip's turn.

        Args:
          clip_ids: int32[B, S].
          clip_mask: bool[B, S].
          frames: uint8[B, F, H, W, 3], valid frames first, at the model's image size.
          dropout_keys: key[B], or None for no dropout.
          prefix: `clip_prefix` of the clips; `frames` are not looked at then.
          depth: of the prefix.

        Returns:
          float32[B, D].
        """
        hidden = self._clip_states(clip_ids, clip_mask, frames, dropout_keys, prefix, depth)
        return pool(hidden, clip_mask, self.pooling)

    def captioned_clips(
        self,
        clip_ids: jax.Array,
        clip_mask: jax.Array,
        caption_mask: jax.Array,
        frames: jax.Array | None,
        most_tokens: int,
        dropout_keys: jax.Array | None = None,
        *,
        prefix: jax.Array | None = None,
        depth: str = "tower",
    ) -> tuple[jax.Array, Captions]:
        """Return what `pooled_clips` does, and the states of the captions, in the same pass.

        Attention is causal, so that the captions change nothing in the clips' turns.

        Args:
          clip_ids: int32[B, S], clip turns with the captions after them.
          clip_mask: bool[B, S], the clip turns.
          caption_mask: bool[B, S], the tokens to be predicted; in a row without any, no caption.
          frames: see `pooled_clips`.
          most_tokens: C, the most tokens of a caption that are predicted.
          dropout_keys: see `pooled_clips`.
          prefix: `clip_prefix` of the clips, with `attended(clip_mask, caption_mask)` for mask.
          depth: of the prefix.
        """
        token_mask = attended(clip_mask, caption_mask)
        hidden = self._clip_states(clip_ids, token_mask, frames, dropout_keys, prefix, depth)
        captions = caption_states(hidden, clip_ids, caption_mask, most_tokens)
        return pool(hidden, clip_mask, self.pooling), captions

    def _clip_states(
        self,
        clip_ids: jax.Array,
        token_mask: jax.Array,
        frames: jax.Array | None,
        dropout_keys: jax.Array | None,
        prefix: jax.Array | None,
        depth: str,
    ) -> jax.Array:
        """Return the hidden states of clips: float[B, S, D]."""
        if prefix is None:
            given = {"frames": normalise(frames)}
        elif depth == "tower":
            given = {"patches": prefix}
        elif depth == "connector":
            merged = self.base.merge_inputs(clip_ids, prefix)
            return self.base.text_model(merged, token_mask, dropout_keys)
        else:
            return self.base.upper_states(prefix, token_mask, dropout_keys)
        return self.base.hidden_states(clip_ids, token_mask, **given, dropout_keys=dropout_keys)

    def text_prefix(self, text_ids: jax.Array, text_mask: jax.Array) -> jax.Array:
        """Return what enters the blocks with adapters: int32[B, T] -> float[B, T, D]."""
        return self.base.lower_states(text_ids, text_mask)

    def pooled_texts(
        self,
        text_ids: jax.Array,
        text_mask: jax.Array,
        dropout_keys: jax.Array | None = None,
        *,
        prefix: jax.Array | None = None,
    ) -> jax.Array:
        """Return the pooled hidden state of each text's turn.

        Args:
          text_ids: int32[B, T].
          text_mask: bool[B, T].
          dropout_keys: key[B], or None for no dropout.
          prefix: `text_prefix` of the texts.

        Returns:
          float32[B, D].
        """
        lower = self.text_prefix(text_ids, text_mask) if prefix is None else prefix
        return pool(self.base.upper_states(lower, text_mask, dropout_keys), text_mask, self.pooling)

    def project_clips(self, pooled: jax.Array) -> jax.Array:
        """Return the clip embeddings: float32[B, D] -> float32[B, E], unit norm."""
        return self.head(pooled) if self.is_shared else self.video_head(pooled)

    def project_texts(self, pooled: jax.Array) -> jax.Array:
        """Return the text embeddings: float32[B, D] -> float32[B, E], unit norm."""
        return self.head(pooled) if self.is_shared else self.text_head(pooled)

    def temperature(self) -> jax.Array:
        """Return tau: float32[], not below `MIN_TEMPERATURE`; at it, all of the gradient passes."""
        log_temperature = self.log_temperature[...]
        is_low = log_temperature < MIN_LOG_TEMPERATURE
        return jnp.exp(jnp.where(is_low, MIN_LOG_TEMPERATURE, log_temperature))


def normalise(frames: jax.Array) -> jax.Array:
    """Return uint8[..., H, W, 3] as Hugging Face's `pixel_values`: float32 in [-1, 1]."""
    return (frames.astype(jnp.float32) / 255.0 - PIXEL_MEAN) / PIXEL_STD


def attended(clip_mask: jax.Array, caption_mask: jax.Array) -> jax.Array:
    """Return bool[B, S]: all up to the last token of a clip's turn, or of the caption after it."""
    length = clip_mask.shape[1]
    last = length - 1 - jnp.argmax((clip_mask | caption_mask)[:, ::-1], axis=1)  # [B]
    return jnp.arange(length) <= last[:, None]


def caption_states(
    hidden: jax.Array, ids: jax.Array, caption_mask: jax.Array, most_tokens: int
) -> Captions:
    """Return the states from which the tokens of `caption_mask` are predicted.

    Args:
      hidden: float[B, S, D], after the last norm.
      ids: int32[B, S].
      caption_mask: bool[B, S]; in each row one run of at most `most_tokens`, not at its start.
      most_tokens: C.
    """
    first = jnp.argmax(caption_mask, axis=1)
    places = jnp.minimum(first[:, None] + jnp.arange(most_tokens), ids.shape[1] - 1)  # [B, C]
    is_caption = jnp.take_along_axis(caption_mask, places, axis=1)
    is_caption &= jnp.arange(most_tokens) < ids.shape[1] - first[:, None]  # the last one only once
    before = jnp.maximum(places - 1, 0)
    return Captions(
        jnp.take_along_axis(hidden, before[..., None], axis=1),
        jnp.take_along_axis(ids, places, axis=1),
        is_caption,
    )


def pool(hidden: jax.Array, token_mask: jax.Array, pooling: str) -> jax.Array:
    """Return one vector a row: the state at the last valid position, or the masked mean.

    Args:
      hidden: float[B, S, D].
      token_mask: bool[B, S], at least one True a row; padding may stand on either side.
      pooling: "last" or "mean".

    Returns:
      float32[B, D].
    """
    if pooling == "last":
        last = hidden.shape[1] - 1 - jnp.argmax(token_mask[:, ::-1], axis=1)  # [B]
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0].astype(jnp.float32)
    mask = token_mask[..., None].astype(jnp.float32)
    total = jnp.sum(jnp.where(mask > 0, hidden.astype(jnp.float32), 0.0), axis=1)
    return total / jnp.sum(mask, axis=1)


def unit_norm(x: jax.Array) -> jax.Array:
    """Return `x` scaled to unit length along its last axis, with a finite gradient at zero."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
