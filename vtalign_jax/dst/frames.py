"""What a frame source gives: for each wanted time the picture shown then."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from PIL import Image

from vtalign_jax.dst.arrow import ArrowFrames
from vtalign_jax.dst.faults import FrameFault
from vtalign_jax.dst.finder import Source
from vtalign_jax.dst.image_folder import ImageFolder
from vtalign_jax.dst.video import VideoFile, frame_rate

Picture = Image.Image | bytes  # bytes: an image file as it was found


class FrameSource(Protocol):
    """Frames by presentation time, in seconds from the first one."""

    @property
    def duration(self) -> float:
        """Seconds from the first frame's start to the last one's end."""

    def frames_at(self, times: Sequence[float]) -> Iterator[tuple[float, Picture | FrameFault]]:
        """Yield (time, picture shown at that time), ascending; times without a frame are left out.

        Times that fall on the same frame get the same object.
        """

    def close(self) -> None:
        """Let the file go."""


def open_source(source: Source) -> FrameSource:
    """Open a frame source.

    Raises:
      FrameError: the file cannot be read at all.
    """
    if source.kind == "video":
        return VideoFile(source.path)
    if source.kind == "images":
        return ImageFolder(source.path, source.source_fps)
    fps = frame_rate(source.video_path) if source.video_path else source.source_fps
    return ArrowFrames(source.path, fps)
