"""How far recalls would move with other recordings: 95 % bootstrap intervals.

Recordings are drawn with replacement, as many as there are, by a generator of fixed seed: queries
of one recording share a scene, a person and a camera, and stand or fall together. Ranks stay those
among the whole split's candidates; only who asks is drawn anew. A clip's query belongs to its
recording. A text's query belongs to the recordings of its right clips, in equal shares that add up
to 1: drawn again, the recordings weigh the text by the mean of how often each was drawn. (Asking a
text once if any of its recordings is drawn would give a text of one recording no second vote, and
intervals too narrow.) Both directions are drawn together.

Source: cluster bootstrap with percentile intervals (Davison and Hinkley, 1997, sections 3.8, 5.3).
"""

from collections.abc import Iterator

import numpy as np

from vtalign_jax.evaluation.ranking import Ranks
from vtalign_jax.evaluation.result import Intervals
from vtalign_jax.evaluation.retrieval import DIRECTIONS, RECALL_AT, Ranked

RESAMPLES = 1000
_NAMES = (*(f"recall@{k}" for k in RECALL_AT), "mAP")
PERCENTILES = (2.5, 97.5)
_SEED = 20_240
_DRAWN = 2**22  # recordings drawn together


def bootstrap_intervals(ranked: Ranked) -> Intervals:
    """Return (low, high) of recall@{1, 5, 10} and mAP, multi-instance.

    Names as in `retrieval.summary`: both ways and each direction. Empty where all clips are of one
    recording, which says nothing about others.
    """
    _, recording = np.unique(ranked.identity.recording, return_inverse=True)
    count = int(recording.max()) + 1
    if count < 2:
        return {}
    pairs = ranked.answers
    places = np.unique(pairs.candidate * count + recording[pairs.query])
    text, of_text = places // count, places % count
    share = 1 / np.bincount(text)[text]
    both = (
        _sums(ranked.multi[0], np.arange(len(recording)), recording, np.ones(len(recording))),
        _sums(ranked.multi[1], text, of_text, share),
    )
    found = [[], []]
    for times in _resamples(count):
        for direction, sums in enumerate(both):
            totals = times @ sums
            found[direction].append(totals[:, :-1] / totals[:, -1:])
    values = [np.concatenate(parts) for parts in found]  # [RESAMPLES, metrics] each
    intervals: Intervals = {}
    for prefix, drawn in (
        ("", (values[0] + values[1]) / 2),
        *zip((f"{direction}/" for direction in DIRECTIONS), values, strict=True),
    ):
        ends = np.percentile(drawn, PERCENTILES, axis=0).T.tolist()
        intervals |= {prefix + name: tuple(pair) for name, pair in zip(_NAMES, ends, strict=True)}
    return intervals


def _sums(ranks: Ranks, query: np.ndarray, recording: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return the sums over each recording's queries of every metric and of 1: [recordings, 5].

    Args:
      ranks: of the queries.
      query: int64[n], which query.
      recording: int64[n], to which recording.
      share: float64[n], how much of it belongs there.
    """
    right = [ranks.rank[query] <= k for k in RECALL_AT]
    columns = [*right, ranks.precision[query], np.ones(len(query))]
    return np.stack([np.bincount(recording, share * column) for column in columns], axis=1)


def _resamples(count: int) -> Iterator[np.ndarray]:
    """Yield how often each recording is drawn, float64[some, count], `RESAMPLES` rows in all."""
    random = np.random.Generator(np.random.Philox(_SEED))
    some = max(1, _DRAWN // count)
    for begin in range(0, RESAMPLES, some):
        rows = min(some, RESAMPLES - begin)
        drawn = random.integers(count, size=(rows, count), dtype=np.int32)
        place = drawn + count * np.arange(rows)[:, None]
        times = np.bincount(place.ravel(), minlength=rows * count)
        yield times.reshape(rows, count).astype(np.float64)
