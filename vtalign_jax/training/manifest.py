"""`config.json` and `manifest.json`: what a run was made from, so that it can be made again."""

import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from vtalign_jax import config as config_lib
from vtalign_jax import json_files, remote
from vtalign_jax.config import Config
from vtalign_jax.errors import UserError
from vtalign_jax.secret_words import redact

CONFIG, MANIFEST = "config.json", "manifest.json"  # inside a workdir

_PACKAGES = (
    "vtalign_jax",
    "jax",
    "jaxlib",
    "libtpu",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "transformers",
    "tokenizers",
)
# Fields that a resumed run may change without becoming another run. Where base and data lie is
# among them: their fingerprints are not.
_FREE = (
    "model.base",
    "model.remat",
    "data.dir",
    "data.workers",
    "data.prefetch_batches",
    "data.feature_cache",
    "train.eval_batch",
    "train.microbatch",
    "train.keep_prefix",
    "train.log_every_steps",
    "train.save_every_steps",
    "train.keep_best",
    "train.keep_latest",
    "train.max_nonfinite_steps",
    "mesh.data",
    "mesh.fsdp",
)


@dataclasses.dataclass(frozen=True)
class Fingerprints:
    """Hashes of what a run reads: the base's files, the prepared dataset, and a feature cache."""

    base: str
    data: str
    features: str = ""  # without a cache

    def to_json(self) -> dict[str, str]:
        return {name: value for name, value in dataclasses.asdict(self).items() if value}


def write_config(workdir: str | epath.Path, config: Config) -> None:
    """Write the resolved configuration of a run; process 0 does."""
    _write(epath.Path(workdir) / CONFIG, config_lib.to_dict(config))


def read_config(workdir: str | epath.Path) -> Config:
    """Return the configuration that a workdir was trained with.

    Raises:
      UserError: there is none, or it is not a configuration of this version.
    """
    return config_lib.resolve(read_json(epath.Path(workdir) / CONFIG))


def check_resume(
    extra: dict[str, Any], config: Config, fingerprints: Fingerprints, workdir: str | epath.Path
) -> None:
    """Refuse to go on from a checkpoint that belongs to another run.

    Args:
      extra: of the checkpoint; holds `config` (nested) and `fingerprints`.
      config: of this start.
      fingerprints: of this start.
      workdir: named in the error.

    Raises:
      UserError: names the fields or fingerprints that differ.
    """
    # Resolved, so that a field added since then has its default, which is what was done before it.
    before = flat(config_lib.to_dict(config_lib.resolve(extra["config"])))
    now = flat(config_lib.to_dict(config))
    changed = [
        f"config.{name} was {before[name]!r} and is now {now[name]!r}"
        for name in sorted(now)
        if name not in _FREE and before[name] != now[name]
    ]
    found = fingerprints.to_json()
    files = {"base": "model.base", "data": "data.dir", "features": "data.feature_cache"}
    changed += [
        f"the files of config.{files[name]} are others than before"
        for name in files
        if extra["fingerprints"].get(name) != found.get(name)
    ]
    if changed:
        raise UserError(
            f"{workdir} holds a run that differs: {'; '.join(changed)}; "
            "give the former values to resume it, or another --workdir"
        )


def write_manifest(
    workdir: str | epath.Path,
    config: Config,
    fingerprints: Fingerprints,
    restored_step: int | None = None,
    **facts: Any,
) -> None:
    """Write `manifest.json` (process 0 does); a resumed run adds its start to those before.

    Args:
      workdir: of the run.
      config: its seeds are listed.
      fingerprints: of what is read.
      restored_step: the checkpoint that this start goes on from.
      facts: further JSON values of the run, such as parameter counts.
    """
    path = epath.Path(workdir) / MANIFEST
    is_resumed = restored_step is not None and path.exists()
    manifest = read_json(path) if is_resumed else {"starts": []}
    manifest |= {"seeds": {"train.seed": config.train.seed}}
    manifest |= {"fingerprints": fingerprints.to_json()} | facts
    manifest |= {"starts": [*manifest["starts"], describe_start(restored_step)]}
    _write(path, manifest)


def describe_start(restored_step: int | None) -> dict[str, Any]:
    """Return when, from what revision, with what versions, devices and command a run starts."""
    devices = jax.devices()
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "restored_step": restored_step,
        "command": [pathlib.Path(sys.executable).name, *map(redact, sys.argv)],
        "git": git_revision(),
        "versions": {"python": platform.python_version()} | _versions(),
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
    }


def git_revision() -> dict[str, Any] | None:
    """Return the commit of this source tree and whether files differ from it; None outside git."""
    root = pathlib.Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        # Installed inside somebody else's repository, its revision would say nothing about us.
        if pathlib.Path(git("rev-parse", "--show-toplevel")) != root.resolve():
            return None
        return {
            "revision": git("rev-parse", "HEAD"),
            "is_changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # libtpu off a TPU; vtalign_jax run from its folder without being installed
    return found


def flat(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a configuration as `section.field` -> value."""
    return {f"{a}.{b}": value for a, fields in config.items() for b, value in fields.items()}


def read_json(path: epath.Path) -> dict[str, Any]:
    """Return what a file of a workdir holds.

    Raises:
      UserError: there is none, or it is damaged.
    """
    try:
        return json_files.read_object(path, "restore it, or take a new workdir")
    except FileNotFoundError:
        raise no_workdir(path) from None


def no_workdir(path: epath.Path) -> UserError:
    """Return the error of a folder without a file that every workdir has."""
    return UserError(f"no {path.name} in {path.parent}; is it a workdir of train.py?")


def _write(path: epath.Path, values: dict[str, Any]) -> None:
    if jax.process_index() != 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    remote.write_text(path, json.dumps(values, indent=2) + "\n")
