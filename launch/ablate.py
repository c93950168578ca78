r"""Ablate: train the same run with different presets, and see what each reaches beside the others.

    python launch/ablate.py --config=configs/tiny.py --presets=plan,infonce --seeds=0,1,2 \
        --out=runs/ablation [--config.data.dir=datasets/dst_clips]

Any other field can be varied instead: --vary=objective.same_recording_weight=0.3,0.4,0.5. Each
value and seed is a run of launch/train.py with the workdir <out>/<value>-<seed>, one after the
other; the same command goes on where it was stopped, and runs no finished run again. Ends with a
table, which <out>/ablation.json holds as well: of each run's best checkpoint by val/recall@5, mean,
standard deviation and range over the seeds.
"""

import json
import pathlib
import signal
import subprocess
import sys
import time
from typing import NoReturn

from absl import flags
from ml_collections import config_flags

from vtalign_jax import commandline, remote
from vtalign_jax.config import resolve
from vtalign_jax.errors import UserError
from vtalign_jax.objectives.negatives import PRESETS
from vtalign_jax.training import ablation
from vtalign_jax.training.ablation import Reached, Run
from vtalign_jax.wording import counted, typed_command, typed_overrides

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="file of the run, such as configs/tiny.py; --config.a.b=x for all runs"
)
_PRESETS = flags.DEFINE_list(
    "presets", None, f"short for --vary=objective.preset=...; default {','.join(PRESETS)}"
)
_VARY = flags.DEFINE_string("vary", None, "another field and its values, section.field=a,b,c")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "of training; each value is trained with each")
_OUT = flags.DEFINE_string("out", "runs/ablation", "folder of the runs and of ablation.json")

_TRAIN = pathlib.Path(__file__).with_name("train.py")
_SAID = "error: "  # how a command begins the line it fails with


def main() -> None:
    """Train what is not trained yet, then compare."""
    field, values = _varied()
    shared = _overrides(field)
    out = remote.path(_OUT.value)
    runs = ablation.make_runs(resolve(_CONFIG.value), field, values, _seeds(), str(out))
    waiting = [run for run in runs if ablation.find_reached(run) is None]
    finished = len(runs) - len(waiting)
    _say(f"{counted(len(runs), 'run')} in {_OUT.value}, {finished} of them finished before")
    began = time.monotonic()
    for number, run in enumerate(waiting):
        minutes = (time.monotonic() - began) / 60 * (len(waiting) - number) / max(number, 1)
        left = f"; about {minutes:.0f} minutes to go" if number else ""
        _say(f"run {number + 1} of {len(waiting)}: {field}={run.value}, seed {run.seed}{left}")
        _train(run, shared | {field: run.value, "train.seed": run.seed})

    reached: dict[str, list[Reached]] = {value: [] for value in values}
    for run in runs:
        found = ablation.find_reached(run)
        if found is None:
            raise UserError(f"{run.workdir} stopped before its end; the same command goes on")
        reached[run.value].append(found)
        _say(f"{run.workdir}: the best checkpoint by val/recall@5 is that of step {found.step:,}")
    rows = ablation.summarise(reached)
    written = out / "ablation.json"
    described = {"config": flags.FLAGS["config"].config_filename, "overrides": shared}
    described |= {"field": field} | ablation.to_json(runs, reached, rows)
    remote.write_text(written, json.dumps(described, indent=2) + "\n")
    _say(f"{ablation.format_rows(field, rows)}\nwritten to {written}")
    best = ablation.best_run(runs, reached).workdir
    _say(f"next: {typed_command('evaluate', f'--checkpoint={best}')}")


def _varied() -> tuple[str, list[str]]:
    """Return the field that differs between runs, and its values."""
    if _VARY.value is not None and _PRESETS.value is not None:
        raise UserError("--presets and --vary both say what differs between runs; give one of them")
    if _VARY.value is not None:
        return ablation.parse_vary(_VARY.value)
    return "objective.preset", list(PRESETS) if _PRESETS.value is None else _PRESETS.value


def _seeds() -> list[int]:
    try:
        return [int(seed) for seed in _SEEDS.value]
    except ValueError as error:
        raise UserError(f"--seeds={','.join(_SEEDS.value)}: {error}") from error


def _overrides(field: str) -> dict[str, object]:
    """Return the fields that the command line sets for all runs."""
    given = dict(flags.FLAGS["config"].override_values)
    for name, flag in ((field, "--vary or --presets"), ("train.seed", "--seeds")):
        if name in given:
            raise UserError(f"--config.{name} is for all runs, {flag} for each; give one of them")
    return given


def _train(run: Run, fields: dict[str, object]) -> None:
    """Train one run as a process of its own.

    Raises:
      UserError: it failed; its own error line is told.
    """
    command = [sys.executable, str(_TRAIN), f"--config={flags.FLAGS['config'].config_filename}"]
    command += typed_overrides(fields)
    command.append(f"--workdir={run.workdir}")
    before = signal.signal(signal.SIGTERM, _end)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
    try:
        said = _pass_on(process)
        code = process.wait()
    except BaseException:
        process.terminate()  # training saves and ends
        process.communicate()
        _say(f"stopped in {run.workdir}; the same command goes on from there")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if code:
        told = said or f"it ended with code {code}, as told above"
        raise UserError(f"{run.workdir}: {told}")


def _pass_on(process: subprocess.Popen) -> str:
    """Print what the process writes to standard error; return its error, "" if it has none."""
    said = ""
    for line in process.stderr:
        if line.startswith(_SAID):
            said = line.removeprefix(_SAID).strip()
        else:
            print(line, end="", file=sys.stderr, flush=True)
    return said


def _end(*signalled: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)  # as a shell reports it


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    commandline.run(main, required=("config",))
