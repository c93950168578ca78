"""One process of several that sum a number for ever, or until one of them raises."""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from vtalign_jax import commandline, distributed, sharding
from vtalign_jax.config import MeshConfig

RAISES = flags.DEFINE_integer("raises", -1, "number of the process that raises an error")


def main() -> None:
    """Print that it has begun, and never return."""
    mesh = sharding.make_mesh(MeshConfig())
    ones = sharding.to_devices(np.ones(jax.local_device_count(), np.float32), mesh)
    print(f"{float(jax.jit(jnp.sum)(ones)):.0f} devices", flush=True)
    while jax.process_index() != RAISES.value:
        jax.jit(jnp.sum)(ones).block_until_ready()
    raise OSError("no space left")


if __name__ == "__main__":
    commandline.run(main, around=distributed.connected)
