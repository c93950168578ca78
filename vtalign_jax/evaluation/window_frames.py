"""The frames of overlapping windows, read in one forward pass over the video."""

import collections
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from vtalign_jax.clips import Clip, Square
from vtalign_jax.dst.faults import FrameFault
from vtalign_jax.dst.frames import FrameSource, Picture
from vtalign_jax.dst.images import ROTATED, open_picture
from vtalign_jax.dst.pairs import frame_times

_SIGHT = (192, 144)  # pixels, the most that a small picture takes


class WindowPass:
    """One forward pass that serves all windows of a video.

    Each picture is decoded and made square once, whatever the number of windows that show it, and
    is let go with the last of them: what is held is at most what the widest window covers.

    Attributes:
      lost: why a window gives no clip, by its place; filled while `clips` runs.
      sights: small pictures by time in seconds; filled likewise.
    """

    def __init__(
        self,
        source: FrameSource,
        windows: np.ndarray,
        frames: int,
        square: Square,
        sights: Sequence[float] = (),
    ):
        """Say what is wanted; nothing is read yet.

        Args:
          source: of the pictures.
          windows: float64[W, 2], seconds.
          frames: of a clip, F; looked for where `prepare` does, see `pairs.frame_times`.
          square: makes the pictures square.
          sights: times in seconds of which to keep a small picture, upright and in its own shape.
        """
        self._source, self._square, self._frames = source, square, frames
        self._windows = windows
        self._times = [frame_times(*window, frames) for window in windows.tolist()]
        self._sight_times = frozenset(sights)
        self.lost: dict[int, str] = {}
        self.sights: dict[float, Image.Image] = {}

    def clips(self) -> Iterator[tuple[int, Clip]]:
        """Yield (place in `windows`, clip), the windows that end first come first.

        Frames that the video lacks are left out, as in `prepare`. A window without any, or with a
        damaged one, is `lost`.
        """
        order = sorted(range(len(self._times)), key=lambda place: self._times[place][-1])
        # From which time on the windows that are still to come need frames.
        needed = np.minimum.accumulate([self._times[place][0] for place in order][::-1])[::-1]
        waiting = collections.deque(order)
        held: dict[float, np.ndarray | FrameFault] = {}  # ascending
        for time, made in self._shown():
            while waiting and self._times[waiting[0]][-1] < time:
                yield from self._clip(waiting.popleft(), held)
            since = needed[len(order) - len(waiting)] if waiting else np.inf
            while held and next(iter(held)) < since:
                del held[next(iter(held))]
            held[time] = made
        for place in waiting:
            yield from self._clip(place, held)

    def _shown(self) -> Iterator[tuple[float, np.ndarray | FrameFault]]:
        """Yield (time, square or fault) of every wanted time that has a picture, ascending."""
        wanted = {time for row in self._times for time in row} | self._sight_times
        last, made, upright = None, None, None
        for time, picture in self._source.frames_at(sorted(wanted)):
            if picture is not last:
                last, (made, upright) = picture, self._make(picture)
            if time in self._sight_times and upright is not None:
                self.sights[time] = _small(upright, self._square.rotate)
            yield time, made

    def _make(
        self, picture: Picture | FrameFault
    ) -> tuple[np.ndarray | FrameFault, Image.Image | None]:
        if isinstance(picture, FrameFault):
            return picture, None
        try:
            opened = open_picture(picture) if isinstance(picture, bytes) else picture
        except ValueError as error:
            return FrameFault("damaged picture", str(error)), None
        return self._square(opened), opened

    def _clip(
        self, place: int, held: dict[float, np.ndarray | FrameFault]
    ) -> Iterator[tuple[int, Clip]]:
        times = self._times[place]
        numbers = [k for k, time in enumerate(times) if time in held]
        found = [held[times[k]] for k in numbers]
        fault = next((frame for frame in found if isinstance(frame, FrameFault)), None)
        if fault is not None:
            self.lost[place] = f"{fault.reason}: {fault.detail}"
        elif not found:
            self.lost[place] = "no frame"
        else:
            start, end = self._windows[place]
            # 4.1 - 0.1 is less than 4, and the prompt says whole seconds.
            yield place, Clip(found, numbers, self._frames, round(end - start, 6))


def _small(picture: Image.Image, rotate: int) -> Image.Image:
    small = picture.convert("RGB")
    if rotate:
        small = small.transpose(ROTATED[rotate])
    small.thumbnail(_SIGHT)  # in place; of a copy, as convert and transpose make one
    return small
