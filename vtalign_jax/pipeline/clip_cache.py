"""Decoded clips kept in memory, so that a small dataset is decoded once a run."""

import threading
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np


class DecodedClip(NamedTuple):
    """One clip and its text, ready for rows.

    Attributes:
      frames: uint8[H, W, 3] each, frames that exist, in time order.
      numbers: which of the window's `sampled_frames` each of them is.
      sampled_frames: how many were looked for, evenly spread over the window.
      window_seconds: length of the window.
      text: the node's name.
      parent_text: the parent's name, "" where there is none.
    """

    frames: list[np.ndarray]
    numbers: tuple[int, ...]
    sampled_frames: int
    window_seconds: float
    text: str
    parent_text: str


class ClipCache:
    """Decoded clips of a split, kept until `limit_bytes` of frames are full.

    A small dataset is decoded once a run instead of once an epoch; of a large one the first clips
    to come stay. Safe to share between reading threads. A pickled copy starts empty.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._clips: dict[Hashable, DecodedClip] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return ClipCache, (self._limit_bytes,)

    def share(self, workers: int) -> "ClipCache":
        """Return an empty cache for one of `workers` processes."""
        return ClipCache(self._limit_bytes // workers)

    def get(self, key: Hashable) -> DecodedClip | None:
        """Return the clip that was kept under `key`: record, size and choice of its frames."""
        return self._clips.get(key)

    def offer(self, key: Hashable, clip: DecodedClip) -> None:
        """Keep the clip if there is room; its frames become read-only."""
        num_bytes = sum(frame.nbytes for frame in clip.frames)
        with self._lock:
            if self._bytes + num_bytes <= self._limit_bytes and key not in self._clips:
                for frame in clip.frames:
                    frame.flags.writeable = False
                self._clips[key] = clip
                self._bytes += num_bytes
