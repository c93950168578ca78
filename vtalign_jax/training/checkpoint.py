"""Checkpoints of a run: the best by `val/recall@5` and the newest, written by Orbax.

A checkpoint `checkpoints/<step>` holds `state` (one array a leaf, named by its path in the tree),
`extra` (JSON: configuration, fingerprints, early stop, whatever else the run needs to go on) and
`metrics` (JSON). Orbax writes in the background under a temporary name and renames when every
process is done, so that a killed save is never seen; the next start clears what it left. One that
goes is moved to `.removed` first: a removal that is killed leaves no folder that looks like one.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from vtalign_jax import json_files, remote
from vtalign_jax.errors import UserError
from vtalign_jax.training import orbax_logs
from vtalign_jax.training.soundness import (
    Damaged,
    problem,
    sealed,
    sums,
    unreadable,
    unsealed,
)

METRIC = "val/recall@5"
FOLDER = "checkpoints"  # inside a workdir
_REMOVED = ".removed"  # inside it
_LISTED = 4  # mismatched leaves named in an error before "and N more"


class Restored(NamedTuple):
    """What a checkpoint gives back: step, state on its shardings, and the JSON beside it."""

    step: int
    state: Any
    extra: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _BestAndLatest:
    """Orbax's preservation policy: the `best` best by METRIC and the `latest` newest.

    Orbax's own BestN prefers the later of two equal checkpoints; the early stop, the first. Both
    must name the same one.
    """

    best: int
    latest: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> list[bool]:
        ranked = sorted((c for c in checkpoints if METRIC in (c.metrics or {})), key=_quality)
        newest = sorted(checkpoints, key=lambda c: c.step)
        kept = {c.step for c in ranked[-self.best :] + newest[-self.latest :]}
        return [c.step in kept for c in checkpoints]


def _quality(checkpoint: Any) -> tuple[float, int]:
    return checkpoint.metrics[METRIC], -checkpoint.step


class Checkpoints:
    """The checkpoints of one workdir. Every process makes one and takes part in every save.

    Attributes:
      directory: `<workdir>/checkpoints`.
    """

    def __init__(self, directory: str | epath.Path, keep_best: int = 1, keep_latest: int = 1):
        self.directory = remote.absolute(remote.path(directory))
        self._clear(is_start=True)
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
        # Only now do the others look there: a file system of the network remembers what is absent.
        multihost_utils.sync_global_devices("the folder of checkpoints is there")
        orbax_logs.tell_once()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_BestAndLatest(keep_best, keep_latest),
            # Orbax writes metrics to the disk only if best_fn is set; without them a restart would
            # take every earlier checkpoint for one without a metric, and delete the best.
            best_fn=lambda metrics: metrics.get(METRIC, -np.inf),
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            todelete_subdir=_REMOVED,
            single_host_load_and_broadcast=True,  # others may see an older listing
        )
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        handlers.add("state", ocp.args.PyTreeSave)
        handlers.add("extra", ocp.args.JsonSave)
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, handler_registry=handlers
        )

    def _clear(self, *, is_start: bool = False) -> None:
        """Remove `.removed`, and at the start what a removal in a bucket has left as well.

        While nothing is being written: Orbax moves there what it removes.
        """
        if jax.process_index() != 0 or not self.directory.exists():
            return
        gone = [self.directory / _REMOVED]
        if is_start:
            numbered = [path for path in self.directory.iterdir() if path.name.isdigit()]
            gone += [path for path in numbered if not _is_checkpoint(path)]
        for path in gone:
            path.rmtree(missing_ok=True)

    def save(
        self,
        step: int,
        state: Any,
        extra: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Copy the state off the device and write it in the background.

        A step that is already saved is not written again: with `metrics`, these and `extra` replace
        what stands there (the state of a step is one and the same); without, nothing happens.

        Args:
          step: steps done.
          state: pytree of arrays; its buffers may be donated as soon as this returns.
          extra: JSON values.
          metrics: of the evaluation at this step, holding METRIC; None between evaluations.

        Raises:
          Exception: an earlier save failed in the background.
        """
        step = int(step)
        if step in self._manager.all_steps():
            if metrics is not None:
                self._replace_json(step, extra, metrics)
            return
        leaves = _flat(state)
        if jax.process_index() == 0:  # whose JSON it is
            extra = sealed({**extra, _SUMS: sums(leaves)})
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(leaves), extra=ocp.args.JsonSave(dict(extra))
        )
        self.wait()  # as Orbax does: one save at a time
        self._manager.save(step, args=items, metrics=sealed(metrics or {}), force=True)

    def _replace_json(
        self, step: int, extra: Mapping[str, Any], metrics: Mapping[str, Any]
    ) -> None:
        self.wait()
        if jax.process_index() == 0:
            known = _read_sealed(self.path(step)).get(_SUMS, {})
            extra, metrics = sealed({**extra, _SUMS: known}), sealed(metrics)
            # The metrics first: a run killed in between evaluates again and comes back here.
            for (folder, name), value in {_METRICS: metrics, _EXTRA: extra}.items():
                file = self.path(step) / folder / name
                remote.write_text(file, json.dumps(dict(value)))
        multihost_utils.sync_global_devices(f"checkpoint {step} has its metrics")
        self._manager.reload()

    def path(self, step: int) -> epath.Path:
        """Return the folder of one checkpoint."""
        return self.directory / str(step)

    def steps(self) -> list[int]:
        """Return the steps that are saved or being saved, ascending."""
        return sorted(map(int, self._manager.all_steps()))  # of a broadcast, they are NumPy's

    def latest_step(self) -> int | None:
        """Return the newest step, or None before the first save."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """Return the first step with the highest METRIC, or None before the first evaluation."""
        self.wait()
        return _best(self.directory, self.steps())

    def restore(self, step: int, abstract_state: Any) -> Restored:
        """Return the checkpoint of one step; see `read_state`."""
        self.wait()
        path = self.path(step)
        return Restored(step, read_state(path, abstract_state), read_extra(path))

    def wait(self) -> None:
        """Return when nothing is being written any more; raise what a background save raised."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()
        self._clear()

    def close(self) -> None:
        """Wait and release Orbax's threads."""
        self._manager.close()
        self._clear()


_METRICS = ("metrics", "metrics")  # folder and file that Orbax gives them
_EXTRA = ("extra", "metadata")
_STATE = "state"
_SUMS = "sums"  # key of `extra`: a checksum for each leaf
_AGAIN = "copy the checkpoint again, or use another one"


def read_extra(path: str | epath.Path) -> dict[str, Any]:
    """Return the JSON that a checkpoint folder holds beside the state.

    Raises:
      UserError: it is damaged.
    """
    extra = _read_sealed(path)
    extra.pop(_SUMS, None)
    return extra


def _sums(path: epath.Path) -> dict[str, Any]:
    """Return the checksum of each leaf."""
    found = _read_sealed(path).get(_SUMS)
    return found if isinstance(found, dict) else {}


def _read_sealed(path: str | epath.Path) -> dict[str, Any]:
    file = epath.Path(path, *_EXTRA)
    return unsealed(_read_json(file), file)


def read_metrics(path: str | epath.Path) -> dict[str, float]:
    """Return the metrics of a checkpoint folder, empty for a save between evaluations.

    Raises:
      UserError: they are damaged.
    """
    file = epath.Path(path, *_METRICS)
    metrics = unsealed(_read_json(file), file) if file.exists() else {}
    if METRIC in metrics:
        json_files.require(metrics, {METRIC: float}, file, _AGAIN)
    return metrics


def _read_json(file: epath.Path) -> dict[str, Any]:
    try:
        return json_files.read_object(file, _AGAIN)
    except FileNotFoundError:
        raise Damaged(f"no {file}; {_AGAIN}") from None
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise unreadable(file.parent.parent, error) from None
        raise Damaged(str(error)) from None


def read_state(path: str | epath.Path, abstract_state: Any, *, partial: bool = False) -> Any:
    """Return the state of a checkpoint folder on the shardings asked for.

    Args:
      path: `checkpoints/<step>`, wherever it was copied.
      abstract_state: pytree of `jax.ShapeDtypeStruct`; a leaf without sharding goes to the first
        device. The number of devices need not be that of the save.
      partial: read only the leaves asked for, and allow others in the checkpoint.

    Raises:
      UserError: there is no state, or leaves are missing, unexpected, or of another shape or dtype;
        names the first few.
      Damaged: it does not hold what was saved, or values that are not finite.
    """
    path = remote.absolute(remote.path(path))
    if not (path / _STATE).is_dir():
        raise UserError(
            f"checkpoint {path} has no {_STATE}; copy the whole folder, or use another one"
        )
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or default)
        for name, x in _flat(abstract_state).items()
    }
    handler = ocp.PyTreeCheckpointHandler()
    stored = stored_leaves(path, handler)
    _check_leaves(path, stored, wanted, partial=partial)
    arguments = ocp.args.PyTreeRestore(
        item=wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=partial,
    )
    try:
        # Without a Checkpointer, in whose barrier the others would wait for one that cannot read.
        with orbax_logs.one_failure():
            flat = handler.restore(path / _STATE, args=arguments)
    except Exception as error:  # Orbax raises no narrower one for arrays that it cannot read
        raise unreadable(path, error) from error
    if wrong := problem({name: flat[name] for name in wanted}, _sums(path)):
        raise unreadable(path, wrong)
    leaves = [flat[name] for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)


def stored_leaves(path: epath.Path, handler: ocp.PyTreeCheckpointHandler) -> dict[str, Any]:
    """Return what is known of each stored leaf: shape and dtype."""
    try:
        stored = dict(handler.metadata(path / _STATE).tree)
        return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in stored.items()}
    except Exception as error:  # as above
        raise unreadable(path, error) from error


def _flat(tree: Any) -> dict[str, Any]:
    """Return the leaves by path, so that a file does not depend on tuple and container types."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _check_leaves(path: epath.Path, stored: dict, wanted: dict, *, partial: bool) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in stored]
    if not partial:
        problems += [f"{name} is not in this model" for name in stored if name not in wanted]
    for name in wanted.keys() & stored.keys():
        ours, theirs = _form(wanted[name]), _form(stored[name])
        if ours != theirs:
            problems.append(f"{name} is {theirs}, this run needs {ours}")
    if problems:
        listed = "; ".join(sorted(problems)[:_LISTED])
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise UserError(
            f"checkpoint {path} does not fit this configuration: {listed}{more}; use the "
            "configuration it was trained with (config.json of its workdir), or another --workdir"
        )


def _form(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def finished_steps(folder: str | epath.Path) -> list[int]:
    """Return the steps whose checkpoints are whole, read without a manager; [] if no folder."""
    folder = remote.path(folder)
    if not folder.is_dir():
        return []
    return [int(p.name) for p in folder.iterdir() if p.name.isdigit() and _is_checkpoint(p)]


def find_checkpoint(path: str | epath.Path) -> tuple[epath.Path, str]:
    """Return the checkpoint folder that a user's --checkpoint means, and a line that says so.

    Args:
      path: a workdir or its `checkpoints` folder (its best is taken; its newest while there has
        been no evaluation), or one checkpoint.

    Raises:
      UserError: no such folder, or no finished checkpoint in it.
    """
    given = remote.path(path)
    if not given.exists():
        raise UserError(f"no such checkpoint or workdir {given}; train one with launch/train.py")
    if not given.is_dir():
        raise UserError(f"{given} is a file; give a workdir of launch/train.py, or a checkpoint")
    if _is_checkpoint(given):
        return remote.absolute(given), f"checkpoint {given}"
    folder = given / FOLDER if (given / FOLDER).exists() else given
    steps = finished_steps(folder)
    if not steps:
        raise UserError(
            f"no finished checkpoint in {given}; give a workdir of launch/train.py, one of its "
            "checkpoints/<step>, or an export"
        )
    best = _best(folder, steps)
    chosen = folder / str(max(steps) if best is None else best)
    why = "the newest; none was evaluated yet"
    if best is not None:
        why = f"the best of {given}: {METRIC} {read_metrics(chosen)[METRIC]:.4f}"
    return remote.absolute(chosen), f"checkpoint {chosen} ({why})"


def _best(directory: epath.Path, steps: Sequence[int]) -> int | None:
    values = {step: read_metrics(directory / str(step)).get(METRIC) for step in steps}
    evaluated = [(value, -step) for step, value in values.items() if value is not None]
    return -max(evaluated)[1] if evaluated else None


def _is_checkpoint(path: epath.Path) -> bool:
    has_items = epath.Path(path, *_EXTRA).exists() and (path / _STATE).is_dir()
    return has_items and ocp.utils.is_checkpoint_finalized(path)
