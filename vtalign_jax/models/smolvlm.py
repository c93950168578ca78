"""SmolVLM: vision tower, connector, decoder. Parameter paths are Hugging Face's own."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from vtalign_jax.array_types import Array
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.models.lora import AdapterConfig, Build, Linear, fold_rows
from vtalign_jax.models.text import TextModel
from vtalign_jax.models.vision import VisionModel

_CONNECTOR_STREAM = 1 << 16  # folded into the connector's dropout keys; above any block's index


def pixel_shuffle(x: Array, factor: int) -> Array:
    """Return float[B, P / factor^2, V * factor^2]: each square of patches becomes one vector.

    Args:
      x: float[B, P, V], P a square grid row by row.
      factor: side of the square.
    """
    batch, patches, width = x.shape
    side = round(patches**0.5)
    grid = x.reshape(batch, side // factor, factor, side // factor, factor, width)
    grid = grid.transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(batch, patches // factor**2, width * factor**2)


class ModalityProjection(nnx.Module):
    """The connector's one linear layer."""

    def __init__(self, path: str, config: SmolVLMConfig, build: Build):
        """Create proj."""
        sizes = (config.vision.hidden_size * config.scale_factor**2, config.text.hidden_size)
        self.proj = Linear(f"{path}.proj", sizes, build)

    def __call__(self, x: Array, keys: Array | None = None) -> Array:
        """Return float[..., D] for float[..., V * scale_factor^2]."""
        return self.proj(x, keys)


class Connector(nnx.Module):
    """Patch features to image tokens."""

    def __init__(self, config: SmolVLMConfig, build: Build):
        """Create modality_projection."""
        self.scale_factor = config.scale_factor
        self.modality_projection = ModalityProjection(
            "connector.modality_projection", config, build
        )

    def __call__(self, patches: Array, keys: Array | None = None) -> Array:
        """Return float[B, F, Q, D] for float[B, F, P, V]."""
        batch, frames = patches.shape[:2]
        flat = patches.reshape(batch * frames, *patches.shape[2:])
        shuffled = pixel_shuffle(flat, self.scale_factor)  # [B * F, Q, V * s^2]
        shuffled = shuffled.reshape(batch, frames, *shuffled.shape[1:])
        return self.modality_projection(shuffled, fold_rows(keys, _CONNECTOR_STREAM))


class SmolVLM(nnx.Module):
    """The whole model.

    Attributes:
      config: its numbers.
      vision_model, connector, text_model: the three parts.
      lm_head: absent when the embeddings are tied.
    """

    def __init__(
        self,
        config: SmolVLMConfig,
        adapters: AdapterConfig | None = None,
        *,
        rngs: nnx.Rngs,
        param_dtype: Any = "float32",
        compute_dtype: Any = "float32",
        remat: str = "none",
    ):
        """Create every leaf with random values; under `nnx.eval_shape` nothing is allocated.

        Args:
          config: see `SmolVLMConfig`.
          adapters: where LoRA sits; None for none.
          rngs: source of the initial values.
          param_dtype: storage of everything but the LoRA leaves, which are float32.
          compute_dtype: dtype of products and activations; norms, softmax and logits are float32.
          remat: what of the decoder is computed again in the backward pass, see `layers.REMAT`.
        """
        build = Build(rngs, jnp.dtype(param_dtype), jnp.dtype(compute_dtype), adapters)
        self.config = config
        self.vision_model = VisionModel(config.vision, build)
        self.connector = Connector(config, build)
        self.text_model = TextModel(config.text, build, remat=remat)
        sizes = (config.text.hidden_size, config.text.vocab_size)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Linear("lm_head", sizes, build)

    def patch_features(self, frames: Array) -> Array:
        """Return the tower's features of each frame.

        Args:
          frames: float[B, F, H, W, 3], normalised as Hugging Face's `pixel_values`.

        Returns:
          float[B, F, P, V].
        """
        batch, count = frames.shape[:2]
        patches = self.vision_model(frames.reshape(batch * count, *frames.shape[2:]))
        return patches.reshape(batch, count, *patches.shape[1:])

    def image_features(self, frames: Array, dropout_keys: Array | None = None) -> Array:
        """Return the image tokens of each frame.

        Args:
          frames: float[B, F, H, W, 3], normalised as Hugging Face's `pixel_values`.
          dropout_keys: key[B] for the connector's adapter, or None for no dropout.

        Returns:
          float[B, F, Q, D].
        """
        return self.connector(self.patch_features(frames), dropout_keys)

    def merge_inputs(self, input_ids: Array, features: Array | None) -> Array:
        """Return float[B, S, D]: token vectors, the image tokens filled with features in order.

        Args:
          input_ids: int32[B, S]; a row's n-th image token takes the row's n-th feature.
          features: float[B, F, Q, D] or None; surplus features (frames that the row's tokens do
            not mention) are not used.
        """
        x = self.text_model.embed_tokens(input_ids)
        if features is None:
            return x
        is_image = input_ids == self.config.image_token_id
        features = features.reshape(features.shape[0], -1, features.shape[-1])  # [B, F * Q, D]
        place = jnp.clip(jnp.cumsum(is_image, axis=1) - 1, 0, features.shape[1] - 1)
        picked = jnp.take_along_axis(features, place[..., None], axis=1)
        return jnp.where(is_image[..., None], picked, x.astype(features.dtype))

    def hidden_states(
        self,
        input_ids: Array,
        token_mask: Array,
        frames: Array | None = None,
        *,
        patches: Array | None = None,
        dropout_keys: Array | None = None,
    ) -> Array:
        """Return the decoder's hidden states after its last norm.

        Args:
          input_ids: int32[B, S], padded on either side.
          token_mask: bool[B, S].
          frames: float[B, F, H, W, 3], normalised, valid ones first; None for text.
          patches: float[B, F, P, V], `patch_features` of the frames, instead of them.
          dropout_keys: key[B], one a row, or None for no dropout.

        Returns:
          float[B, S, D] in the compute dtype; rows of padding tokens mean nothing.
        """
        if frames is not None:
            patches = self.patch_features(frames)
        features = None if patches is None else self.connector(patches, dropout_keys)
        return self.text_model(self.merge_inputs(input_ids, features), token_mask, dropout_keys)

    def lower_states(
        self, input_ids: Array, token_mask: Array, frames: Array | None = None
    ) -> Array:
        """Return what enters the blocks with adapters, the connector without dropout.

        Arguments as for `hidden_states`, of which the rest is `upper_states`.

        Returns:
          float[B, S, D].
        """
        features = None if frames is None else self.image_features(frames)
        return self.text_model.lower(self.merge_inputs(input_ids, features), token_mask)

    def upper_states(
        self, lower: Array, token_mask: Array, dropout_keys: Array | None = None
    ) -> Array:
        """Return the hidden states after the last norm for what `lower_states` returned."""
        return self.text_model.upper(lower, token_mask, dropout_keys)

    def logits(self, hidden: Array) -> Array:
        """Return float32[..., vocab] for float[..., D] after the last norm."""
        if self.lm_head is not None:
            kernel = self.lm_head.kernel[...]
        else:
            kernel = self.text_model.embed_tokens.embedding[...].T
        return jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)

    def __call__(
        self, input_ids: Array, attention_mask: Array, frames: Array | None = None
    ) -> Array:
        """Return the next-token logits.

        Args:
          input_ids: int32[B, S].
          attention_mask: bool or int[B, S], 1 is real.
          frames: float[B, F, H, W, 3] normalised as Hugging Face's `pixel_values`, or None.

        Returns:
          float32[B, S, vocab].
        """
        return self.logits(self.hidden_states(input_ids, attention_mask, frames))
