"""Attention on an NVIDIA GPU: cuDNN's flash attention, which keeps no logits, through `jax.nn`."""

import jax
import jax.extend
import jax.numpy as jnp

from vtalign_jax.array_types import Array

_DTYPES = (jnp.bfloat16, jnp.float16)  # cuDNN has no float32 flash attention
_LARGEST_HEAD = 128
_AMPERE = 8.0  # compute capability


def is_possible(q: Array) -> bool:
    """Return whether cuDNN is at hand and takes queries of this shape and dtype."""
    size = q.shape[-1]
    return q.dtype in _DTYPES and size % 8 == 0 and size <= _LARGEST_HEAD and _has_cudnn()


def attend(q: Array, k: Array, v: Array, key_mask: Array | None, *, causal: bool) -> Array:
    """Return what `attention.plain_attention` does, up to the rounding of bfloat16.

    cuDNN's gradients want an even length: an odd one grows by a position that nothing sees.

    Args:
      q: bfloat16 or float16 [B, S, N, H].
      k: [B, S, K, H].
      v: [B, S, K, H].
      key_mask: bool[B, S], False hides a key; None hides none.
      causal: whether query i sees only keys j <= i.

    Returns:
      [B, S, N, H] in q's dtype.
    """
    batch, length = q.shape[:2]
    odd = length % 2
    q, k, v = (jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0))) for x in (q, k, v))
    mask, lengths = None, None
    if key_mask is not None:
        keys = jnp.pad(key_mask, ((0, 0), (0, odd)))
        mask = jnp.broadcast_to(keys[:, None, None], (batch, 1, length + odd, length + odd))
    elif odd and not causal:
        lengths = jnp.full((batch,), length, jnp.int32)
    mixed = jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=mask,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        is_causal=causal,
        implementation="cudnn",
    )
    return mixed[:, :length]


def _has_cudnn() -> bool:
    """Return whether cuDNN has flash attention for the devices: NVIDIA's, of Ampere or later."""
    backend = jax.extend.backend.get_backend()
    if "cuda" not in backend.platform_version:
        return False
    return all(float(each.compute_capability) >= _AMPERE for each in backend.local_devices())
