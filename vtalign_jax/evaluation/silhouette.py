"""Do clips of one text lie together and apart from the rest? The silhouette by text."""

from collections.abc import Iterator

import numpy as np

MOST_CLIPS = 4096  # of more, as many are drawn: each compares itself with every text
_CHUNK = 256  # clips at a time
_TEXTS = 512  # at a time
_EXACT = 1e-6  # cosine distances below are rounding of float32 embeddings
_SEED = 20_240


def silhouette(z: np.ndarray, label: np.ndarray, most: int = MOST_CLIPS) -> float:
    """Return the mean silhouette of clips labelled by text, by cosine distance.

    Of a clip, (b - a) / max(a, b): a is its mean distance to the other clips of its text, b that to
    the clips of the text nearest by this measure. A text of one clip gives 0, as scikit-learn has
    it. Cosine distances of unit vectors are linear, so that means of distances are distances to
    means: no two clips are compared. Above `most` clips the mean is over as many of them, drawn by
    a fixed seed; texts and rivals stay whole. Texts are taken some at a time, so that memory grows
    with `most` alone.

    Args:
      z: float32[N, E], unit norm.
      label: int[N], the text of each.
      most: clips to take the mean over.

    Returns:
      In [-1, 1]; NaN with fewer than two texts, or with no two clips of one.

    Source: Rousseeuw, 1987.
    """
    _, own, count = np.unique(label, return_inverse=True, return_counts=True)
    if not 2 <= len(count) < len(z):
        return float("nan")
    rows = np.arange(len(z))
    if len(z) > most:
        random = np.random.Generator(np.random.Philox(_SEED))
        rows = np.sort(random.choice(len(z), most, replace=False))
    inside, nearest = np.zeros(len(rows)), np.full(len(rows), np.inf)
    for first, total in _totals(z, own, len(count)):
        here = count[first : first + len(total)]
        for part in _chunks(np.arange(len(rows))):
            clips, text = z[rows[part]].astype(np.float64), own[rows[part]] - first
            cosines = clips @ total.T  # [n, some texts], summed over the clips of a text
            distances = 1 - cosines / here
            is_own = (text >= 0) & (text < len(total))
            place, others = (np.flatnonzero(is_own), text[is_own]), here[text[is_own]] - 1
            itself = np.sum(clips[is_own] ** 2, axis=1)
            inside[part[is_own]] = 1 - (cosines[place] - itself) / np.maximum(others, 1)
            distances[place] = np.inf
            nearest[part] = np.minimum(nearest[part], distances.min(axis=1))
    return float(np.mean(_values(inside, nearest, count[own[rows]])))


def _totals(z: np.ndarray, own: np.ndarray, texts: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the first of some texts and the sum of each one's clips: float64[some, E]."""
    order = np.argsort(own, kind="stable")  # the clips of a text stand together
    begins = np.searchsorted(own, np.arange(texts + 1), sorter=order)
    for first in range(0, texts, _TEXTS):
        last = min(first + _TEXTS, texts)
        total = np.zeros((last - first, z.shape[1]))
        for part in _chunks(order[begins[first] : begins[last]]):
            found, starts = np.unique(own[part], return_index=True)
            total[found - first] += np.add.reduceat(z[part].astype(np.float64), starts)
        yield first, total


def _chunks(rows: np.ndarray) -> list[np.ndarray]:
    return np.split(rows, range(_CHUNK, len(rows), _CHUNK))


def _values(inside: np.ndarray, nearest: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return silhouettes, float64[n].

    Args:
      inside: float64[n], mean distance to the clips of the own text.
      nearest: float64[n], to those of the nearest other text.
      count: int[n], clips of the own text.
    """
    inside, nearest = (np.where(x < _EXACT, 0.0, x) for x in (inside, nearest))
    widest = np.maximum(inside, nearest)
    is_defined = (count > 1) & (widest > 0)
    return np.where(is_defined, (nearest - inside) / np.where(is_defined, widest, 1.0), 0.0)
