"""What the weights did to one global batch: pairs, loss and gradient of each class of negatives.

Computed beside the training step, at the steps that are logged. As in `info_nce` no [B, B] array
exists: each device compares its rows with all columns, a tile at a time, once for the sums of each
row and once for what each class takes of them. Rows are first the clips, then the texts: w is
symmetric, so that one function serves both directions.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from vtalign_jax.array_types import Identity
from vtalign_jax.config import ObjectiveConfig
from vtalign_jax.objectives import negatives
from vtalign_jax.objectives.info_nce import TILE, chunked, finite_peak

CONFUSED = 10  # pairs named
PAIRED = negatives.CLASSES[: negatives.CLASSES.index("positive")]  # classes of pairs i != j
_PRECISION = jax.lax.Precision.HIGHEST


class MaskReport(NamedTuple):
    """Of one global batch.

    Attributes:
      scalars: by name, float32[] each: `pairs/<class>`, the share of the real pairs i != j;
        `effective_negatives`, the sum of w over the negatives of a row, averaged over rows;
        `loss/<class>`, the share of the loss of both directions, each row's divided in proportion
        to w_ij exp(s_ij); `gradient/<class>`, the norm of the loss's gradient to all embeddings
        through the pairs of the class, as a share of the sum of these norms. The last two only for
        classes that weigh something; 0 where there is nothing to share.
      clips: int32[K], records of the clips that a wrong text is most probable for, best first.
      texts: int32[K], the records of those texts; -1 where there is none.
      classes: int32[K], the class of each such pair, an index into `negatives.CLASSES`.
      probability: float32[K], w_ij exp(s_ij) / (sum of exp over right answers + sum of w exp over
        the others).
    """

    scalars: dict[str, jax.Array]
    clips: jax.Array
    texts: jax.Array
    classes: jax.Array
    probability: jax.Array


class _Side(NamedTuple):
    """Rows of this device against all columns, in chunks.

    Attributes:
      rows: float32[b, E].
      columns: float32[K, C, E], of the other modality.
    """

    rows: jax.Array
    columns: jax.Array


class _Pairs(NamedTuple):
    """Who the rows and the columns are, which are the same for both sides.

    Attributes:
      rows: identity arrays [b].
      columns: identity arrays [K, C].
      temperature: float32[].
      objective: weights of the classes.
    """

    rows: Identity
    columns: Identity
    temperature: jax.Array
    objective: ObjectiveConfig


class _Sums(NamedTuple):
    """Of each row over all columns.

    Attributes:
      right: float32[b], log sum of exp(s) over the right answers.
      rival: float32[b], log sum of w exp(s) over the others.
      best: float32[b], the largest s + log w among the others.
      best_record: int32[b], of that column; -1 if no column weighs anything.
      best_class: int32[b], of that pair.
      counts: int32[b, len(PAIRED)], columns of each class.
    """

    right: jax.Array
    rival: jax.Array
    best: jax.Array
    best_record: jax.Array
    best_class: jax.Array
    counts: jax.Array

    def total(self) -> jax.Array:
        """Return float32[b], the logarithm of the denominator of a row's probabilities."""
        return jnp.logaddexp(self.right, self.rival)


def weighing_classes(objective: ObjectiveConfig) -> tuple[str, ...]:
    """Return the classes whose pairs are negatives of weight above 0."""
    weights = negatives.class_weights(objective)
    # Under multi_positive, pairs with the same text weigh 1 as right answers, not as negatives.
    return tuple(
        name
        for name, weight in zip(PAIRED, weights, strict=False)
        if weight > 0 and name != "same_text"
    )


def make_mask_report(objective: ObjectiveConfig, mesh: Mesh, tile: int = TILE) -> Callable:
    """Return the jitted `report(z_video, z_text, temperature, identity) -> MaskReport`.

    Args:
      objective: weights of the pair classes.
      mesh: over whose devices the rows of embeddings and identity arrays are split.
      tile: most pairs whose scores exist at once on a device.
    """
    axes = mesh.axis_names
    rows, whole = PartitionSpec(axes), PartitionSpec()
    return jax.jit(
        jax.shard_map(
            functools.partial(_report, objective=objective, axes=axes, tile=tile),
            mesh=mesh,
            in_specs=(rows, rows, whole, rows),
            out_specs=whole,
            check_vma=False,
        )
    )


def _report(
    z_video: jax.Array,
    z_text: jax.Array,
    temperature: jax.Array,
    identity: Identity,
    *,
    objective: ObjectiveConfig,
    axes: tuple[str, ...],
    tile: int,
) -> MaskReport:
    """Return the whole batch's report from this device's rows and those of the others."""
    gather = functools.partial(jax.lax.all_gather, axis_name=axes, tiled=True)
    everything = jax.tree.map(gather, (z_video, z_text, identity))
    size = min(len(everything[0]), max(1, tile // len(z_video)))
    videos, texts, columns = jax.tree.map(lambda x: chunked(x, size), everything)
    pairs = _Pairs(identity, columns, temperature, objective)
    sides = _Side(z_video, texts), _Side(z_text, videos)
    sums = [_sums(side, pairs) for side in sides]
    totals = [chunked(gather(side_sums.total()), size) for side_sums in sums]
    taken = [
        _taken(side, pairs, own, of_columns)
        for side, own, of_columns in zip(sides, sums, reversed(totals), strict=True)
    ]
    lost, squares = (sum(part) for part in zip(*taken, strict=True))
    lost, squares = jax.lax.psum((lost, squares), axes)
    names = weighing_classes(objective)
    scalars = _counted(sums[0].counts, identity.row_mask, objective, axes)
    scalars |= _shares("loss", names, lost) | _shares("gradient", names, jnp.sqrt(squares))
    return MaskReport(scalars, *_most_confused(sums[0], identity.record, gather))


def _sums(side: _Side, pairs: _Pairs) -> _Sums:
    """Sweep over the columns once, for what each row's loss is made of."""

    def body(found: _Sums, chunk: tuple) -> tuple[_Sums, None]:
        column, who = chunk
        right, rival, classes = _tile(side.rows, column, pairs, who)
        at = jnp.argmax(rival, axis=1)
        best, kind = (jnp.take_along_axis(x, at[:, None], axis=1)[:, 0] for x in (rival, classes))
        is_better = best > found.best
        counts = jnp.stack([jnp.sum(classes == n, axis=1) for n in range(len(PAIRED))], axis=1)
        return _Sums(
            right=jnp.logaddexp(found.right, jax.nn.logsumexp(right, axis=1)),
            rival=jnp.logaddexp(found.rival, jax.nn.logsumexp(rival, axis=1)),
            best=jnp.where(is_better, best, found.best),
            best_record=jnp.where(is_better, who.record[at], found.best_record),
            best_class=jnp.where(is_better, kind, found.best_class),
            counts=found.counts + counts,
        ), None

    rows = len(side.rows)
    nothing = jnp.full(rows, -jnp.inf, jnp.float32)
    none = jnp.full(rows, -1, jnp.int32)
    counts = jnp.zeros((rows, len(PAIRED)), jnp.int32)  # a row each: B * B would not fit
    start = _Sums(nothing, nothing, nothing, none, none, counts)
    return jax.lax.scan(body, start, (side.columns, pairs.columns))[0]


def _taken(
    side: _Side, pairs: _Pairs, sums: _Sums, column_totals: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sweep again, for what each weighing class takes of the rows' loss and gradient.

    Args:
      side: rows and columns.
      pairs: who they are.
      sums: of the rows.
      column_totals: float32[K, C], `_Sums.total` of the columns, for the loss of their direction.

    Returns:
      Two float32[len(weighing_classes)]: loss, and squared norm of the gradient to the rows.
    """
    kinds = [negatives.CLASSES.index(name) for name in weighing_classes(pairs.objective)]
    rival, total = finite_peak(sums.rival)[:, None], finite_peak(sums.total())[:, None]

    def body(found: tuple, chunk: tuple) -> tuple[tuple, None]:
        column, who, column_total = chunk
        _, weighted, classes = _tile(side.rows, column, pairs, who)
        slope = jnp.exp(weighted - total) + jnp.exp(weighted - finite_peak(column_total))
        share = jnp.exp(weighted - rival)  # of a row's loss
        shares, pulls = [], []
        for kind, (share_before, pull_before) in zip(kinds, found, strict=True):
            is_kind = classes == kind
            pull = jnp.where(is_kind, slope, 0.0)
            pull = jnp.einsum("BC,CE->BE", pull, column, precision=_PRECISION)
            shares.append(share_before + jnp.sum(jnp.where(is_kind, share, 0.0), axis=1))
            pulls.append(pull_before + pull)
        return tuple(zip(shares, pulls, strict=True)), None

    nothing = jnp.zeros(len(side.rows)), jnp.zeros_like(side.rows)
    chunks = (side.columns, pairs.columns, column_totals)
    found, _ = jax.lax.scan(body, (nothing,) * len(kinds), chunks)
    loss = jnp.where(pairs.rows.row_mask, jax.nn.softplus(sums.rival - sums.right), 0.0)
    lost = jnp.array([jnp.sum(loss * share) for share, _ in found])
    return lost, jnp.array([jnp.sum(jnp.square(pull)) for _, pull in found])


def _tile(
    rows: jax.Array, column: jax.Array, pairs: _Pairs, who: Identity
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return s of right answers, s + log w of the others, and classes: [b, C] each.

    The first two are minus infinity where the other one counts.
    """
    scores = jnp.einsum("BE,CE->BC", rows, column, precision=_PRECISION) / pairs.temperature
    weighted = scores + negatives.log_weights(pairs.rows, who, pairs.objective)
    is_right = negatives.is_positive(pairs.rows, who, pairs.objective)
    classes = negatives.pair_classes(pairs.rows, who, pairs.objective)
    return jnp.where(is_right, scores, -jnp.inf), jnp.where(is_right, -jnp.inf, weighted), classes


def _counted(
    counts: jax.Array, row_mask: jax.Array, objective: ObjectiveConfig, axes: tuple[str, ...]
) -> dict[str, jax.Array]:
    """Return `pairs/<class>` and `effective_negatives` of the batch."""
    rows = jax.lax.psum(jnp.sum(row_mask.astype(jnp.float32)), axes)
    a_row = jax.lax.psum(jnp.sum(counts.astype(jnp.float32), axis=0), axes) / jnp.maximum(rows, 1.0)
    scalars = {f"pairs/{name}": a_row[n] for n, name in enumerate(PAIRED)}
    scalars = {name: value / jnp.maximum(rows - 1.0, 1.0) for name, value in scalars.items()}
    weights = negatives.class_weights(objective)
    weighing = [PAIRED.index(name) for name in weighing_classes(objective)]
    effective = sum((weights[n] * a_row[n] for n in weighing), jnp.float32(0.0))
    return scalars | {"effective_negatives": effective}


def _shares(what: str, names: tuple[str, ...], values: jax.Array) -> dict[str, jax.Array]:
    whole = jnp.sum(values)
    shares = values / jnp.where(whole == 0, 1.0, whole)
    return {f"{what}/{name}": shares[n] for n, name in enumerate(names)}


def _most_confused(sums: _Sums, record: jax.Array, gather: Callable) -> tuple[jax.Array, ...]:
    """Return clips, texts, classes and probability of `MaskReport`."""
    probability = jnp.exp(sums.best - finite_peak(sums.total()))  # 0 where there is no negative
    found = record, sums.best_record, sums.best_class, probability
    *named, probability = map(gather, found)
    highest, at = jax.lax.top_k(probability, min(CONFUSED, len(probability)))
    return *(x[at] for x in named), highest
