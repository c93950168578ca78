"""Packets of a video stream in decoding order, and which of them no wanted time needs.

In H.264 a frame that no other one refers to says so (`nal_ref_idc` 0), and leaving it undecoded
changes no other frame. About half of x264's frames are such.
"""

import bisect
import collections
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

_AHEAD = 16  # packets looked at before and behind: H.264 reorders no further
_SKIPPING_CODECS = ("h264",)  # HEVC's non-reference frames may serve higher temporal layers


def can_skip(codec: str, frame: Any) -> bool:
    """Return whether frames may stay undecoded, given the first one of the stream.

    The two fields of an interlaced frame may come in two packets.
    """
    return codec in _SKIPPING_CODECS and not frame.interlaced_frame


def mark_needed(
    packets: Iterable[Any], wanted: Sequence[float] | None
) -> Iterator[tuple[Any, bool]]:
    """Yield (packet, whether the frame in it is shown at a wanted time).

    A frame is shown until the one that follows it in presentation order. Where that one is not
    among the neighbours looked at, the frame is taken to be shown for longer than it is, so that
    what is said not to be needed never is.

    Args:
      packets: in decoding order.
      wanted: ticks of the stream, ascending; None if every frame is needed.
    """
    if wanted is None:
        yield from ((packet, True) for packet in packets)
        return
    before: collections.deque[int] = collections.deque(maxlen=_AHEAD)
    ahead: collections.deque[Any] = collections.deque()
    for packet in packets:
        ahead.append(packet)
        if len(ahead) > _AHEAD:
            yield _marked(before, ahead, wanted)
    while ahead:
        yield _marked(before, ahead, wanted)


def _marked(
    before: collections.deque[int], ahead: collections.deque[Any], wanted: Sequence[float]
) -> tuple[Any, bool]:
    packet = ahead.popleft()
    if packet.pts is None:
        return packet, True
    times = (*before, *(other.pts for other in ahead if other.pts is not None))
    end = min((time for time in times if time > packet.pts), default=float("inf"))
    before.append(packet.pts)
    first = bisect.bisect_left(wanted, packet.pts)
    return packet, first < len(wanted) and wanted[first] < end
