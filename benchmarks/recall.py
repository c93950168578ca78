"""Time and memory of ranking a large split: every clip against every text, both ways."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import random_model
from benchmarks.memory import status_kib
from vtalign_jax.evaluation.groups import group_recalls
from vtalign_jax.evaluation.intervals import bootstrap_intervals
from vtalign_jax.evaluation.retrieval import rank_queries, summary

_CLIPS_A_RECORDING = 100
_NOISE = 8.0  # of texts beside their clips, so that some are found and some are not
_ROWS = 4096  # drawn at a time


def measure(clips: int, embedding_dim: int, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Yield one row: seconds, processor seconds and peak memory over the embeddings.

    Args:
      clips: each with a text of its own.
      embedding_dim: E.
      say: prints what runs.
    """
    z_video, z_text = _embeddings(clips, embedding_dim)
    identity = random_model.make_identity(clips)
    identity = identity._replace(recording=identity.record // _CLIPS_A_RECORDING)
    names = {"recording": identity.recording.astype(str)}
    held = status_kib("VmRSS")
    say(f"ranking {clips:,} clips and {clips:,} texts of {embedding_dim} numbers")
    began, worked = time.perf_counter(), time.process_time()
    ranked = rank_queries(z_video, z_text, identity)
    metrics = summary(ranked)
    seconds, processor = time.perf_counter() - began, time.process_time() - worked
    began = time.perf_counter()
    intervals, _ = bootstrap_intervals(ranked), group_recalls(ranked, names)
    yield {
        "part": "recall",
        "clips": clips,
        "texts": metrics["texts"],
        "pairs": clips * metrics["texts"],
        "embedding_dim": embedding_dim,
        "seconds": round(seconds, 2),
        "processor_seconds": round(processor, 2),
        "intervals_and_groups_seconds": round(time.perf_counter() - began, 3),
        "embeddings_gib": round((z_video.nbytes + z_text.nbytes) / 2**30, 2),
        "more_memory_gib": round((status_kib("VmHWM") - held) / 2**20, 2),
        "recall@5": round(metrics["recall@5"], 4),
        "recall@5_interval": [round(end, 4) for end in intervals.get("recall@5", ())],
    }


def _embeddings(clips: int, embedding_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random clips and texts near them, float32[N, E] of unit norm."""
    random = np.random.default_rng(0)
    z_video, z_text = (np.empty((clips, embedding_dim), np.float32) for _ in range(2))
    for begin in range(0, clips, _ROWS):
        part = slice(begin, begin + _ROWS)
        for z, centre in ((z_video, 0.0), (z_text, z_video[part])):
            noise = random.standard_normal(z[part].shape, np.float32)
            scale = 1.0 if z is z_video else _NOISE / embedding_dim**0.5
            z[part] = centre + scale * noise
            z[part] /= np.linalg.norm(z[part], axis=1, keepdims=True)
    return z_video, z_text
