"""The caption loss: the base goes on from a clip with the text that describes it.

Logits exist only where a token of a caption is predicted, in float32, a few positions at a time,
and are computed again for the gradient.

Source: pretraining plan, section 6.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vtalign_jax.models.aligner import Captions

TILE = 2**25  # logits at once: 128 MiB of float32


def count_tokens(caption_mask: jax.Array, row_mask: jax.Array) -> jax.Array:
    """Return how many tokens of captions there are in real rows: float32[].

    Args:
      caption_mask: bool[B, S] or bool[B, C].
      row_mask: bool[B].
    """
    return jnp.sum((caption_mask & row_mask[:, None]).astype(jnp.float32))


def caption_nll(
    logits: Callable[[jax.Array], jax.Array],
    captions: Captions,
    row_mask: jax.Array,
    tile: int = TILE,
) -> jax.Array:
    """Return the negative log-likelihood of the captions, summed over their tokens: float32[].

    Divided by `count_tokens` of the global batch it is the caption loss.

    Args:
      logits: `SmolVLM.logits`, float[..., D] -> float32[..., vocab].
      captions: of B rows.
      row_mask: bool[B], False for rows that do not count.
      tile: most logits at once.
    """
    rows, length = captions.tokens.shape
    vocabulary = jax.eval_shape(logits, captions.hidden).shape[-1]
    size = min(length, max(1, tile // (rows * vocabulary)))
    counted = captions._replace(mask=captions.mask & row_mask[:, None])
    chunks = jax.tree.map(lambda x: _cut(x, size), counted)

    def add(total: jax.Array, chunk: Captions) -> tuple[jax.Array, None]:
        scores = logits(chunk.hidden).astype(jnp.float32)  # [B, size, vocab]
        of_token = jnp.take_along_axis(scores, chunk.tokens[..., None], axis=-1)[..., 0]
        nll = jax.nn.logsumexp(scores, axis=-1) - of_token
        return total + jnp.sum(jnp.where(chunk.mask, nll, 0.0)), None

    add = jax.checkpoint(add, prevent_cse=False)  # a scan's body is never merged by CSE
    return jax.lax.scan(add, jnp.float32(0.0), chunks)[0]


def _cut(x: jax.Array, size: int) -> jax.Array:
    """Return [K, B, size, ...] for [B, C, ...], filled up with zeros (False in a mask)."""
    missing = -x.shape[1] % size
    filled = jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))
    parts = filled.reshape(x.shape[0], -1, size, *x.shape[2:])
    return jnp.moveaxis(parts, 1, 0)
