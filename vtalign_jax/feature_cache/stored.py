"""Features on disk, as `launch/cache_features.py` writes and the loader reads them.

Below the folder of a split: `key.json` (what the features follow from, and how they are cut into
files), `features-<n>-of-<N>.array_record`, and last `index.json`, without which nothing is read.
Record i is that of the split: its vectors one after the other, a frame's patches or image tokens
together, or the tokens of the clip and then of the text. A vector is its values, little-endian,
and, of int8, the float32 that they are multiplied with. No record is compressed.
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import grain
import ml_dtypes
import numpy as np

from vtalign_jax import json_files
from vtalign_jax.array_types import Features
from vtalign_jax.errors import UserError

KEY, INDEX = "key.json", "index.json"
AGAIN = "write the feature cache again with --overwrite"
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "int8": np.int8}
_SCALED = "int8"
_MOST = 2**20  # values of a vector, vectors of a frame
_KINDS = {
    "key": dict,
    "layout": dict,
    "layout.depth": str,
    "layout.dtype": str,
    "layout.width": int,
    "layout.vectors": int,
    "file_bytes": dict,
}


class Layout(NamedTuple):
    """How features are stored.

    Attributes:
      depth: how far the frozen part was followed: "tower", "connector" or "decoder".
      dtype: one of `DTYPES`.
      width: values of a vector.
      vectors: of a frame; 0 where a record is not made of frames, of depth "decoder".
    """

    depth: str
    dtype: str
    width: int
    vectors: int

    @property
    def vector_bytes(self) -> int:
        """Bytes of a vector, its scale included."""
        return self.width * np.dtype(DTYPES[self.dtype]).itemsize + 4 * (self.dtype == _SCALED)

    def pack(self, values: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
        """Return uint8[..., vector_bytes] of `[..., width]` and, of int8, float32[...]."""
        raw = np.ascontiguousarray(values).view(np.uint8)
        if scales is None:
            return raw
        return np.concatenate([raw, np.ascontiguousarray(scales)[..., None].view(np.uint8)], -1)

    def unpack(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return what `pack` was given, as views."""
        dtype = np.dtype(DTYPES[self.dtype])
        end = self.width * dtype.itemsize
        values = raw[..., :end].view(dtype)
        if self.dtype != _SCALED:
            return values, None
        return values, raw[..., end:].view(np.float32)[..., 0]


def shard_name(number: int, count: int) -> str:
    """Return the name of one of the files of a split."""
    return f"features-{number:05d}-of-{count:05d}.array_record"


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the values of `key.json` or `index.json`; None if there is no such file.

    Raises:
      UserError: it is damaged.
    """
    try:
        return json_files.read_object(path, AGAIN)
    except FileNotFoundError:
        return None


def _check_index(index: dict[str, Any], file: Path) -> None:
    json_files.require(index, _KINDS, file, AGAIN)
    layout, sizes = index["layout"], index["file_bytes"]
    is_layout = layout.keys() == set(Layout._fields) and layout["dtype"] in DTYPES
    is_sized = is_layout and 1 <= layout["width"] <= _MOST and 0 <= layout["vectors"] <= _MOST
    are_beside = all(Path(name).name == name for name in sizes)
    if not (is_sized and are_beside and sizes):
        raise UserError(f"{file} is none that cache_features.py writes; {AGAIN}")


class StoredFeatures:
    """The features of a split. Picklable: files are opened again on the other side.

    Attributes:
      layout: see `Layout`.
      key: what they follow from.
      fingerprint: of all that decides the values read.
    """

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        """Open the files.

        Args:
          folder: of the split.
          index: of `index.json`.

        Raises:
          UserError: a file is missing or cut off, or the index is damaged.
        """
        _check_index(index, folder / INDEX)
        self.layout, self.key = Layout(**index["layout"]), index["key"]
        content = json.dumps([index["key"], index["layout"]], sort_keys=True)
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
        self._folder = folder
        sizes = index["file_bytes"]
        for name, size in sizes.items():
            file = folder / name
            if not file.is_file() or file.stat().st_size != size:
                raise UserError(
                    f"{file} is missing or cut off; copy the feature cache again, or delete {file} "
                    f"and {folder / INDEX} and run launch/cache_features.py again"
                )
        try:
            files = [str(folder / name) for name in sizes]
            self._source = grain.sources.ArrayRecordDataSource(files)
        except Exception as error:  # readers raise what their C++ library hands them
            raise UserError(f"cannot read the features in {folder} ({error}); {AGAIN}") from error

    def vectors(self, index: int) -> np.ndarray:
        """Return all vectors of a record: uint8[n, vector_bytes].

        Raises:
          UserError: the record cannot be read.
        """
        try:
            raw = np.frombuffer(self._source[index], np.uint8)
            return raw.reshape(-1, self.layout.vector_bytes)
        except Exception as error:  # readers raise what their C++ library hands them
            raise UserError(
                f"cannot read the features of clip {index} from {self._folder} ({error}); write "
                "them again with launch/cache_features.py --overwrite"
            ) from error

    def frames(self, index: int) -> np.ndarray:
        """Return the vectors of each stored frame of a record: uint8[n, vectors, vector_bytes]."""
        found = self.vectors(index)
        return found.reshape(-1, self.layout.vectors, found.shape[-1])

    def tokens(self, index: int, clip: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Return the vectors of a clip's tokens and of its text's, each padded with zeros.

        What a clip has beyond its mask, a caption not asked for, is left out.

        Args:
          index: of the record.
          clip: bool[S], the tokens that are attended to.
          text: bool[T].

        Returns:
          uint8[S + T, vector_bytes].
        """
        found = self.vectors(index)
        last, text_tokens = int(np.flatnonzero(clip)[-1]) + 1, int(text.sum())
        padded = np.zeros((len(clip) + len(text), found.shape[-1]), np.uint8)
        padded[:last] = found[: len(found) - text_tokens][:last]
        padded[len(clip) : len(clip) + text_tokens] = found[len(found) - text_tokens :]
        return padded

    @functools.cached_property
    def no_frame(self) -> np.ndarray:
        """What stands where a clip has no frame: zeros, uint8[vectors, vector_bytes]."""
        return np.zeros((self.layout.vectors, self.layout.vector_bytes), np.uint8)

    def no_tokens(self, tokens: int) -> np.ndarray:
        """Return what stands in a row without a clip: uint8[tokens, vector_bytes]."""
        return np.zeros((tokens, self.layout.vector_bytes), np.uint8)

    def of_batch(self, raw: np.ndarray, clip_tokens: int) -> Features:
        """Return the features of stacked rows.

        Args:
          raw: uint8[B, F, vectors, vector_bytes], or uint8[B, 1, S + T, vector_bytes].
          clip_tokens: S.
        """
        if self.layout.depth != "decoder":
            return Features(*self.layout.unpack(raw), None, None, self.layout.depth)
        parts = np.split(raw[:, 0], [clip_tokens], axis=1)
        clips, texts = (self.layout.unpack(part) for part in parts)
        return Features(*clips, *texts, self.layout.depth)
