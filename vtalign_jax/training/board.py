"""TensorBoard's files of a run: scalars, the similarity image, hyper-parameters with the result.

Events are written where they are made: tensorboardX's own writer hands them to a thread, which ends
where the disk is full; the run would then wait for room in its queue for ever.

tensorboardX imports PyTorch and Google's storage client where they are installed, seconds of every
start for nothing: neither is used here, so both are kept out of its sight while it is imported.
"""

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

_UNUSED = ("torch", "google.cloud", "boto3")


class Board:
    """An event file that threads may share; tensorboardX puts "_" in the place of "@"."""

    def __init__(self, folder: str, first_step: int):
        """Open a new event file.

        Args:
          folder: made if absent.
          first_step: what was written from there on is written again, and hidden until then.

        Raises:
          OSError: the folder cannot be written; so do all methods.
        """
        with _hidden(_UNUSED):
            self._summary = importlib.import_module("tensorboardX.summary")
            writing = importlib.import_module("tensorboardX.event_file_writer")
            self._proto = importlib.import_module("tensorboardX.proto.event_pb2")
        os.makedirs(folder, exist_ok=True)
        self._file = writing.EventsWriter(f"{folder}/events")
        start = self._proto.SessionLog(status=self._proto.SessionLog.START)
        self._write(first_step, session_log=start)

    def _write(self, step: int, **event: Any) -> None:
        self._file.write_event(self._proto.Event(step=step, wall_time=time.time(), **event))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars by name."""
        for name, value in values.items():
            self._write(step, summary=self._summary.scalar(name, value))

    def image(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Write a picture, uint8[H, W, 3]."""
        self._write(step, summary=self._summary.image(name, pixels, dataformats="HWC"))

    def hyper_parameters(
        self, step: int, fields: Mapping[str, Any], results: Mapping[str, float]
    ) -> None:
        """Write the row of this run for the HPARAMS page.

        Args:
          step: steps done.
          fields: of the configuration, by name.
          results: its columns of figures, written as scalars too.
        """
        self.scalars(step, results)
        shown = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in fields.items()
        }
        # A summary names its scalars as the page looks them up: as tensorboardX wrote them.
        columns = {name.replace("@", "_"): value for name, value in results.items()}
        for summary in self._summary.hparams(shown, columns):
            self._write(step, summary=summary)

    def flush(self) -> None:
        """Write what the file still lacks."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close."""
        self._file.close()


@contextlib.contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    """Let imports of these packages fail, those that are imported already excepted."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)
