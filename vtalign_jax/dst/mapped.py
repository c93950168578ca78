"""Files that are read in place."""

import struct

import pyarrow as pa
from etils import epath

_BATCHES = ("record batch", "dictionary")
_HEADER, _COMPRESSION = 2, 3  # fields of a flatbuffer: Message.header, RecordBatch.compression


def open_mapped(path: epath.PathLike) -> pa.NativeFile:
    """Open a file for Arrow: memory-mapped on this machine, read piece by piece elsewhere.

    Raises:
      OSError: it cannot be opened.
    """
    file = epath.Path(path)
    if "://" in str(file):
        return pa.PythonFile(file.open("rb"), mode="r")
    return pa.memory_map(str(file))


def holds_compressed(file: pa.NativeFile) -> bool:
    """Return whether an Arrow stream holds compressed buffers, of which a few bytes may make many.

    Args:
      file: of this machine, at the start of a stream; it is where it was afterwards.

    Source: Arrow's Message.fbs and Schema.fbs; a flatbuffer's table starts with the way back to its
    vtable, which has two bytes for each field, 0 if it is not there.

    What cannot be read at all is left to who reads it.
    """
    start = file.tell()
    try:
        for message in pa.ipc.MessageReader.open_stream(file):
            if message.type in _BATCHES and _is_compressed(message.metadata.to_pybytes()):
                return True
    except (pa.ArrowException, OSError, ValueError, struct.error):
        return False
    finally:
        file.seek(start)
    return False


def _is_compressed(metadata: bytes) -> bool:
    root = struct.unpack_from("<I", metadata, 0)[0]
    header = _field(metadata, root, _HEADER)
    if not header:
        return False
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    return bool(_field(metadata, batch, _COMPRESSION))


def _field(metadata: bytes, table: int, number: int) -> int:
    """Return where a field of a table lies, 0 if it is not there."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    size = struct.unpack_from("<H", metadata, vtable)[0]
    if vtable < 0 or 4 + 2 * number >= size:
        return 0
    offset = struct.unpack_from("<H", metadata, vtable + 4 + 2 * number)[0]
    return table + offset if offset else 0
