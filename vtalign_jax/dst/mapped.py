"""Files that are read in place."""

import pyarrow as pa
from etils import epath


def open_mapped(path: epath.PathLike) -> pa.NativeFile:
    """Open a file for Arrow: memory-mapped on this machine, read piece by piece elsewhere.

    Raises:
      OSError: it cannot be opened.
    """
    file = epath.Path(path)
    if "://" in str(file):
        return pa.PythonFile(file.open("rb"), mode="r")
    return pa.memory_map(str(file))
