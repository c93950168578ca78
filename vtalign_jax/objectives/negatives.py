"""How much text j counts as a negative of clip i: classes of pairs and their weights.

Source: pretraining plan, section 6.1. All of it is computed on the device from the dense integers
of `Identity`; no [B, B] matrix ever enters or leaves it.
"""

import jax
import jax.numpy as jnp

from vtalign_jax.array_types import Identity
from vtalign_jax.config import ObjectiveConfig

# Of several classes that fit a pair the last one listed counts: zero beats lambda beats 1.
CLASSES = ("cross_recording", "same_recording", "ignored", "positive", "padding")


def pair_classes(rows: Identity, columns: Identity, neighbour_radius: int) -> jax.Array:
    """Return the class of each (row, column) pair as an index into `CLASSES`.

    A pair is ignored when its texts are equal (in any recording), when one node is the other's
    neighbour in order (same uid and level) or its ancestor, or when the sampled windows of one
    recording intersect. A record paired with itself is the positive.

    Args:
      rows: identity arrays of length Br.
      columns: identity arrays of length Bc.
      neighbour_radius: largest difference of `order` that makes two nodes neighbours.

    Returns:
      int32[Br, Bc].
    """

    def equal(field: str) -> jax.Array:
        return getattr(rows, field)[:, None] == getattr(columns, field)[None, :]

    same_recording = equal("recording")
    distance = jnp.abs(rows.order[:, None] - columns.order[None, :])
    neighbours = equal("uid") & equal("level") & (distance <= neighbour_radius)
    starts = jnp.maximum(rows.window[:, None, 0], columns.window[None, :, 0])
    ends = jnp.minimum(rows.window[:, None, 1], columns.window[None, :, 1])
    overlapping = same_recording & (starts < ends)
    related = _is_ancestor(rows, columns) | _is_ancestor(columns, rows).T
    ignored = equal("text") | neighbours | overlapping | related

    padding = ~(rows.row_mask[:, None] & columns.row_mask[None, :])
    classes = jnp.where(same_recording, CLASSES.index("same_recording"), 0)
    classes = jnp.where(ignored, CLASSES.index("ignored"), classes)
    classes = jnp.where(equal("record"), CLASSES.index("positive"), classes)
    return jnp.where(padding, CLASSES.index("padding"), classes)  # [Br, Bc]


def class_weights(objective: ObjectiveConfig) -> jax.Array:
    """Return the weight of each class of `CLASSES`: float32[len(CLASSES)]."""
    return jnp.array([1.0, objective.same_recording_weight, 0.0, 1.0, 0.0], jnp.float32)


def _is_ancestor(rows: Identity, columns: Identity) -> jax.Array:
    """Return bool[Br, Bc]: the column's node is among the row's ancestors."""
    hits = rows.ancestors[:, None, :] == columns.node[None, :, None]  # [Br, Bc, A]
    return jnp.any(hits & (rows.ancestors[:, None, :] >= 0), axis=-1)
