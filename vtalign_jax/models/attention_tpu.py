"""Attention as TPU kernels that never write logits to HBM.

A kernel's instance holds all rows of a few heads of one sequence in VMEM, in the very layout that
the projections have, [B, S, N * H]: heads of any size are cut out there, so that nothing is padded,
moved or turned in HBM before or after. Queries are taken in blocks; with a causal mask a block
stops at its own last key. The gradient computes the softmax again and needs q, k and v alone.

Sources: Pallas for TPU (docs.jax.dev/en/latest/pallas/tpu); FlashAttention (Dao et al., 2022) for
the backward pass; whole rows fit in VMEM here, so that the softmax is the plain one.
"""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vtalign_jax.array_types import Array

_LANES = 128
_QUERIES = 256  # of a block: logits of a block are [256, S] float32
_VMEM = 96 * 2**20
_HIDDEN = float(jnp.finfo(jnp.float32).min)


class _Shape(NamedTuple):
    """What one kernel instance works on.

    Attributes:
      length: S.
      size: H.
      groups: query heads that read one key-value head.
      heads: key-value heads of an instance.
      instances: of one sequence.
      causal: whether query i sees only keys j <= i.
      has_mask: whether keys are hidden by a mask.
    """

    length: int
    size: int
    groups: int
    heads: int
    instances: int
    causal: bool
    has_mask: bool

    def blocks(self) -> list[tuple[int, int, int]]:
        """Return (first query, end of the queries, end of their keys) of each block."""
        starts = range(0, self.length, _QUERIES)
        ends = [min(start + _QUERIES, self.length) for start in starts]
        return [
            (a, b, b if self.causal else self.length) for a, b in zip(starts, ends, strict=True)
        ]

    def visible(self, mask_ref: Array | None, block: tuple[int, int, int]) -> Array | None:
        """Return bool[rows, keys] of a block, None if all is visible."""
        first, end, keys = block
        mask = None
        if self.causal:
            shape = (end - first, keys)
            rows = jax.lax.broadcasted_iota(jnp.int32, shape, 0) + first
            mask = rows >= jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        if mask_ref is not None:
            keys_mask = mask_ref[0, :, :keys] != 0  # [1, keys]
            mask = keys_mask if mask is None else mask & keys_mask
        return mask


def attend(q: Array, k: Array, v: Array, key_mask: Array | None, *, causal: bool) -> Array:
    """Return what `attention.attention` does, same arguments."""
    shape, operands, specs = _prepare(q, k, v, key_mask, causal)
    batch, length, heads, size = q.shape
    found = pl.pallas_call(
        functools.partial(_forward, shape),
        grid=(batch, shape.instances),
        in_specs=specs,
        out_specs=specs[-3],
        out_shape=jax.ShapeDtypeStruct((batch, length, heads * size), q.dtype),
        name="attention",
        **_options(shape, batch, products=2, arrays=(*operands, q)),
    )(*operands)
    return found.reshape(q.shape)


def differentiate(
    q: Array, k: Array, v: Array, key_mask: Array | None, cotangent: Array, *, causal: bool
) -> tuple[Array, Array, Array]:
    """Return the gradients to q, k and v for the gradient to what `attend` returned."""
    shape, operands, specs = _prepare(q, k, v, key_mask, causal)
    batch = len(q)
    results = [x.reshape(*x.shape[:2], -1) for x in (q, k, v)]
    operands = (*operands, cotangent.reshape(results[0].shape))
    width = shape.heads * shape.size
    found = pl.pallas_call(
        functools.partial(_backward, shape),
        grid=(batch, shape.instances),
        in_specs=(*specs, specs[-3]),
        out_specs=specs[-3:],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
        scratch_shapes=[pltpu.VMEM((shape.length, width), jnp.float32) for _ in range(2)],
        name="attention_gradient",
        **_options(shape, batch, products=5, arrays=(*operands, *results)),
    )(*operands)
    return tuple(x.reshape(like.shape) for x, like in zip(found, (q, k, v), strict=True))


def _prepare(q: Array, k: Array, v: Array, key_mask: Array | None, causal: bool) -> tuple:
    """Return the shape of an instance, the operands and their block specifications."""
    batch, length, heads, size = q.shape
    key_heads = k.shape[2]
    together = _heads_together(key_heads, size)
    groups = heads // key_heads
    instances = key_heads // together
    shape = _Shape(length, size, groups, together, instances, causal, key_mask is not None)
    narrow = pl.BlockSpec((1, length, together * size), lambda i, j: (i, 0, j))
    wide = pl.BlockSpec((1, length, together * groups * size), lambda i, j: (i, 0, j))
    operands = tuple(x.reshape(batch, length, -1) for x in (q, k, v))
    specs = (wide, narrow, narrow)
    if key_mask is not None:
        row = pl.BlockSpec((1, 1, length), lambda i, j: (i, 0, 0))
        operands, specs = (key_mask.astype(jnp.int32)[:, None], *operands), (row, *specs)
    return shape, operands, specs


def _heads_together(key_heads: int, size: int) -> int:
    """Return how many key-value heads fill whole lanes; all of them if no smaller number does."""
    fewest = _LANES // math.gcd(size, _LANES)
    return fewest if key_heads % fewest == 0 else key_heads


def _options(shape: _Shape, batch: int, *, products: int, arrays: tuple) -> dict:
    """Return what the compiler is told; it cannot see the work of a kernel."""
    pairs = batch * shape.instances * shape.heads * shape.groups * shape.length**2
    pairs //= 2 if shape.causal else 1
    return {
        "compiler_params": pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=_VMEM
        ),
        "cost_estimate": pl.CostEstimate(
            flops=2 * products * pairs * shape.size,
            transcendentals=pairs,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays),
        ),
    }


def _split(shape: _Shape, refs: tuple) -> tuple:
    """Return the mask or None, and the other references."""
    return (refs[0], refs[1:]) if shape.has_mask else (None, refs)


class _Part(NamedTuple):
    """A block of queries of one head, and the keys and values that it reads.

    Attributes:
      rows: of the queries.
      head: columns of the query head.
      keys: rows of the keys.
      key_head: columns of the key-value head.
      k: float[keys, H].
      v: float[keys, H].
      mask: bool[rows, keys], or None.
    """

    rows: slice
    head: slice
    keys: slice
    key_head: slice
    k: Array
    v: Array
    mask: Array | None


def _parts(shape: _Shape, mask_ref: Array | None, k_ref: Array, v_ref: Array) -> Iterator[_Part]:
    """Yield all that an instance computes, one product of queries and keys after the other."""
    size, groups = shape.size, shape.groups
    for block in shape.blocks():
        first, end, last_key = block
        mask, keys = shape.visible(mask_ref, block), slice(last_key)
        for number in range(shape.heads):
            columns = slice(number * size, (number + 1) * size)
            k, v = k_ref[0, keys, columns], v_ref[0, keys, columns]
            for reader in range(number * groups, (number + 1) * groups):
                head = slice(reader * size, (reader + 1) * size)
                yield _Part(slice(first, end), head, keys, columns, k, v, mask)


def _probabilities(q: Array, k: Array, mask: Array | None) -> Array:
    """Return softmax(q k^T / sqrt(H)): float32[rows, keys]."""
    logits = _product(q, k, (1, 1)) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, _HIDDEN)
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def _product(a: Array, b: Array, axes: tuple[int, int]) -> Array:
    """Return the product that sums over one axis of each, in float32."""
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _forward(shape: _Shape, *refs: Array) -> None:
    mask_ref, (q_ref, k_ref, v_ref, out_ref) = _split(shape, refs)
    for part in _parts(shape, mask_ref, k_ref, v_ref):
        weights = _probabilities(q_ref[0, part.rows, part.head], part.k, part.mask)
        mixed = _product(weights.astype(part.v.dtype), part.v, (1, 0))
        out_ref[0, part.rows, part.head] = mixed.astype(out_ref.dtype)


def _backward(shape: _Shape, *refs: Array) -> None:
    mask_ref, refs = _split(shape, refs)
    q_ref, k_ref, v_ref, cotangent_ref, dq_ref, dk_ref, dv_ref, dk_sum, dv_sum = refs
    dk_sum[...], dv_sum[...] = jnp.zeros_like(dk_sum), jnp.zeros_like(dv_sum)
    for part in _parts(shape, mask_ref, k_ref, v_ref):
        q, cotangent = (x[0, part.rows, part.head] for x in (q_ref, cotangent_ref))
        weights = _probabilities(q, part.k, part.mask)
        slope = _product(cotangent, part.v, (1, 1))  # [rows, keys]
        slope -= jnp.sum(slope * weights, axis=-1, keepdims=True)
        slope = (slope * weights * shape.size**-0.5).astype(q.dtype)
        summed = part.keys, part.key_head
        dv_sum[summed] += _product(weights.astype(part.v.dtype), cotangent, (0, 0))
        dk_sum[summed] += _product(slope, q, (0, 0))
        dq_ref[0, part.rows, part.head] = _product(slope, part.k, (1, 0)).astype(dq_ref.dtype)
    dk_ref[0] = dk_sum[...].astype(dk_ref.dtype)
    dv_ref[0] = dv_sum[...].astype(dv_ref.dtype)
