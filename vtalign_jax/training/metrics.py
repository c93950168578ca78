"""What a run reports: `metrics.jsonl`, TensorBoard and the progress line."""

import datetime
import json
import math
import sys
import time
from collections.abc import Mapping
from typing import TextIO

import numpy as np
import tqdm
from etils import epath

from vtalign_jax import json_files, remote
from vtalign_jax.errors import UserError
from vtalign_jax.processes import host_gib
from vtalign_jax.training.board import Board

FILE, BOARD = "metrics.jsonl", "tensorboard"  # inside a workdir
# The scalars that depend on the machine; every other one is the same after kill and resume. Pairs
# a second, share of the time in which the devices stood still for data, host memory in GiB.
TIMING = ("train/pairs_per_second", "train/data_wait", "train/host_gib")


class StepRows:
    """Appends JSON objects, one a line, each with its step.

    Rows later than the restored checkpoint are dropped first, since the run is about to write them
    again: the file equals that of a run that was never stopped. Write a step's rows before its
    checkpoint.
    """

    def __init__(self, path: str | epath.Path, restored_step: int | None = None):
        """Open the file.

        Args:
          path: in a folder of this machine that exists.
          restored_step: step of the checkpoint the run goes on from; None starts the file anew.

        Raises:
          UserError: the file holds a line that is not a JSON object with a step.
        """
        path = epath.Path(path)
        _drop_later_rows(path, -1 if restored_step is None else restored_step)
        self._file = path.open("a")

    def write(self, step: int, values: Mapping[str, object]) -> None:
        """Write one row and flush it, so that a kill loses no row from before a checkpoint."""
        self._file.write(json.dumps({"step": int(step)} | dict(values)) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class MetricsWriter:
    """Appends scalars to `metrics.jsonl` (as `StepRows`) and to TensorBoard.

    After kill and resume the file is that of a run that was never stopped, `TIMING` apart.

    Attributes:
      board: TensorBoard's files; None where this process does not write.
    """

    def __init__(
        self,
        workdir: str | epath.Path,
        restored_step: int | None = None,
        *,
        is_primary: bool = True,
    ):
        """Open the files.

        Args:
          workdir: a folder of this machine, made if absent.
          restored_step: step of the checkpoint the run goes on from; None starts the files anew.
          is_primary: whether this process writes.

        Raises:
          UserError: `metrics.jsonl` holds a line that is not a JSON object with a step.
        """
        self._rows: StepRows | None = None
        self.board: Board | None = None
        if not is_primary:
            return
        workdir = epath.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self._rows = StepRows(workdir / FILE, restored_step)
        first_step = 0 if restored_step is None else restored_step + 1
        self.board = Board(str(workdir / BOARD), first_step)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write one row; what is not finite becomes null."""
        if self._rows is None:
            return
        values = {name: _plain(value) for name, value in scalars.items()}
        self._rows.write(step, values)
        known = {name: value for name, value in values.items() if value is not None}
        self.board.scalars(int(step), known)

    def flush(self) -> None:
        """Write what TensorBoard's files still lack."""
        if self._rows is not None:
            self.board.flush()

    def close(self) -> None:
        """Flush TensorBoard and close the files."""
        if self._rows is not None:
            self._rows.close()
            self.board.close()


def _plain(value: object) -> int | float | None:
    """Return a Python number; None, JSON's null, for what JSON cannot say (NaN, infinity)."""
    value = np.asarray(value).item()
    return value if math.isfinite(value) else None


def read_rows(path: str | epath.Path) -> list[dict[str, float]]:
    """Return the rows of a `metrics.jsonl`; a last line cut off by a kill is left out.

    Raises:
      UserError: another line is not a JSON object with a step.
    """
    return [row for row, _ in _parsed(epath.Path(path))]


def _lines(path: epath.Path) -> list[str]:
    return path.read_bytes().decode(errors="replace").split("\n")


def _parsed(path: epath.Path) -> list[tuple[dict, str]]:
    parsed = []
    # What follows the last line end is empty, or was cut off by a kill.
    for number, line in enumerate(_lines(path)[:-1], start=1):
        try:
            row = json_files.loads(line.encode())
            row["step"] = int(row["step"])
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(
                f"{path} line {number} is not a JSON object with a step; "
                "mend it, or move the file away"
            ) from error
        parsed.append((row, line))
    return parsed


def _drop_later_rows(path: epath.Path, last_step: int) -> None:
    if not path.exists():
        return
    kept = [line + "\n" for row, line in _parsed(path) if row["step"] <= last_step]
    remote.write_text(path, "".join(kept))


class Progress:
    """The line that says how a run is doing: a bar on a terminal, plain lines otherwise.

    Step, pairs/s, share of time spent waiting for data, losses, last and best recall, time left.
    """

    def __init__(
        self,
        total_steps: int,
        pairs_a_step: int,
        start_step: int = 0,
        *,
        stream: TextIO | None = None,
        is_primary: bool = True,
        is_quiet: bool = False,
    ):
        """Start the clock.

        Args:
          total_steps: of the whole run.
          pairs_a_step: the global batch.
          start_step: steps done before, by the run that is resumed.
          stream: default standard error.
          is_primary: whether this process prints.
          is_quiet: whether only what is said prints: no bar, no line of a step.
        """
        stream = sys.stderr if stream is None else stream
        self._pairs, self._total, self._stream = pairs_a_step, total_steps, stream
        self._is_primary, self._is_quiet = is_primary, is_quiet
        self._recall, self._began_at, self._done = "", None, start_step
        self._bar = None
        if is_primary and not is_quiet and stream.isatty():
            self._bar = tqdm.tqdm(
                total=total_steps, initial=start_step, file=stream, unit="step", dynamic_ncols=True
            )
        self.restart_clock()

    def restart_clock(self) -> None:
        """Begin a new interval, after a pause that is no training (compilation, evaluation)."""
        self._began, self._steps, self._waited = time.perf_counter(), 0, 0.0

    def advance(self, data_wait_seconds: float) -> None:
        """Count one step, of which this long was spent waiting for the batch."""
        self._steps += 1
        self._done += 1
        self._waited += data_wait_seconds
        if self._began_at is None:  # what came before is compilation
            self._began_at = time.perf_counter(), self._done
        if self._bar is not None:
            self._bar.update()

    def timing(self) -> dict[str, float]:
        """Return the `TIMING` scalars of the interval since the last call, and begin the next."""
        seconds = max(time.perf_counter() - self._began, 1e-9)
        scalars = (self._steps * self._pairs / seconds, self._waited / seconds, host_gib())
        self.restart_clock()
        return dict(zip(TIMING, scalars, strict=True))

    def show(self, step: int, scalars: Mapping[str, float]) -> None:
        """Print the line of a step; `scalars` holds `TIMING`, `train/loss` and its parts."""
        losses = {
            name.removeprefix("train/"): value
            for name, value in scalars.items()
            if name.startswith("train/loss") and name.count("/") == 1  # no share of a class
        }
        parts = [f"{name} {float(value):.4f}" for name, value in losses.items()]
        parts += [
            f"{float(scalars[TIMING[0]]):.1f} pairs/s",
            f"data wait {float(scalars[TIMING[1]]):.0%}",
        ]
        line = ", ".join(parts) + self._recall
        if self._is_quiet:
            return
        if self._bar is not None:  # which says itself how much time is left
            self._bar.set_postfix_str(line)
        else:
            self.say(f"step {step}/{self._total}: {line}{self._time_left(step)}")

    def _time_left(self, step: int) -> str:
        """Return how long the rest takes at the pace so far, evaluations included."""
        if self._began_at is None or self._done == self._began_at[1] or step >= self._total:
            return ""
        began, first = self._began_at
        seconds = (time.perf_counter() - began) / (self._done - first) * (self._total - step)
        return f", {datetime.timedelta(seconds=round(seconds))} left"

    def set_recall(self, last: float, best: float) -> None:
        """Set what the line says about val/recall@5."""
        self._recall = f", recall@5 {last:.3f} (best {best:.3f})"

    def say(self, text: str) -> None:
        """Print a line of its own, above the bar if there is one."""
        if not self._is_primary:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
