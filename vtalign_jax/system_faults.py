"""What the operating system refuses, told as a user can mend it.

Libraries hand on what it says as errors of their own; the sentence of the errno is in them all.
"""

import errno
import os
from collections.abc import Iterator

# How to mend each, in this order; {place} is the file, or where the command writes.
MENDS = {
    errno.ENOSPC: "make room there ({place})",
    errno.EDQUOT: "make room there ({place}), or ask for a larger quota",
    errno.EROFS: "name a folder that can be written instead of {place}",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f) for {place}",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOMEM: "use fewer processes (config.data.workers, --workers) or more memory",
    errno.EIO: "look at the disk or the network file system of {place}",
    errno.ESTALE: "look at the network file system of {place}",
}
# What a path alone is at fault for: of the error itself, not of one that was met on the way.
OF_PATHS = (
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EPERM,
)
_SHOWN = 200  # letters of a path


def told(error: BaseException, place: str) -> str | None:
    """Return one line about what the system refused, None if that is not what is behind an error.

    Args:
      error: that ended a command.
      place: where the command writes, for an error that names no file.
    """
    for each in _causes(error):
        for number, mend in MENDS.items():
            sentence, is_number = os.strerror(number), getattr(each, "errno", None) == number
            if is_number or sentence in str(each):
                file = _file(each) or place
                return f"{sentence}: {mend.format(place=file)}; the same command then goes on"
    if isinstance(error, OSError) and error.errno in OF_PATHS:
        named = f": {_file(error)}" if _file(error) else ""
        return f"{error.strerror}{named}; name another path, or mend that one"
    return None


def _file(error: BaseException) -> str:
    """Return the beginning of the path that an error names, "" if it names none."""
    return str(getattr(error, "filename", None) or "")[:_SHOWN]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, the first cause first."""
    if error is not None:
        yield from _causes(error.__cause__ or error.__context__)
        yield error
