"""Frames of a video file by presentation time, through PyAV.

Time 0 is the presentation time of the first frame. The frame of time t is the one shown then: the
last one whose presentation time is <= t. Frame numbers and nominal rates are never used.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from etils import epath
from PIL import Image

from vtalign_jax.dst.faults import EPSILON, FrameError, FrameFault
from vtalign_jax.dst.images import MAX_PIXELS
from vtalign_jax.dst.packets import can_skip, mark_needed

_KEYFRAME_GAP = 10.0  # seconds; about the default of common encoders
_TAIL = 5.0  # seconds at the end that hold the last frame, wherever a seek may land
_OPENING = {  # no playlist or reference that has other files or addresses opened
    "format_whitelist": "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,flv,asf,ogg",
    "protocol_whitelist": "file",
    "enable_drefs": "0",
}
_LONG_AGO, _NEVER = -(2**62), 2**62  # ticks


class VideoFile:
    """The frames of the first video stream of a file.

    Wanted times are served in one forward pass, which jumps where a keyframe makes that cheaper and
    leaves undecoded what nobody needs. A handful of decoded frames is held at any moment, whatever
    the length of the video.
    """

    def __init__(self, path: str) -> None:
        """Open the file and decode its first frame.

        Raises:
          FrameError: no video stream, or not one readable frame.
        """
        self._path = path
        self._reformatter = VideoReformatter()
        self._last_good: dict[int, int] = {}  # first pts after a jump -> last pts before the damage
        self._wanted: list[float] | None = None  # ticks; None if every frame is to be decoded
        self._open()
        try:
            self._current = self._pull(tolerate=True)
        except (_EndOfStream, _Damage, av.FFmpegError) as error:
            self.close()
            raise FrameError("unreadable video", f"{path}: {error or 'no frame'}") from None
        self._landing = self._first = self._good = self._current.pts
        self._can_skip = can_skip(self._stream.codec_context.name, self._current)
        # An index goes by decoding time, which runs ahead where B-frames are; seeks allow for it.
        index = self._stream.index_entries
        self._ahead = max(0, self._first - index[0].timestamp) if len(index) else 0

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    @property
    def duration(self) -> float:
        """Seconds from the first frame's start to the last one's end.

        The header is believed where it counts the frames (mp4, avi). Elsewhere it may speak of the
        sound or of an offset, or be an estimate, so the last packets are looked at.
        """
        if self._stream.frames and self._stream.duration:
            return float(self._stream.duration * self._base)
        with _open_container(self._path) as container:
            end = _last_end(container) or _last_end(container, whole=True)
        return max(0.0, float((end - self._first) * self._base))

    def lacks_its_end(self) -> bool:
        """Return whether the file is shorter than its index says: it was cut off."""
        index = self._stream.index_entries
        return bool(len(index)) and index[len(index) - 1].pos > self._container.size

    def frames_at(self, times: Sequence[float]) -> Iterator[tuple[float, Image.Image | FrameFault]]:
        """Yield (time, RGB picture as a player shows it), ascending; see `frames.FrameSource`."""
        shown, picture = None, None
        times = sorted(time for time in times if time >= 0)
        ticks = [self._first + (time + EPSILON) / float(self._base) for time in times]
        if self._can_skip:
            self._wanted, self._current = ticks, None  # what is in the decoder was not marked
        for time, target in zip(times, ticks, strict=True):
            try:
                frame = self._shown_at(target)
                if frame is not None and frame.pts != shown:
                    shown, picture = frame.pts, self._to_picture(frame)
            except (_EndOfStream, _Damage, av.FFmpegError) as error:
                self._last_good.setdefault(self._landing, self._good)
                self._current = self._next = None
                yield time, FrameFault("damaged video", f"{self._path} at {time:.2f} s: {error}")
                continue
            if frame is not None:
                yield time, picture

    def _open(self) -> None:
        self._container = _open_container(self._path)
        if not self._container.streams.video:
            self._container.close()
            raise FrameError("unreadable video", f"{self._path}: no video stream")
        self._stream = self._container.streams.video[0]
        if self._stream.codec_context is None:
            self._container.close()
            raise FrameError("unreadable video", f"{self._path}: a codec that nothing here decodes")
        self._stream.codec_context.thread_count = 1  # the cores work on other videos
        # Without it ffmpeg paints over damage and hands the result out as a good frame.
        options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
        self._stream.codec_context.options = options
        self._base: Fraction = self._stream.time_base
        self._restart()

    def _restart(self) -> None:
        """Forget decoded frames; the decoder goes on from where the container stands."""
        self._packets = mark_needed(self._container.demux(self._stream), self._wanted)
        self._pending: list[Any] = []
        self._current = self._next = None
        self._good = self._read = _LONG_AGO

    def _pull(self, tolerate: bool = False) -> Any:
        """Decode one more frame into `_next`.

        Args:
          tolerate: pass over what cannot be decoded, as at the start of a stream that was cut.
        """
        while not self._pending:
            packet, is_needed = next(self._packets, (None, True))
            if packet is None:
                raise _EndOfStream("the stream ends")
            self._stream.codec_context.skip_frame = "DEFAULT" if is_needed else "NONREF"
            self._read = max([self._read, *(t for t in (packet.pts, packet.dts) if t is not None)])
            if not packet.size and self._is_cut_off():
                raise _Damage("the file ends early")
            try:
                decoded = [frame for frame in packet.decode() if frame.pts is not None]
                if any(frame.is_corrupt for frame in decoded):
                    raise _Damage("corrupt frame")
                self._pending = decoded
            except (_Damage, av.FFmpegError):
                if not tolerate:
                    raise
        self._next = self._pending.pop(0)
        return self._next

    def _is_cut_off(self) -> bool:
        """Return whether the index knows of frames behind the last one read.

        What the decoder still holds then is not handed out: frames between may be missing.
        """
        index = self._stream.index_entries
        return bool(len(index)) and index[len(index) - 1].timestamp > self._read

    def _shown_at(self, target: float) -> Any | None:
        """Return the frame shown at `target` (in ticks of the stream), None past the end."""
        if self._current is None or target < self._current.pts or self._is_jump_worth(target):
            self._land(target)
        if target >= self._last_good.get(self._landing, _NEVER):
            raise _Damage("damaged since the keyframe before")
        while self._next is not None and self._next.pts <= target:
            if self._current is None or self._next.pts > self._current.pts:
                self._current, self._good = self._next, self._next.pts
            try:
                self._pull()
            except _EndOfStream:
                self._next = None
        ended = self._next is None and target >= _end(self._current, self._stream)
        return None if ended else self._current

    def _is_jump_worth(self, target: float) -> bool:
        index = self._stream.index_entries
        if len(index) and target <= index[len(index) - 1].timestamp:  # the index reaches that far
            nearest = index.search_timestamp(int(target) - self._ahead)
            return nearest >= 0 and index[nearest].timestamp > self._current.pts
        return (target - self._current.pts) * self._base > _KEYFRAME_GAP

    def _land(self, target: float) -> None:
        """Put the decoder on a frame at or before `target`.

        Seeks may land late (in MPEG-TS they do), so the first decoded frame is looked at, and the
        jump repeated from further back until it is early enough.
        """
        back = 0.0
        while (start := int(target - back / float(self._base))) > self._first:
            try:
                self._container.seek(start, stream=self._stream)
                self._restart()
                if self._pull().pts <= target:
                    self._landing = self._next.pts
                    return
            except (_EndOfStream, _Damage, av.FFmpegError):
                pass
            back = 2 * back or 1.0
        self.close()
        self._open()
        self._landing = self._pull(tolerate=True).pts

    def _to_picture(self, frame: Any) -> Image.Image:
        pixels = self._reformatter.reformat(frame, format="rgb24").to_ndarray()
        turns = round(frame.rotation / 90) % 4  # side data, degrees counter-clockwise
        return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turns)))


class _EndOfStream(Exception):
    pass


class _Damage(Exception):
    pass


def _end(shown: Any, stream: Any) -> float:
    """Return when a frame or packet stops being shown if none follows it, in ticks."""
    if shown.duration:
        return shown.pts + shown.duration
    rate = stream.average_rate or stream.guessed_rate
    return shown.pts + (float(1 / rate / stream.time_base) if rate else 0.0)


def _last_end(container: Any, whole: bool = False) -> float:
    """Return when the last frame ends, in ticks; 0 if no packet is found where it should be.

    Args:
      container: an open one; its position is lost.
      whole: read it from the start instead of from where the header says that the end is.
    """
    stream = container.streams.video[0]
    start = container.start_time or 0
    tail = (container.duration or 0) - round(_TAIL * av.time_base)
    try:
        container.seek(start if whole else start + max(0, tail))
        packets = [packet for packet in container.demux(stream) if packet.pts is not None]
    except av.FFmpegError:  # frames behind damage are faults, not missing
        return 0.0
    return max((_end(packet, stream) for packet in packets), default=0.0)


def frame_rate(path: str) -> float:
    """Return the average frame rate of a video file, frames a second.

    Raises:
      FrameError: the file cannot be opened or does not say.
    """
    with _open_container(path) as container:
        video = container.streams.video
        rate = video[0].average_rate or video[0].guessed_rate if video else None
    if not rate:
        raise FrameError("unreadable video", f"{path}: no frame rate")
    return float(rate)


def _open_container(path: str) -> Any:
    try:
        source = epath.Path(path).open("rb") if "://" in path else path
        return av.open(source, options=_OPENING, metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        reason = "the file is empty" if _is_empty(path) else error
        raise FrameError("unreadable video", f"{path}: {reason}") from None


def _is_empty(path: str) -> bool:
    try:
        return epath.Path(path).stat().length == 0
    except OSError:
        return False
