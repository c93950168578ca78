r"""Plan: what a run costs and whether it fits, before a TPU is rented.

    python launch/plan.py --config=configs/pretrain.py --topology=v5e:4x4 \
        [--num_slices=2] [--cached] [--pairs=100000 --price=1.2] [--config.train.microbatch=8]

Compiles the training step of the configuration for the TPU named, without one, and tells what the
compiler says: memory by part, what the devices send each other, an estimate of time and cost.
Neither weights nor data are needed. Ends with 1 if the step does not fit. Needs libtpu, as
`pip install -e '.[tpu]'` brings it, and a few minutes for the 2.2B model.
"""

import contextlib
import dataclasses
import signal
import sys

from absl import flags
from ml_collections import config_flags

from vtalign_jax import commandline
from vtalign_jax.config import Config, resolve, warnings
from vtalign_jax.errors import UserError
from vtalign_jax.planning import topology

topology.prepare_environment()  # before anything imports JAX

from vtalign_jax.pipeline.dataset import open_split  # noqa: E402, as it imports JAX
from vtalign_jax.planning import hints, report, table  # noqa: E402, the same
from vtalign_jax.planning.abstract import find_base  # noqa: E402, the same

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="file of the run, such as configs/pretrain.py; --config.a.b=x overrides"
)
_TOPOLOGY = flags.DEFINE_string("topology", "", "generation and chips along each axis: v5e:4x4")
_NUM_SLICES = flags.DEFINE_integer(
    "num_slices", 1, "how many slices of this topology", lower_bound=1
)
_PRICE = flags.DEFINE_float(
    "price", 0.0, "US dollars an hour of a chip, for the cost of an epoch", lower_bound=0.0
)
_PAIRS = flags.DEFINE_integer(
    "pairs",
    0,
    "pairs of an epoch; by default those of config.data.dir, if it is there",
    lower_bound=0,
)
_WINDOW = flags.DEFINE_float(
    "window_seconds", 4.0, "longest window of a clip, said in its prompt", lower_bound=0.0
)
_CLIP_TOKENS = flags.DEFINE_integer(
    "clip_tokens",
    0,
    "tokens of the longest clip's turn, where the tokenizer is not at hand",
    lower_bound=0,
)
_CACHED = flags.DEFINE_bool(
    "cached", False, "plan the step that reads what cache_features.py writes, instead of frames"
)
_TRIES = flags.DEFINE_integer(
    "tries", 2, "settings to compile in search of one that fits, if this does not", lower_bound=0
)
_JSON = flags.DEFINE_bool("json", False, "print the plan as JSON instead of a table")


def main() -> None:
    """Plan, and look for a setting that fits if this one does not."""
    config = resolve(_CONFIG.value)
    if _CACHED.value and not config.data.feature_cache:
        data = dataclasses.replace(config.data, feature_cache="not written yet")
        config = dataclasses.replace(config, data=data)
    # With --json nothing else stands on standard output.
    with contextlib.redirect_stdout(sys.stderr if _JSON.value else sys.stdout):
        for line in warnings(config):
            print(f"warning: {line}", flush=True)
        found = _plan(config)
        if not _JSON.value:
            for line in table.lines(found):
                print(line, flush=True)
        if not found["fits"]:
            print(found["hint"], flush=True)
    if _JSON.value:
        commandline.print_json(found)
    if not found["fits"]:
        sys.exit(1)


def _plan(config: Config) -> dict:
    machine = topology.describe(_TOPOLOGY.value, _NUM_SLICES.value)
    data, model = config.data, config.model
    base = find_base(model.base, data.frames, _WINDOW.value, _CLIP_TOKENS.value)
    asked = report.Asked(_pairs(config), _PRICE.value)
    # Python hears no signal while the compiler works, and nothing is half-written: end at once.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    print(
        f"compiling the step for {machine.chips} chip(s) of {machine.chip.name}, numbers of the "
        f"base from {base.source}; one to ten minutes for 2.2B parameters",
        flush=True,
    )
    found = report.make_report(base, config, machine, asked)
    if not found["fits"]:

        def plan(other: Config) -> dict:
            return report.make_report(base, other, machine, asked)

        found["hint"] = hints.search(found, config, machine, plan, _TRIES.value)
    return found


def _pairs(config: Config) -> int:
    """Return the pairs of an epoch: as said, or of the dataset if it is there; else 0."""
    if _PAIRS.value:
        return _PAIRS.value
    try:
        return len(open_split(config.data.dir, config.data.train_split))
    except UserError:
        return 0


if __name__ == "__main__":
    commandline.run(main, required=("config", "topology"))
