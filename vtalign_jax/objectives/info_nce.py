"""Weighted InfoNCE over the global batch, a tile of pairs at a time.

Memory does not grow with the square of the batch, forward or backward: each device sweeps over the
columns for its own rows and keeps the logarithms of the sums, and for the gradient as many tiles as
`KEPT` allows; the others are computed again. (Chunking the forward pass alone would not do:
autodiff keeps every chunk.)
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

TILE = 2**22  # pairs in a tile: 16 MiB of float32
KEPT = 2**26  # pairs kept from forward to backward on a device: 256 MiB
_PRECISION = jax.lax.Precision.HIGHEST  # a TPU's default float32 product is one bfloat16 pass


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
    scores = jnp.einsum("BE,CE->BC", z_video, z_text, precision=_PRECISION) / temperature
    is_kept = weights > 0
    # exp(s) * w in log space: log(sum(softmax * mask)) would underflow at a low temperature.
    weighted = jnp.where(is_kept, scores + jnp.log(jnp.where(is_kept, weights, 1.0)), -jnp.inf)
    positive = jnp.diagonal(scores)
    sums = [jax.nn.logsumexp(weighted, axis=axis) for axis in (1, 0)]
    return jnp.mean(sums[0] + sums[1] - 2.0 * positive)


class Sums(NamedTuple):
    """Logarithms of the sums of both directions; 0 in padding rows.

    Attributes:
      video: float32[B], log sum_j w_ij exp(s_ij) of each clip.
      text: float32[B], log sum_i w_ij exp(s_ij) of each text.
      video_right: float32[B], the same over the right answers of each clip.
      text_right: float32[B], the same over the right answers of each text.
    """

    video: jax.Array
    text: jax.Array
    video_right: jax.Array
    text_right: jax.Array


def make_info_nce(
    objective: ObjectiveConfig, mesh: Mesh, tile: int = TILE, kept: int = KEPT
) -> Callable:
    """Return `info_nce(z_video, z_text, temperature, identity) -> float32[]` of a global batch.

    Embeddings and identity arrays are split by rows over the mesh. Texts and identities are
    gathered once; what the sweep finds for the texts is summed over the devices, and so is their
    gradient. B counts real pairs; a batch without any gives 0.

    Args:
      objective: weights of the pair classes.
      mesh: over whose devices the rows are split.
      tile: most pairs in a tile on a device.
      kept: most pairs whose scores a device keeps for the gradient; others are computed again.
    """
    axes = mesh.axis_names
    rows, whole = PartitionSpec(axes), PartitionSpec()
    sweep = _Sweep(objective, axes, tile, kept)
    residuals = _Residuals(Sums(rows, whole, rows, whole), PartitionSpec(None, axes))
    shard = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
    forward = shard(sweep.forward, in_specs=(rows, rows, whole, rows), out_specs=(whole, residuals))
    backward = shard(
        sweep.backward,
        in_specs=(rows, rows, whole, rows, residuals, whole),
        out_specs=(rows, rows, whole),
    )

    @jax.custom_vjp
    def info_nce(
        z_video: jax.Array, z_text: jax.Array, temperature: jax.Array, identity: Identity
    ) -> jax.Array:
        return forward(z_video, z_text, temperature, identity)[0]

    def keep(*inputs: object) -> tuple:
        loss, residuals = forward(*inputs)
        return loss, (inputs, residuals)

    def differentiate(kept: tuple, cotangent: jax.Array) -> tuple:
        inputs, residuals = kept
        return *backward(*inputs, residuals, cotangent), None

    info_nce.defvjp(keep, differentiate)
    return info_nce


class _Residuals(NamedTuple):
    """What the gradient needs beside the inputs.

    Attributes:
      sums: logarithms of the sums.
      tiles: float32[K, B, C], s + log w of the first K tiles.
    """

    sums: Sums
    tiles: jax.Array


class _Sweep:
    """One device's part: its rows against all columns, a tile of columns at a time."""

    def __init__(
        self, objective: ObjectiveConfig, axes: tuple[str, ...], tile: int, kept: int
    ) -> None:
        self._objective, self._axes, self._tile, self._kept = objective, axes, tile, kept
        # Otherwise the only right answer of a row is its own, and the logarithm its very score.
        self._many = negatives.same_text_policy(objective) == "multi_positive"

    def forward(
        self, z_video: jax.Array, z_text: jax.Array, temperature: jax.Array, identity: Identity
    ) -> tuple[jax.Array, _Residuals]:
        """Return the loss and what its gradient needs."""
        texts, columns, mask = self._gather(z_text, identity)
        rows = len(z_video)

        def body(keeps: bool, carry: tuple, chunk: tuple) -> tuple:
            weighted = self._weighted(z_video, identity, temperature, chunk)
            right = negatives.is_positive(identity, chunk[1], self._objective)
            over_texts, answers = carry
            found = [_LogSum.over(weighted, axis=0)]
            if self._many:
                allowed = jnp.where(right, weighted, -jnp.inf)
                found.append(_LogSum.over(allowed, axis=0))
                answers = answers.plus(_LogSum.over(allowed, axis=1))
            else:
                # Taken from the tile: a product of its own would round differently from the same
                # score in the sum, and a row without negatives would not lose exactly 0.
                answers += jnp.sum(jnp.where(right, weighted, 0.0), axis=1)
            carry = over_texts.plus(_LogSum.over(weighted, axis=1)), answers
            return carry, (tuple(found), weighted if keeps else None)

        nothing = _LogSum.empty(rows)
        carry = (nothing, nothing if self._many else jnp.zeros(rows, jnp.float32))
        first, rest = self._split(rows, (texts, columns))
        carry, (by_text, tiles) = jax.lax.scan(functools.partial(body, True), carry, first)
        carry, (more, _) = jax.lax.scan(functools.partial(body, False), carry, rest)
        by_video, answers = carry
        joined = jax.tree.map(lambda x, y: _unchunked(x, y, len(mask)), by_text, more)
        video = [_masked(by_video.value(), identity.row_mask)]
        text = [_masked(part.across(self._axes).value(), mask) for part in joined]
        if self._many:
            video.append(_masked(answers.value(), identity.row_mask))
        else:
            video.append(answers)
            text.append(jax.lax.all_gather(answers, self._axes, tiled=True))
        sums = Sums(video[0], text[0], video[1], text[1])
        total = jax.lax.psum(jnp.sum(sums.video - sums.video_right), self._axes)
        total += jnp.sum(sums.text - sums.text_right)
        return total / _count(mask), _Residuals(sums, tiles)

    def backward(
        self,
        z_video: jax.Array,
        z_text: jax.Array,
        temperature: jax.Array,
        identity: Identity,
        residuals: _Residuals,
        cotangent: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the gradient to this device's embeddings and to the temperature."""
        texts, columns, mask = self._gather(z_text, identity)
        sums, tiles = residuals
        by_column = [chunked(x, texts.shape[1]) for x in (sums.text, sums.text_right)]

        def body(to_video: jax.Array, tile: tuple) -> tuple:
            chunk, weighted = tile
            if weighted is None:
                weighted = self._weighted(z_video, identity, temperature, chunk)
            right = negatives.is_positive(identity, chunk[1], self._objective)
            text_sum, text_right = chunk[2]
            slope = jnp.exp(weighted - sums.video[:, None]) + jnp.exp(weighted - text_sum)
            if self._many:
                answers = jnp.exp(weighted - sums.video_right[:, None])
                answers += jnp.exp(weighted - text_right)
                slope -= jnp.where(right, answers, 0.0)
            else:
                slope -= jnp.where(right, 2.0, 0.0)
            to_video += jnp.einsum("BC,CE->BE", slope, chunk[0], precision=_PRECISION)
            return to_video, jnp.einsum("BC,BE->CE", slope, z_video, precision=_PRECISION)

        first, rest = self._split(len(z_video), (texts, columns, by_column))
        to_video, to_text = jax.lax.scan(body, jnp.zeros_like(z_video), (first, tiles))
        to_video, more = jax.lax.scan(body, to_video, (rest, None))
        to_text = _unchunked(to_text, more, len(mask))
        to_text = jax.lax.psum_scatter(to_text, self._axes, scatter_dimension=0, tiled=True)
        scale = cotangent / _count(mask) / temperature
        # The sum of slope * score: each score is the product of an embedding with a column.
        slopes = jax.lax.psum(jnp.sum(to_video * z_video), self._axes) / temperature
        return to_video * scale, to_text * scale, -slopes * scale

    def _gather(
        self, z_text: jax.Array, identity: Identity
    ) -> tuple[jax.Array, Identity, jax.Array]:
        """Return all texts float32[K, C, E] and identities [K, C, ...], and the row mask bool[B].

        K chunks of C columns; the last one is filled up with padding.
        """
        gathered = jax.tree.map(
            lambda x: jax.lax.all_gather(x, self._axes, tiled=True), (z_text, identity)
        )
        rows, count = z_text.shape[0], gathered[0].shape[0]
        size = min(count, max(1, self._tile // max(rows, 1)))
        texts, columns = jax.tree.map(lambda x: chunked(x, size), gathered)
        return texts, columns, gathered[1].row_mask

    def _split(self, rows: int, chunks: tuple) -> tuple[tuple, tuple]:
        """Return the chunks whose tiles are kept and the others, of [K, C, ...] arrays."""
        size = chunks[0].shape[1]
        count = self._kept // max(rows * size, 1)
        return jax.tree.map(lambda x: x[:count], chunks), jax.tree.map(lambda x: x[count:], chunks)

    def _weighted(
        self, z_video: jax.Array, identity: Identity, temperature: jax.Array, chunk: tuple
    ) -> jax.Array:
        """Return s + log w of a tile: [b, C]; a right answer weighs 1."""
        text, columns = chunk[:2]
        scores = jnp.einsum("BE,CE->BC", z_video, text, precision=_PRECISION) / temperature
        return scores + negatives.log_weights(identity, columns, self._objective)


class _LogSum(NamedTuple):
    """log(total) + peak, where total sums exponentials of what lies below the peak."""

    peak: jax.Array
    total: jax.Array

    @classmethod
    def empty(cls, size: int) -> "_LogSum":
        return cls(jnp.full(size, -jnp.inf, jnp.float32), jnp.zeros(size, jnp.float32))

    @classmethod
    def over(cls, values: jax.Array, axis: int) -> "_LogSum":
        peak = jnp.max(values, axis=axis)
        shifted = values - jnp.expand_dims(finite_peak(peak), axis)
        return cls(peak, jnp.sum(jnp.exp(shifted), axis=axis))

    def plus(self, other: "_LogSum") -> "_LogSum":
        peak = jnp.maximum(self.peak, other.peak)
        return _LogSum(peak, self._below(peak) + other._below(peak))

    def across(self, axes: tuple[str, ...]) -> "_LogSum":
        peak = jax.lax.pmax(self.peak, axes)
        return _LogSum(peak, jax.lax.psum(self._below(peak), axes))

    def value(self) -> jax.Array:
        return self.peak + jnp.log(self.total)

    def _below(self, peak: jax.Array) -> jax.Array:
        return self.total * jnp.exp(self.peak - finite_peak(peak))


def finite_peak(peak: jax.Array) -> jax.Array:
    """Return the peak, or 0 where nothing has been summed; NaN stays."""
    return jnp.where(peak == -jnp.inf, 0.0, peak)


def _masked(values: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask, values, 0.0)


def _count(mask: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.sum(mask.astype(jnp.float32)), 1.0)


def chunked(x: jax.Array, size: int) -> jax.Array:
    """Return [K, size, ...] for [B, ...], filled up with zeros (False in a mask)."""
    missing = -x.shape[0] % size
    filled = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
    return filled.reshape(len(filled) // size, size, *x.shape[1:])  # an array may be empty


def _unchunked(first: jax.Array, rest: jax.Array, count: int) -> jax.Array:
    """Return [count, ...] for [K, size, ...] and [L, size, ...] in this order."""
    joined = jnp.concatenate([first, rest])
    return joined.reshape(-1, *joined.shape[2:])[:count]
