"""Folders of numbered images: `frame_0000000001.jpg`, `000001.png`, `img12.webp`, ...

The number is what the name ends in. The smallest one is time 0, whether counting starts at 0 or 1,
and the picture numbered n is shown from `(n - smallest) / fps` on, so `fps` is the rate at which
the numbers count. Where only every s-th number is there (0, 15, 30, ...), each picture is shown for
s of them. A number that is missing from that series is a fault: what was shown then is unknown.
"""

import functools
import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence

from etils import epath

from vtalign_jax import remote
from vtalign_jax.dst.faults import EPSILON, FrameError, FrameFault
from vtalign_jax.dst.images import MAX_BYTES

_NAME = re.compile(
    r"(?!\.)(?P<prefix>.*?)(?P<number>[0-9]+)\.(?:jpe?g|png|webp)", re.IGNORECASE | re.DOTALL
)


def numbered_pictures(path: str) -> Iterator[tuple[int, str]]:
    """Yield (number, name) of the numbered images in a folder, in no order.

    Raises:
      OSError: the folder cannot be listed.
    """
    is_remote = "://" in path  # a path object for each of 100,000 names takes its time
    names = (entry.name for entry in epath.Path(path).iterdir()) if is_remote else os.listdir(path)
    for match in filter(None, map(_NAME.fullmatch, names)):
        yield int(match["number"]), match[0]


class ImageFolder:
    """The pictures of one folder; only those asked for are read."""

    def __init__(self, path: str, fps: float) -> None:
        """List the folder.

        Args:
          path: the folder.
          fps: numbers a second.

        Raises:
          FrameError: no frame rate, no numbered image, or more than one series of them.
        """
        if not fps > 0:
            raise FrameError("no frame rate", f"{path} is a folder of images; give --source_fps")
        try:
            pictures = sorted(numbered_pictures(path))
        except OSError as error:
            raise FrameError("unreadable folder of images", f"{path}: {error}") from None
        if not pictures:
            raise FrameError("unreadable folder of images", f"{path}: no numbered image")
        if rivals := _rivals(pictures):
            detail = f"{path}: {' and '.join(rivals)} are of different series"
            raise FrameError("unreadable folder of images", detail)
        self._path, self._names = epath.Path(path), dict(pictures)
        self._first, self._last = pictures[0][0], pictures[-1][0]
        gaps = (number - self._first for number in self._names)
        self._stride = functools.reduce(math.gcd, gaps, 0) or 1
        self._seconds = self._stride / fps

    @property
    def duration(self) -> float:
        """Seconds from the first picture's start to the last one's end."""
        return ((self._last - self._first) // self._stride + 1) * self._seconds

    def close(self) -> None:
        """Nothing is open between pictures."""

    def frames_at(self, times: Sequence[float]) -> Iterator[tuple[float, bytes | FrameFault]]:
        """Yield (time, bytes of the image file), ascending; see `frames.FrameSource`."""
        shown, picture = None, None
        for time in sorted(times):
            number = self._first + math.floor((time + EPSILON) / self._seconds) * self._stride
            if not self._first <= number <= self._last:
                continue
            if number != shown:
                shown, picture = number, self._picture(number)
            yield time, picture

    def _picture(self, number: int) -> bytes | FrameFault:
        if number not in self._names:
            return FrameFault("missing picture", f"{self._path}: no image is numbered {number}")
        path = self._path / self._names[number]
        try:
            if not remote.is_file(path):  # a pipe would never end
                return FrameFault("damaged picture", f"{path} is no file")
            if not remote.is_remote(path) and not remote.is_within(path, self._path):
                return FrameFault(
                    "damaged picture", f"{path} is a link that leads out of its folder"
                )
            size = path.stat().length
            if size > MAX_BYTES:
                return FrameFault("damaged picture", f"{path}: {size} bytes are too many")
            return path.read_bytes()
        except OSError as error:
            return FrameFault("damaged picture", f"{path}: {error}")


def _rivals(pictures: list[tuple[int, str]]) -> tuple[str, ...]:
    """Return two names that cannot both be of one series, if there are such."""
    prefixes = {_NAME.fullmatch(name)["prefix"]: name for _, name in pictures}
    if len(prefixes) > 1:
        return tuple(sorted(prefixes.values())[:2])
    pairs = itertools.pairwise(pictures)
    return next(((one, other) for (n, one), (m, other) in pairs if n == m), ())
