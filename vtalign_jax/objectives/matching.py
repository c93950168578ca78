"""Matching: one logit says whether a clip and a text belong together, against hard negatives.

A clip's negative text, and a text's negative clip, are drawn from the global batch: the more alike
the embeddings, the likelier. No [B, B] array is made: each device sweeps over the columns for its
own rows, a tile at a time.

The draw is the maximum of log-probability + Gumbel noise, and the noise of a pair follows from the
key and the two records alone. So neither devices nor tiles nor the order of the rows matter.

Source: pretraining plan, section 6; negatives after ALBEF (Li et al., 2021).
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
from vtalign_jax.objectives.info_nce import TILE, chunked

_PRECISION = jax.lax.Precision.HIGHEST  # a TPU's default float32 product is one bfloat16 pass
_NO_ROW = jnp.iinfo(jnp.int32).max


class Drawn(NamedTuple):
    """The negatives of a batch, as rows of the global batch; -1 where there is none.

    Attributes:
      text: int32[B], the text drawn for each clip.
      clip: int32[B], the clip drawn for each text.
    """

    text: jax.Array
    clip: jax.Array


def make_matching(objective: ObjectiveConfig, mesh: Mesh, tile: int = TILE) -> Callable:
    """Return `matching(head, z_video, z_text, temperature, identity, key) -> (loss, metrics)`.

    `head` gives float32[N] logits for float32[N, 2 E] of clips and texts side by side; `key` is one
    of this step alone. Binary cross-entropy, the mean over the rows that exist: each real pair,
    and for each the clip with its drawn text and the text with its drawn clip. Gradients flow to
    the head and to every embedding, drawn or not, but not through the draw.

    Metrics: `loss_itm`, and `itm_balanced_accuracy`, the mean of the accuracies on pairs that match
    and on pairs that do not.

    Args:
      objective: weights of the pair classes.
      mesh: over whose devices the rows are split.
      tile: most pairs whose scores exist at once on a device.
    """
    draw = make_draw(objective, mesh, tile)
    rows = PartitionSpec(mesh.axis_names)
    fetch = jax.shard_map(
        functools.partial(_fetch, mesh.axis_names),
        mesh=mesh,
        in_specs=(rows, rows),
        out_specs=rows,
        check_vma=False,
    )

    def matching(
        head: Callable[[jax.Array], jax.Array],
        z_video: jax.Array,
        z_text: jax.Array,
        temperature: jax.Array,
        identity: Identity,
        key: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        known = jax.lax.stop_gradient((z_video, z_text, temperature))
        drawn = draw(*known, identity, key)
        texts, clips = fetch(z_text, drawn.text), fetch(z_video, drawn.clip)

        # One kind of pair after the other, made again for the gradient: side by side they would
        # take more than everything else here.
        @jax.checkpoint
        def score(clips: jax.Array, texts: jax.Array) -> jax.Array:
            return head(jnp.concatenate([clips, texts], axis=-1))

        kinds = (z_video, z_text), (z_video, texts), (clips, z_text)
        logits = jnp.stack([score(*kind) for kind in kinds], axis=1)  # [B, 3]
        exists = jnp.stack([identity.row_mask, drawn.text >= 0, drawn.clip >= 0], axis=1)
        return _cross_entropy(logits, exists)

    return matching


def _fetch(axes: tuple[str, ...], z: jax.Array, rows: jax.Array) -> jax.Array:
    """Return rows of the global batch, float32[b, E]; in place of row -1 some other.

    All are gathered once, and once the gradient is sent home. Indexing the global array instead
    would gather it anew for each use, forward and backward.

    Args:
      axes: of the mesh.
      z: float32[b, E], this device's.
      rows: int32[b], of the global batch.
    """
    return jax.lax.all_gather(z, axes, tiled=True)[jnp.maximum(rows, 0)]


def _cross_entropy(logits: jax.Array, exists: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return loss and metrics of logits [B, 3]: a pair that matches, and two that do not."""
    is_match = jnp.array([True, False, False])
    towards = jnp.where(is_match, logits, -logits)
    count = jnp.sum(exists.astype(jnp.float32), axis=0)  # [3]
    total = jnp.sum(jnp.where(exists, jax.nn.softplus(-towards), 0.0))
    loss = total / jnp.maximum(jnp.sum(count), 1.0)
    right = jnp.sum((exists & (towards > 0)).astype(jnp.float32), axis=0)
    of_kind = jnp.stack([right[0], right[1] + right[2]])
    asked = jnp.stack([count[0], count[1] + count[2]])
    kinds = jnp.maximum(jnp.sum(asked > 0), 1)  # without any negative, the accuracy on pairs
    accuracy = jnp.sum(of_kind / jnp.maximum(asked, 1.0)) / kinds
    return loss, {"loss_itm": loss, "itm_balanced_accuracy": accuracy}


def make_draw(objective: ObjectiveConfig, mesh: Mesh, tile: int = TILE) -> Callable:
    """Return `draw(z_video, z_text, temperature, identity, key) -> Drawn`.

    Row j is drawn for row i with probability proportional to w_ij exp(s_ij), over all j that are
    not a right answer of i. Arguments as for `make_matching`.
    """
    axes = mesh.axis_names
    rows, whole = PartitionSpec(axes), PartitionSpec()
    return jax.shard_map(
        functools.partial(_draw, objective, axes, tile),
        mesh=mesh,
        in_specs=(rows, rows, whole, rows, whole),
        out_specs=rows,
        check_vma=False,
    )


class _Best(NamedTuple):
    """The highest value so far, float32[b], and the row it belongs to, int32[b]."""

    value: jax.Array
    row: jax.Array

    @classmethod
    def over(cls, values: jax.Array, rows: jax.Array, axis: int) -> "_Best":
        return cls(jnp.max(values, axis=axis), rows[jnp.argmax(values, axis=axis)])

    def or_better(self, other: "_Best") -> "_Best":
        is_better = other.value > self.value
        return _Best(
            *(jnp.where(is_better, new, old) for new, old in zip(other, self, strict=True))
        )

    def across(self, axes: tuple[str, ...]) -> "_Best":
        value = jax.lax.pmax(self.value, axes)
        return _Best(value, jax.lax.pmin(jnp.where(self.value == value, self.row, _NO_ROW), axes))

    def found(self) -> jax.Array:
        return jnp.where(self.value > -jnp.inf, self.row, -1)


def _draw(
    objective: ObjectiveConfig,
    axes: tuple[str, ...],
    tile: int,
    z_video: jax.Array,
    z_text: jax.Array,
    temperature: jax.Array,
    identity: Identity,
    key: jax.Array,
) -> Drawn:
    """Return the negatives of one device's rows."""
    gathered = jax.tree.map(lambda x: jax.lax.all_gather(x, axes, tiled=True), (z_text, identity))
    rows, count = len(z_text), len(gathered[0])
    size = min(count, max(1, tile // max(rows, 1)))
    chunks = jax.tree.map(lambda x: chunked(x, size), (*gathered, jnp.arange(count)))
    first = jax.lax.axis_index(axes) * rows
    own = first + jnp.arange(rows)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, identity.record)

    def body(best: _Best, chunk: tuple) -> tuple[_Best, _Best]:
        texts, columns, places = chunk
        scores = jnp.einsum("BE,CE->BC", z_video, texts, precision=_PRECISION) / temperature
        scores += negatives.log_weights(identity, columns, objective)
        is_right = negatives.is_positive(identity, columns, objective)
        scores = jnp.where(is_right, -jnp.inf, scores)
        noise = _gumbel(keys, columns.record)
        best = best.or_better(_Best.over(scores + noise[0], places, axis=1))
        return best, _Best.over(scores + noise[1], own, axis=0)

    start = _Best(jnp.full(rows, -jnp.inf), jnp.full(rows, -1, jnp.int32))
    by_video, by_text = jax.lax.scan(body, start, chunks)
    by_text = _Best(*(x.reshape(-1)[:count] for x in by_text)).across(axes)
    clip = jax.lax.dynamic_slice_in_dim(by_text.found(), first, rows)
    return Drawn(by_video.found(), clip)


def _gumbel(keys: jax.Array, records: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return two independent Gumbel numbers a pair: float32[b, C] each, of key[b] and int32[C]."""
    by_column = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    pair_keys = jax.vmap(by_column, in_axes=(0, None))(keys, records)
    bits = jax.random.key_data(pair_keys)[..., :2].astype(jnp.float32)
    # Dense near 0, where the numbers lie that win: 24 random bits there would tie.
    uniform = jnp.minimum((bits + 0.5) * 2.0**-32, 1.0 - 2.0**-24)
    noise = -jnp.log(-jnp.log1p(-uniform))
    return noise[..., 0], noise[..., 1]
