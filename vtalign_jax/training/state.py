"""What a training step changes, and what a checkpoint therefore holds."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from vtalign_jax import sharding


class TrainState(NamedTuple):
    """The state of a run between two steps.

    Attributes:
      step: int32[], batches consumed.
      params: `{path: float32}`, the trainable leaves only.
      opt_state: the optimizer's.
      seed: uint32[2], key data from which each step's dropout keys are folded.
      skipped: int32[], updates left out because loss or gradient was not finite.
      skipped_in_a_row: int32[], how many of the newest updates.
      longest_skipped: int32[], the most in a row so far; seen at logging, however short the streak.
    """

    step: jax.Array
    params: dict[str, jax.Array]
    opt_state: optax.OptState
    seed: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    longest_skipped: jax.Array


def init_state(
    params: dict[str, jax.Array], optimizer: optax.GradientTransformation, seed: int, mesh: Mesh
) -> TrainState:
    """Return the state before the first step, whole on every device of the mesh.

    It is made by one jitted function, so that each leaf has a buffer of its own (they are donated)
    and the sharding that the step gives back (else the step would be traced twice).
    """

    def make(params: dict[str, jax.Array]) -> TrainState:
        zero = jnp.zeros((), jnp.int32)
        key_data = jax.random.key_data(jax.random.key(seed))
        return TrainState(zero, params, optimizer.init(params), key_data, zero, zero, zero)

    return jax.jit(make, out_shardings=NamedSharding(mesh, sharding.WHOLE))(params)
