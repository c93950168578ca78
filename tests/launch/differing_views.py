"""One process of several that see different checkpoints, as over a network file system.

python tests/launch/differing_views.py --workdir=... [--coordinator=... ...]
"""

import jax
from absl import flags

from tests.training.test_session import fresh_state, open_session
from vtalign_jax import commandline, distributed

WORKDIR = flags.DEFINE_string("workdir", None, "holds a workdir for each process, by its number")


def main() -> None:
    """Open the run and say from which step it goes on and which checkpoints it knows."""
    session, config = open_session(f"{WORKDIR.value}/{jax.process_index()}")
    state = session.start(fresh_state(config))
    print(f"at {int(state.step)} of {session._checkpoints.steps()}", flush=True)


if __name__ == "__main__":
    commandline.run(main, required=("workdir",), around=distributed.connected)
