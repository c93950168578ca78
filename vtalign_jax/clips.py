"""What users give as clips: checked, read from files, made the model's squares."""

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vtalign_jax.dst.faults import FrameError, FrameFault
from vtalign_jax.dst.images import DEEP_MODES, make_square
from vtalign_jax.dst.video import VideoFile
from vtalign_jax.errors import UserError

Picture = np.ndarray | Image.Image  # uint8[H, W, 3], or of any mode with 8 bits a channel
Pictures = np.ndarray | Sequence[Picture]  # of one clip
Span = tuple[str | Path, float, float]  # a video file, start and end in seconds

_SPANS_A_PASS = 16  # of one file, read in one forward pass; bounds what is held
_MOST_SECONDS = 86_400  # of a window; the prompt's times are laid out second by second
_ADVICE = "give a list of clips, each a list of pictures or uint8[F, H, W, 3]"


@dataclasses.dataclass(frozen=True)
class Square:
    """How a picture becomes the model's square; see `dst.images.make_square`.

    Attributes:
      size: pixels.
      fit: "square" or "center_crop".
      rotate: degrees counter-clockwise.
    """

    size: int
    fit: str
    rotate: int

    def __call__(self, picture: Picture) -> np.ndarray:
        """Return uint8[size, size, 3]."""
        if not isinstance(picture, Image.Image):
            picture = Image.fromarray(picture)
        return np.asarray(make_square(picture, self.size, self.fit, self.rotate))


class Clip(NamedTuple):
    """A window of a video and the frames that there are of it.

    Attributes:
      frames: uint8[size, size, 3] each, ascending.
      numbers: k of each; frame k is shown at (k + 0.5) / sampled of the window.
      sampled: frames looked for.
      seconds: length of the window.
    """

    frames: list[np.ndarray]
    numbers: list[int]
    sampled: int
    seconds: float


class GivenClip(NamedTuple):
    """A clip as the user gave it, checked.

    Attributes:
      pictures: uint8[H, W, 3] or PIL images.
      mask: bool[F], at least one True.
      seconds: length of the window.
    """

    pictures: Pictures
    mask: np.ndarray
    seconds: float

    def squared(self, square: Square) -> Clip:
        """Return the valid frames, made square."""
        numbers = np.flatnonzero(self.mask).tolist()
        frames = [square(self.pictures[k]) for k in numbers]
        return Clip(frames, numbers, len(self.mask), self.seconds)


def check_clips(
    clips: np.ndarray | Sequence[Pictures],
    frame_mask: np.ndarray | Sequence[Sequence[bool]] | None,
    windows: float | Sequence[float],
) -> list[GivenClip]:
    """Return clips, masks and window lengths of a call, one by one.

    Args:
      clips: uint8[B, F, H, W, 3], or B clips of any number of pictures of any sizes.
      frame_mask: bool[B, F], or a row for each clip; None for all frames.
      windows: seconds, of all clips or of each.

    Raises:
      UserError: what is given is not that; the message names the clip.
    """
    if isinstance(clips, (str, bytes, Image.Image)) or not hasattr(clips, "__len__"):
        raise UserError(f"clips are {type(clips).__name__}; {_ADVICE}")
    if hasattr(clips, "dtype"):
        clips = np.asarray(clips)
        if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[-1] != 3:
            form = f"{clips.dtype}{list(clips.shape)}"
            raise UserError(f"frames are {form}, they must be uint8[B, F, H, W, 3]; or {_ADVICE}")
    for number, pictures in enumerate(clips):
        _check_pictures(number, pictures)
    masks = _check_masks(frame_mask, [len(pictures) for pictures in clips])
    lengths = _check_windows(windows, len(masks))
    return [GivenClip(*parts) for parts in zip(clips, masks, lengths, strict=True)]


def _check_masks(
    given: np.ndarray | Sequence[Sequence[bool]] | None, counts: list[int]
) -> list[np.ndarray]:
    """Return bool[F] of each clip; `counts` are their F."""
    if given is None:
        masks = [np.ones(count, bool) for count in counts]
    else:
        try:
            masks = [np.asarray(row, bool) for row in given]
        except (TypeError, ValueError):
            raise UserError("frame_mask is no bool[B, F]; give a row for each clip") from None
    if len(masks) != len(counts):
        raise UserError(f"frame_mask is for {len(masks)} clips, there are {len(counts)}")
    for number, (mask, count) in enumerate(zip(masks, counts, strict=True)):
        if mask.shape != (count,):
            raise UserError(
                f"frame_mask is bool{list(mask.shape)} for clip {number} of {count} frames; give a "
                "value for each frame"
            )
        if not mask.any():
            raise UserError(f"clip {number} has no valid frame; leave it out")
    return masks


def _check_windows(windows: float | Sequence[float], count: int) -> list[float]:
    """Return the length of each of `count` windows."""
    try:
        lengths = np.asarray(windows, np.float64)
    except (TypeError, ValueError):
        raise UserError(f"window_seconds must be numbers, got {windows!r}") from None
    if lengths.ndim and lengths.shape != (count,):
        raise UserError(
            f"window_seconds are {list(lengths.shape)}, there are {count} clips; give one length, "
            "or one a clip"
        )
    if not ((lengths > 0) & (lengths <= _MOST_SECONDS)).all():
        raise UserError(f"window_seconds must be above 0, at most {_MOST_SECONDS}, got {windows}")
    return np.broadcast_to(lengths, count).tolist()


def read_spans(spans: Sequence[Span], frames: int, square: Square) -> Iterator[tuple[int, Clip]]:
    """Yield (place in `spans`, clip), file by file, each file in ascending order.

    Frames are looked for where `prepare` does, in the middle of each of `frames` equal parts of the
    span. Those before the start or after the end of the video are left out.

    Args:
      spans: checked by `check_spans`.
      frames: of a clip.
      square: makes the pictures square.

    Raises:
      UserError: a file that cannot be read, or a span without a frame or with a damaged one.
    """
    by_file: dict[str, list[int]] = {}
    for place in sorted(range(len(spans)), key=lambda place: spans[place][1:]):
        by_file.setdefault(str(spans[place][0]), []).append(place)
    for path, places in by_file.items():
        try:
            video = VideoFile(path)
        except FrameError as error:
            raise UserError(f"cannot embed {path}: {error}; is it a video file?") from None
        try:
            for first in range(0, len(places), _SPANS_A_PASS):
                now = places[first : first + _SPANS_A_PASS]
                yield from _read_pass(video, spans, now, frames, square)
        finally:
            video.close()


def check_spans(spans: Sequence[Span]) -> None:
    """Check what `encode_videos` is given.

    Raises:
      UserError: not (path, start, end) each, an end that is not after its start, or a span longer
        than a day.
    """
    form = "give a list of (path, start, end), times in seconds"
    if isinstance(spans, (str, Path)):
        raise UserError(f"encode_videos got one path; {form}")
    if not hasattr(spans, "__len__"):
        raise UserError(f"spans are {type(spans).__name__}; {form}")
    for number, span in enumerate(spans):
        if isinstance(span, (str, Path)) or not hasattr(span, "__len__") or len(span) != 3:
            raise UserError(f"span {number} is {span!r}; {form}")
        path, start, end = span
        if not (isinstance(start, numbers.Real) and isinstance(end, numbers.Real)):
            raise UserError(f"span {number}, of {path}, is {start!r} to {end!r}; {form}")
        if not (math.isfinite(start) and math.isfinite(end) and start < end):
            raise UserError(f"span {number}, of {path}, is {start} to {end} s; it needs a length")
        if end - start > _MOST_SECONDS:
            raise UserError(
                f"span {number}, of {path}, is {start} to {end} s; at most {_MOST_SECONDS} s are "
                "one clip"
            )


def _read_pass(
    video: VideoFile, spans: Sequence[Span], places: list[int], frames: int, square: Square
) -> Iterator[tuple[int, Clip]]:
    """Yield the clips of some spans of one file, read in one forward pass."""
    times = {}
    for place in places:
        _, start, end = spans[place]
        times[place] = [start + (k + 0.5) * (end - start) / frames for k in range(frames)]
    shown = _squares(video, sorted({time for row in times.values() for time in row}), square)
    for place in places:
        path, start, end = spans[place]
        numbers = [k for k, time in enumerate(times[place]) if time in shown]
        found = [shown[times[place][k]] for k in numbers]
        fault = next((frame for frame in found if isinstance(frame, FrameFault)), None)
        if fault is not None:
            raise UserError(f"cannot embed {path} from {start} to {end} s: {fault.detail}")
        if not found:
            raise UserError(
                f"{path} has no frame from {start} to {end} s, it is {video.duration:.2f} s long; "
                "give a span inside it"
            )
        # 4.1 - 0.1 is less than 4, and the prompt says whole seconds.
        yield place, Clip(found, numbers, frames, round(end - start, 6))


def _squares(
    video: VideoFile, times: list[float], make: Callable[[Picture], np.ndarray]
) -> dict[float, np.ndarray | FrameFault]:
    """Return what is shown at each time, as far as there is something; each frame made once."""
    shown, last, made = {}, None, None
    for time, picture in video.frames_at(times):
        if isinstance(picture, FrameFault):
            shown[time] = picture
            continue
        if picture is not last:
            last, made = picture, make(picture)
        shown[time] = made
    return shown


def _check_pictures(number: int, pictures: Pictures) -> None:
    if isinstance(pictures, Image.Image) or getattr(pictures, "ndim", 4) == 3:
        raise UserError(f"clip {number} is a single picture; {_ADVICE}")
    if not hasattr(pictures, "__len__") or getattr(pictures, "ndim", 1) == 0:
        raise UserError(f"clip {number} is {type(pictures).__name__}; {_ADVICE}")
    for place, picture in enumerate(pictures):
        where = f"frame {place} of clip {number}"
        if isinstance(picture, Image.Image):
            if 0 in picture.size:
                raise UserError(f"{where} is empty, {picture.width} x {picture.height} pixels")
            if picture.mode in DEEP_MODES:
                raise UserError(f"{where} has mode {picture.mode}; give 8 bits a channel")
            continue
        shape, dtype = getattr(picture, "shape", ()), getattr(picture, "dtype", None)
        if dtype != np.uint8 or len(shape) != 3 or shape[-1] != 3 or not picture.size:
            what = f"{dtype}{list(shape)}" if dtype is not None else type(picture).__name__
            raise UserError(f"{where} is {what}; give a PIL image or uint8[H, W, 3]")
