"""What one process of several sees of a checkpoint: its state, and the batches that follow.

python tests/launch/resumed_state.py --workdir=... --out=... [--coordinator=... ...]
"""

import pathlib

import jax
import numpy as np
from absl import flags
from jax.sharding import NamedSharding

from vtalign_jax import commandline, distributed, sharding
from vtalign_jax.config import MeshConfig
from vtalign_jax.interop.tokens import ClipTokenizer
from vtalign_jax.pipeline.dataset import open_split
from vtalign_jax.pipeline.loader import make_loader
from vtalign_jax.training import checkpoint, optim
from vtalign_jax.training.assemble import assemble, load
from vtalign_jax.training.manifest import read_config
from vtalign_jax.training.state import init_state

WORKDIR = flags.DEFINE_string("workdir", None, "of a run that was stopped")
OUT = flags.DEFINE_string("out", None, "folder for <process>.npz")
STEPS = 4


def main() -> None:
    """Write every leaf of the restored state and the records of the next batches."""
    config = read_config(WORKDIR.value)
    mesh = sharding.make_mesh(MeshConfig())
    model = assemble(config)
    params, _ = load(model, mesh)
    state = init_state(params, optim.make_optimizer(config.optim, 12), config.train.seed, mesh)
    place = NamedSharding(mesh, sharding.WHOLE)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state)
    folder = pathlib.Path(WORKDIR.value) / checkpoint.FOLDER
    path = folder / str(max(checkpoint.finished_steps(folder)))
    leaves = jax.tree.leaves(checkpoint.read_state(path, abstract))
    batches = make_loader(
        open_split(config.data.dir, config.data.train_split),
        ClipTokenizer(model.directory),
        config,
        start_step=checkpoint.read_extra(path)["next_step"],
        num_steps=STEPS,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        train=True,
    )
    records = np.stack([batch.identity.record for _, batch in batches])
    named = {f"leaf{number}": np.asarray(leaf) for number, leaf in enumerate(leaves)}
    np.savez(f"{OUT.value}/{jax.process_index()}.npz", records=records, **named)


if __name__ == "__main__":
    commandline.run(main, required=("workdir", "out"), around=distributed.connected)
