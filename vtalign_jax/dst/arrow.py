"""ProAssist Arrow frames: an Arrow IPC stream or file of base64 JPEGs, about two a second.

Every `step`-th frame of the video was kept, so row k shows the time from `k * step / source_fps`
on, and the rate is 2.0 only for 30 and 60 frames a second (2.141 for 29.97). In a file made of
several videos (a group of Ego4D) the count restarts with each, but the seams are not recorded: the
rows are taken as those of one video, and each seam behind it shifts the rows after it by less than
one row's time.
"""

import base64
import binascii
import bisect
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from vtalign_jax.dst.faults import EPSILON, FrameError, FrameFault
from vtalign_jax.dst.images import MAX_BYTES
from vtalign_jax.dst.mapped import holds_compressed, open_mapped

_COLUMNS = ("frame", "image")
_FILE_MAGIC = b"ARROW1\0\0"  # of an IPC file: then comes a stream, then an index of it
_TEXT = (pa.types.is_string, pa.types.is_large_string)  # base64
_BASE64_GROWTH = 4 / 3
_BYTES = (pa.types.is_binary, pa.types.is_large_binary)  # the image file itself


def row_step(source_fps: float) -> int:
    """Return how many source frames a row stands for."""
    return int((int(source_fps) + 0.5) // 2)


class ArrowFrames:
    """The rows of one Arrow file, memory-mapped; only the rows asked for are decoded."""

    def __init__(self, path: str, source_fps: float) -> None:
        """Open the file.

        Args:
          path: an Arrow IPC stream or file; its column `frame` or `image` is base64 text or bytes.
          source_fps: frame rate of the video that the rows were taken from, frames a second.

        Raises:
          FrameError: no Arrow data, no such column or type, or a frame rate below 2.
        """
        self._path = path
        step = row_step(source_fps)
        if step < 1:
            raise FrameError("frame rate below 2", f"{path}: {source_fps:g} frames a second")
        self._seconds = step / source_fps
        self._damage = ""
        try:
            self._file = open_mapped(path)
            _skip_magic(self._file)
            if "://" not in path and holds_compressed(self._file):
                raise pa.ArrowInvalid("compressed record batches; write them uncompressed")
            self._columns, self._starts = self._read_batches(pa.ipc.open_stream(self._file))
        except (pa.ArrowException, OSError, ValueError) as error:  # names may be no UTF-8
            raise FrameError("unreadable Arrow file", f"{path}: {error}") from None

    def _read_batches(self, reader: Any) -> tuple[list[Any], list[int]]:
        """Return the picture column of each record batch and the rows before it, uncopied."""
        name = next((name for name in _COLUMNS if name in reader.schema.names), None)
        if name is None:
            detail = f"{self._path}: no column {' or '.join(_COLUMNS)}"
            raise FrameError("unreadable Arrow file", detail)
        kind = reader.schema.field(name).type
        self._is_text = any(is_type(kind) for is_type in _TEXT)
        if not self._is_text and not any(is_type(kind) for is_type in _BYTES):
            detail = f"{self._path}: column {name} is {kind}, neither base64 text nor bytes"
            raise FrameError("unreadable Arrow file", detail)
        columns, starts, self._rows = [], [], 0
        try:
            for batch in reader:
                columns.append(batch.column(name))
                starts.append(self._rows)
                self._rows += batch.num_rows
        except (pa.ArrowException, OSError, ValueError) as error:
            self._damage = f"{self._path} is cut off after row {self._rows}: {error}"
        return columns, starts

    @property
    def duration(self) -> float:
        """Seconds from the first row's start to the last one's end."""
        return self._rows * self._seconds

    def close(self) -> None:
        """Close the file."""
        self._columns = []
        self._file.close()

    def frames_at(self, times: Sequence[float]) -> Iterator[tuple[float, bytes | FrameFault]]:
        """Yield (time, JPEG bytes as stored), ascending; see `frames.FrameSource`."""
        shown, picture = -1, None
        for time in sorted(times):
            row = math.floor((time + EPSILON) / self._seconds)
            if row < 0:
                continue
            if row >= self._rows:
                if self._damage:
                    yield time, FrameFault("Arrow file cut off", self._damage)
                continue
            if row != shown:
                shown, picture = row, self._picture(row)
            yield time, picture

    def _picture(self, row: int) -> bytes | FrameFault:
        batch = bisect.bisect_right(self._starts, row) - 1
        try:
            cell = self._columns[batch].slice(row - self._starts[batch], 1)
            cell.validate()  # Arrow follows damaged offsets out of the file, and the process dies
            value = cell[0].as_buffer()  # uncopied
            size = value.size if value else 0
            if not size:
                raise ValueError("empty")
            if size > (_BASE64_GROWTH * MAX_BYTES if self._is_text else MAX_BYTES):
                raise ValueError(f"{size} bytes are too many")
            return base64.b64decode(value, validate=True) if self._is_text else value.to_pybytes()
        except (binascii.Error, ValueError) as error:
            return FrameFault("damaged picture", f"{self._path} row {row}: {error}")


def _skip_magic(file: Any) -> None:
    """Go to the stream within an IPC file, which is readable even if the index is cut off."""
    if file.read(len(_FILE_MAGIC)) != _FILE_MAGIC:
        file.seek(0)
