"""One process of several that sum a number for ever, and print that they have begun."""

import jax
import jax.numpy as jnp
import numpy as np

from vtalign_jax import commandline, distributed, sharding
from vtalign_jax.config import MeshConfig


def main() -> None:
    """Never return."""
    mesh = sharding.make_mesh(MeshConfig())
    ones = sharding.to_devices(np.ones(jax.local_device_count(), np.float32), mesh)
    print(f"{float(jax.jit(jnp.sum)(ones)):.0f} devices", flush=True)
    while True:
        jax.jit(jnp.sum)(ones).block_until_ready()


if __name__ == "__main__":
    commandline.run(main, around=distributed.connected)
