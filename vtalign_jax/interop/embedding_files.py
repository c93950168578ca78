"""What every form of export holds beside weights: heads, settings and `embed.py`.

`head.safetensors` holds the heads with torch's names and layout and the log temperature,
`vtalign.json` what an embedding needs beyond weights, `embed.py` is the torch script that reads
both.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from vtalign_jax import json_files
from vtalign_jax.config import TuneConfig
from vtalign_jax.dst.images import FITS, ROTATIONS
from vtalign_jax.errors import UserError
from vtalign_jax.interop.base_files import FLOATS, file_tensors
from vtalign_jax.interop.forms import FORMS, PEFT, SETTINGS, SQUARE, WEIGHTS_FOLDER, read_json

HEAD, EMBED = "head.safetensors", "embed.py"
FORMAT = 1  # of vtalign.json

BASE = "base."  # where an AlignerModel holds its SmolVLM
_MATCHING = "matching_head."  # of training alone: no embedding goes through it
_POSITIONS = "position_ids"
_KINDS = {  # of the fields that are read here
    "form": str,
    "base": str,
    "config": dict,
    "trained.fingerprints.base": str,
    "trained.window_seconds": float,
    "trained.fit": str,
    "trained.rotate": int,
    WEIGHTS_FOLDER: str,
}
_KINDS_MERGED = {"weights": str}
EMBED_SCRIPT = Path(__file__).with_name("torch_scripts") / EMBED


class Parts(NamedTuple):
    """What a form is written from.

    Attributes:
      adapter: `{PEFT's key: float32[out, in]}` of the trained leaves of the base, checked; empty
        where the base itself is trained already.
      scale: what a LoRA's B A is multiplied by.
      head: of `head_tensors`.
      settings: for `vtalign.json`; holds `base`, the hub id or directory, and the run's `config`. A
        writer adds `weights_folder` where config.json and weights lie in a folder of the export.
      tune: of the run.
      directory: the base's files.
    """

    adapter: dict[str, np.ndarray]
    scale: float
    head: dict[str, np.ndarray]
    settings: dict[str, Any]
    tune: TuneConfig
    directory: Path


def head_tensors(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the heads with torch's names and layout, and the log temperature.

    The matching head stays behind.
    """
    return {
        path.replace(".kernel", ".weight"): np.array(value.T, np.float32, order="C")
        for path, value in params.items()
        if not path.startswith((BASE, _MATCHING))
    }


def head_leaves(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return our leaves of `head.safetensors`: the inverse of `head_tensors`."""
    return {
        key.replace(".weight", ".kernel"): value.T if key.endswith(".weight") else value
        for key, value in tensors.items()
        if key != _POSITIONS  # embed.py's, follow from the base
    }


def check_head(head: Mapping[str, np.ndarray]) -> None:
    """Refuse a checkpoint that cannot give embeddings.

    Raises:
      UserError: no head, or values that are not finite.
    """
    if not any(key.endswith("fc2.weight") for key in head):
        raise UserError("this checkpoint has no projection head; it cannot give embeddings")
    check_finite(head)


def check_finite(
    tensors: Mapping[str, np.ndarray],
    where: str = "",
    mend: str = "name an earlier checkpoint with --checkpoint",
) -> None:
    """Refuse NaN and infinity.

    Args:
      tensors: by their names.
      where: what stands before the name in the message.
      mend: what to do about it, for the message.

    Raises:
      UserError: names the first tensor.
    """
    broken = sorted(key for key, x in tensors.items() if not np.isfinite(x).all())
    if broken:
        raise UserError(f"{where}{broken[0]} is not finite; {mend}")


def write(folder: Path, parts: Parts, position_ids: np.ndarray) -> None:
    """Write head, settings and, where it reads the folder, `embed.py`.

    Args:
      folder: of the export.
      parts: see `Parts`.
      position_ids: int64[P] of a whole frame's patches.
    """
    head = parts.head | {_POSITIONS: position_ids.astype(np.int64)}
    # PEFT and transformers look at the metadata's format before they read.
    save_file(head, folder / HEAD, metadata={"format": "pt"})
    (folder / SETTINGS).write_text(json.dumps(parts.settings, indent=1))
    if FORMS[parts.settings["form"]].is_embedded:
        shutil.copyfile(EMBED_SCRIPT, folder / EMBED)


def read_head(folder: Path) -> dict[str, np.ndarray]:
    """Return our leaves of an export's heads.

    Raises:
      UserError: the file is missing or damaged.
    """
    return head_leaves(read_tensors(folder / HEAD))


def fitting_leaves(
    folder: Path, leaves: Mapping[str, np.ndarray], wanted: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return the leaves as `{path: float32}` in the order of `wanted`.

    Args:
      folder: the export they were read from.
      leaves: as read.
      wanted: the trainable leaves, `{path: jax.ShapeDtypeStruct}`; no JAX is imported here.

    Raises:
      UserError: some are missing, unexpected, of another shape or not finite.
    """
    wrong = sorted(wanted.keys() ^ leaves.keys())
    wrong += [p for p in wanted if p in leaves and leaves[p].shape != wanted[p].shape]
    if wrong:
        raise UserError(f"{folder} does not fit its {SETTINGS}: {', '.join(wrong[:4])}")
    taken = {path: np.array(leaves[path], np.float32, order="C") for path in wanted}
    check_finite(taken, f"{folder}: ", "copy the export again, or export another checkpoint")
    return taken


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """Return the tensors of an export's file: views of it, so that none is read before its shape.

    Raises:
      UserError: it is missing or damaged.
    """
    if not file.is_file():
        raise UserError(f"the export {file.parent} has no {file.name}; copy the whole folder")
    try:
        stored = file_tensors(file, (*FLOATS, "I64"))
    except UserError as error:
        raise UserError(f"cannot read {file} ({error}); copy the export again") from error
    return {key: tensor.array() for key, tensor in stored.items()}


def read_settings(folder: Path) -> dict[str, Any]:
    """Return `vtalign.json`.

    Raises:
      UserError: it is damaged, or of a later version of this package.
    """
    settings = read_json(folder, SETTINGS)
    if settings.get("format") != FORMAT:
        raise UserError(
            f"{folder / SETTINGS} has format {settings.get('format')!r}, this version reads "
            f"{FORMAT}; update vtalign_jax"
        )
    settings = {"form": PEFT, WEIGHTS_FOLDER: ""} | settings  # exports of before have no other form
    settings["trained"] = SQUARE | _object(settings.get("trained"))
    _check_settings(settings, folder / SETTINGS)
    return settings


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _check_settings(settings: dict[str, Any], file: Path) -> None:
    """Refuse settings with something missing, or with values that no export has."""
    json_files.require(settings, _KINDS, file, "copy the export again")
    trained, form = settings["trained"], settings["form"]
    if form in FORMS and form != PEFT:
        json_files.require(settings, _KINDS_MERGED, file, "copy the export again")
    for name, value, is_right in (
        ("form", form, form in FORMS),
        ("trained.window_seconds", trained["window_seconds"], 0 < trained["window_seconds"] < 1e7),
        ("trained.fit", trained["fit"], trained["fit"] in FITS),
        ("trained.rotate", trained["rotate"], trained["rotate"] in ROTATIONS),
        (WEIGHTS_FOLDER, folder := settings[WEIGHTS_FOLDER], Path(folder).name == folder),
    ):
        if not is_right:
            raise UserError(f"{file}: {name} is {value!r}, which no export has; copy it again")
