"""What a --checkpoint names: a workdir, one of its checkpoints, or an export of any form."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vtalign_jax import json_files, remote
from vtalign_jax.config import Config, resolve
from vtalign_jax.errors import UserError
from vtalign_jax.interop import converted, embedding_files, peft
from vtalign_jax.interop.base_files import TINY, base_fingerprint
from vtalign_jax.interop.forms import PEFT, SETTINGS, SQUARE, WEIGHTS_FOLDER
from vtalign_jax.training import checkpoint
from vtalign_jax.training.assemble import Assembly, assemble

WINDOW_SECONDS = 4.0  # of a clip, where a checkpoint does not say


class Origin(NamedTuple):
    """What an export was made from.

    Attributes:
      base: hub id or directory of the base model.
      config: of the run.
    """

    base: str
    config: Config


class Trained(NamedTuple):
    """A trained model without its frozen leaves.

    Attributes:
      config: of the run; `model.base` is where the base model was found this time, and
        `objective.itm_weight` is 0 for an export, which has no matching head. Of an export whose
        weights are merged it is that of the folder itself: a base with nothing adapted.
      assembly: of that configuration.
      params: `{path: float32}`, the trained leaves.
      source: says what was read.
      facts: `step`, `metrics`, `fingerprints` (of base and data), `window_seconds`, the length of
        the clips trained on (the median, where it varies), and `fit` and `rotate`, how `prepare`
        made frames square.
      origin: the run and its base.
      is_merged: whether the update is in the base's weights already.
    """

    config: Config
    assembly: Assembly
    params: dict[str, np.ndarray]
    source: str
    facts: dict[str, Any]
    origin: Origin
    is_merged: bool = False


def load_trained(path: str | Path, base: str = "", *, needs_hugging_face: bool = False) -> Trained:
    """Return what was trained.

    Args:
      path: a workdir (its best checkpoint is taken), a checkpoint, or an export.
      base: directory or hub id of the base model, if it is not where it was in training.
      needs_hugging_face: take what a converted base was made of instead of it.

    Raises:
      UserError: nothing of the kind is there, or it does not fit its base model.
    """
    given = remote.path(path)
    wanted = converted.original if needs_hugging_face else str
    if (given / SETTINGS).exists():
        return _load_export(remote.fetch(given), f"export {given}", base, wanted)
    folder, source = checkpoint.find_checkpoint(path)
    extra = checkpoint.read_extra(folder)
    kinds = {"config": dict, "fingerprints.base": str}
    json_files.require(extra, kinds, folder, "use another checkpoint")
    config = resolve(extra["config"])
    facts = {
        "step": int(folder.name) if folder.name.isdigit() else None,
        "metrics": checkpoint.read_metrics(folder),
        "window_seconds": extra.get("window_seconds", WINDOW_SECONDS),
        "fingerprints": extra["fingerprints"],
        **{name: extra.get(name, default) for name, default in SQUARE.items()},
    }
    config = with_base(config, wanted(base or config.model.base))
    assembly = assemble(config)
    _check_base(facts, assembly, source)
    state = checkpoint.read_state(folder, {"params": assembly.trainable}, partial=True)
    params = jax.tree.map(np.asarray, state["params"])
    return Trained(config, assembly, params, source, facts, _origin(config, assembly))


def _load_export(export: Path, source: str, base: str, wanted: Callable[[str], str]) -> Trained:
    settings = embedding_files.read_settings(export)
    facts = settings["trained"]
    config = _without_matching(resolve(settings["config"]))
    if settings["form"] != PEFT:
        return _load_merged(export, source, base, settings, config)
    config = with_base(config, wanted(base or config.model.base))
    assembly = assemble(config)
    _check_base(facts, assembly, source)
    params = peft.read(export, assembly.trainable, assembly.trainable | assembly.frozen)
    return Trained(config, assembly, params, source, facts, _origin(config, assembly))


def _load_merged(
    export: Path, source: str, base: str, settings: dict[str, Any], config: Config
) -> Trained:
    """Return the model of a folder that holds the whole base, the update in its weights."""
    if base:
        raise UserError(
            f"the export {export} holds its own weights; leave --base out (to train on from it, "
            "name it as --config.model.base)"
        )
    directory = export / settings[WEIGHTS_FOLDER]
    if base_fingerprint(directory) != settings["weights"]:
        raise UserError(
            f"the weights, config.json or tokenizer.json in {directory} are not those that were "
            "exported; copy the whole folder again"
        )
    tune = dataclasses.replace(config.tune, connector="frozen", text_blocks=0)
    folder = dataclasses.replace(with_base(config, str(directory)), tune=tune)
    assembly = assemble(folder)
    head = embedding_files.read_head(export)
    params = embedding_files.fitting_leaves(export, head, assembly.trainable)
    origin = Origin(settings["base"], config)
    return Trained(folder, assembly, params, source, settings["trained"], origin, True)


def _origin(config: Config, assembly: Assembly) -> Origin:
    is_tiny = config.model.base == TINY
    return Origin(str(assembly.directory) if is_tiny else config.model.base, config)


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
