"""Weighted InfoNCE over the global batch, a tile of pairs at a time.

Neither the forward nor the backward pass holds a [B, B] array: each device sweeps over the columns
for its own rows, keeps the logarithms of the sums, and computes each tile again for the gradient.
(Chunking the forward pass alone would not do: autodiff keeps every chunk.)
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


def make_info_nce(objective: ObjectiveConfig, mesh: Mesh, tile: int = TILE) -> Callable:
    """Return `info_nce(z_video, z_text, temperature, identity) -> float32[]` of a global batch.

    Embeddings and identity arrays are split by rows over the mesh. Texts and identities are
    gathered once; what the sweep finds for the texts is summed over the devices, and so is their
    gradient. B counts real pairs; a batch without any gives 0.

    Args:
      objective: weights of the pair classes.
      mesh: over whose devices the rows are split.
      tile: most pairs whose scores exist at once on a device.
    """
    axes = mesh.axis_names
    rows, whole = PartitionSpec(axes), PartitionSpec()
    sweep = _Sweep(objective, axes, tile)
    by_rows = Sums(rows, whole, rows, whole)
    shard = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
    forward = shard(sweep.forward, in_specs=(rows, rows, whole, rows), out_specs=(whole, by_rows))
    backward = shard(
        sweep.backward,
        in_specs=(rows, rows, whole, rows, by_rows, whole),
        out_specs=(rows, rows, whole),
    )

    @jax.custom_vjp
    def info_nce(
        z_video: jax.Array, z_text: jax.Array, temperature: jax.Array, identity: Identity
    ) -> jax.Array:
        return forward(z_video, z_text, temperature, identity)[0]

    def keep(*inputs: object) -> tuple:
        loss, sums = forward(*inputs)
        return loss, (inputs, sums)

    def differentiate(kept: tuple, cotangent: jax.Array) -> tuple:
        inputs, sums = kept
        return *backward(*inputs, sums, cotangent), None

    info_nce.defvjp(keep, differentiate)
    return info_nce


class _Sweep:
    """One device's part: its rows against all columns, a tile of columns at a time."""

    def __init__(self, objective: ObjectiveConfig, axes: tuple[str, ...], tile: int) -> None:
        self._objective, self._axes, self._tile = objective, axes, tile
        # Otherwise the only right answer of a row is its own, and the logarithm its very score.
        self._many = negatives.same_text_policy(objective) == "multi_positive"

    def forward(
        self, z_video: jax.Array, z_text: jax.Array, temperature: jax.Array, identity: Identity
    ) -> tuple[jax.Array, Sums]:
        """Return the loss and what its gradient needs."""
        texts, columns, mask = self._gather(z_text, identity)
        rows = z_video.shape[0]

        def body(carry: tuple, chunk: tuple) -> tuple:
            scores, weighted, right = self._tile_of(z_video, identity, temperature, chunk)
            over_texts, answers = carry
            found = [_LogSum.over(weighted, axis=0)]
            if self._many:
                allowed = jnp.where(right, scores, -jnp.inf)
                found.append(_LogSum.over(allowed, axis=0))
                answers = answers.plus(_LogSum.over(allowed, axis=1))
            else:
                # Taken from the tile: a product of its own would round differently from the same
                # score in the sum, and a row without negatives would not lose exactly 0.
                answers += jnp.sum(jnp.where(right, scores, 0.0), axis=1)
            return (over_texts.plus(_LogSum.over(weighted, axis=1)), answers), tuple(found)

        nothing = _LogSum.empty(rows)
        start = (nothing, nothing if self._many else jnp.zeros(rows, jnp.float32))
        (by_video, answers), by_text = jax.lax.scan(body, start, (texts, columns))
        count = mask.shape[0]
        found = [_LogSum(*(x.reshape(-1)[:count] for x in part)) for part in by_text]
        video = [_masked(by_video.value(), identity.row_mask)]
        text = [_masked(part.across(self._axes).value(), mask) for part in found]
        if self._many:
            video.append(_masked(answers.value(), identity.row_mask))
        else:
            video.append(answers)
            text.append(jax.lax.all_gather(answers, self._axes, tiled=True))
        sums = Sums(video[0], text[0], video[1], text[1])
        total = jax.lax.psum(jnp.sum(sums.video - sums.video_right), self._axes)
        total += jnp.sum(sums.text - sums.text_right)
        return total / _count(mask), sums

    def backward(
        self,
        z_video: jax.Array,
        z_text: jax.Array,
        temperature: jax.Array,
        identity: Identity,
        sums: Sums,
        cotangent: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the gradient to this device's embeddings and to the temperature."""
        texts, columns, mask = self._gather(z_text, identity)
        by_column = [chunked(x, texts.shape[1]) for x in (sums.text, sums.text_right)]
        scale = cotangent / _count(mask)

        def body(carry: tuple, chunk: tuple) -> tuple:
            text_sum, text_right = chunk[2]
            scores, weighted, right = self._tile_of(z_video, identity, temperature, chunk)
            slope = jnp.exp(weighted - sums.video[:, None]) + jnp.exp(weighted - text_sum)
            if self._many:
                answers = jnp.exp(scores - sums.video_right[:, None])
                answers += jnp.exp(scores - text_right)
                slope -= jnp.where(right, answers, 0.0)
            else:
                slope -= jnp.where(right, 2.0, 0.0)
            to_video = jnp.einsum("BC,CE->BE", slope, chunk[0], precision=_PRECISION)
            to_text = jnp.einsum("BC,BE->CE", slope, z_video, precision=_PRECISION)
            return (carry[0] + to_video, carry[1] + jnp.sum(slope * scores)), to_text

        start = (jnp.zeros_like(z_video), jnp.zeros((), z_video.dtype))
        (to_video, slopes), to_text = jax.lax.scan(body, start, (texts, columns, by_column))
        to_text = to_text.reshape(-1, to_text.shape[-1])[: mask.shape[0]]
        to_text = jax.lax.psum_scatter(to_text, self._axes, scatter_dimension=0, tiled=True)
        to_temperature = -jax.lax.psum(slopes, self._axes) / temperature
        scaled = scale / temperature
        return to_video * scaled, to_text * scaled, to_temperature * scale

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

    def _tile_of(
        self, z_video: jax.Array, identity: Identity, temperature: jax.Array, chunk: tuple
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return s, s + log w and the right answers of a tile: [b, C] each."""
        text, columns = chunk[:2]
        scores = jnp.einsum("BE,CE->BC", z_video, text, precision=_PRECISION) / temperature
        weighted = scores + negatives.log_weights(identity, columns, self._objective)
        return scores, weighted, negatives.is_positive(identity, columns, self._objective)


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
