"""Small random splits on which every rule of an evaluation meets every other."""

import numpy as np

from tests.objectives.identities import make_identity
from vtalign_jax.evaluation.retrieval import rank_queries


def unit(random, rows, size=6):
    z = random.standard_normal((rows, size))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def make_split(seed, rows=40, recordings=5, texts=9):
    """Return embeddings and identity; texts are shared by recordings, moments by cameras."""
    random = np.random.default_rng(seed)
    start = random.integers(0, 20, rows).astype(np.float32)
    identity = make_identity(
        random.integers(0, recordings, rows),
        text=random.integers(50, 50 + texts, rows),
        level=random.integers(0, 2, rows),
        span=np.stack([start, start + 1], axis=1),
    )
    z_text = unit(random, rows)
    z_video = unit(random, rows) * 0.5 + z_text
    return z_video / np.linalg.norm(z_video, axis=1, keepdims=True), z_text, identity


def make_ranked(seed, **sizes):
    return rank_queries(*make_split(seed, **sizes))
