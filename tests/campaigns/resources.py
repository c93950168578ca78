"""What a machine may run out of: a small disk that can be filled, a folder that cannot be written.

Mounts are made by root; where the tests run as somebody else, limits of the process and rights of
the folder take their place.
"""

import contextlib
import os
import pathlib
import resource
import subprocess
from collections.abc import Iterator

from tests import commands

_BLOCK = 4096


class Disk:
    """A folder with little room.

    Attributes:
      folder: to write in.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self, process: commands.Forked | None, left: int = 0) -> None:
        """Leave this many bytes, to everybody or to the process."""
        if not is_root():
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (left, left))
            return
        with contextlib.suppress(OSError), self._filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"0" * _BLOCK)
        os.truncate(self._filler, max(0, self._filler.stat().st_size - left))

    def empty(self) -> None:
        """Make room."""
        self._filler.unlink(missing_ok=True)


def is_root() -> bool:
    return os.geteuid() == 0


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, mebibytes: int) -> Iterator[Disk]:
    """Give a disk of its own."""
    folder.mkdir()
    options = f"size={mebibytes}m"
    if is_root():
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield Disk(folder)
    finally:
        if is_root():
            subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def read_only(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Give a folder in which nothing can be written."""
    folder.mkdir()
    if not is_root():  # whom rights do not bind
        folder.chmod(0o555)
        yield folder
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
