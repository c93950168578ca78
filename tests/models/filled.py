"""Modules with random values drawn in NumPy: drawing them in JAX compiles once a shape."""

import jax.numpy as jnp
import numpy as np

from vtalign_jax.models import parameters


def filled(make_model, seed=0):
    """Return the module with every kernel, table and adapter random and every norm and bias fresh.

    LoRA B is drawn too, so that adapters matter.
    """
    bind, abstract = parameters.abstract(make_model)
    rng = np.random.default_rng(seed)
    fresh = {"scale": np.ones, "bias": np.zeros}

    def draw(shape):
        return 0.3 * rng.standard_normal(shape)

    return bind(
        {
            path: jnp.asarray(fresh.get(path.rsplit(".", 1)[1], draw)(leaf.shape), leaf.dtype)
            for path, leaf in abstract.items()
        }
    )
