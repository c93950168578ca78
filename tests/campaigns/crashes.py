"""Commands killed at random moments: the job, the moments, the judge.

The job is the demo's: prepare, cache features, train, export, each with the same command after
every kill. A moment is a phase that is waited for, seen in the files, and a delay drawn at random;
what a kill has really hit is told by what it left. The judge compares the folder with that of a job
that nobody disturbed.
"""

import dataclasses
import json
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from tests import commands
from tests.launch.small_dataset import prepare_arguments
from vtalign_jax.training.checkpoint import find_checkpoint, finished_steps, read_state
from vtalign_jax.training.metrics import TIMING

STAGES = ("prepare", "cache_features", "train", "export")
_OF_WHOLE = "_CHECKPOINT_METADATA"  # what a whole checkpoint has
_LIMIT_SECONDS = 300.0  # for a phase to come
_POLL_SECONDS = 0.002


@dataclasses.dataclass(frozen=True)
class Job:
    """A job in a folder of its own.

    Attributes:
      folder: of everything it writes.
      recordings: what `make_demo.py` wrote.
      config: file of the run.
      settings: overrides of its fields.
      eval_every: steps from one evaluation to the next.
      stages: what it is made of, in order.
      shares_programs: whether compiled ones come from where other tests have left them.
    """

    folder: pathlib.Path
    recordings: pathlib.Path
    config: str
    settings: tuple[str, ...]
    eval_every: int
    stages: tuple[str, ...] = STAGES
    shares_programs: bool = False

    def command(self, stage: str) -> list[str]:
        """Return the arguments of a stage; the same whenever it is started."""
        of, config = self.folder, [f"--config={self.config}"]
        data = f"--config.data.dir={of}/dataset"
        return {
            "prepare": [*prepare_arguments(self.recordings, of / "dataset"), "--workers=1"],
            "cache_features": [*config, data, f"--out={of}/features", "--shard_mb=0.3"],
            "train": [*config, data, f"--workdir={of}/run", *self.settings],
            "export": [f"--checkpoint={of}/run", f"--out={of}/export", "--certificate_clips=8"],
        }[stage]

    def start(self, stage: str) -> commands.Forked:
        """Start a stage; training keeps its compiled programs in its workdir, as a user's does."""
        variables = {}
        if not self.shares_programs:
            compiled = "" if stage == "train" else str(self.folder / "compiled")
            variables = {"JAX_COMPILATION_CACHE_DIR": compiled}
        return commands.start(f"launch/{stage}.py", *self.command(stage), **variables)

    def finish(self, stage: str) -> str:
        """Run a stage to its end; return what it said."""
        process = self.start(stage)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        _check_output(output)
        return output

    def rows(self) -> list[dict]:
        """Return the rows of the metrics that are written whole."""
        file = self.folder / "run" / "metrics.jsonl"
        text = file.read_text() if file.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def last_row(self) -> dict:
        """Return the last of them; {} if there is none."""
        file = self.folder / "run" / "metrics.jsonl"
        lines = file.read_bytes().rsplit(b"\n", 2) if file.exists() else []
        return json.loads(lines[-2]) if len(lines) > 1 else {}


@dataclasses.dataclass(frozen=True)
class Start:
    """A start of a stage, and what tells its files from those of earlier ones.

    Attributes:
      job: of which.
      since: seconds of the clock when it began.
      from_step: that training goes on from.
    """

    job: Job
    since: float
    from_step: int

    def has(self, pattern: str) -> bool:
        """Return whether it has written a file or changed a folder of these names."""
        return any(path.stat().st_mtime >= self.since for path in self.job.folder.glob(pattern))

    def step(self) -> int:
        """Return the last step made whose evaluation, if one comes, is not written; else 0."""
        row = self.job.last_row()
        is_step = "train/loss" in row and row["step"] > self.from_step
        return row["step"] if is_step else 0

    def is_removing(self) -> bool:
        """Return whether a checkpoint more than are kept is there, or one is half removed."""
        folder = self.job.folder / "run" / "checkpoints"
        names = [path.name for path in folder.glob("[0-9]*") if path.name.isdigit()]
        moved = list(folder.glob(".removed/[0-9]*"))
        return len(names) > 2 or any(not (path / _OF_WHOLE).exists() for path in moved)


def start_of(job: Job) -> Start:
    """Return a start that begins now."""
    saved = finished_steps(job.folder / "run" / "checkpoints")
    return Start(job, time.time(), max(saved, default=0))


def _has(pattern: str) -> Callable[[Start], bool]:
    return lambda start: start.has(pattern)


def _is_always(start: Start) -> bool:
    return True


def _is_evaluating(start: Start) -> bool:
    return (step := start.step()) > 0 and step % start.job.eval_every == 0


class Phase(NamedTuple):
    """When a stage may be killed.

    Attributes:
      stage: which.
      is_on: whether the files say that it is going on.
      seconds: the kill comes at most so much later.
    """

    stage: str
    is_on: Callable[[Start], bool]
    seconds: float


# The first of a stage that is on is the one that a kill has hit.
PHASES = {
    "prepare: writing records": Phase("prepare", _has("dataset/.*/tfds"), 0.3),
    "prepare: rendering": Phase("prepare", _has("dataset/.*/rendered/*"), 0.05),
    "prepare: before that": Phase("prepare", _is_always, 2.0),
    "cache_features: writing a file": Phase("cache_features", _has("features/*/*.partial"), 0.5),
    "cache_features: before that": Phase("cache_features", _is_always, 3.0),
    "train: writing a checkpoint": Phase("train", _has("run/checkpoints/*tmp*"), 0.05),
    "train: removing a checkpoint": Phase("train", Start.is_removing, 0.005),
    "train: evaluating": Phase("train", _is_evaluating, 0.3),
    "train: stepping": Phase("train", lambda start: start.step() > 0, 0.2),
    "train: before the first step": Phase("train", _is_always, 4.0),
    "export: writing": Phase("export", _has(".export.unfinished-*"), 0.3),
    "export: before that": Phase("export", _is_always, 4.0),
}


class Moment(NamedTuple):
    """When to kill.

    Attributes:
      phase: the one waited for.
      times: how often it must have come in this start.
      delay: seconds after that.
    """

    phase: str
    times: int
    delay: float


def draw_moments(seed: int, phases: Sequence[str]) -> Iterator[Moment]:
    """Yield a moment for each phase named; the same for the same seed.

    Those of training come in an order that is drawn as well, and its phases more than once a start.
    """
    rng = np.random.default_rng(seed)
    is_training = all(PHASES[phase].stage == "train" for phase in phases)
    for phase in rng.permutation(list(phases)).tolist() if is_training else phases:
        comes_again = is_training and PHASES[phase].is_on is not _is_always
        times = int(rng.integers(1, 3)) if comes_again else 1
        yield Moment(phase, times, float(rng.uniform(0.0, PHASES[phase].seconds)))


class Kill(NamedTuple):
    """What became of a moment.

    Attributes:
      moment: which.
      hit: the phase that was hit; "" if the command ended first.
      step: the last step in the metrics then.
      output: what the command had said.
    """

    moment: Moment
    hit: str
    step: int
    output: str


def kill(job: Job, moment: Moment) -> Kill:
    """Start a stage and kill it at a moment."""
    phase = PHASES[moment.phase]
    start = start_of(job)
    process = job.start(phase.stage)
    for time_seen in range(moment.times):
        if time_seen:
            _wait(process, lambda: not phase.is_on(start))
        _wait(process, lambda: phase.is_on(start))
    time.sleep(moment.delay)
    process.kill()
    output, _ = process.communicate()
    assert process.returncode in (0, -9), output
    _check_output(output)
    hit = "" if process.returncode == 0 else _hit(start, phase.stage)
    return Kill(moment, hit, job.last_row().get("step", 0), output)


def _check_output(output: str) -> None:
    """No start may trip over what an earlier one left, not even a library over its own files."""
    assert not re.search(r"Traceback|Error reading persistent compilation cache", output), output


def _wait(process: commands.Forked, condition: Callable[[], bool]) -> None:
    """Wait until a condition holds or the process has ended."""
    deadline = time.monotonic() + _LIMIT_SECONDS
    while process.poll() is None:
        try:
            if condition():
                return
        except FileNotFoundError:  # removed while it was looked at
            continue
        assert time.monotonic() < deadline, "the phase never came"
        time.sleep(_POLL_SECONDS)


def _hit(start: Start, stage: str) -> str:
    of_stage = [name for name, phase in PHASES.items() if phase.stage == stage]
    return next(name for name in of_stage if PHASES[name].is_on(start))


# What may differ from the undisturbed job: it tells of starts, times, or of the folder itself.
_NOT_COMPARED = (
    r"compiled/.*|run/compilation_cache/.*",
    r".*/\.lock",  # who held it
    r"run/tensorboard/.*",  # a file a start
    r"run/manifest\.json",  # lists the starts
    r"run/report\.html",
    r"run/checkpoints/.*",  # compared leaf by leaf
)
# Names made up anew: of checkpoints' arrays, of events, of programs (by the folder they lie in).
_UNIQUE = r"(?<=/d/)[0-9a-f]{32}|(?<=tensorboard/).*|(?<=-)[0-9a-f]{64}(?=-cache)"


def judge(job: Job, undisturbed: Job) -> list[str]:
    """Return what is wrong with a job that was killed; [] if it ended as if it had not been."""
    wrong = [f"{name} is left over" for name in sorted(_names(job) - _names(undisturbed))]
    wrong += [f"{name} is missing" for name in sorted(_names(undisturbed) - _names(job))]
    for name in sorted(_names(job) & _names(undisturbed)):
        is_compared = not any(re.fullmatch(pattern, name) for pattern in _NOT_COMPARED)
        if is_compared and _content(job, name) != _content(undisturbed, name):
            wrong.append(f"{name} differs")
    return wrong + _judge_checkpoints(job, undisturbed)


def _judge_checkpoints(job: Job, undisturbed: Job) -> list[str]:
    wrong, found = [], {}
    for each in (job, undisturbed):
        folder = each.folder / "run" / "checkpoints"
        leaves = {step: _leaves(folder / str(step)) for step in sorted(finished_steps(folder))}
        best = find_checkpoint(each.folder / "run")[1].replace(str(each.folder), "")
        found[each] = leaves, best
    (leaves, best), (expected, expected_best) = found[job], found[undisturbed]
    if best != expected_best:
        wrong.append(f"the best is {best}, not {expected_best}")
    if list(leaves) != list(expected):
        return [*wrong, f"checkpoints {list(leaves)}, not {list(expected)}"]
    for step, named in expected.items():
        wrong += [
            f"{name} after step {step} differs"
            for name, leaf in named.items()
            if leaf.tobytes() != leaves[step][name].tobytes()
        ]
    return wrong


def _leaves(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Return every leaf of a checkpoint: parameters, optimizer, counters, seed."""
    stored = dict(ocp.PyTreeCheckpointHandler().metadata(path / "state").tree)
    wanted = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in stored.items()}
    return {name: np.asarray(leaf) for name, leaf in read_state(path, wanted).items()}


def _names(job: Job) -> set[str]:
    files = (path for path in job.folder.rglob("*") if path.is_file())
    return {re.sub(_UNIQUE, "*", path.relative_to(job.folder).as_posix()) for path in files}


def _content(job: Job, name: str) -> bytes | list:
    """Return a file's content without the folder's name and, of metrics, without the speed."""
    if name == "run/metrics.jsonl":
        return [{k: repr(v) for k, v in row.items() if k not in TIMING} for row in job.rows()]
    file = job.folder / name
    if "/dst_clips-" in name:  # a record's fields are stored in any order
        records = array_record_module.ArrayRecordReader(str(file)).read_all()
        return [tf_example_pb2.Example.FromString(record) for record in records]
    return file.read_bytes().replace(str(job.folder).encode(), b"")


def table(kills: Sequence[Kill]) -> str:
    """Return how often each phase was aimed at and hit."""
    lines = [f"{'phase':34}{'aimed at':>10}{'hit':>6}"]
    for name in PHASES:
        aimed = sum(each.moment.phase == name for each in kills)
        lines.append(f"{name:34}{aimed:10}{sum(each.hit == name for each in kills):6}")
    ended = sum(not each.hit for each in kills)
    return "\n".join([*lines, f"{'the command had ended':34}{'':10}{ended:6}"])
