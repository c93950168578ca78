"""Which stored frames a row shows, and the times that its prompt says.

`prepare` looks for M frames at t_k = t0 + (k + 0.5) (t1 - t0) / M and stores those that the video
has. A run may use any F <= M of them: the window is cut into F equal segments, each gives one
frame. All of it is counted in whole frame numbers k, because the stored times are 32-bit floats,
which hours into a video are off by milliseconds; so a clip gives the same row wherever it lies.
"""

from collections.abc import Callable, Sequence

import numpy as np


def window_lengths(start: np.ndarray | float, end: np.ndarray | float) -> np.ndarray:
    """Return lengths in seconds; prepared ones are whole hundredths, which 32 bits blur."""
    return np.round(np.subtract(end, start, dtype=np.float64), 2)


def frame_numbers(
    frame_times: Sequence[float], window_start: float, window_seconds: float, sampled_frames: int
) -> tuple[int, ...]:
    """Return the k of each stored frame.

    Args:
      frame_times: seconds in the video, as stored.
      window_start: seconds in the video, as stored.
      window_seconds: length of the window.
      sampled_frames: M.

    Raises:
      ValueError: the times are not ascending times of that window.
    """
    since_start = np.subtract(frame_times, window_start)
    # t_k lies in the middle of the k-th of M parts: what 32 bits are off by does not leave it.
    numbers = np.floor(since_start * sampled_frames / window_seconds).astype(int)
    is_ascending = bool((np.diff(numbers) > 0).all())
    if not (is_ascending and numbers[0] >= 0 and numbers[-1] < sampled_frames):
        raise ValueError(
            f"frames at {list(frame_times)} s are not of {sampled_frames} spread over "
            f"{window_seconds:g} s from {window_start:g} s on"
        )
    return tuple(numbers.tolist())


def choose_frames(
    numbers: Sequence[int],
    sampled_frames: int,
    frames: int,
    draw: Callable[[int], float] | None = None,
) -> list[int]:
    """Return the places in `numbers` of one frame of each segment of the window, ascending.

    Args:
      numbers: k of each stored frame, ascending.
      sampled_frames: M.
      frames: F <= M, the segments. One without a stored frame (the edge of a video) gives none.
      draw: segment -> a number in [0, 1) that picks among its frames; None takes the frame nearest
        to the segment's middle, of two the earlier.
    """
    segments: dict[int, list[int]] = {}
    for place, k in enumerate(numbers):
        segments.setdefault((2 * k + 1) * frames // (2 * sampled_frames), []).append(place)
    chosen = []
    for segment, places in segments.items():
        if draw is not None:
            chosen.append(places[int(draw(segment) * len(places))])
            continue
        middle = (2 * segment + 1) * sampled_frames  # in units of 1 / 2MF of the window
        distance = [abs((2 * numbers[place] + 1) * frames - middle) for place in places]
        chosen.append(places[int(np.argmin(distance))])
    return chosen


def whole_seconds(
    numbers: Sequence[int], window_seconds: float, sampled_frames: int
) -> tuple[int, ...]:
    """Return each frame's time since the window's start, in whole seconds.

    Whole seconds are all that SmolVLM's prompt shows of a time ("Frame from 00:02:"); its processor
    truncates. 1.9999999, where arithmetic means 2, counts as 2.
    """
    times = [(k + 0.5) * window_seconds / sampled_frames for k in numbers]
    return tuple(int(round(time, 6)) for time in times)
