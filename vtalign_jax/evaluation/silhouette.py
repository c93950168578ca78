"""Do clips of one text lie together and apart from the rest? The silhouette by text."""

import numpy as np

MOST_CLIPS = 4096  # of more, as many are drawn: each compares itself with every text
_CHUNK = 256
_EXACT = 1e-6  # cosine distances below are rounding of float32 embeddings
_SEED = 20_240


def silhouette(z: np.ndarray, label: np.ndarray, most: int = MOST_CLIPS) -> float:
    """Return the mean silhouette of clips labelled by text, by cosine distance.

    Of a clip, (b - a) / max(a, b): a is its mean distance to the other clips of its text, b that to
    the clips of the text nearest by this measure. A text of one clip gives 0, as scikit-learn has
    it. Cosine distances of unit vectors are linear, so that means of distances are distances to
    means: no two clips are compared. Above `most` clips the mean is over as many of them, drawn by
    a fixed seed; texts and rivals stay whole.

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
    total = _totals(z, own, len(count))
    rows = np.arange(len(z))
    if len(z) > most:
        random = np.random.Generator(np.random.Philox(_SEED))
        rows = np.sort(random.choice(len(z), most, replace=False))
    values = [
        _of_clips(z[part].astype(np.float64), own[part], total, count)
        for part in np.split(rows, range(_CHUNK, len(rows), _CHUNK))
    ]
    return float(np.mean(np.concatenate(values)))


def _totals(z: np.ndarray, own: np.ndarray, texts: int) -> np.ndarray:
    """Return the sum of each text's clips: float64[texts, E]."""
    total = np.zeros((texts, z.shape[1]))
    for begin in range(0, len(z), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        order = np.argsort(own[part], kind="stable")
        found, first = np.unique(own[part][order], return_index=True)
        total[found] += np.add.reduceat(z[part][order].astype(np.float64), first)
    return total


def _of_clips(z: np.ndarray, own: np.ndarray, total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return the silhouette of each of some clips: float64[n]."""
    rows = np.arange(len(z))
    cosines = z @ total.T  # [n, texts], summed over the clips of a text
    others = cosines[rows, own] - np.sum(z * z, axis=1)
    inside = 1 - others / np.maximum(count[own] - 1, 1)
    outside = 1 - cosines / count
    outside[rows, own] = np.inf
    inside, nearest = (np.where(x < _EXACT, 0.0, x) for x in (inside, outside.min(axis=1)))
    widest = np.maximum(inside, nearest)
    is_defined = (count[own] > 1) & (widest > 0)
    return np.where(is_defined, (nearest - inside) / np.where(is_defined, widest, 1.0), 0.0)
