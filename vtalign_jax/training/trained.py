"""What a --checkpoint names: a workdir, one of its checkpoints, or a `peft` export."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vtalign_jax.config import Config, resolve
from vtalign_jax.errors import UserError
from vtalign_jax.interop import converted, peft
from vtalign_jax.interop.base_files import TINY, base_fingerprint
from vtalign_jax.training import checkpoint
from vtalign_jax.training.assemble import Assembly, assemble

WINDOW_SECONDS = 4.0  # of a clip, where a checkpoint does not say


class Trained(NamedTuple):
    """A trained model without its frozen leaves.

    Attributes:
      config: of the run; `model.base` is where the base model was found this time, and
        `objective.itm_weight` is 0 for an export, which has no matching head.
      assembly: of that configuration.
      params: `{path: float32}`, the trained leaves.
      source: says what was read.
      facts: `step`, `metrics`, `fingerprints` (of base and data), and `window_seconds`, the length
        of the clips trained on (the median, where it varies).
    """

    config: Config
    assembly: Assembly
    params: dict[str, np.ndarray]
    source: str
    facts: dict[str, Any]


def load_trained(path: str | Path, base: str = "", *, needs_hugging_face: bool = False) -> Trained:
    """Return what was trained.

    Args:
      path: a workdir (its best checkpoint is taken), a checkpoint, or an export.
      base: directory or hub id of the base model, if it is not where it was in training.
      needs_hugging_face: take what a converted base was made of instead of it.

    Raises:
      UserError: nothing of the kind is there, or it does not fit its base model.
    """
    export = Path(path).expanduser()
    is_export = (export / peft.SETTINGS).is_file()
    if is_export:
        settings, source = peft.read_settings(export), f"export {export}"
        config, facts = _without_matching(resolve(settings["config"])), settings["trained"]
    else:
        folder, source = checkpoint.find_checkpoint(path)
        extra = checkpoint.read_extra(folder)
        config = resolve(extra["config"])
        facts = {
            "step": int(folder.name) if folder.name.isdigit() else None,
            "metrics": checkpoint.read_metrics(folder),
            "window_seconds": extra.get("window_seconds", WINDOW_SECONDS),
            "fingerprints": extra["fingerprints"],
        }
    base = base or config.model.base
    config = with_base(config, converted.original(base) if needs_hugging_face else base)
    assembly = assemble(config)
    _check_base(facts, assembly, source)
    if is_export:
        shapes = assembly.trainable | assembly.frozen
        params = peft.read(export, assembly.trainable, shapes)
    else:
        state = checkpoint.read_state(folder, {"params": assembly.trainable}, partial=True)
        params = jax.tree.map(np.asarray, state["params"])
    return Trained(config, assembly, params, source, facts)


def _without_matching(config: Config) -> Config:
    """Return the configuration of a model without the matching head, which exports leave out."""
    objective = dataclasses.replace(config.objective, itm_weight=0.0)
    return dataclasses.replace(config, objective=objective)


def with_base(config: Config, base: str) -> Config:
    """Return the configuration with another base; a directory is made absolute."""
    directory = Path(base).expanduser()
    if base != TINY and directory.is_dir():
        base = str(directory.resolve())
    return dataclasses.replace(config, model=dataclasses.replace(config.model, base=base))


def _check_base(facts: dict[str, Any], assembly: Assembly, source: str) -> None:
    expected, found = facts["fingerprints"]["base"], base_fingerprint(assembly.directory)
    if expected != found:
        raise UserError(
            f"{source} was trained on another base model than {assembly.directory} "
            f"(fingerprint {expected}, here {found}); name the right one with "
            "--base (in training --config.model.base)"
        )
