"""Attention, in one place: the plain form, and which other one a TPU, a GPU and a CPU take."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vtalign_jax.array_types import Array
from vtalign_jax.models import attention_gpu, attention_tpu
from vtalign_jax.models.attention_cpu import attention_by_head

_LONG_ON_CPU = 256  # below it all logits at once take no longer, and compile sooner


def attention(
    q: Array, k: Array, v: Array, *, key_mask: Array | None = None, causal: bool = False
) -> Array:
    """Return softmax(q k^T / sqrt(H)) v with grouped key-value heads.

    Logits and softmax are float32, whatever the inputs are. A query without any allowed key
    (left padding) gets a finite mixture, never NaN.

    Args:
      q: float[B, S, N, H].
      k: float[B, S, K, H]; N is a multiple of K, head n reads key-value head n // (N / K).
      v: float[B, S, K, H].
      key_mask: bool[B, S], False hides a key from every query; None hides none.
      causal: whether query i sees only keys j <= i.

    Returns:
      float[B, S, N, H] in q's dtype.
    """
    return _attention(q, k, v, key_mask, causal)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q: Array, k: Array, v: Array, key_mask: Array | None, causal: bool) -> Array:
    return jax.lax.platform_dependent(
        q,
        k,
        v,
        key_mask,
        tpu=functools.partial(attention_tpu.attend, causal=causal),
        cuda=functools.partial(_on_cuda, causal=causal),
        cpu=functools.partial(_on_cpu, causal=causal),
        default=functools.partial(plain_attention, causal=causal),
    )


def _forward(q: Array, k: Array, v: Array, key_mask: Array | None, causal: bool) -> tuple:
    return _attention(q, k, v, key_mask, causal), (q, k, v, key_mask)


def _backward(causal: bool, kept: tuple, cotangent: Array) -> tuple:
    gradients = jax.lax.platform_dependent(
        *kept,
        cotangent,
        tpu=functools.partial(attention_tpu.differentiate, causal=causal),
        cuda=functools.partial(_gradients, _on_cuda, causal=causal),
        cpu=functools.partial(_gradients, _on_cpu, causal=causal),
        default=functools.partial(_gradients, plain_attention, causal=causal),
    )
    return *gradients, None


_attention.defvjp(_forward, _backward)


def plain_attention(q: Array, k: Array, v: Array, key_mask: Array | None, *, causal: bool) -> Array:
    """Return what `attention` does, all logits at once."""
    batch, length, heads, size = q.shape
    groups = heads // k.shape[2]
    q = q.reshape(batch, length, k.shape[2], groups, size)  # [B, S, K, G, H]
    logits = jnp.einsum("BSKGH,BTKH->BKGST", q, k, preferred_element_type=jnp.float32)
    logits = logits * size**-0.5
    mask = None
    if causal:
        mask = jnp.tril(jnp.ones((length, length), bool))
    if key_mask is not None:
        keys = key_mask[:, None, None, None, :]
        mask = keys if mask is None else mask & keys
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    mixed = jnp.einsum("BKGST,BTKH->BSKGH", weights, v)
    return mixed.reshape(batch, length, heads, size)  # [B, S, N, H]


def _on_cuda(q: Array, k: Array, v: Array, key_mask: Array | None, *, causal: bool) -> Array:
    form = attention_gpu.attend if attention_gpu.is_possible(q) else plain_attention
    return form(q, k, v, key_mask, causal=causal)


def _on_cpu(q: Array, k: Array, v: Array, key_mask: Array | None, *, causal: bool) -> Array:
    if q.shape[1] < _LONG_ON_CPU:
        return plain_attention(q, k, v, key_mask, causal=causal)
    return attention_by_head(q, k, v, key_mask=key_mask, causal=causal)


def _gradients(
    attend: Callable,
    q: Array,
    k: Array,
    v: Array,
    key_mask: Array | None,
    cotangent: Array,
    *,
    causal: bool,
) -> tuple[Array, Array, Array]:
    def of_inputs(q: Array, k: Array, v: Array) -> Array:
        return attend(q, k, v, key_mask, causal=causal)

    return jax.vjp(of_inputs, q, k, v)[1](cotangent)
