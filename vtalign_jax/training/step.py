"""One training step: embeddings of a global batch, the loss over all of them, one update."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from vtalign_jax import sharding
from vtalign_jax.array_types import Batch, Identity
from vtalign_jax.config import Config, ObjectiveConfig
from vtalign_jax.models.aligner import AlignerModel
from vtalign_jax.objectives.captioning import caption_nll, count_tokens
from vtalign_jax.objectives.info_nce import make_info_nce
from vtalign_jax.objectives.matching import make_matching
from vtalign_jax.training.state import TrainState
from vtalign_jax.training.update import make_update

Bind = Callable[[Mapping[str, jax.Array]], AlignerModel]


class Embedded(NamedTuple):
    """The embeddings of a batch.

    Attributes:
      z_video: float32[B, E], unit norm.
      z_text: float32[B, E], unit norm.
    """

    z_video: jax.Array
    z_text: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefixes:
    """The parts of a batch's passes that no trained leaf touches; None to compute them.

    Attributes:
      clips: see `AlignerModel.clip_prefix`, or None.
      texts: see `AlignerModel.text_prefix`, or None.
      depth: of the clips' prefix.
    """

    clips: jax.Array | None = None
    texts: jax.Array | None = None
    depth: str = dataclasses.field(default="tower", metadata={"static": True})


NOTHING_KEPT = Prefixes()


def stored_prefixes(model: AlignerModel, batch: Batch) -> Prefixes:
    """Return the prefixes that a batch brings from a feature cache; nothing if it has none."""
    features = batch.features
    if features is None:
        return NOTHING_KEPT
    dtype = model.base.text_model.dtype
    return Prefixes(
        _decoded(features.clips, features.clip_scales, dtype),
        _decoded(features.texts, features.text_scales, dtype),
        features.depth,
    )


def _decoded(values: jax.Array | None, scales: jax.Array | None, dtype: str) -> jax.Array | None:
    if values is None:
        return None
    if scales is not None:
        values = values.astype(jnp.float32) * scales[..., None]
    return values.astype(dtype)


def row_keys(seed: jax.Array, step: jax.Array, identity: Identity) -> tuple[jax.Array, jax.Array]:
    """Return dropout keys for clips and texts, one a row.

    A key depends on step and record alone, so that any split of the batch draws the same masks.

    Args:
      seed: uint32[2], key data.
      step: int32[].
      identity: of B rows.

    Returns:
      Two key[B].
    """
    key = _step_key(seed, step)
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    record = identity.record.astype(jnp.uint32)
    return fold(jax.random.fold_in(key, 0), record), fold(jax.random.fold_in(key, 1), record)


def _step_key(seed: jax.Array, step: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.wrap_key_data(seed), step)


def embed(
    model: AlignerModel,
    batch: Batch,
    keys: tuple = (None, None),
    prefixes: Prefixes = NOTHING_KEPT,
) -> Embedded:
    """Return the embeddings of a batch.

    Args:
      model: the aligner.
      batch: rows.
      keys: dropout keys of clips and texts, or None each.
      prefixes: of these rows, as far as they are known.
    """
    clips = model.pooled_clips(
        batch.clip_ids,
        batch.clip_mask,
        batch.frames,
        keys[0],
        prefix=prefixes.clips,
        depth=prefixes.depth,
    )
    return Embedded(model.project_clips(clips), _embed_texts(model, batch, keys, prefixes))


def embed_and_caption(
    model: AlignerModel,
    batch: Batch,
    keys: tuple,
    most_tokens: int,
    prefixes: Prefixes = NOTHING_KEPT,
) -> tuple[Embedded, jax.Array]:
    """Return what `embed` does, and the summed negative log-likelihood of the captions.

    Args:
      model: the aligner.
      batch: rows with captions.
      keys: see `embed`.
      most_tokens: the most tokens of a caption that are predicted.
      prefixes: see `embed`.
    """
    clips, captions = model.captioned_clips(
        batch.clip_ids,
        batch.clip_mask,
        batch.caption_mask,
        batch.frames,
        most_tokens,
        keys[0],
        prefix=prefixes.clips,
        depth=prefixes.depth,
    )
    embedded = Embedded(model.project_clips(clips), _embed_texts(model, batch, keys, prefixes))
    return embedded, caption_nll(model.base.logits, captions, batch.identity.row_mask)


def _embed_texts(model: AlignerModel, batch: Batch, keys: tuple, prefixes: Prefixes) -> jax.Array:
    texts = model.pooled_texts(batch.text_ids, batch.text_mask, keys[1], prefix=prefixes.texts)
    return model.project_texts(texts)


def make_pair_loss(objective: ObjectiveConfig, mesh: Mesh) -> Callable:
    """Return `loss(model, embedded, identity, seed, step) -> (float32[], metrics)`.

    It holds all that looks across the rows of a global batch, which are split over the mesh.
    """
    info_nce = make_info_nce(objective, mesh)
    matching = make_matching(objective, mesh) if objective.itm_weight else None

    def loss(
        model: AlignerModel,
        embedded: Embedded,
        identity: Identity,
        seed: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        temperature = model.temperature()
        value = info_nce(*embedded, temperature, identity)
        metrics = {"loss_itc": value, "temperature": temperature}
        if matching is not None:
            key = jax.random.fold_in(_step_key(seed, step), 2)
            matched, found = matching(model.matching_head, *embedded, temperature, identity, key)
            value, metrics = value + objective.itm_weight * matched, metrics | found
        return value, metrics

    return loss


def make_loss(bind: Bind, config: Config, mesh: Mesh) -> Callable:
    """Return `loss(params, frozen, batch, seed, step) -> (float32[], (metrics, Embedded))`."""
    pair_loss = make_pair_loss(config.objective, mesh)
    has_dropout, weight = config.tune.dropout > 0, config.objective.caption_weight

    def of_rows(
        params: dict, frozen: dict, batch: Batch, seed: jax.Array, step: jax.Array
    ) -> tuple[Embedded, jax.Array | None]:
        """Return what a device makes of its rows: embeddings, and float32[1] of its captions."""
        model = sharding.bind_whole(bind, mesh, params, frozen)
        keys = row_keys(seed, step, batch.identity) if has_dropout else (None, None)
        prefixes = stored_prefixes(model, batch)
        if not weight:
            return embed(model, batch, keys, prefixes), None
        most = config.data.max_text_tokens
        embedded, nll = embed_and_caption(model, batch, keys, most, prefixes)
        return embedded, nll[None]

    def loss(params: dict, frozen: dict, batch: Batch, seed: jax.Array, step: jax.Array) -> tuple:
        rows, whole = sharding.ROWS, sharding.WHOLE
        given = (whole, sharding.frozen_specs(frozen), rows, whole, whole)
        everywhere = sharding.per_device(of_rows, mesh, given, (rows, rows))
        embedded, nll = everywhere(params, frozen, batch, seed, step)
        model = bind(params | frozen)
        value, metrics = pair_loss(model, embedded, batch.identity, seed, step)
        caption = {}
        if weight:
            tokens = count_tokens(batch.caption_mask, batch.identity.row_mask)
            caption = {"loss_caption": jnp.sum(nll) / jnp.maximum(tokens, 1.0)}
            value += weight * caption["loss_caption"]
        return value, ({"loss": value} | metrics | caption, embedded)

    return loss


def make_train_step(
    bind: Bind,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    config: Config,
    mesh: Mesh,
) -> Callable:
    """Return the jitted `step(state, frozen, batch) -> (state, metrics, Embedded, Identity)`.

    `state` is donated. For a batch that does not fit, see `grad_cache.StreamedStep`.

    Args:
      bind: arrays by path -> model.
      optimizer: of the trainable leaves.
      learning_rate: the optimizer's schedule, to be reported.
      config: of the run.
      mesh: the batch is split over its devices, `state` is whole on each.
    """
    loss_and_gradient = jax.value_and_grad(make_loss(bind, config, mesh), has_aux=True)
    update = make_update(optimizer, learning_rate)

    def train_step(state: TrainState, frozen: dict, batch: Batch) -> tuple:
        (loss, (metrics, embedded)), gradient = loss_and_gradient(
            state.params, frozen, batch, state.seed, state.step
        )
        state, updated = update(state, loss, gradient)
        return state, metrics | updated, embedded, batch.identity

    whole, rows = (NamedSharding(mesh, spec) for spec in (sharding.WHOLE, sharding.ROWS))
    return jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(whole, whole, rows, rows),
        compiler_options=sharding.compiler_options(mesh),
    )
