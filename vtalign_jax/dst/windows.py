"""How long a clip's window is; it always lies around the middle of its node.

`STRATEGIES` names the ways to say how long. Lengths are whole hundredths of a second: the records
hold times in 32 bits, which hours into a video are off by milliseconds, and a length has to read
back the same wherever its clip lies. For the same reason a window holds at least a hundredth of a
second for each of its frames.
"""

import collections
import statistics
from collections.abc import Callable

from vtalign_jax.dst.nodes import Node, Video
from vtalign_jax.dst.pairs import WindowOf, is_chosen

SECONDS_A_FRAME = 0.01  # at least

LengthOf = Callable[[Video, Node], float]  # seconds


def window_chooser(
    strategy: str,
    videos: list[Video],
    levels: tuple[str, ...],
    *,
    window_seconds: float,
    pad_seconds: float,
    frames: int,
) -> WindowOf:
    """Return the function that gives each node its window, (start, end) in seconds.

    Args:
      strategy: a key of `STRATEGIES`.
      videos: all that are annotated; "adaptive" compares their recordings.
      levels: of the chosen nodes, see `pairs.parse_levels`.
      window_seconds: the length for "center", the mean length for "adaptive".
      pad_seconds: what "span" adds on each side.
      frames: of a window.
    """
    length_of = STRATEGIES[strategy](videos, levels, window_seconds, pad_seconds)

    def window_of(video: Video, node: Node) -> tuple[float, float]:
        length = max(round(length_of(video, node), 2), SECONDS_A_FRAME * frames)
        middle = (node.start + node.end) / 2
        return middle - length / 2, middle + length / 2

    return window_of


def _center(
    videos: list[Video], levels: tuple[str, ...], window_seconds: float, pad_seconds: float
) -> LengthOf:
    """The same length for every node."""
    del videos, levels, pad_seconds
    return lambda video, node: window_seconds


def _span(
    videos: list[Video], levels: tuple[str, ...], window_seconds: float, pad_seconds: float
) -> LengthOf:
    """The node's own span, and `pad_seconds` before and after it."""
    del videos, levels, window_seconds
    return lambda video, node: node.end - node.start + 2 * pad_seconds


def _adaptive(
    videos: list[Video], levels: tuple[str, ...], window_seconds: float, pad_seconds: float
) -> LengthOf:
    """The recording's mean gap between chosen nodes, relative to the other recordings.

    Where annotators write densely, an action is short. EgoVLP (Lin et al., 2022, eq. 1) takes
    t -/+ beta_i / (2 alpha): beta_i is the mean gap between consecutive narrations of video i,
    alpha the mean of all beta, so that the mean length over videos is 1 s. Here t is a node's
    middle, beta is taken over the gaps of all uids of a recording, each in its own order, and the
    mean length over recordings is `window_seconds` instead. A recording that shows no gap (one node
    a uid, or all at one time) gets the mean length.
    """
    del pad_seconds
    gaps: dict[str, list[tuple[float, int]]] = collections.defaultdict(list)  # (sum, number)
    for video in videos:
        middles = [(node.start + node.end) / 2 for node in video.nodes if is_chosen(node, levels)]
        if len(middles) > 1:
            gaps[video.recording_id].append((max(middles) - min(middles), len(middles) - 1))
    means = {
        recording: sum(seconds for seconds, _ in of_uids) / sum(count for _, count in of_uids)
        for recording, of_uids in gaps.items()
    }
    beta = {recording: mean for recording, mean in means.items() if mean > 0}
    alpha = statistics.fmean(beta.values()) if beta else 1.0
    return lambda video, node: window_seconds * beta.get(video.recording_id, alpha) / alpha


STRATEGIES = {"center": _center, "span": _span, "adaptive": _adaptive}
