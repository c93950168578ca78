"""Checkpoints that do not hold what was saved: found when a run goes on, and moved away."""

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from vtalign_jax import remote
from vtalign_jax.errors import UserError
from vtalign_jax.training.checkpoint import (
    finished_steps,
    read_extra,
    read_metrics,
    read_state,
    stored_leaves,
)
from vtalign_jax.training.soundness import Damaged

ASIDE = "damaged"  # beside `checkpoints`, inside a workdir
_NONE = -1  # no step


def set_damaged_aside(folder: str | epath.Path) -> tuple[int | None, list[str]]:
    """Move checkpoints that do not hold what was saved out of the way; every process calls it.

    The JSON of all is looked at, the arrays only of the newest, from which a run goes on. A
    numbered folder that lacks parts goes, too; in a bucket it is what a killed removal has left.

    Process 0 alone looks and decides. Over a network the others may still see what was there
    before, and a read that failed for one of them alone would leave it out of the collectives.

    Args:
      folder: `<workdir>/checkpoints`.

    Returns:
      the newest sound step, None if there is no checkpoint; and a line for each that was moved, in
      process 0.

    Raises:
      UserError: none is sound, or one cannot be read; in process 0.
    """
    folder = remote.absolute(remote.path(folder))
    sound, said = _set_aside(folder) if jax.process_index() == 0 else (None, [])
    agreed = multihost_utils.broadcast_one_to_all(np.int32(_NONE if sound is None else sound))
    return (None if agreed == _NONE else int(agreed)), said


def _set_aside(folder: epath.Path) -> tuple[int | None, list[str]]:
    """Judge all, then move: nothing is moved where none is sound."""
    whole, sound, wrong = finished_steps(folder), None, {}
    for step in sorted(_numbered(folder), reverse=True):
        path = folder / str(step)
        if step not in whole:
            wrong[path] = f"checkpoint {path} is not whole"
        elif found := _what_is_wrong(path, is_newest=sound is None):
            wrong[path] = found
        elif sound is None:
            sound = step
    if wrong and sound is None:
        newest = next(iter(wrong.values()))
        raise UserError(f"{newest}; no other one is left: put a copy back, or start a new workdir")
    for path in wrong:
        _move(path)
    aside = folder.parent / ASIDE
    return sound, [f"warning: {each}; it now lies in {aside}" for each in wrong.values()]


def _numbered(folder: epath.Path) -> list[int]:
    """Return the steps of what is named like a checkpoint; in a bucket, of whole ones."""
    if remote.is_remote(folder) or not folder.is_dir():
        return finished_steps(folder)
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


def _move(path: epath.Path) -> None:
    aside = path.parent.parent / ASIDE / path.name
    if aside.exists():
        aside.rmtree()
    aside.parent.mkdir(parents=True, exist_ok=True)
    path.rename(aside)


def _what_is_wrong(path: epath.Path, *, is_newest: bool) -> str:
    """Return how a checkpoint is damaged, "" if it is not."""
    try:
        read_extra(path)
        read_metrics(path)
        if is_newest:
            read_state(path, stored_leaves(path, ocp.PyTreeCheckpointHandler()))
    except Damaged as error:
        return str(error).split(";")[0]
    return ""
