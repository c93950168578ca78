"""Splits by recording, and what to do when a recording stands on both sides of one."""

import dataclasses
import hashlib

from vtalign_jax.dst.nodes import Video
from vtalign_jax.errors import UserError


def assign_splits(videos: list[Video], val_fraction: float) -> list[Video]:
    """Return the videos with a split each; given splits are kept.

    A recording of which another uid has a given split joins it. The rest is divided by a hash of
    the recording's name: `val_fraction` of the recordings, at least one of several, become "val".

    Args:
      videos: `split` is "" where none was given.
      val_fraction: in [0, 1).
    """
    given = {video.recording_id: video.split for video in videos if video.split}
    free = {video.recording_id for video in videos if not video.split} - given.keys()
    ranked = sorted(free, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    wanted = round(len(ranked) * val_fraction)
    if val_fraction > 0 and len(ranked) > 1 and "val" not in given.values():
        wanted = max(1, wanted)
    for position, name in enumerate(ranked):
        given[name] = "val" if position < wanted else "train"
    return [
        video if video.split else dataclasses.replace(video, split=given[video.recording_id])
        for video in videos
    ]


def shared_recordings(videos: list[Video]) -> dict[str, set[str]]:
    """Return the recordings that stand in more than one split, by name, and those splits."""
    sides: dict[str, set[str]] = {}
    for video in videos:
        sides.setdefault(video.recording_id, set()).add(video.split)
    return {name: on for name, on in sorted(sides.items()) if len(on) > 1}


def settle_leakage(videos: list[Video], on_leakage: str) -> tuple[list[Video], list[Video], int]:
    """Handle recordings that stand in more than one split.

    Args:
      videos: each with a split.
      on_leakage: "error", or "drop" to remove such recordings from train.

    Returns:
      The videos kept, the training videos dropped, and the number of recordings that val and test
      share (allowed, but worth a warning).

    Raises:
      UserError: a recording in train and in val or test, with `on_leakage="error"`.
    """
    sides = shared_recordings(videos)
    leaking = [name for name, on in sides.items() if "train" in on]
    shared = sum({"val", "test"} <= on for on in sides.values())
    if leaking and on_leakage == "error":
        raise UserError(
            f"{len(leaking)} recording(s) stand in train and in val or test, e.g. {leaking[0]}; "
            "mend the annotation files, or remove them from train with --on_leakage=drop"
        )
    names = frozenset(leaking)
    kept, dropped = [], []
    for video in videos:
        leaks = video.split == "train" and video.recording_id in names
        (dropped if leaks else kept).append(video)
    return kept, dropped, shared
