"""TensorBoard's files of a run: scalars, the similarity image, hyper-parameters with the result.

tensorboardX imports PyTorch and Google's storage client where they are installed, seconds of every
start for nothing: neither is used here, so both are kept out of its sight while it is imported.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

_UNUSED = ("torch", "google.cloud", "boto3")


class Board:
    """Event files in a folder; tensorboardX puts "_" in the place of "@"."""

    def __init__(self, folder: str, first_step: int):
        """Open a new event file.

        Args:
          folder: made if absent.
          first_step: what was written from there on is written again, and hidden until then.
        """
        with _hidden(_UNUSED):
            writing = importlib.import_module("tensorboardX")
        self._hparams = importlib.import_module("tensorboardX.summary").hparams
        self._writer = writing.SummaryWriter(folder, purge_step=first_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars by name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Write a picture, uint8[H, W, 3]."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")

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
        for summary in self._hparams(shown, columns):
            self._writer.file_writer.add_summary(summary)

    def flush(self) -> None:
        """Write what the files still lack."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


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
