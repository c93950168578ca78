"""Decodes clips, lays out their tokens and squeezes their frames; no torch. Run by a test.

    python processor_inputs.py RECORDINGS BASE OUT

Writes OUT.npz with, for clip i, `raw_i` uint8[F, H, W, 3], `square_i` uint8[F, S, S, 3], `pixels_i`
float32[F, S, S, 3], `ids_i` int32[n], `times_i` float64[F] and `window_i`.
"""

import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from vtalign_jax.dst.images import make_square
from vtalign_jax.dst.video import VideoFile
from vtalign_jax.interop.tokens import ClipTokenizer
from vtalign_jax.models.aligner import normalise

CLIPS, FRAMES = 20, 8


def _windows(recordings: Path) -> list[tuple[Path, float, float]]:
    """Return (video, start, seconds): two actions a recording, 4 s around one, the other's span."""
    windows = []
    for recording in json.loads((recordings / "train.json").read_text()):
        video = recordings / "videos" / f"{recording['video_uid']}.mp4"
        actions = [node for node in recording["dst"] if node["type"] == "action"]
        start, end = actions[1]["start_ts"], actions[1]["end_ts"]
        windows.append((video, max((start + end) / 2 - 2, 0.0), 4.0))
        start, end = actions[2]["start_ts"], actions[2]["end_ts"]
        windows.append((video, start, end - start))
    return windows[:CLIPS]


def main(recordings: Path, base: Path, out: Path) -> None:
    """Write the clips."""
    tokenizer, arrays = ClipTokenizer(base), {}
    for i, (path, start, seconds) in enumerate(_windows(recordings)):
        times = (np.arange(FRAMES) + 0.5) * seconds / FRAMES
        video = VideoFile(str(path))
        frames = [picture for _, picture in video.frames_at(list(start + times))]
        video.close()
        squares = [make_square(frame, tokenizer.image_size, "square", 0) for frame in frames]
        arrays[f"raw_{i}"] = np.stack([np.asarray(frame) for frame in frames])
        arrays[f"square_{i}"] = np.stack([np.asarray(square) for square in squares])
        arrays[f"pixels_{i}"] = np.asarray(normalise(jnp.asarray(arrays[f"square_{i}"])))
        arrays[f"ids_{i}"] = tokenizer.encode_clip(times, seconds)
        arrays[f"times_{i}"], arrays[f"window_{i}"] = times, seconds
    np.savez(out, **arrays)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
