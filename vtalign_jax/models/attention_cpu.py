"""Exact attention for XLA's CPU backend: one key-value head of a row after the other.

Logits of all heads at once are written to memory and read back several times; those of one head
stay in the cache. Nothing of length S x S outlives its head: the backward pass makes the weights
again from two numbers a query. Causal queries are taken in spans, so that most hidden keys are not
looked at.

Source: Rabe and Staats (2021), "Self-attention Does Not Need O(n^2) Memory"; the backward pass
after FlashAttention (Dao et al., 2022).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vtalign_jax.array_types import Array

_LOWEST = jnp.finfo(jnp.float32).min
_SPAN, _MOST_SPANS = 128, 8  # queries of a span at least; spans are unrolled, so not too many


class _Head(NamedTuple):
    """One key-value head of R rows, whose G query heads it serves; T = S.

    Attributes:
      q: float[R, G, S, H].
      k: float[R, T, H].
      v: float[R, T, H].
      is_real: bool[R, T], or None.
    """

    q: Array
    k: Array
    v: Array
    is_real: Array | None


class _Mixed(NamedTuple):
    """What its attention gives: mixture and softmax.

    Attributes:
      mixed: float[R, G, S, H].
      largest: float32[R, G, S], logit of each query.
      total: float32[R, G, S], of the exponentials of the differences to it.
    """

    mixed: Array
    largest: Array
    total: Array


def attention_by_head(
    q: Array, k: Array, v: Array, *, key_mask: Array | None = None, causal: bool = False
) -> Array:
    """Return softmax(q k^T / sqrt(H)) v with grouped key-value heads, computed in float32.

    Rows are taken as many at a time as there are devices, so that a batch which is split over them
    stays split.

    Args:
      q: float[B, S, N, H].
      k: float[B, S, K, H]; N is a multiple of K, head n reads key-value head n // (N / K).
      v: float[B, S, K, H].
      key_mask: bool[B, S], False hides a key from every query; None hides none. A query without
        any allowed key gets a finite mixture, never NaN.
      causal: whether query i sees only keys j <= i.

    Returns:
      float[B, S, N, H] in q's dtype.
    """
    batch, length, _, size = q.shape
    heads, rows = k.shape[2], math.gcd(batch, jax.device_count())
    is_real = None
    if key_mask is not None:
        is_real = key_mask.astype(bool).reshape(rows, -1, length).swapaxes(0, 1)
        is_real = jnp.repeat(is_real, heads, axis=0)  # [B / R * K, R, T]
    q = _cut(q, heads, rows)
    k, v = (_cut(x, heads, rows)[:, :, 0] for x in (k, v))
    mixed = _attend(_Head(q, k, v, is_real), causal)
    mixed = mixed.reshape(batch // rows, heads, rows, -1, length, size)
    mixed = mixed.transpose(2, 0, 4, 1, 3, 5)  # [R, B / R, S, K, G, H]
    return mixed.reshape(batch, length, -1, size)  # [B, S, N, H]


def _cut(x: Array, heads: int, rows: int) -> Array:
    """Return float[B / R * K, R, G, S, H] for float[B, S, K * G, H]: a scan's steps first."""
    batch, length, _, size = x.shape
    x = x.reshape(rows, batch // rows, length, heads, -1, size)
    x = x.transpose(1, 3, 0, 4, 2, 5)  # [B / R, K, R, G, S, H]
    return x.reshape(-1, rows, x.shape[3], length, size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _attend(heads: _Head, causal: bool) -> Array:
    """Return the mixtures of a stack of heads, float[C, R, G, S, H]."""
    return _forward(heads, causal)[0]


def _forward(heads: _Head, causal: bool) -> tuple[Array, tuple[_Head, _Mixed]]:
    def mix(_: None, head: _Head) -> tuple[None, _Mixed]:
        parts = [_mix_span(head, span, causal) for span in _spans(head, causal)]
        return None, _Mixed(*(jnp.concatenate(part, axis=2) for part in zip(*parts, strict=True)))

    _, found = jax.lax.scan(mix, None, heads)
    return found.mixed, (heads, found)


def _backward(causal: bool, residuals: tuple[_Head, _Mixed], slopes: Array) -> tuple[_Head]:
    def differentiate(_: None, step: tuple) -> tuple[None, _Head]:
        head, found, slope = step
        to_q, to_k, to_v = [], jnp.zeros(head.k.shape), jnp.zeros(head.v.shape)
        for span in _spans(head, causal):
            of_q, of_k, of_v = _differentiate_span(head, found, slope, span, causal)
            seen = of_k.shape[1]
            to_q.append(of_q)
            to_k, to_v = to_k.at[:, :seen].add(of_k), to_v.at[:, :seen].add(of_v)
        to_q = jnp.concatenate(to_q, axis=2).astype(head.q.dtype)
        return None, _Head(to_q, to_k.astype(head.k.dtype), to_v.astype(head.v.dtype), None)

    _, gradient = jax.lax.scan(differentiate, None, (*residuals, slopes))
    return (gradient,)


_attend.defvjp(_forward, _backward)


def _spans(head: _Head, causal: bool) -> list[tuple[int, int]]:
    """Return the spans [start, end) of queries that are taken at once; their keys end with them."""
    length = head.q.shape[2]
    count = min(max(length // _SPAN, 1), _MOST_SPANS) if causal else 1
    width = -(-length // count)
    return [(start, min(start + width, length)) for start in range(0, length, width)]


def _mix_span(head: _Head, span: tuple[int, int], causal: bool) -> _Mixed:
    """Return mixture and softmax of a span of queries."""
    logits, _ = _logits(head, span, causal)
    largest = logits.max(axis=-1)
    powers = jnp.exp(logits - largest[..., None])
    total = powers.sum(axis=-1)
    mixed = jnp.einsum("RGST,RTH->RGSH", powers, _float32(head.v[:, : logits.shape[-1]]))
    return _Mixed((mixed / total[..., None]).astype(head.q.dtype), largest, total)


def _differentiate_span(
    head: _Head, found: _Mixed, slope: Array, span: tuple[int, int], causal: bool
) -> tuple[Array, Array, Array]:
    """Return a span's gradient: float32 to its queries, and to the keys and values it sees."""
    queries, scale = slice(*span), head.q.shape[-1] ** -0.5
    logits, allowed = _logits(head, span, causal)
    q, k, v = (_float32(x) for x in (head.q[:, :, queries], head.k, head.v))
    k, v = (x[:, : logits.shape[-1]] for x in (k, v))
    slope, mixed = (_float32(x[:, :, queries]) for x in (slope, found.mixed))
    largest, total = (x[:, :, queries, None] for x in (found.largest, found.total))
    weights = jnp.exp(logits - largest) * (1.0 / total)
    shared = jnp.sum(slope * mixed, axis=-1, keepdims=True)  # [R, G, S, 1]
    to_logits = weights * (jnp.einsum("RGSH,RTH->RGST", slope, v) - shared) * scale
    if allowed is not None:  # a query that sees no key has weights all the same
        to_logits = jnp.where(allowed, to_logits, 0.0)
    return (
        jnp.einsum("RGST,RTH->RGSH", to_logits, k),
        jnp.einsum("RGST,RGSH->RTH", to_logits, q),
        jnp.einsum("RGST,RGSH->RTH", weights, slope),
    )


def _logits(head: _Head, span: tuple[int, int], causal: bool) -> tuple[Array, Array | None]:
    """Return a span's float32[R, G, S, T], the hidden ones lowest, and which are not hidden."""
    start, end = span
    keys = slice(0, end if causal else head.k.shape[1])
    q = _float32(head.q[:, :, start:end]) * head.q.shape[-1] ** -0.5
    logits = jnp.einsum("RGSH,RTH->RGST", q, _float32(head.k[:, keys]))
    allowed = None
    if causal:
        allowed = jnp.arange(end) <= jnp.arange(start, end)[:, None]
    if head.is_real is not None:
        real = head.is_real[:, None, None, keys]
        allowed = real if allowed is None else allowed & real
    return logits if allowed is None else jnp.where(allowed, logits, _LOWEST), allowed


def _float32(x: Array) -> Array:
    return x.astype(jnp.float32)
