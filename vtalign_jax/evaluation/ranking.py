"""Where the right candidates stand among all, exactly, in memory that does not grow with N x N.

Clips x texts are scored tile by tile, once for both directions and for both kinds of question:
of each tile the number of scores that reach a right candidate's own is counted, along its rows for
the clips' questions and along its columns for the texts'. A wrong candidate that ties with a right
one stands before it.

Scores are exact: embeddings are rounded to multiples of 2^-26 (less than what float32 products are
off), after which every product and every partial sum of unit vectors is exact in float64. Ties and
ranks therefore depend on no order of summation, no tile and no number of processes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vtalign_jax.errors import UserError

TILE = 2048  # clips, and texts, scored together: 32 MiB
_STRIP = 64  # rows of a tile compared together, so that they stay in a core's cache; below 256
_PAIRS = 4096  # right answers looked at together
_GRID = 2.0**26


class Answers(NamedTuple):
    """Which candidates are right for which query, as pairs sorted by query, each once.

    Attributes:
      query: int64[P].
      candidate: int64[P].
      queries: number of queries; each has at least one right candidate.
      candidates: number of candidates.
    """

    query: np.ndarray
    candidate: np.ndarray
    queries: int
    candidates: int

    def turned(self) -> "Answers":
        """Return the same pairs with queries and candidates exchanged."""
        order = np.lexsort((self.query, self.candidate))
        return Answers(self.candidate[order], self.query[order], self.candidates, self.queries)

    def counts(self) -> np.ndarray:
        """Return int64[queries], the number of right candidates of each."""
        return np.bincount(self.query, minlength=self.queries)

    def of(self, mask: np.ndarray) -> "Answers":
        """Return the pairs of the queries where `mask`, bool[queries], holds; renumbered."""
        kept = mask[self.query]
        number = np.cumsum(mask) - 1
        queries = int(np.sum(mask))
        return Answers(number[self.query[kept]], self.candidate[kept], queries, self.candidates)


class Ranks(NamedTuple):
    """Of each query.

    Attributes:
      rank: int64[queries], of the best right candidate, from 1.
      precision: float64[queries], average precision.
    """

    rank: np.ndarray
    precision: np.ndarray


class Share(NamedTuple):
    """Which of the tiles this process scores.

    Attributes:
      index: its number.
      count: of the processes.
      total: int64[n] of each process -> their sum, the same in all.
    """

    index: int = 0
    count: int = 1
    total: Callable[[np.ndarray], np.ndarray] = lambda counts: counts


ALONE = Share()


class _Questions:
    """Queries of one kind and direction, and how many candidates reach their right ones' scores."""

    def __init__(self, answers: Answers, score: np.ndarray):
        """Take the exact score of each right pair: float64[P]."""
        self.answers, self.score = answers, score
        self.reached = np.zeros(len(score), np.int64)
        self._first = np.searchsorted(answers.query, np.arange(answers.queries + 1))
        is_further = np.ones(len(score), bool)
        is_further[self._first[:-1]] = False
        self._further = np.flatnonzero(is_further)  # a query's first right candidate needs no copy

    def count(self, scores: np.ndarray, begin: int) -> None:
        """Count in the scores [n, any] of queries begin .. begin + n - 1 with some candidates."""
        end = begin + len(scores)
        first = self._first[begin:end]
        self.reached[first] += _count(scores >= self.score[first, None])
        low, high = np.searchsorted(self._further, self._first[[begin, end]])
        for at in range(low, high, _PAIRS):
            pairs = self._further[at : min(at + _PAIRS, high)]
            own = scores[self.answers.query[pairs] - begin]  # [pairs, any]
            self.reached[pairs] += _count(own >= self.score[pairs, None])

    def ranks(self) -> Ranks:
        """Return what follows once all candidates are counted."""
        order = np.lexsort((-self.score, self.answers.query))  # best first, for each query
        query, score = self.answers.query[order], self.score[order]
        first = self._first[:-1]
        nth = np.arange(len(query)) - first[query] + 1
        ends_tie = np.append((np.diff(query) != 0) | (np.diff(score) != 0), True)
        right = nth[ends_tie][np.cumsum(ends_tie) - ends_tie]  # right ones with at least this score
        wrong = self.reached[order] - right
        precision = np.add.reduceat(nth / (nth + wrong), first) / self.answers.counts()
        return Ranks(1 + wrong[first], precision)


def rank_both_ways(
    z_video: np.ndarray,
    z_text: np.ndarray,
    first: np.ndarray,
    answers: Answers,
    share: Share,
    tile: int = TILE,
) -> tuple[tuple[Ranks, Ranks], tuple[Ranks, Ranks]]:
    """Return (clips' ranks, texts' ranks) among distinct texts, and the same row to row.

    Args:
      z_video: float32[N, E], unit norm, finite.
      z_text: float32[N, E], likewise; row i describes clip i.
      first: int64[T], the rows that stand for the distinct texts.
      answers: which of these T are right for which clip.
      share: of this process.
      tile: clips, and texts, scored together.
    """
    count = len(z_video)
    is_rest = np.ones(count, bool)
    is_rest[first] = False
    column_row = np.concatenate([first, np.flatnonzero(is_rest)])  # distinct texts come first
    own_column = np.argsort(column_row)
    plain = Answers(np.arange(count), own_column, count, count)
    kinds = []
    for right in (answers, plain):
        score = pair_scores(z_video, z_text, right.query, column_row[right.candidate])
        order = np.lexsort((right.query, right.candidate))
        kinds.append((_Questions(right, score), _Questions(right.turned(), score[order])))
    for number, top in enumerate(range(0, count, tile)):
        if number % share.count == share.index:
            clips = on_grid(z_video[top : top + tile])
            for left in range(0, count, tile):
                texts = on_grid(z_text[column_row[left : left + tile]])
                _count_tile(kinds, clips @ texts.T, top, left)
    every = [one for both in kinds for one in both]
    total = share.total(np.concatenate([one.reached for one in every]))
    borders = np.cumsum([len(one.reached) for one in every])[:-1]
    for one, counted in zip(every, np.split(total, borders), strict=True):
        one.reached = counted
    multi, (by_clip, by_column) = (tuple(one.ranks() for one in both) for both in kinds)
    return multi, (by_clip, Ranks(*(values[own_column] for values in by_column)))


def pair_scores(
    z_video: np.ndarray, z_text: np.ndarray, clips: np.ndarray, texts: np.ndarray
) -> np.ndarray:
    """Return the exact scores float64[P] of the rows `clips` with the rows `texts`, int64[P]."""
    scores = np.empty(len(clips))
    for begin in range(0, len(clips), _PAIRS):
        part = slice(begin, begin + _PAIRS)
        video, text = on_grid(z_video[clips[part]]), on_grid(z_text[texts[part]])
        scores[part] = np.einsum("PE,PE->P", video, text)
    return scores


def check_finite(name: str, z: np.ndarray) -> None:
    """Refuse embeddings [..., E] that are not numbers.

    Raises:
      UserError: one is not finite; it says what they are of.
    """
    is_lost = ~np.isfinite(z).all(axis=-1)
    if is_lost.any():  # a NaN would beat no candidate and lose to none: recall 1
        raise UserError(
            f"{is_lost.sum()} of {is_lost.size} {name} embeddings are not finite: the checkpoint "
            "is damaged or diverged; take an earlier one, or train with a lower "
            "config.optim.learning_rate"
        )


def on_grid(z: np.ndarray) -> np.ndarray:
    """Return embeddings [..., E] of unit norm in float64, their products and sums exact."""
    rounded = np.multiply(z, _GRID, dtype=np.float64)
    np.round(rounded, out=rounded)
    rounded /= _GRID
    return rounded


def _count_tile(
    kinds: list[tuple[_Questions, _Questions]], scores: np.ndarray, top: int, left: int
) -> None:
    """Count in the scores of clips top.. with columns left.., for every question."""
    for begin in range(0, len(scores), _STRIP):
        strip = scores[begin : begin + _STRIP]
        for of_clips, of_texts in kinds:
            asked = strip[:, : max(of_clips.answers.candidates - left, 0)]
            if asked.size:
                of_clips.count(asked, top + begin)
                of_texts.count(asked.T, left)


def _count(mask: np.ndarray) -> np.ndarray:
    """Return how many are True in each row: bool[n, m] -> int64[n]."""
    if mask.shape[1] < 256 and not mask.flags.c_contiguous:  # columns of a strip, side by side
        return np.add.reduce(mask.view(np.uint8), axis=1, dtype=np.uint8).astype(np.int64)
    return np.bitwise_count(np.packbits(mask, axis=1)).sum(axis=1, dtype=np.int64)
