"""What a run keeps in its workdir (checkpoints, metrics, early stop) and goes on from."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from vtalign_jax import json_files, locks, remote
from vtalign_jax.config import Config, TrainConfig, to_dict
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.report.page import FILE as REPORT
from vtalign_jax.evaluation.report.run import EVALUATIONS
from vtalign_jax.evaluation.report.sample import Sample
from vtalign_jax.evaluation.result import Evaluation
from vtalign_jax.training import compiled, manifest
from vtalign_jax.training.checkpoint import (
    FOLDER,
    METRIC,
    Checkpoints,
    finished_steps,
    read_extra,
)
from vtalign_jax.training.early_stop import EarlyStop
from vtalign_jax.training.metrics import MetricsWriter, Progress, StepRows
from vtalign_jax.training.run_report import RunReport
from vtalign_jax.training.set_aside import set_damaged_aside
from vtalign_jax.training.state import TrainState
from vtalign_jax.wording import typed_command

_EXTRA_KINDS = {"config": dict, "fingerprints": dict, "early_stop": dict}
_UPLOAD_SECONDS = 60.0  # at most so often between saves do metrics go to a bucket


class Standing(NamedTuple):
    """How far a run has come.

    Attributes:
      step: steps done.
      early: the early stop's state after them.
    """

    step: int
    early: EarlyStop


def find_standing(
    workdir: str, config: Config, fingerprints: manifest.Fingerprints
) -> Standing | None:
    """Return how far the newest checkpoint of a workdir has come, None before the first.

    Raises:
      UserError: see `_standing_at`.
    """
    # Without Orbax's manager: its threads would trip over the exit that a refusal is.
    newest = max(finished_steps(f"{workdir}/{FOLDER}"), default=None)
    return None if newest is None else _standing_at(newest, workdir, config, fingerprints)


def _standing_at(
    step: int, workdir: str, config: Config, fingerprints: manifest.Fingerprints
) -> Standing:
    """Return how far the checkpoint of a step has come.

    Raises:
      UserError: it belongs to a run with another configuration, base or dataset.
    """
    file = f"{workdir}/{FOLDER}/{step}"
    extra = read_extra(file)
    json_files.require(extra, _EXTRA_KINDS, file, "use another checkpoint")
    manifest.check_resume(extra, config, fingerprints, workdir)
    return Standing(step, EarlyStop.from_json(extra["early_stop"]))


def is_over(standing: Standing, train: TrainConfig, epoch_steps: int) -> bool:
    """Return whether a run has ended there, by its last epoch or by the early stop."""
    if standing.step >= epoch_steps * train.epochs:
        return True
    is_stopped = standing.early.is_over(
        standing.step // epoch_steps, min_epochs=train.min_epochs, patience=train.patience
    )
    return is_stopped and standing.step % (epoch_steps * train.eval_every_epochs) == 0


@contextlib.contextmanager
def _writable(workdir: str) -> Iterator[None]:
    """Turn what the file system refuses into the user's error."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to --workdir={workdir} ({error}); name a folder that can be written"
        ) from error


class Session:
    """The record of one run. Every process has one; process 0 prints and writes metrics.

    Attributes:
      step: steps done when this start of the run began.
      is_resumed: whether a checkpoint was found.
      total_steps: of the whole run.
      early: the early stop's state.
      progress: the progress line.
      logs: folder of this machine for files that grow; see `remote.Growing`.
    """

    def __init__(
        self,
        workdir: str,
        config: Config,
        fingerprints: manifest.Fingerprints,
        epoch_steps: int,
        clips: Mapping[str, Any],
        *,
        is_quiet: bool = False,
    ):
        """Take hold of the workdir and make sure that it holds this run.

        Nothing of the run is written yet. Checkpoints that do not hold what was saved are moved out
        of the way, see `set_aside`, and compiled programs are kept there from now on.

        Args:
          workdir: made if absent, on this machine or in a bucket.
          config: of the run.
          fingerprints: of base and data.
          epoch_steps: steps of an epoch.
          clips: `window_seconds`, `fit` and `rotate` of the dataset's clips, by which later
            embeddings go where nobody says otherwise; see `trained.Trained`.
          is_quiet: whether lines of steps are left out.

        Raises:
          UserError: the checkpoint belongs to a run with another configuration, base or dataset,
            another training writes there, or the folder cannot be written.
        """
        self.step, self.is_resumed, self.early = 0, False, EarlyStop()
        self._workdir, self._config, self._fingerprints = workdir, config, fingerprints
        self._growing, self._evaluations, self.logs = None, None, workdir
        self._epoch_steps, self._clips, self._is_quiet = epoch_steps, dict(clips), is_quiet
        self.total_steps = epoch_steps * config.train.epochs
        with _writable(workdir):
            self._lock = contextlib.ExitStack()
            if jax.process_index() == 0:
                self._lock = locks.hold(workdir, "--workdir")
            compiled.keep(workdir)
            newest, said = set_damaged_aside(f"{workdir}/{FOLDER}")
            for line in said:
                print(line, flush=True)
            if newest is not None:
                self.step, self.early = _standing_at(newest, workdir, config, fingerprints)
                self.is_resumed = True

    def open(self) -> None:
        """Write the configuration, of which a start may change some, and take up the checkpoints.

        Raises:
          UserError: the folder cannot be written.
        """
        kept = self._config.train.keep_best, self._config.train.keep_latest
        with _writable(self._workdir):
            manifest.write_config(self._workdir, self._config)
            self._checkpoints = Checkpoints(f"{self._workdir}/{FOLDER}", *kept)

    def start(self, state: TrainState, **facts: Any) -> TrainState:
        """Return the state to go on from: the newest checkpoint's, or the one given.

        Args:
          state: before the first step.
          **facts: JSON values for the manifest.

        Raises:
          UserError: the checkpoint's arrays do not fit.
        """
        if self.is_resumed:
            abstract = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
            )
            state = self._checkpoints.restore(self.step, abstract).state
        from_step = self.step if self.is_resumed else None
        manifest.write_manifest(self._workdir, self._config, self._fingerprints, from_step, **facts)
        is_primary = jax.process_index() == 0
        if is_primary:
            self._growing = remote.Growing(self._workdir)
            self.logs = self._growing.folder
        self._writer = MetricsWriter(self.logs, from_step, is_primary=is_primary)
        if is_primary:
            self._evaluations = StepRows(f"{self.logs}/{EVALUATIONS}", from_step)
        self._drawn = RunReport(self._workdir, self._writer.board, self._config)
        self.progress = Progress(
            self.total_steps,
            self._config.train.contrastive_batch,
            self.step,
            is_primary=is_primary,
            is_quiet=self._is_quiet,
        )
        if self.early.last is not None:
            self.progress.set_recall(self.early.last, self.early.best)
        return state

    def is_log_due(self, done: int) -> bool:
        """Return whether a line of metrics follows this many steps."""
        return done % self._config.train.log_every_steps == 0 or done == self.total_steps

    def log(
        self, done: int, metrics: Mapping[str, jax.Array], described: Mapping[str, float]
    ) -> None:
        """Write the scalars of the step just made.

        Args:
          done: steps done.
          metrics: of the step, still on the device: the one copy to the host happens here.
          described: more scalars, by their whole names.

        Raises:
          UserError: too many updates in a row were not finite.
        """
        scalars = {f"train/{name}": value for name, value in jax.device_get(metrics).items()}
        scalars |= described
        scalars |= self.progress.timing()
        self._writer.write(done, scalars)
        self.progress.show(done, scalars)
        self._upload(every_seconds=_UPLOAD_SECONDS)
        lost = int(scalars["train/longest_skipped"])
        if lost >= self._config.train.max_nonfinite_steps:
            self._upload()
            raise UserError(
                f"loss or gradient was not finite in {lost} steps in a row before step {done:,} "
                f"of {self._workdir}; look at the data, or lower config.optim.learning_rate"
            )

    def is_evaluation_due(self, done: int) -> bool:
        """Return whether an evaluation follows this many steps."""
        every = self._epoch_steps * self._config.train.eval_every_epochs
        return done % every == 0 or done == self.total_steps

    def record(self, done: int, row: str, found: Evaluation) -> None:
        """Write an evaluation: its scalars as `<row>/<name>`, and the whole of it.

        Args:
          done: steps done.
          row: "chance", "zero_shot" or "val".
          found: what was found.
        """
        scalars = {f"{row}/{name}": value for name, value in found.scalars().items()}
        self._writer.write(done, scalars)
        if self._evaluations is not None:
            self._evaluations.write(done, {"row": row} | found.to_json())

    def evaluated(
        self,
        done: int,
        found: Evaluation,
        state: TrainState,
        make_sample: Callable[[int], Sample] | None = None,
    ) -> None:
        """Record an evaluation as "val", advance the early stop, save, begin to draw the report.

        Args:
          done: steps done.
          found: with "recall@1" and "recall@5" among its metrics.
          state: after these steps.
          make_sample: see `RunReport.evaluated`.
        """
        self.record(done, "val", found)
        scores = found.metrics
        min_gain = self._config.train.min_recall_gain
        self.early = self.early.updated(scores["recall@5"], done, min_gain)
        self.progress.set_recall(self.early.last, self.early.best)
        self.progress.say(
            f"step {done:,}: val/recall@1 {scores['recall@1']:.3f}, {METRIC} "
            f"{scores['recall@5']:.3f}, best {self.early.best:.3f} at step {self.early.best_step:,}"
        )
        self.save(done, state, {METRIC: scores["recall@5"]})
        for line in self._drawn.evaluated(done, make_sample):
            self.progress.say(line)
        self.progress.restart_clock()

    def is_save_due(self, done: int) -> bool:
        """Return whether a checkpoint between evaluations follows this many steps."""
        return done % self._config.train.save_every_steps == 0

    def save(
        self, done: int, state: TrainState, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Save the state after `done` steps, in the background; what was recorded, at once."""
        self._upload()
        extra = {
            "config": to_dict(self._config),
            "fingerprints": self._fingerprints.to_json(),
            "early_stop": self.early.to_json(),
            **self._clips,
            "next_step": done,  # the loader's position: batches are a function of the step
        }
        self._checkpoints.save(done, state, extra, metrics)

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """Let a save that is under way end before an error ends the interpreter and its threads.

        Not among several processes: a lost one would be waited for.
        """
        try:
            yield
        except Exception:
            if jax.process_count() == 1:
                with contextlib.suppress(Exception):  # the first error is the one to tell
                    self._checkpoints.wait()
            raise

    def is_over(self, done: int) -> bool:
        """Return whether the run has ended after this many steps, see `is_over`."""
        return is_over(Standing(done, self.early), self._config.train, self._epoch_steps)

    def summary(self) -> str:
        """Return how the closed run stands and the command that comes next."""
        done = self._checkpoints.latest_step()
        if not self.is_over(done):
            return f"stopped after step {done:,}, saved; the same command goes on from there"
        best = f"best {METRIC} {self.early.best:.4f}, after step {self.early.best_step:,}"
        if self.early.best_step in self._checkpoints.steps():
            best += f": {self._checkpoints.path(self.early.best_step)}"
        else:  # see `set_aside`
            best += ", whose checkpoint is gone; the best left is taken"
        early = ""
        if done < self.total_steps:
            early = (
                f"ended early, after step {done:,} of {self.total_steps:,}: {METRIC} has not risen "
                f"in {self.early.waited} evaluations (config.train.patience)\n"
            )
        return (
            f"{early}{best}\n"
            f"report: {self._workdir}/{REPORT}\n"
            f"next: {typed_command('evaluate', f'--checkpoint={self._workdir}')}"
        )

    def _upload(self, **when: float) -> None:
        if self._growing is not None:
            self._writer.flush()
            self._growing.upload(**when)

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._checkpoints.close()
        for line in self._drawn.close(self._checkpoints.latest_step(), self.early.best):
            self.progress.say(line)
        self._writer.close()
        if self._evaluations is not None:
            self._evaluations.close()
        if self._growing is not None:
            self._growing.close()
        self.progress.close()
        self._lock.close()
