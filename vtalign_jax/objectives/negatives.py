"""How much text j counts as a negative of clip i: classes of pairs and their weights.

Source: pretraining plan, section 6.1. All of it is computed on the device from the dense integers
of `Identity`, a tile at a time; no [B, B] matrix ever enters or leaves it.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vtalign_jax.array_types import Identity
from vtalign_jax.config import ObjectiveConfig

# Of several classes that fit a pair the last one listed counts: zero beats lambda beats 1.
CLASSES = (
    "cross_recording",
    "same_recording",
    "neighbour",  # same uid and level, orders close
    "ancestor",
    "overlap",  # sampled windows of one recording intersect
    "similar_text",
    "same_text",  # in any recording
    "positive",  # a record with itself
    "padding",
)

# Preset -> weight of each class up to similar_text (None: same_recording_weight), and what becomes
# of pairs with the same text unless `objective.same_text` says otherwise.
PRESETS: dict[str, tuple[tuple[float | None, ...], str]] = {
    "plan": ((1.0, None, 0.0, 0.0, 0.0, 0.0), "ignore"),
    "neighbours_soft": ((1.0, None, None, 0.0, 0.0, 0.0), "ignore"),
    "infonce": ((1.0, 1.0, 1.0, 1.0, 1.0, 1.0), "negative"),
    "egonce": ((1.0, 1.0, 1.0, 1.0, 1.0, 1.0), "multi_positive"),
}


def same_text_policy(objective: ObjectiveConfig) -> str:
    """Return "ignore", "multi_positive" or "negative", the preset's unless another is asked for."""
    preset = PRESETS[objective.preset][1]
    return preset if objective.same_text == "preset" else objective.same_text


def compares_texts(objective: ObjectiveConfig) -> bool:
    """Return whether unequal texts may be similar, so that signatures are needed.

    Not where equal texts are negatives too, nor where every pair weighs 1.
    """
    weight = PRESETS[objective.preset][0][CLASSES.index("similar_text")]
    is_wanted = objective.similar_text_threshold > 0
    return is_wanted and weight == 0 and same_text_policy(objective) != "negative"


def class_weights(objective: ObjectiveConfig) -> np.ndarray:
    """Return the weight of each class of `CLASSES`: float32[len(CLASSES)].

    Under `multi_positive`, `same_text` weighs 1 as a positive does. Under `negative` no pair is of
    that class: it weighs what its recording and its place in the tree say.
    """
    lower = [
        objective.same_recording_weight if weight is None else weight
        for weight in PRESETS[objective.preset][0]
    ]
    same_text = 1.0 if same_text_policy(objective) == "multi_positive" else 0.0
    return np.array([*lower, same_text, 1.0, 0.0], np.float32)


def pair_classes(rows: Identity, columns: Identity, objective: ObjectiveConfig) -> jax.Array:
    """Return the class of each (row, column) pair as an index into `CLASSES`: int32[Br, Bc].

    Args:
      rows: identity arrays of length Br.
      columns: identity arrays of length Bc.
      objective: neighbour radius, text policy and threshold of similar texts.
    """
    return select(rows, columns, objective, list(range(len(CLASSES)))).astype(jnp.int32)


def log_weights(rows: Identity, columns: Identity, objective: ObjectiveConfig) -> jax.Array:
    """Return log w of each pair, minus infinity where w is 0: float32[Br, Bc]."""
    with np.errstate(divide="ignore"):
        values = np.log(class_weights(objective))
    return select(rows, columns, objective, values)


def is_positive(rows: Identity, columns: Identity, objective: ObjectiveConfig) -> jax.Array:
    """Return where a column is a right answer of its row: bool[Br, Bc]."""
    fits = _equal(rows, columns, "record")
    if same_text_policy(objective) == "multi_positive":
        fits |= _equal(rows, columns, "text")
    return fits & _both_real(rows, columns)


def select(
    rows: Identity, columns: Identity, objective: ObjectiveConfig, values: Sequence[Any]
) -> jax.Array:
    """Return the value of each pair's class: [Br, Bc].

    Args:
      rows: identity arrays of length Br.
      columns: identity arrays of length Bc.
      objective: see `pair_classes`.
      values: one a class of `CLASSES`.
    """
    selected = jnp.full((len(rows.row_mask), len(columns.row_mask)), values[0])
    for name, fits in _conditions(rows, columns, objective).items():
        selected = jnp.where(fits, values[CLASSES.index(name)], selected)
    return selected


def _conditions(
    rows: Identity, columns: Identity, objective: ObjectiveConfig
) -> dict[str, jax.Array]:
    """Return where each class but the first fits, in the order of `CLASSES`: bool[Br, Bc] each."""
    equal = functools.partial(_equal, rows, columns)
    same_recording = equal("recording")
    distance = jnp.abs(rows.order[:, None] - columns.order[None, :])
    starts = jnp.maximum(rows.window[:, None, 0], columns.window[None, :, 0])
    ends = jnp.minimum(rows.window[:, None, 1], columns.window[None, :, 1])
    fits = {
        "same_recording": same_recording,
        "neighbour": equal("uid") & equal("level") & (distance <= objective.neighbour_radius),
        "ancestor": _is_ancestor(rows, columns) | _is_ancestor(columns, rows).T,
        "overlap": same_recording & (starts < ends),
    }
    if compares_texts(objective):
        cosine = _cosine(rows.signature, columns.signature)
        fits["similar_text"] = cosine >= objective.similar_text_threshold
    if same_text_policy(objective) != "negative":
        fits["same_text"] = equal("text")
    fits["positive"] = equal("record")
    fits["padding"] = ~_both_real(rows, columns)
    return fits


def _equal(rows: Identity, columns: Identity, field: str) -> jax.Array:
    return getattr(rows, field)[:, None] == getattr(columns, field)[None, :]


def _both_real(rows: Identity, columns: Identity) -> jax.Array:
    return rows.row_mask[:, None] & columns.row_mask[None, :]


def _is_ancestor(rows: Identity, columns: Identity) -> jax.Array:
    """Return bool[Br, Bc]: the column's node is among the row's ancestors."""
    hits = rows.ancestors[:, None, :] == columns.node[None, :, None]  # [Br, Bc, A]
    return jnp.any(hits & (rows.ancestors[:, None, :] >= 0), axis=-1)


def _cosine(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Return the products of signatures float32[Br, G] and float32[Bc, G]: float32[Br, Bc]."""
    if not rows.shape[-1]:
        raise ValueError("similar_text_threshold is set, but the rows have no signatures")
    return jnp.einsum("RG,CG->RC", rows, columns, precision=jax.lax.Precision.HIGHEST)
