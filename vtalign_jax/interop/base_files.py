"""The files of a base model: where they are, what tensors they hold, what identifies them."""

import dataclasses
import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vtalign_jax import json_files, remote
from vtalign_jax.errors import UserError

TINY = "tiny"
INDEX = "model.safetensors.index.json"
CONVERTED = "vtalign_base.json"  # in a folder of launch/convert.py
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
_DOWNLOADED = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
AGAIN = "download it again"
FLOATS = ("F32", "F16", "BF16")
_SAMPLES, _SAMPLE_BYTES = 64, 4096
_SIZE_BYTES = 8  # of a safetensors file, before its header


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file, read when asked for.

    Attributes:
      file: the file.
      dtype: of the stored values.
      shape: as stored, PyTorch's layout.
      offset: bytes from the start of the file.
    """

    file: Path
    dtype: Any
    shape: tuple[int, ...]
    offset: int

    def array(self) -> np.ndarray:
        """Return the values as a read-only view of the file; nothing is copied."""
        if 0 in self.shape:  # which no file can be mapped to
            return np.zeros(self.shape, self.dtype)
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape or (1,)).reshape(
            self.shape
        )


def resolve_base(base: str) -> Path:
    """Return the directory of a base model, downloading or writing it on first use.

    Args:
      base: a checkpoint directory (of a bucket it is copied here, see `remote.fetch`), a Hugging
        Face hub id, or "tiny" for the demo's small random model, which is written to the user's
        cache.

    Raises:
      UserError: there is no such directory, or the download failed.
    """
    if base == TINY:
        return _tiny_directory()
    if remote.is_remote(base):
        return remote.fetch(base)
    directory = Path(base).expanduser()
    if directory.is_dir():
        return directory
    if base.count("/") != 1 or base.startswith((".", "/", "~")):
        raise UserError(
            f"no base model at {base!r}; give a directory with config.json and safetensors files, "
            "a Hugging Face hub id such as HuggingFaceTB/SmolVLM2-2.2B-Instruct, or tiny"
        )
    return _download(base)


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """Return the object that a JSON file of the directory holds.

    Raises:
      UserError: it is missing or damaged, see `json_files.read_object`.
    """
    try:
        return json_files.read_object(directory / name, AGAIN)
    except FileNotFoundError:
        raise UserError(
            f"{directory} has no {name}; is it a Hugging Face checkpoint directory?"
        ) from None


def copy_files(directory: Path, folder: Path, names: Iterable[str]) -> None:
    """Copy those of the named files that a base has.

    Raises:
      UserError: one is a link to somewhere else, which an export would hand on to others.
    """
    real = Path(os.path.realpath(directory))
    # In Hugging Face's cache a snapshot's files are links into the folder of its repository.
    roots = (real, real.parent.parent) if real.parent.name == "snapshots" else (real,)
    for name in names:
        file = directory / name
        if not file.is_file():
            continue
        if not any(remote.is_within(file, root) for root in roots):
            raise UserError(f"{file} is a link that leads out of {directory}; put a copy there")
        shutil.copyfile(file, folder / name)


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Return every tensor of the directory's safetensors files by its key.

    A sharded index is followed; without one, `model.safetensors` is read, or else every
    safetensors file in the directory.

    Raises:
      UserError: no such file, a file or tensor that the index names is missing, a broken file.
    """
    directory = Path(directory)
    if (directory / INDEX).is_file():
        return _indexed(directory)
    tensors = {}
    for file in weight_files(directory):
        tensors.update(file_tensors(file))
    return tensors


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files that make up the model, sorted by name.

    Raises:
      UserError: there is none, or one that the index names is missing.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"no base model directory {directory}; is the path right?")
    if (directory / INDEX).is_file():
        files = [directory / name for name in sorted(set(_weight_map(directory).values()))]
    elif (directory / "model.safetensors").is_file():
        files = [directory / "model.safetensors"]
    elif (directory / CONVERTED).is_file():
        raise UserError(
            f"{directory} is a base of launch/convert.py, without Hugging Face's weight files; "
            "give the directory or hub id it was made of with --base"
        )
    else:
        files = sorted(directory.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"{directory} lacks {', '.join(missing)}, named by {INDEX}; download it again"
        )
    if not files:
        raise UserError(
            f"{directory} holds no safetensors file; other weight formats are not read, "
            "save the model with transformers' save_pretrained"
        )
    return files


def base_fingerprint(directory: Path) -> str:
    """Return a hash that tells base models apart without reading them whole.

    Taken over `config.json`, `tokenizer.json` and, of every weight file, its size, its header and
    64 evenly spaced samples of 4 KiB. A converted base has that of the files it was made of.

    Returns:
      16 hexadecimal digits.

    Raises:
      UserError: see `weight_files`.
    """
    digest = hashlib.sha256()
    directory = Path(directory)
    if (directory / CONVERTED).is_file():
        from vtalign_jax.interop import converted  # needs TensorStore; most bases do not

        return converted.read_facts(directory)["fingerprint"]
    for name in ("config.json", "tokenizer.json"):
        if (directory / name).is_file():
            digest.update((directory / name).read_bytes())
    for file in weight_files(directory):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_header_end(file)))
            for i in range(_SAMPLES):
                stream.seek(i * max(size - _SAMPLE_BYTES, 0) // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _indexed(directory: Path) -> dict[str, StoredTensor]:
    files = {file.name: file_tensors(file) for file in weight_files(directory)}
    absent = [key for key, name in _weight_map(directory).items() if key not in files[name]]
    if absent:
        raise UserError(f"{directory}: {INDEX} names tensors that its files lack: {absent[:5]}")
    return {key: tensor for tensors in files.values() for key, tensor in tensors.items()}


def _weight_map(directory: Path) -> dict[str, str]:
    """Return which file holds which tensor; no name leads out of the directory."""
    weight_map = read_json(directory, INDEX).get("weight_map")
    names = weight_map.values() if isinstance(weight_map, dict) else [None]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(
                f"{directory / INDEX} names {name!r} as a weight file, which is none beside it; "
                f"{AGAIN}"
            )
    return weight_map


def _header_end(file: Path) -> int:
    """Return the bytes of a safetensors file before its values."""
    with file.open("rb") as stream:
        end = _SIZE_BYTES + int.from_bytes(stream.read(_SIZE_BYTES), "little")
    if end > min(file.stat().st_size, _SIZE_BYTES + json_files.MAX_BYTES):
        raise _not_whole(file, f"its header is said to take {end - _SIZE_BYTES:,} bytes")
    return end


def _not_whole(file: Path, why: object) -> UserError:
    return UserError(f"{file} is not a whole safetensors file: {why}; {AGAIN}")


def _dtypes() -> dict[str, Any]:
    import ml_dtypes  # a fingerprint does without, where an export is verified

    return {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64}


def file_tensors(file: Path, kinds: Sequence[str] = FLOATS) -> dict[str, StoredTensor]:
    """Return the tensors of one file, none read. Source: the safetensors format, version 0.4.

    Args:
      file: the file.
      kinds: the dtypes that it may hold, in the format's names.

    Raises:
      UserError: a damaged file, or a dtype that is not read.
    """
    start = _header_end(file)
    try:
        with file.open("rb") as stream:
            header = json_files.loads(stream.read(start)[_SIZE_BYTES:])
    except ValueError as error:
        raise _not_whole(file, error) from None
    if not isinstance(header, dict):
        raise _not_whole(file, "its header is no JSON object")
    header.pop("__metadata__", None)
    tensors = {key: _stored_tensor(file, key, entry, start) for key, entry in header.items()}
    for key, entry in header.items():
        if entry["dtype"] not in kinds:
            raise _unsupported(file, key, entry["dtype"], kinds)
    return tensors


def _unsupported(file: Path, key: str, kind: str, kinds: Iterable[str]) -> UserError:
    return UserError(f"{file}: {key} is stored as {kind}; supported are {', '.join(kinds)}")


def _stored_tensor(file: Path, key: str, entry: Any, start: int) -> StoredTensor:
    """Return what an entry of a header describes, once it is sure to lie within the file."""
    entry, dtypes = entry if isinstance(entry, dict) else {}, _dtypes()
    kind, shape, place = (entry.get(name) for name in ("dtype", "shape", "data_offsets"))
    if isinstance(kind, str) and kind not in dtypes:
        raise _unsupported(file, key, kind, FLOATS)
    if not isinstance(kind, str) or not _are_sizes(shape) or not _are_sizes(place, 2):
        raise _not_whole(file, f"{key} has no dtype, shape and data_offsets")
    begin, end = place
    dtype = np.dtype(dtypes[kind])
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise _not_whole(file, f"{key} of shape {shape} does not take {end - begin:,} bytes")
    if start + end > file.stat().st_size:
        raise _not_whole(file, f"{key} is cut off")
    return StoredTensor(file, dtypes[kind], tuple(shape), start + begin)


def _are_sizes(values: Any, count: int | None = None) -> bool:
    is_list = isinstance(values, list) and len(values) == (len(values) if count is None else count)
    return is_list and all(type(value) is int and 0 <= value < 2**62 for value in values)


def _download(hub_id: str) -> Path:
    import huggingface_hub  # only a hub id needs it, and it takes half a second

    print(f"looking up {hub_id} on the Hugging Face hub (downloaded on first use)", flush=True)
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=_DOWNLOADED))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"cannot get base model {hub_id!r} from the Hugging Face hub ({reason}); check the "
            "name and the network, or give the directory of a downloaded copy"
        ) from None


def _tiny_directory() -> Path:
    """Return the tiny checkpoint in the cache, written under a temporary name first."""
    from vtalign_jax.interop import tiny  # trains a tokenizer: not needed by any real base

    cache = remote.cache()
    directory = cache / f"tiny-{tiny.VERSION}"
    if directory.is_dir():
        return directory
    partial = Path(tempfile.mkdtemp(prefix="tiny-", dir=cache))
    try:
        tiny.write_tiny_checkpoint(partial)
        partial.rename(directory)
    except OSError:
        if not directory.is_dir():  # another process may have been first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory
