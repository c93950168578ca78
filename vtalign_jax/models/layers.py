"""The parts that towers and decoder share: norms, embedding table, stacks of equal blocks.

Every constructor takes `stack`: `(L,)` gives each leaf a leading axis of `L` equal blocks, over
which `scan_blocks` runs; `()` is a single layer.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vtalign_jax.array_types import Array

INIT_STD = 0.02  # transformers' initializer_range

# What of a decoder block the backward pass computes again instead of keeping it, least memory
# last: nothing, what is no product with weights, the MLP as well, all but the block's input.
# `GATHERED` are frozen weights that lie in parts on several devices, brought together for one
# layer; they are never kept.
GATHERED = "gathered"
ATTENTION = ("query", "key", "value", "mixed", "attended")
PRODUCTS = (*ATTENTION, "gate", "up")
_save_only = jax.checkpoint_policies.save_only_these_names
REMAT = {
    "none": jax.checkpoint_policies.save_anything_except_these_names(GATHERED),
    "norms": _save_only(*PRODUCTS),
    "mlp": _save_only(*ATTENTION),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, computed in float32."""

    def __init__(self, size: int, eps: float, *, param_dtype: Any, stack: tuple[int, ...] = ()):
        """Create scale (ones) and bias (zeros), each [*stack, size]."""
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((*stack, size), param_dtype))
        self.bias = nnx.Param(jnp.zeros((*stack, size), param_dtype))

    def __call__(self, x: Array) -> Array:
        """Return the norm of float[..., size] in the same dtype."""
        x32 = x.astype(jnp.float32)
        mean = x32.mean(-1, keepdims=True)
        centred = x32 - mean
        if x.dtype == jnp.float32:
            variance = jnp.square(centred).mean(-1, keepdims=True)
        else:  # one pass over x; what this loses is far below the rounding of x itself
            variance = jnp.square(x32).mean(-1, keepdims=True) - jnp.square(mean)
        normed = centred * jax.lax.rsqrt(variance + self.eps)
        scaled = normed * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)
        return scaled.astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis, computed in float32."""

    def __init__(self, size: int, eps: float, *, param_dtype: Any, stack: tuple[int, ...] = ()):
        """Create scale (ones), [*stack, size]."""
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((*stack, size), param_dtype))

    def __call__(self, x: Array) -> Array:
        """Return the norm of float[..., size] in the same dtype."""
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.eps)
        return (normed * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Embedding(nnx.Module):
    """A table of vectors."""

    def __init__(self, count: int, size: int, *, rngs: nnx.Rngs, param_dtype: Any):
        """Create the table, [count, size]."""
        table = INIT_STD * jax.random.normal(rngs.params(), (count, size), param_dtype)
        self.embedding = nnx.Param(table)

    def __call__(self, ids: Array) -> Array:
        """Return float[..., size] for int[...]."""
        return jnp.take(self.embedding[...], ids, axis=0)


def scan_blocks(
    blocks: nnx.Module,
    x: Array,
    call: Callable[[Any, Array, Array], Array],
    *,
    depth: int,
    first: int = 0,
    keep: Callable[[Array], Array] | None = None,
    remat: str = "none",
) -> tuple[Array, Array | None]:
    """Run `depth` stacked blocks one after the other.

    Args:
      blocks: module whose every leaf has a leading axis of length `depth`.
      x: float[B, S, D], the first block's input.
      call: (one block, its input, its index) -> its output.
      depth: number of blocks.
      first: index given to the first block.
      keep: what of every block's output to return as well.
      remat: what of a block is computed again in the backward pass, see `REMAT`.

    Returns:
      the last block's output, and what is kept of each, [depth, ...], or None.
    """
    graphdef, state = nnx.split(blocks)

    def body(x: Array, step: tuple[Array, nnx.State]) -> tuple[Array, Array | None]:
        index, block_state = step
        x = call(nnx.merge(graphdef, block_state), x, index)
        return x, None if keep is None else keep(x)

    # A scan's body is never merged by CSE.
    body = jax.checkpoint(body, prevent_cse=False, policy=REMAT[remat])
    return jax.lax.scan(body, x, (first + jnp.arange(depth), state))
