"""One update of the trainable leaves, however their gradient was computed."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from vtalign_jax.models.aligner import MIN_LOG_TEMPERATURE
from vtalign_jax.training.state import TrainState


def make_update(optimizer: optax.GradientTransformation, learning_rate: optax.Schedule) -> Callable:
    """Return `update(state, loss, gradient) -> (state, metrics)`.

    An update whose loss or gradient is not finite is left out and counted.

    Args:
      optimizer: of the trainable leaves.
      learning_rate: the optimizer's schedule, to be reported.
    """

    def update(
        state: TrainState, loss: jax.Array, gradient: dict[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        norm = optax.tree.norm(gradient)
        is_finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = _clamp_temperature(optax.apply_updates(state.params, updates))
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(is_finite, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        lost = (~is_finite).astype(jnp.int32)
        in_a_row = (state.skipped_in_a_row + lost) * lost
        rate = learning_rate(state.step - state.skipped)  # of updates made
        state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            seed=state.seed,
            skipped=state.skipped + lost,
            skipped_in_a_row=in_a_row,
            longest_skipped=jnp.maximum(state.longest_skipped, in_a_row),
        )
        return state, {
            "gradient_norm": norm,
            "learning_rate": rate,
            "skipped": state.skipped,
            "longest_skipped": state.longest_skipped,
        }

    return update


def _clamp_temperature(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Keep tau at or above its bound, so that it can come back from there (CLIP does the same)."""
    clamped = jnp.maximum(params["log_temperature"], MIN_LOG_TEMPERATURE)
    return params | {"log_temperature": clamped}
