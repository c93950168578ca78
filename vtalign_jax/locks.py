"""A folder that one command at a time may write, held until its process ends, however it ends."""

import contextlib
import fcntl
import os
import socket
import sys

from etils import epath

from vtalign_jax import remote
from vtalign_jax.errors import UserError

LOCK = ".lock"  # the file in the folder; who wrote it last holds it, if that still runs


def hold(folder: str | epath.Path, flag: str) -> contextlib.ExitStack:
    """Make this process the only one that writes a folder; a killed one holds nothing.

    Nobody is refused in a bucket, which knows no locks; on a file system without them that is told.

    Args:
      folder: made if absent.
      flag: that named it, for the error.

    Returns:
      what to close when done, as a context or by `close()`.

    Raises:
      UserError: another process holds it.
      OSError: the folder cannot be written.
    """
    held = contextlib.ExitStack()
    if remote.is_remote(folder):
        return held
    path = epath.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    # Open to be written: networked file systems lock no other file exclusively.
    file = os.fdopen(os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666), "r+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = file.read().strip() or "another process"
        file.close()
        raise UserError(
            f"{flag}={folder} is being written by {owner}; wait until that ends, or name another "
            "folder"
        ) from None
    except OSError as error:
        print(
            f"warning: the file system of {flag}={folder} has no locks ({error.strerror}); see to "
            "it that no other process writes there",
            file=sys.stderr,
            flush=True,
        )
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    held.enter_context(file)
    return held
