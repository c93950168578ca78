"""What Orbax logs and prints of errors that it raises as well."""

import contextlib
import logging
import sys
from collections.abc import Iterator


def tell_once() -> None:
    """Keep out of the log what Orbax's threads raise again in whoever waits for a save."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_told_once)


@contextlib.contextmanager
def one_failure() -> Iterator[None]:
    """Read arrays; of several that cannot be read the first is raised.

    The others would each print a traceback, now or when they end later: from then on Python says
    nothing of what goes wrong in coroutines that nobody waits for.
    """
    hook, unraisable = sys.excepthook, sys.unraisablehook

    def tell(kind: type[BaseException], error: BaseException, trace: object) -> None:
        if str(error) != "Event loop is closed":
            hook(kind, error, trace)

    sys.excepthook, sys.unraisablehook = tell, lambda _: None
    yield  # an error leaves them so
    sys.excepthook, sys.unraisablehook = hook, unraisable


def _is_told_once(record: logging.LogRecord) -> bool:
    trace = record.exc_info[2] if record.exc_info else None
    while trace is not None:
        if "/orbax/checkpoint/" in trace.tb_frame.f_code.co_filename:
            return False
        trace = trace.tb_next
    return True
