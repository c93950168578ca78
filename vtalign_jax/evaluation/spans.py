"""Spans of time: the windows that a video is searched with, overlap, and which of them to keep."""

import dataclasses
import math

import numpy as np

from vtalign_jax.errors import UserError

WIDTHS = (2.0, 4.0, 8.0, 16.0)  # seconds
MOST_SECONDS = 3600.0  # of a window
MOST_WINDOWS = 500_000  # of a video, 2 GB of embeddings; 37 hours of the widths above
_SLACK = 1e-6  # seconds; what arithmetic is off by


@dataclasses.dataclass(frozen=True)
class WindowGrid:
    """The windows that a video is cut into.

    Attributes:
      widths: of the windows, in seconds.
      stride: from one window to the next, as a share of the width.
    """

    widths: tuple[float, ...] = WIDTHS
    stride: float = 0.25

    def check(self, frames: int) -> None:
        """Raise UserError unless the windows have lengths and can hold so many frames."""
        shortest = 0.01 * frames
        if not self.widths:
            raise UserError("widths are missing; give lengths of windows in seconds, such as 2,4,8")
        for width in self.widths:
            if not shortest <= width <= MOST_SECONDS:
                raise UserError(
                    f"widths must lie in [{shortest:g}, {MOST_SECONDS:g}] seconds, got {width:g}"
                )
        if not 0.01 <= self.stride <= 1:
            raise UserError(
                f"stride is a share of the width and must lie in [0.01, 1], got {self.stride:g}"
            )

    def over(self, seconds: float) -> np.ndarray:
        """Return float64[W, 2], (start, end) of every window of a video of so many seconds.

        None sticks out of the video: the last window of a width ends with it, and a width that is
        longer than the video gives the whole of it, once.

        Raises:
          UserError: they are more than `MOST_WINDOWS`.
        """
        found: dict[tuple[float, float], None] = {}
        for width in sorted(set(self.widths)):
            room = seconds - width
            if room <= _SLACK:
                found[0.0, seconds] = None
                continue
            count = math.ceil(room / (width * self.stride) - _SLACK)
            if len(found) + count > MOST_WINDOWS:
                raise UserError(
                    f"a video of {seconds:,.0f} s has more than {MOST_WINDOWS:,} windows; give "
                    "wider widths or a larger stride"
                )
            starts = [round(n * width * self.stride, 6) for n in range(count)]
            found |= dict.fromkeys((start, start + width) for start in starts)
            found[room, seconds] = None
        return np.array(list(found), np.float64).reshape(-1, 2)


def interval_iou(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the overlap of every two spans over what the two cover: float64[N, M] in [0, 1].

    Args:
      left: float64[N, 2], starts and ends in seconds.
      right: float64[M, 2].
    """
    left, right = left[:, None], right[None]
    shared = np.minimum(left[..., 1], right[..., 1]) - np.maximum(left[..., 0], right[..., 0])
    shared = np.maximum(shared, 0.0)  # [N, M]
    covered = np.ptp(left, axis=-1) + np.ptp(right, axis=-1) - shared
    return shared / np.where(covered > 0, covered, 1.0)


def suppress(windows: np.ndarray, scores: np.ndarray, most_iou: float, keep: int) -> list[int]:
    """Return the places of the best windows, best first, that overlap no better one too much.

    Temporal non-maximum suppression: of two windows with an IoU above `most_iou` the one with the
    higher score stays, of equal scores the earlier in `windows`.

    Args:
      windows: float64[W, 2], seconds.
      scores: float[W].
      most_iou: in [0, 1].
      keep: how many at most.
    """
    order = np.argsort(-scores, kind="stable")
    chosen: list[int] = []
    while len(order) and len(chosen) < keep:
        best, order = order[0], order[1:]
        chosen.append(int(best))
        overlap = interval_iou(windows[best][None], windows[order])[0]
        order = order[overlap <= most_iou]
    return chosen
