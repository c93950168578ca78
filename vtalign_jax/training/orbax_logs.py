"""What Orbax logs of errors that it raises as well."""

import logging


def tell_once() -> None:
    """Keep out of the log what Orbax's threads raise again in whoever waits for a save."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_told_once)


def _is_told_once(record: logging.LogRecord) -> bool:
    trace = record.exc_info[2] if record.exc_info else None
    while trace is not None:
        if "/orbax/checkpoint/" in trace.tb_frame.f_code.co_filename:
            return False
        trace = trace.tb_next
    return True
