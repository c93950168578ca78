"""Weighted InfoNCE over the global batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vtalign_jax.array_types import Identity
from vtalign_jax.config import ObjectiveConfig
from vtalign_jax.objectives import negatives


def weighted_info_nce(
    z_video: jax.Array, z_text: jax.Array, temperature: jax.Array, weights: jax.Array
) -> jax.Array:
    """Return the symmetric InfoNCE loss with weighted negatives.

    Args:
      z_video: float32[B, E], unit norm.
      z_text: float32[B, E], unit norm; row i describes clip i.
      temperature: float32[], > 0.
      weights: float32[B, B] in [0, 1], diagonal 1; weights[i, j] scales text j as a negative of
        clip i.

    Returns:
      float32[], the two directions summed, averaged over pairs.

    Source: pretraining plan, section 6.1; weighting after EgoNCE (Lin et al., 2022).
    """
    video = directional_losses(z_video, z_text, z_text, temperature, weights)
    text = directional_losses(z_text, z_video, z_video, temperature, weights.T)
    return jnp.mean(video + text)


def directional_losses(
    queries: jax.Array,
    positives: jax.Array,
    candidates: jax.Array,
    temperature: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    """Return `log sum_j w_ij exp(s_ij) - s_ii` for each query.

    Args:
      queries: float32[B, E].
      positives: float32[B, E], the right answer of each query, also one of the candidates.
      candidates: float32[C, E].
      temperature: float32[].
      weights: float32[B, C], 1 for the positive.

    Returns:
      float32[B]; 0 for a query without negatives.
    """
    precision = jax.lax.Precision.HIGHEST  # a TPU's default float32 product is one bf16 pass
    scores = jnp.einsum("BE,CE->BC", queries, candidates, precision=precision) / temperature
    positive = jnp.einsum("BE,BE->B", queries, positives, precision=precision) / temperature
    is_kept = weights > 0
    # exp(s) * w in log space: log(sum(softmax * mask)) would underflow at a low temperature.
    weighted = jnp.where(is_kept, scores + jnp.log(jnp.where(is_kept, weights, 1.0)), -jnp.inf)
    return jax.nn.logsumexp(weighted, axis=1) - positive


def global_info_nce(
    z_video: jax.Array,
    z_text: jax.Array,
    temperature: jax.Array,
    identity: Identity,
    objective: ObjectiveConfig,
    gather: Callable = lambda x: x,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the loss of a global batch, its weights computed from who the rows are.

    Args:
      z_video: float32[B, E], unit norm.
      z_text: float32[B, E], unit norm.
      temperature: float32[].
      identity: identity arrays of the B rows.
      objective: weights of the pair classes.
      gather: brings a tree of arrays, sharded by rows, whole to every device. Each device then owns
        some rows of both directions and sees all columns.

    Returns:
      float32[], averaged over real pairs, and what the weights did: share of pairs in each class
      and mean effective negatives a row (sum of w over j != i).
    """
    all_video, all_text, all_identity = gather((z_video, z_text, identity))
    classes = negatives.pair_classes(identity, all_identity, objective.neighbour_radius)  # [B, B]
    # A padding row keeps its own column, so that its logsumexp is finite before it is masked out.
    itself = jnp.arange(classes.shape[0])[:, None] == jnp.arange(classes.shape[1])[None, :]
    weights = jnp.where(itself, 1.0, negatives.class_weights(objective)[classes])
    video = directional_losses(z_video, z_text, all_text, temperature, weights)
    text = directional_losses(z_text, z_video, all_video, temperature, weights)  # w is symmetric
    rows = identity.row_mask.astype(jnp.float32)
    count = jnp.maximum(jnp.sum(rows), 1.0)
    loss = jnp.sum(jnp.where(identity.row_mask, video + text, 0.0)) / count
    return loss, _describe(classes, jnp.where(itself, 0.0, weights), rows, count)


def _describe(
    classes: jax.Array, weights: jax.Array, rows: jax.Array, count: jax.Array
) -> dict[str, jax.Array]:
    """Return the share of real pairs i != j in each class and the effective negatives a row."""
    pairs = jnp.maximum(count * (count - 1.0), 1.0)
    described = {
        f"pairs/{name}": jnp.sum(classes == negatives.CLASSES.index(name)) / pairs
        for name in ("cross_recording", "same_recording", "ignored")
    }
    described["effective_negatives"] = jnp.sum(weights * rows[:, None]) / count
    return described
