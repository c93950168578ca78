"""What the frozen base can tell before any training: by decoder block and pooling.

One pass over the clips gives the states after several blocks, pooled in both ways; each choice is
then scored as an evaluation is. Training pools after the last norm.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vtalign_jax.array_types import Batch
from vtalign_jax.evaluation.columns import CLUSTERS, heading
from vtalign_jax.evaluation.embed import Evaluator, Parameters
from vtalign_jax.evaluation.result import Evaluation
from vtalign_jax.models.aligner import AlignerModel, normalise, pool, unit_norm

POOLINGS = ("last", "mean")  # of `model.pooling`
_PARTS = 4  # of the decoder, after each of which states are pooled
_COLUMNS = {name: heading(name) for name in ("recall@1", "recall@5", "mAP")}
_COLUMNS |= {name: name for name in CLUSTERS}
_FIRST, _OTHER = 36, 12  # characters


class Choice(NamedTuple):
    """Where in the decoder the states are taken, and how they become one vector.

    Attributes:
      block: how many blocks they went through.
      is_normed: whether through the decoder's last norm, too.
      pooling: one of `POOLINGS`.
    """

    block: int
    is_normed: bool
    pooling: str


class Pooled(NamedTuple):
    """Pooled states of N clips and their texts, unit norm.

    Attributes:
      video: float32[N, C, D], C choices.
      text: float32[N, C, D].
    """

    video: jax.Array
    text: jax.Array


def choices(blocks: int) -> list[Choice]:
    """Return what to compare in a decoder of so many blocks: its quarters, and the last norm."""
    depths = sorted({max(1, round(blocks * part / _PARTS)) for part in range(1, _PARTS + 1)})
    places = [(depth, False) for depth in depths] + [(blocks, True)]
    return [Choice(*place, pooling) for place in places for pooling in POOLINGS]


def probe(
    evaluator: Evaluator, params: Parameters, frozen: Parameters, wanted: list[Choice]
) -> dict[Choice, Evaluation]:
    """Return what each choice scores.

    Args:
      evaluator: of the split, with a model that nothing was adapted in.
      params: its heads, which are not looked at.
      frozen: the base.
      wanted: choices.
    """

    def of_rows(model: AlignerModel, batch: Batch) -> Pooled:
        clips = _states(model, batch.clip_ids, batch.clip_mask, batch.frames)
        texts = _states(model, batch.text_ids, batch.text_mask, None)
        return Pooled(*(unit_norm(_chosen(states, wanted)) for states in (clips, texts)))

    found = evaluator.pass_over(of_rows, params, frozen)
    return {
        choice: evaluator.evaluated(found.video[:, n], found.text[:, n])
        for n, choice in enumerate(wanted)
    }


def best_of(found: Mapping[Choice, Evaluation]) -> Choice:
    """Return the choice with the highest recall@5, of equal ones that with the highest mAP."""

    def key(choice: Choice) -> tuple[float, float]:
        metrics = found[choice].metrics
        return metrics["recall@5"], metrics["mAP"]

    return max(found, key=key)


def overrides(found: Mapping[Choice, Evaluation]) -> list[str]:
    """Return the flags of `launch/train.py` for the pooling that is best after the last norm."""
    normed = {choice: row for choice, row in found.items() if choice.is_normed}
    return [f"--config.model.pooling={best_of(normed).pooling}"]


def format_probe(
    found: Mapping[Choice, Evaluation], chance: Evaluation, blocks: int, flags: list[str]
) -> str:
    """Return the table, its best row marked, and what follows for training.

    Args:
      found: what `probe` returned.
      chance: of random rankings.
      blocks: of the decoder.
      flags: `overrides`.
    """
    best = best_of(found)
    head = _line("", list(_COLUMNS.values()))
    lines = [head, "-" * len(head), _row("chance", chance)]
    for choice, row in found.items():
        mark = "  <- best" if choice == best else ""
        lines.append(_row(_name(choice, blocks), row) + mark)
    lines.append(f"training pools after the last norm; best there: {' '.join(flags)}")
    if best.block < blocks:
        lines.append(
            f"the {blocks - best.block} blocks above block {best.block} lose some of it; "
            f"--config.tune.text_blocks={blocks - best.block} lets training adapt them all"
        )
    return "\n".join(lines)


def _states(
    model: AlignerModel, ids: jax.Array, mask: jax.Array, frames: jax.Array | None
) -> jax.Array:
    """Return pooled states: float32[L + 1, 2, len(POOLINGS), B, D]; [:, 1] are normed."""
    base = model.base
    features = None if frames is None else base.image_features(normalise(frames))
    decoder = base.text_model

    def keep(x: jax.Array) -> jax.Array:
        forms = (x, decoder.norm(x))
        return jnp.stack([jnp.stack([pool(y, mask, each) for each in POOLINGS]) for y in forms])

    return decoder.every_layer(base.merge_inputs(ids, features), mask, keep)


def _chosen(states: jax.Array, wanted: list[Choice]) -> jax.Array:
    """Return float32[B, C, D] of `_states`."""
    picked = [
        states[choice.block, int(choice.is_normed), POOLINGS.index(choice.pooling)]
        for choice in wanted
    ]
    return jnp.stack(picked, axis=1)


def _name(choice: Choice, blocks: int) -> str:
    norm = ", last norm" if choice.is_normed else ""
    return f"block {choice.block} of {blocks}{norm}, {choice.pooling}"


def _row(name: str, found: Evaluation) -> str:
    values = (found.metrics.get(metric, math.nan) for metric in _COLUMNS)
    return _line(name, ["-" if math.isnan(value) else f"{value:.3f}" for value in values])


def _line(name: str, cells: list[str]) -> str:
    return f"{name:{_FIRST}}" + "".join(f"{cell:>{_OTHER}}" for cell in cells)
