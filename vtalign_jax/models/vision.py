"""The SigLIP vision tower of SmolVLM: square frames to patch features, nothing trained in it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vtalign_jax.array_types import Array
from vtalign_jax.models.attention import attention
from vtalign_jax.models.configuration import VisionConfig
from vtalign_jax.models.layers import INIT_STD, Embedding, LayerNorm, scan_blocks
from vtalign_jax.models.lora import Build, Linear


def position_ids(height: int, width: int, patches_per_side: int) -> np.ndarray:
    """Return the row of the position table that each patch of a frame takes.

    transformers places patch i of n at i/n and looks it up among the multiples of 1/N, in float32;
    rounding makes some grids (N = 25) lose or repeat a row, so the arithmetic is repeated here.

    Args:
      height: patches of the frame downwards.
      width: patches of the frame across.
      patches_per_side: N, the position table's own grid.

    Returns:
      int32[height * width].

    Source: SmolVLMVisionEmbeddings.forward, transformers 5.
    """
    bounds = _arange_float32(1 / patches_per_side, 1.0, 1 / patches_per_side)
    rows, columns = (_buckets(count, bounds) for count in (height, width))
    return (rows[:, None] * patches_per_side + columns).reshape(-1).astype(np.int32)


def _buckets(count: int, bounds: np.ndarray) -> np.ndarray:
    steps = np.arange(count, dtype=np.float32) * np.float32(1.0 / count)
    return np.searchsorted(bounds, np.minimum(steps, np.float32(1.0 - 1e-6)), side="right")


def _arange_float32(start: float, stop: float, step: float) -> np.ndarray:
    """Return torch's float32 `arange`: vectors of 8, taken in pairs, start from a rounded base."""
    lane = 8
    index = np.arange(int(np.ceil((stop - start) / step)))
    exact = start + step * index
    base = (start + step * (index // lane * lane)).astype(np.float32)
    vectored = base.astype(np.float64) + step * (index % lane)
    whole = index < len(index) // (2 * lane) * (2 * lane)
    return np.where(whole, vectored, exact).astype(np.float32)


class VisionAttention(nnx.Module):
    """Bidirectional self-attention within one frame."""

    def __init__(self, path: str, config: VisionConfig, build: Build):
        """Create q, k, v and out projections with biases."""
        width = config.hidden_size
        self.head_dim = config.head_dim
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, Linear(f"{path}.{name}", (width, width), build, bias=True))

    def __call__(self, x: Array) -> Array:
        """Return float[B, P, V] for float[B, P, V]."""
        heads = (*x.shape[:-1], -1, self.head_dim)  # [B, P, N, H]
        q, k, v = (proj(x).reshape(heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attention(q, k, v).reshape(x.shape))


class VisionMLP(nnx.Module):
    """Two layers around the tanh form of GELU."""

    def __init__(self, path: str, config: VisionConfig, build: Build):
        """Create fc1 and fc2 with biases."""
        narrow, wide = config.hidden_size, config.intermediate_size
        self.fc1 = Linear(f"{path}.fc1", (narrow, wide), build, bias=True)
        self.fc2 = Linear(f"{path}.fc2", (wide, narrow), build, bias=True)

    def __call__(self, x: Array) -> Array:
        """Return float[B, P, V] for float[B, P, V]."""
        # Without the barrier XLA fuses both products for TPUs, at 0.7 of their speed (v5e).
        hidden = jax.lax.optimization_barrier(jax.nn.gelu(self.fc1(x), approximate=True))
        return self.fc2(hidden)


class VisionBlock(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, path: str, config: VisionConfig, build: Build):
        """Create norms, attention and MLP."""
        size, eps = config.hidden_size, config.layer_norm_eps
        norm = {"param_dtype": build.param_dtype, "stack": build.stack}
        self.layer_norm1 = LayerNorm(size, eps, **norm)
        self.self_attn = VisionAttention(f"{path}.self_attn", config, build)
        self.layer_norm2 = LayerNorm(size, eps, **norm)
        self.mlp = VisionMLP(f"{path}.mlp", config, build)

    def __call__(self, x: Array) -> Array:
        """Return float[B, P, V] for float[B, P, V]."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class PatchEmbedding(nnx.Module):
    """A convolution whose stride is its size, as one matrix product."""

    def __init__(self, config: VisionConfig, build: Build):
        """Create kernel [patch, patch, 3, V] and bias [V]."""
        patch, width = config.patch_size, config.hidden_size
        shape = (patch, patch, 3, width)
        values = INIT_STD * jax.random.normal(build.rngs.params(), shape, build.param_dtype)
        self.dtype = build.compute_dtype
        self.kernel = nnx.Param(values)
        self.bias = nnx.Param(jnp.zeros((width,), build.param_dtype))

    def __call__(self, frames: Array) -> Array:
        """Return float[B, P, V] for float[B, H, W, 3], patches row by row."""
        kernel = self.kernel[...].astype(self.dtype)
        patch, width = kernel.shape[0], kernel.shape[-1]
        batch, height, across = frames.shape[0], frames.shape[1] // patch, frames.shape[2] // patch
        frames = frames[:, : height * patch, : across * patch].astype(self.dtype)
        cut = frames.reshape(batch, height, patch, across, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        flat = cut.reshape(batch, height * across, patch * patch * 3)
        return flat @ kernel.reshape(-1, width) + self.bias[...].astype(self.dtype)


class VisionEmbeddings(nnx.Module):
    """Patches plus their positions."""

    def __init__(self, config: VisionConfig, build: Build):
        """Create the patch projection and the position table [N * N, V]."""
        self.patches_per_side = config.patches_per_side
        self.patch_size = config.patch_size
        self.patch_embedding = PatchEmbedding(config, build)
        self.position_embedding = Embedding(
            config.patches_per_side**2,
            config.hidden_size,
            rngs=build.rngs,
            param_dtype=build.param_dtype,
        )

    def __call__(self, frames: Array) -> Array:
        """Return float[B, P, V] for float[B, H, W, 3]."""
        patches = self.patch_embedding(frames)
        height, width = (size // self.patch_size for size in frames.shape[1:3])
        ids = position_ids(height, width, self.patches_per_side)
        return patches + self.position_embedding(ids).astype(patches.dtype)


class VisionEncoder(nnx.Module):
    """The stack of blocks."""

    def __init__(self, path: str, config: VisionConfig, build: Build):
        """Create `layers`, every leaf stacked over the blocks."""
        self.depth = config.num_hidden_layers
        self.layers = VisionBlock(f"{path}.layers", config, build.stacked(self.depth))

    def __call__(
        self, x: Array, *, keep: Callable[[Array], Array] | None = None
    ) -> tuple[Array, Array | None]:
        """Return the last block's output and what is kept of each block's, [L, ...], or None."""
        return scan_blocks(
            self.layers,
            x,
            lambda block, x, _: block(x),
            depth=self.depth,
            keep=keep,
        )


class VisionModel(nnx.Module):
    """Frames to patch features."""

    def __init__(self, config: VisionConfig, build: Build):
        """Create embeddings, encoder and the last norm."""
        path = "vision_model"
        self.embeddings = VisionEmbeddings(config, build)
        self.encoder = VisionEncoder(f"{path}.encoder", config, build)
        self.post_layernorm = LayerNorm(
            config.hidden_size, config.layer_norm_eps, param_dtype=build.param_dtype
        )

    def __call__(self, frames: Array) -> Array:
        """Return float[B, P, V] for normalised float[B, H, W, 3]."""
        x, _ = self.encoder(self.embeddings(frames))
        return self.post_layernorm(x)

    def every_layer(self, frames: Array) -> Array:
        """Return float[L + 1, B, P, V]: the embeddings, then each block's output, not normed."""
        x = self.embeddings(frames)
        _, outputs = self.encoder(x, keep=lambda x: x)
        return jnp.concatenate([x[None], outputs])
