"""One training step: embeddings of a global batch, the loss over all of them, one update."""

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
from vtalign_jax.objectives.info_nce import make_info_nce
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


class Prefixes(NamedTuple):
    """The parts of a batch's passes that no trained leaf touches; None to compute them.

    Attributes:
      clips: see `AlignerModel.clip_prefix`, or None.
      texts: see `AlignerModel.text_prefix`, or None.
    """

    clips: jax.Array | None = None
    texts: jax.Array | None = None


NOTHING_KEPT = Prefixes()


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
    key = jax.random.fold_in(jax.random.wrap_key_data(seed), step)
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    record = identity.record.astype(jnp.uint32)
    return fold(jax.random.fold_in(key, 0), record), fold(jax.random.fold_in(key, 1), record)


def embed(
    model: AlignerModel,
    batch: Batch,
    keys: tuple = (None, None),
    prefixes: Prefixes = NOTHING_KEPT,
    depth: str = "tower",
) -> Embedded:
    """Return the embeddings of a batch.

    Args:
      model: the aligner.
      batch: rows.
      keys: dropout keys of clips and texts, or None each.
      prefixes: of these rows, as far as they are kept.
      depth: of the clips' prefix.
    """
    clips = model.pooled_clips(
        batch.clip_ids, batch.clip_mask, batch.frames, keys[0], prefix=prefixes.clips, depth=depth
    )
    texts = model.pooled_texts(batch.text_ids, batch.text_mask, keys[1], prefix=prefixes.texts)
    return Embedded(model.project_clips(clips), model.project_texts(texts))


def make_pair_loss(objective: ObjectiveConfig, mesh: Mesh) -> Callable:
    """Return `loss(model, embedded, identity) -> (float32[], metrics)` of a global batch.

    It holds all that looks across rows. Rows are split over the mesh.
    """
    info_nce = make_info_nce(objective, mesh)

    def loss(
        model: AlignerModel, embedded: Embedded, identity: Identity
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        temperature = model.temperature()
        value = info_nce(*embedded, temperature, identity)
        return value, {"loss": value, "loss_itc": value, "temperature": temperature}

    return loss


def make_loss(bind: Bind, objective: ObjectiveConfig, mesh: Mesh) -> Callable:
    """Return `loss(params, frozen, batch, keys) -> (float32[], (metrics, Embedded))`."""
    pair_loss = make_pair_loss(objective, mesh)

    def loss(params: dict, frozen: dict, batch: Batch, keys: tuple) -> tuple:
        model = bind(params | frozen)
        embedded = embed(model, batch, keys)
        value, metrics = pair_loss(model, embedded, batch.identity)
        return value, (metrics, embedded)

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
    loss = make_loss(bind, config.objective, mesh)
    loss_and_gradient = jax.value_and_grad(loss, has_aux=True)
    update = make_update(optimizer, learning_rate)
    has_dropout = config.tune.dropout > 0

    def train_step(state: TrainState, frozen: dict, batch: Batch) -> tuple:
        keys = row_keys(state.seed, state.step, batch.identity) if has_dropout else (None, None)
        (loss, (metrics, embedded)), gradient = loss_and_gradient(state.params, frozen, batch, keys)
        state, updated = update(state, loss, gradient)
        return state, metrics | updated, embedded, batch.identity

    whole, rows = (NamedSharding(mesh, spec) for spec in (sharding.WHOLE, sharding.ROWS))
    return jax.jit(train_step, donate_argnums=0, out_shardings=(whole, whole, rows, rows))
