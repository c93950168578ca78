"""One training step: embeddings of a global batch, the loss over all of them, one update."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from vtalign_jax import sharding
from vtalign_jax.array_types import Batch, Identity
from vtalign_jax.config import ObjectiveConfig
from vtalign_jax.models.aligner import MIN_TEMPERATURE, AlignerModel
from vtalign_jax.objectives import negatives
from vtalign_jax.objectives.info_nce import make_info_nce
from vtalign_jax.training.state import TrainState

Bind = Callable[[Mapping[str, jax.Array]], AlignerModel]


def row_keys(seed: jax.Array, step: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
    """Return dropout keys for clips and texts, one a row of the global batch.

    A key depends on the row's global index alone, so any split of the batch draws the same masks.

    Args:
      seed: uint32[2], key data.
      step: int32[].
      rows: B.

    Returns:
      Two key[B].
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(seed), step)
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    index = jnp.arange(rows)
    return fold(jax.random.fold_in(key, 0), index), fold(jax.random.fold_in(key, 1), index)


def embed(model: AlignerModel, batch: Batch, keys: tuple = (None, None)) -> tuple:
    """Return (z_video, z_text): two float32[B, E], unit norm."""
    clips = model.pooled_clips(batch.clip_ids, batch.clip_mask, batch.frames, keys[0])
    texts = model.pooled_texts(batch.text_ids, batch.text_mask, keys[1])
    return model.project_clips(clips), model.project_texts(texts)


def make_loss(bind: Bind, objective: ObjectiveConfig, mesh: Mesh) -> Callable:
    """Return `loss(params, frozen, batch, keys) -> (float32[], metrics)` of a global batch."""
    info_nce = make_info_nce(objective, mesh)

    def loss(params: dict, frozen: dict, batch: Batch, keys: tuple) -> tuple[jax.Array, dict]:
        model = bind(params | frozen)
        z_video, z_text = embed(model, batch, keys)
        temperature = model.temperature()
        value = info_nce(z_video, z_text, temperature, batch.identity)
        metrics = {"loss": value, "loss_itc": value, "temperature": temperature}
        return value, metrics | _describe(batch.identity, objective, mesh)

    return loss


def _describe(identity: Identity, objective: ObjectiveConfig, mesh: Mesh) -> dict[str, jax.Array]:
    """Return the share of real pairs i != j in each class, and the effective negatives a row."""
    whole = NamedSharding(mesh, sharding.WHOLE)
    columns = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, whole), identity)
    classes = negatives.pair_classes(identity, columns, objective)  # [B, B]
    count = jnp.maximum(jnp.sum(identity.row_mask.astype(jnp.float32)), 1.0)
    pairs = jnp.maximum(count * (count - 1.0), 1.0)
    reported = negatives.CLASSES[: negatives.CLASSES.index("positive")]
    sums = {name: jnp.sum(classes == n) for n, name in enumerate(reported)}
    weights = negatives.class_weights(objective)
    total = sum(weights[n] * sums[name] for n, name in enumerate(reported))
    shares = {f"pairs/{name}": value / pairs for name, value in sums.items()}
    return shares | {"effective_negatives": total / count}


def make_train_step(
    bind: Bind,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    objective: ObjectiveConfig,
    mesh: Mesh,
    *,
    has_dropout: bool,
) -> Callable:
    """Return the jitted `step(state, frozen, batch) -> (state, metrics)`; `state` is donated.

    An update whose loss or gradient is not finite is left out and counted.

    Args:
      bind: arrays by path -> model.
      optimizer: of the trainable leaves.
      learning_rate: the optimizer's schedule, to be reported.
      objective: weights of the pair classes.
      mesh: the batch is split over its devices, `state` is whole on each.
      has_dropout: whether dropout keys are drawn.
    """
    loss_and_gradient = jax.value_and_grad(make_loss(bind, objective, mesh), has_aux=True)

    def train_step(state: TrainState, frozen: dict, batch: Batch) -> tuple[TrainState, dict]:
        rows = batch.identity.row_mask.shape[0]
        keys = row_keys(state.seed, state.step, rows) if has_dropout else (None, None)
        (loss, metrics), grads = loss_and_gradient(state.params, frozen, batch, keys)
        norm = optax.tree.norm(grads)
        is_finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = _clamp_temperature(optax.apply_updates(state.params, updates))
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(is_finite, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        lost = (~is_finite).astype(jnp.int32)
        in_a_row = (state.skipped_in_a_row + lost) * lost
        rate = {"learning_rate": learning_rate(state.step - state.skipped)}  # of updates made
        state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            seed=state.seed,
            skipped=state.skipped + lost,
            skipped_in_a_row=in_a_row,
            longest_skipped=jnp.maximum(state.longest_skipped, in_a_row),
        )
        counts = {"skipped": state.skipped, "longest_skipped": state.longest_skipped}
        return state, metrics | {"gradient_norm": norm} | rate | counts

    whole = NamedSharding(mesh, sharding.WHOLE)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(whole, whole))


def _clamp_temperature(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Keep tau at or above its bound, so that it can come back from there (CLIP does the same)."""
    bound = jnp.log(jnp.float32(MIN_TEMPERATURE))
    return params | {"log_temperature": jnp.maximum(params["log_temperature"], bound)}
