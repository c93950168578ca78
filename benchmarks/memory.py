"""What Linux says of this process's memory."""

import pathlib


def status_kib(field: str) -> int:
    """Return `VmRSS`, the resident set, or `VmHWM`, the largest so far, in KiB.

    `getrusage` would also count what the process that started this one held at that moment.
    """
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0])
