"""The evidence for texts in a whole video: the spans of time whose embeddings are nearest.

A video is cut into overlapping windows of several widths. Each is embedded as a clip of training
is, and its score for a text is the cosine of the two embeddings.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from vtalign_jax import remote
from vtalign_jax.aligner import Aligner
from vtalign_jax.clips import Clip
from vtalign_jax.dst.faults import FrameError
from vtalign_jax.dst.finder import ASSUMED_FPS, Source
from vtalign_jax.dst.frames import FrameSource, open_source
from vtalign_jax.dst.image_folder import numbered_pictures
from vtalign_jax.dst.layouts import ARROW_EXTENSION, is_video
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.ranking import check_finite
from vtalign_jax.evaluation.spans import WIDTHS, WindowGrid, suppress
from vtalign_jax.evaluation.window_frames import WindowPass

KEEP = 5  # spans a text
NMS_IOU = 0.3
_SIGHTS = 12  # pictures that show what a video is about


class Span(NamedTuple):
    """A span of a video, and how well it fits a text.

    Attributes:
      start: seconds from the first frame.
      end: seconds from the first frame.
      score: cosine of the embeddings, in [-1, 1].
    """

    start: float
    end: float
    score: float


@dataclasses.dataclass(frozen=True)
class Grounding:
    """Where texts are shown in a video.

    Attributes:
      seconds: length of the video.
      texts: those asked, N.
      windows: float64[W, 2], start and end in seconds of all windows that have frames.
      scores: float32[N, W], cosines.
      spans: of each text the best windows, best first, that overlap no better one too much.
      lost: why windows are missing, how many each.
      sights: some small pictures by their time in seconds.
    """

    seconds: float
    texts: tuple[str, ...]
    windows: np.ndarray
    scores: np.ndarray
    spans: tuple[tuple[Span, ...], ...]
    lost: dict[str, int]
    sights: dict[float, Image.Image]


def ground(
    aligner: Aligner,
    source: str | Path | Source,
    texts: Sequence[str],
    widths: Sequence[float] = WIDTHS,
    *,
    stride: float = WindowGrid.stride,
    keep: int = KEEP,
    nms_iou: float = NMS_IOU,
    source_fps: float | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Grounding:
    """Return where in a video texts are shown.

    The video is read once, from start to end; the frames of overlapping windows are shared, and
    few are held at a time. As in training, a window has `data.frames` frames in the middle of as
    many equal parts of it.

    Args:
      aligner: of `Aligner.load`.
      source: a video file, ProAssist Arrow frames (`.arrow`) or a folder of numbered images, made
        square as the aligner does; or a source of `dst.finder`, made square as that one says.
      texts: what to look for, at least one.
      widths: of the windows, in seconds.
      stride: from one window to the next, as a share of the width.
      keep: spans a text, at most.
      nms_iou: of two windows that overlap by more than this IoU the better one stays.
      source_fps: frame rate of images, or of the video behind Arrow frames (30 if it is not given).
      tell: gets the windows read so far and all of them, now and then.

    Returns:
      Times in seconds from the video's first frame.

    Raises:
      UserError: no such video, one that cannot be read or has no frame, no text, a setting out of
        range, or an embedding that is not finite.
    """
    grid = WindowGrid(tuple(widths), stride)
    grid.check(aligner.trained.config.data.frames)
    check_choice(keep, nms_iou)
    _check_texts(texts)
    if not isinstance(source, Source):
        source = as_source(source, aligner.square.fit, aligner.square.rotate, source_fps)
    try:
        opened = open_source(source)
    except (FrameError, OSError) as error:
        raise UserError(f"cannot read {source.path}: {error}; is it a video file?") from None
    try:
        seconds, windows, z_video, reading = _embed_windows(aligner, opened, source, grid, tell)
    finally:
        opened.close()
    z_text = aligner.encode_texts(texts)
    check_finite("window", z_video)
    check_finite("text", z_text)
    scores = z_text @ z_video.T  # [N, W]
    spans = tuple(_best(windows, row, keep, nms_iou) for row in scores)
    lost = dict(collections.Counter(reading.lost.values()))
    return Grounding(seconds, tuple(texts), windows, scores, spans, lost, reading.sights)


def as_source(path: str | Path, fit: str, rotate: int, source_fps: float | None = None) -> Source:
    """Return the frame source of a path.

    Args:
      path: a video file, an `.arrow` file or a folder of numbered images.
      fit: how its frames become squares, see `dst.images.make_square`.
      rotate: likewise.
      source_fps: see `ground`.

    Raises:
      UserError: nothing is there, a folder of videos is, or the frame rate of images is missing.
    """
    found = remote.path(path)
    if not found.exists():
        raise UserError(f"no such video {path}; give a video file, an .arrow file or a folder")
    if source_fps is not None and not (math.isfinite(source_fps) and source_fps > 0):
        raise UserError(f"source_fps must be above 0, got {source_fps}")
    kind = "images" if found.is_dir() else "video"
    if kind == "images" and (video := _only_videos(found)):
        raise UserError(f"{path} is a folder of videos; name the files, such as {video}")
    if kind == "images" and not source_fps:
        raise UserError(f"{path} is a folder of images; give its frame rate as --source_fps")
    if str(found).lower().endswith(ARROW_EXTENSION):
        kind, source_fps = "arrow", source_fps or ASSUMED_FPS
    return Source(kind, str(found), found.name, 0, fit, rotate, source_fps=source_fps or 0.0)


def _only_videos(folder: epath.Path) -> str:
    """Return a video of a folder that has no numbered image, "" if it has one or no video."""
    try:
        if any(numbered_pictures(str(folder))):
            return ""
        return min((str(file) for file in folder.iterdir() if is_video(file.name)), default="")
    except OSError:  # told by who reads the images
        return ""


def check_choice(keep: int, nms_iou: float) -> None:
    """Raise UserError for a number of spans, or an overlap of them, that is out of range."""
    if keep < 1:
        raise UserError(f"keep is how many spans a text gets and must be 1 or more, got {keep}")
    if not 0 <= nms_iou <= 1:
        raise UserError(f"nms_iou must lie in [0, 1], got {nms_iou:g}")


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise UserError("ground takes a list of texts, got one string; put it in a list")
    if not texts:
        raise UserError("texts are missing; give a list with at least one text to look for")


def _embed_windows(
    aligner: Aligner,
    opened: FrameSource,
    source: Source,
    grid: WindowGrid,
    tell: Callable[[int, int], None],
) -> tuple[float, np.ndarray, np.ndarray, WindowPass]:
    """Return the video's seconds, its windows with frames, their embeddings, and how it was read.

    Raises:
      UserError: no window has a frame that can be read.
    """
    seconds = opened.duration
    if not seconds > 0:
        raise UserError(f"{source.path} has no frame; is it a whole video?")
    windows = grid.over(seconds)
    square = dataclasses.replace(aligner.square, fit=source.fit, rotate=source.rotate)
    sights = [(n + 0.5) * seconds / _SIGHTS for n in range(_SIGHTS)]
    reading = WindowPass(opened, windows, aligner.trained.config.data.frames, square, sights)
    places: list[int] = []  # in `windows`, of the clips as they come
    clips = _counted(reading.clips(), places, len(windows), tell)
    z_video = aligner.encode_squares(clips, is_padded=True)
    if not places:
        reason = next(iter(reading.lost.values()))
        raise UserError(f"no window of {source.path} can be embedded ({reason}); is it damaged?")
    order = np.argsort(places)
    return seconds, windows[np.array(places)[order]], z_video[order], reading


def _counted(
    clips: Iterable[tuple[int, Clip]],
    places: list[int],
    total: int,
    tell: Callable[[int, int], None],
) -> Iterator[tuple[int, Clip]]:
    """Yield the clips with their rank as place; `places` gets their places among the windows."""
    for place, clip in clips:
        places.append(place)
        yield len(places) - 1, clip
        tell(len(places), total)


def _best(windows: np.ndarray, scores: np.ndarray, keep: int, nms_iou: float) -> tuple[Span, ...]:
    chosen = suppress(windows, scores, nms_iou, keep)
    return tuple(Span(*map(float, windows[place]), float(scores[place])) for place in chosen)
