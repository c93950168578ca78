r"""A long run of the demo, watched from outside: nothing grows that should stay as it is.

    python tests/campaigns/long_run.py --out=long_run --dataset=demo_run/dataset [--steps=20000]

Starts `launch/train.py` with the demo's model on its data (`make demo` leaves it), with evaluations
and checkpoints, in small batches so that 20,000 steps take minutes of two cores, and reads once a
second what the process holds. The last tenth of the steps is compared with the first, and with the
sixth where caches and pools fill up before that; ends with code 1 if something has grown.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from absl import flags

from vtalign_jax import commandline
from vtalign_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
_EPOCH_STEPS = 360  # the demo's 2,880 clips by 8
_SETTINGS = {
    "contrastive_batch": 8,
    "eval_every_epochs": 1,
    "save_every_steps": 100,
    "log_every_steps": 20,
}
_SECONDS = 1.0  # between samples
_MIB = 2**20
_FIRST, _SIXTH, _LAST = 1, 6, 10  # tenths of the steps


@dataclasses.dataclass(frozen=True)
class Sample:
    """What the process held at some moment.

    Attributes:
      step: steps done, by the last line of `metrics.jsonl`.
      seconds: of the clock.
      cpu_seconds: processor time of the process so far.
      resident_bytes: its memory.
      files: open descriptors.
      threads: how many.
      checkpoints: folders below `checkpoints/`, unfinished ones included.
      checkpoint_bytes: of all files below it.
      other_bytes: of all other files of the workdir.
    """

    step: int
    seconds: float
    cpu_seconds: float
    resident_bytes: int
    files: int
    threads: int
    checkpoints: int
    checkpoint_bytes: int
    other_bytes: int


def take_sample(pid: int, workdir: pathlib.Path) -> Sample | None:
    """Return a sample, None before the first step and once the process has ended."""
    step = _last_step(workdir / "metrics.jsonl")
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        files = len(os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    if not step or fields[0] == "Z":
        return None
    kept = workdir / "checkpoints"
    checkpoint_bytes = _folder_bytes(kept)
    return Sample(
        step=step,
        seconds=time.monotonic(),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        resident_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        files=files,
        threads=int(fields[17]),
        checkpoints=len(list(kept.iterdir())) if kept.exists() else 0,
        checkpoint_bytes=checkpoint_bytes,
        other_bytes=_folder_bytes(workdir) - checkpoint_bytes,
    )


def _last_step(metrics: pathlib.Path) -> int:
    """Return the step of the last whole line; 0 without one."""
    if not metrics.exists():
        return 0
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 2**15))
        lines = file.read().split(b"\n")[:-1]
    return json.loads(lines[-1])["step"] if len(lines) > 1 else 0


def _folder_bytes(folder: pathlib.Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(f"{path}/{name}").st_size
            except FileNotFoundError:  # removed meanwhile
                continue
    return total


def _typical(name: str) -> Callable[[Sequence[Sample]], float]:
    return lambda samples: statistics.median(getattr(sample, name) for sample in samples)


def _most(name: str) -> Callable[[Sequence[Sample]], float]:
    return lambda samples: max(getattr(sample, name) for sample in samples)


def _a_step(name: str) -> Callable[[Sequence[Sample]], float]:
    """Return what a step takes: the difference from the first sample to the last by the steps."""

    def rate(samples: Sequence[Sample]) -> float:
        first, last = samples[0], samples[-1]
        return (getattr(last, name) - getattr(first, name)) / (last.step - first.step)

    return rate


# What is compared: of a tenth's samples, unit, the tenth that the last is held against, and how
# much it may grow, as a share plus an amount; None: told, not judged.
QUANTITIES = {
    "memory, typical (MiB)": (_typical("resident_bytes"), _MIB, _SIXTH, (0.05, 0.0)),
    "memory, at most (MiB)": (_most("resident_bytes"), _MIB, _FIRST, (0.05, 0.0)),
    "open files, typical": (_typical("files"), 1, _FIRST, (0.0, 0.0)),
    "open files, at most": (_most("files"), 1, _FIRST, None),  # as a sample meets a save, or none
    "threads, typical": (_typical("threads"), 1, _SIXTH, (0.0, 2.0)),  # of pools, made as needed
    "threads, at most": (_most("threads"), 1, _SIXTH, (0.0, 8.0)),
    "processor time a step (ms)": (_a_step("cpu_seconds"), 1e-3, _FIRST, (0.10, 0.0)),
    "clock a step (ms)": (_a_step("seconds"), 1e-3, _FIRST, None),  # the machine may be shared
    "checkpoints, at most": (_most("checkpoints"), 1, _FIRST, (0.0, 1.0)),
    "checkpoints on disk, at most (MiB)": (_most("checkpoint_bytes"), _MIB, _FIRST, (0.5, 0.0)),
    "logs on disk, at most (MiB)": (
        _most("other_bytes"),
        _MIB,
        _FIRST,
        None,
    ),  # a row a logged step
}


def compare(samples: Sequence[Sample], steps: int) -> tuple[list[str], list[str]]:
    """Return the lines of a table, and the names of what has grown.

    Args:
      samples: of the whole run.
      steps: of the run.
    """
    tenths = {
        number: [s for s in samples if (number - 1) * steps < 10 * s.step <= number * steps]
        for number in (_FIRST, _SIXTH, _LAST)
    }
    lines = [f"{'':36}{'1st tenth':>11}{'6th tenth':>11}{'last tenth':>11}  may become"]
    grown = []
    for name, (measure, unit, before, allowed) in QUANTITIES.items():
        found = {number: measure(tenth) / unit for number, tenth in tenths.items()}
        told = ""
        if allowed is not None:
            limit = found[before] * (1 + allowed[0]) + allowed[1]
            told = f"{limit:12,.1f}"
            if found[_LAST] > limit:
                grown.append(name)
                told += "  GROWN"
        figures = "".join(f"{value:11,.1f}" for value in found.values())
        lines.append(f"{name:36}{figures}{told}")
    return lines, grown


def watch(dataset: str, out: pathlib.Path, steps: int) -> list[Sample]:
    """Train for at least as many steps, in whole epochs, and return the samples.

    Raises:
      UserError: training failed.
    """
    epochs = -(-steps // _EPOCH_STEPS)
    settings = _SETTINGS | {"epochs": epochs, "min_epochs": epochs}
    workdir, log, samples = out / "run", out / "train.log", []
    shutil.rmtree(workdir, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "launch/train.py", "--config=configs/demo.py", "--quiet"]
    command += [f"--config.data.dir={dataset}", f"--workdir={workdir}"]
    command += [f"--config.train.{name}={value}" for name, value in settings.items()]
    with log.open("w") as told:
        process = subprocess.Popen(command, cwd=ROOT, stdout=told, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                if (sample := take_sample(process.pid, workdir)) is not None:
                    samples.append(sample)
                time.sleep(_SECONDS)
        finally:
            process.kill()
    if process.returncode:
        raise UserError(f"training ended with code {process.returncode}; see {log}")
    rows = [json.dumps(dataclasses.asdict(sample)) for sample in samples]
    (out / "samples.jsonl").write_text("\n".join(rows) + "\n")
    return samples


def main() -> None:
    """Run, compare, print."""
    out, steps = pathlib.Path(flags.FLAGS.out).resolve(), flags.FLAGS.steps
    dataset = str(pathlib.Path(flags.FLAGS.dataset).resolve())
    print(f"{steps:,} steps; {out}/train.log tells how far it is", flush=True)
    samples = watch(dataset, out, steps)
    lines, grown = compare(samples, samples[-1].step)
    print("\n".join(lines))
    if grown:
        sys.exit(f"error: grown: {'; '.join(grown)}; {out}/samples.jsonl has all samples")
    print("nothing has grown")


if __name__ == "__main__":
    flags.DEFINE_string("out", "long_run", "Folder of the run; an earlier one is replaced.")
    flags.DEFINE_string("dataset", "demo_run/dataset", "What `make demo` has prepared.")
    flags.DEFINE_integer("steps", 20_000, "At least so many, in whole epochs.", lower_bound=1)
    commandline.run(main)
