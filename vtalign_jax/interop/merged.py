"""The `merged` form: the base's own folder, the trained update added to its weights.

The weight files are copied and the changed tensors overwritten where they lie, so names, order,
dtypes, metadata, shards and index are the base's own; every other file is copied byte for byte. (A
config.json written anew by one version of transformers may be misread by another.)
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vtalign_jax.errors import UserError
from vtalign_jax.interop.base_files import (
    INDEX,
    StoredTensor,
    copy_files,
    stored_tensors,
    weight_files,
)
from vtalign_jax.interop.embedding_files import Parts
from vtalign_jax.interop.peft import module_of
from vtalign_jax.interop.programs import PICKLED

NOT_A_BASE = "sentence_bert_config.json"
_WEIGHTS = "model.safetensors"
# The base's weights in other formats would stand beside the merged ones and be others.
_OTHER_WEIGHTS = (
    *(*PICKLED, ".safetensors", ".h5", ".msgpack", ".npz"),
    *(".onnx", ".onnx_data", ".gguf", ".index.json"),
)
_PROGRAMS = (".py",)  # nothing of an export is run but what this package wrote
_CARD = "README.md"  # the export has its own


class Rounding(NamedTuple):
    """What storing the merged tensors in the base's dtype has cost.

    Attributes:
      dtypes: of the merged tensors, sorted.
      tensors: their number.
      error: norm of what rounding changed, over all of them, as a share of the update's norm.
      left_out: files of the base that were not copied.
    """

    dtypes: tuple[str, ...]
    tensors: int
    error: float
    left_out: tuple[str, ...] = ()


def write(folder: Path, parts: Parts) -> Rounding:
    """Write the base's files, its weights merged.

    Args:
      folder: of the export, holds nothing of these names.
      parts: of the trained model.

    Raises:
      UserError: the files are those of a sentence-transformers export; see `write_weights`.
    """
    if (parts.directory / NOT_A_BASE).is_file():
        raise UserError(
            f"{parts.directory} is of a sentence-transformers export, whose processor is not the "
            "base's; name the run, or its peft or merged export, with --checkpoint"
        )
    rounding = write_weights(folder, parts)
    return rounding._replace(left_out=_copy_other_files(parts.directory, folder))


def write_weights(folder: Path, parts: Parts) -> Rounding:
    """Write the base's weight files and their index, merged.

    Args:
      folder: holds nothing of these names.
      parts: of the trained model.

    Raises:
      UserError: the base's weights have names that transformers does not load, an update belongs
        to no tensor of the base, is not finite there, or vanishes in its dtype.
    """
    _copy_weights(parts.directory, folder)
    dtypes, errors, updates, count = set(), 0.0, 0.0, 0
    for key, tensor, exact in merged_tensors(parts.directory, parts.adapter, parts.scale):
        with np.errstate(over="ignore"):  # looked for below
            stored = exact.astype(tensor.dtype)
        before, after = tensor.array(), stored.astype(np.float32)
        if not np.isfinite(after).all():
            raise UserError(f"{key}: the merged weights are not finite in {stored.dtype}")
        if np.array_equal(stored, before):
            raise UserError(
                f"{key}: the update is too small for {stored.dtype}, the merged weights would be "
                "the base's own; train longer, or export with --format=peft"
            )
        _overwrite(folder / tensor.file.name, tensor.offset, stored)
        errors += float(np.square(after - exact, dtype=np.float64).sum())
        updates += float(np.square(exact - before.astype(np.float32), dtype=np.float64).sum())
        dtypes.add(str(stored.dtype))
        count += 1
    error = (errors / updates) ** 0.5 if updates else 0.0
    return Rounding(tuple(sorted(dtypes)), count, error)


def merged_tensors(
    directory: Path, adapter: Mapping[str, np.ndarray], scale: float
) -> Iterator[tuple[str, StoredTensor, np.ndarray]]:
    """Yield (key, the base's tensor, the merged values float32[out, in]), one at a time.

    Args:
      directory: the base's files.
      adapter: with PEFT's keys.
      scale: what a LoRA's B A is multiplied by.

    Raises:
      UserError: a module of the adapter is no linear layer of the base, or of another size.
    """
    stored = stored_tensors(directory)
    for module, update in sorted(_by_module(adapter).items()):
        key = f"{module}.weight"
        if key not in stored:
            raise UserError(f"{directory} has no {key}, which the adapter changes; see --base")
        if "weight" in update:
            exact = update["weight"].astype(np.float32)
        else:
            exact = np.float32(scale) * (update["lora_B.weight"] @ update["lora_A.weight"])
            if exact.shape == stored[key].shape:
                exact += stored[key].array().astype(np.float32)
        if exact.shape != stored[key].shape:
            raise UserError(f"{key} is {stored[key].shape}, the adapter's is {exact.shape}")
        yield key, stored[key], exact


def _by_module(adapter: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Return `{module: {"lora_A.weight": ..., "lora_B.weight": ...} or {"weight": ...}}`."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, value in adapter.items():
        leaf = ".".join(key.split(".")[-2:]) if ".lora_" in key else "weight"
        found.setdefault(module_of(key), {})[leaf] = value
    return found


def _copy_weights(directory: Path, folder: Path) -> None:
    files = weight_files(directory)
    if (directory / INDEX).is_file():
        files.append(directory / INDEX)
    elif [file.name for file in files] != [_WEIGHTS]:
        names = ", ".join(file.name for file in files)
        raise UserError(
            f"{directory} holds {names}: transformers loads {_WEIGHTS} or the shards named by "
            f"{INDEX}; rename the file, or write the base with save_pretrained"
        )
    for file in files:
        shutil.copyfile(file, folder / file.name)


def _copy_other_files(directory: Path, folder: Path) -> tuple[str, ...]:
    """Copy all but weights; return the names of other weights and of programs, left out."""
    written = {file.name for file in folder.iterdir()}
    left_out = []
    for file in sorted(directory.rglob("*")):
        name = file.relative_to(directory)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if file.is_dir() or is_hidden or str(name) in {*written, _CARD}:
            continue
        if name.name.endswith((*_OTHER_WEIGHTS, *_PROGRAMS)):
            left_out.append(str(name))
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy_files(directory, folder, [str(name)])
    return tuple(left_out)


def _overwrite(file: Path, offset: int, values: np.ndarray) -> None:
    with file.open("r+b") as stream:
        stream.seek(offset)
        stream.write(np.ascontiguousarray(values).view(np.uint8).data)
