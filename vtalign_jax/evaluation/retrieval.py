"""How well clips find their texts and texts their clips (docs/plan.md).

*Multi-instance*: a clip ranks the distinct texts, a distinct text ranks the clips. Right for a clip
is its own text, and every text of another clip of the same moment: same recording, same level,
overlapping node spans (another camera). Right for a text is every clip it is right for. *Plain*:
row to row, only the pair itself is right. A query's rank is that of its best right candidate; wrong
candidates that tie with it stand before it.

Texts with equal `text_key` differ at most as normalisation allows; the embedding of the first row
stands for all. Scores are exact: embeddings are rounded to multiples of 2^-26 (less than what
float32 products are off), after which every product and every partial sum of unit vectors is exact
in float64. Ties and ranks therefore depend on no order of summation.
"""

from typing import NamedTuple

import numpy as np

from vtalign_jax.array_types import Identity
from vtalign_jax.errors import UserError

RECALL_AT = (1, 5, 10)
REPEATED_AT = (1, 5)
DIRECTIONS = ("video_to_text", "text_to_video")
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


def retrieval_metrics(
    z_video: np.ndarray, z_text: np.ndarray, identity: Identity, chunk: int = 256
) -> dict[str, float]:
    """Return recall@{1, 5, 10}, median rank and mAP, both ways, multi-instance and plain.

    Names: `recall@5` (mean of both directions, multi-instance), `video_to_text/recall@5`,
    `plain/recall@5`, `plain/text_to_video/recall@5`; likewise `median_rank` and `mAP`.
    `recall@1_repeated` and `recall@5_repeated` are those of the queries alone whose text stands in
    several recordings, NaN where none does. `margin` is the mean cosine of the pairs minus that of
    all wrong (clip, text) combinations, NaN where nothing is wrong. `clips` and `texts` count the
    queries, `texts_repeated` those texts. Memory is chunk x N, not N x N.

    Args:
      z_video: float32[N, E], unit norm.
      z_text: float32[N, E], unit norm; row i describes clip i.
      identity: N rows of NumPy arrays; those with `row_mask` False are left out.
      chunk: queries scored at a time.

    Raises:
      UserError: no row is real, or an embedding is not finite.
    """
    identity, mask = _real_rows(identity), np.asarray(identity.row_mask)
    video, text = (on_grid(name, z[mask]) for name, z in (("clip", z_video), ("text", z_text)))
    first, _ = _distinct(identity.text)
    answers = right_answers(identity)
    one_to_one = _diagonal(len(video))
    found = {
        "": (
            _ranks(video, text[first], answers, chunk),
            _ranks(text[first], video, answers.turned(), chunk),
        ),
        "plain/": (_ranks(video, text, one_to_one, chunk), _ranks(text, video, one_to_one, chunk)),
    }
    metrics = {}
    for kind, directions in found.items():
        metrics |= _both_ways(kind, [_summary(*ranks) for ranks in directions])
    repeated = _repeated(identity)
    metrics |= _of_repeated(
        [_recalls(ranks[mask]) for (ranks, _), mask in zip(found[""], repeated, strict=True)]
    )
    metrics["margin"] = _margin(video, text, first, answers)
    return metrics | _counts(answers, repeated)


def chance_metrics(identity: Identity) -> dict[str, float]:
    """Return the recalls, median ranks and mAP to expect of rankings drawn at random.

    With r of n candidates right, P(rank > k) = C(n - r, k) / C(n, k) (hypergeometric), and the
    average precision is (H_n + (n - H_n) (r - 1) / (n - 1)) / n, H_n the harmonic number. The
    median rank is that of the mixture over all queries.
    """
    identity = _real_rows(identity)
    answers = right_answers(identity)
    one_to_one = _diagonal(len(identity.text))
    metrics = {}
    for kind, both in {"": (answers, answers.turned()), "plain/": (one_to_one,) * 2}.items():
        metrics |= _both_ways(kind, [_chance(one) for one in both])
    repeated = _repeated(identity)
    both = zip((answers, answers.turned()), repeated, strict=True)
    metrics |= _of_repeated([_chance(one.of(mask)) for one, mask in both])
    return metrics | _counts(answers, repeated)


def right_answers(identity: Identity, chunk: int = 1024) -> Answers:
    """Return which distinct texts (numbered by `_distinct`) are right for each clip.

    Args:
      identity: N real rows.
      chunk: clips compared at a time within one recording and level.
    """
    first, own_text = _distinct(identity.text)
    clips, texts = [np.arange(len(own_text))], [own_text]
    start, end = identity.span[:, 0], identity.span[:, 1]
    # An action may be a point in time; made the shortest span there is, it lies within a span that
    # holds it, while spans that only touch still do not overlap.
    end = np.where(end > start, end, np.nextafter(start, np.float32(np.inf), dtype=np.float32))
    order = np.lexsort((identity.level, identity.recording))
    place = np.stack([identity.recording, identity.level], axis=1)[order]
    borders = np.flatnonzero(np.any(place[1:] != place[:-1], axis=1)) + 1
    for group in np.split(order, borders):
        for rows in np.split(group, range(chunk, len(group), chunk)):
            meets = (start[rows, None] < end[group]) & (start[group] < end[rows, None])
            row, mate = np.nonzero(meets)
            clips.append(rows[row])
            texts.append(own_text[group[mate]])
    pairs = np.unique(np.concatenate(clips) * len(first) + np.concatenate(texts))
    return Answers(pairs // len(first), pairs % len(first), len(own_text), len(first))


def _real_rows(identity: Identity) -> Identity:
    mask = np.asarray(identity.row_mask)
    if not mask.any():
        raise UserError("nothing to evaluate: the split has no clips; prepare one with more videos")
    return Identity(*(np.asarray(values)[mask] for values in identity))


def on_grid(name: str, z: np.ndarray) -> np.ndarray:
    """Return embeddings [..., E] in float64, rounded so that their products are exact.

    Args:
      name: what they are of, for the error.
      z: float32[..., E], unit norm.

    Raises:
      UserError: one is not finite.
    """
    is_lost = ~np.isfinite(z).all(axis=-1)
    if is_lost.any():  # a NaN would beat no candidate and lose to none: recall 1
        raise UserError(
            f"{is_lost.sum()} of {is_lost.size} {name} embeddings are not finite: the checkpoint "
            "is damaged or diverged; take an earlier one, or train with a lower "
            "config.optim.learning_rate"
        )
    return np.round(np.asarray(z, np.float64) * _GRID) / _GRID


def _distinct(text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first row of each distinct text, and the number of each row's text."""
    _, first, own = np.unique(text, return_index=True, return_inverse=True)
    return first, own


def _repeated(identity: Identity) -> tuple[np.ndarray, np.ndarray]:
    """Return which clips, bool[N], and which distinct texts are those of several recordings."""
    _, own = _distinct(identity.text)
    places = np.unique(np.stack([own, identity.recording], axis=1), axis=0)
    is_repeated = np.bincount(places[:, 0]) > 1
    return is_repeated[own], is_repeated


def _of_repeated(directions: list[dict[str, float]]) -> dict[str, float]:
    return {
        f"recall@{k}_repeated": sum(metrics[f"recall@{k}"] for metrics in directions) / 2
        for k in REPEATED_AT
    }


def _counts(answers: Answers, repeated: tuple[np.ndarray, np.ndarray]) -> dict[str, int]:
    counts = {"clips": answers.queries, "texts": answers.candidates}
    return counts | {"texts_repeated": int(np.sum(repeated[1]))}


def _diagonal(count: int) -> Answers:
    return Answers(np.arange(count), np.arange(count), count, count)


def _ranks(
    queries: np.ndarray, candidates: np.ndarray, answers: Answers, chunk: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (rank of the best right candidate, average precision) of each query."""
    ranks, precisions = np.empty(len(queries), np.int64), np.empty(len(queries))
    borders = np.searchsorted(answers.query, np.arange(len(queries) + 1))
    for begin in range(0, len(queries), chunk):
        scores = queries[begin : begin + chunk] @ candidates.T  # [chunk, candidates]
        for query, row in enumerate(scores, start=begin):
            right = answers.candidate[borders[query] : borders[query + 1]]
            found, wrong = np.sort(row[right]), np.delete(row, right)
            # How many right candidates each wrong one stands before, ties included.
            beaten = np.bincount(np.searchsorted(found, wrong, side="right"), minlength=len(right))
            before = len(wrong) - np.cumsum(beaten)[: len(right)]
            ranks[query] = 1 + before[-1]
            nth = np.arange(len(right), 0, -1)
            precisions[query] = np.mean(nth / (nth + before))
    return ranks, precisions


def _summary(ranks: np.ndarray, precisions: np.ndarray) -> dict[str, float]:
    median, precision = float(np.median(ranks)), float(np.mean(precisions))
    return _recalls(ranks) | {"median_rank": median, "mAP": precision}


def _recalls(ranks: np.ndarray) -> dict[str, float]:
    """Return recall@k; NaN where there is no query."""
    count = len(ranks) or float("nan")
    return {f"recall@{k}": float(np.sum(ranks <= k) / count) for k in RECALL_AT}


def _both_ways(kind: str, directions: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of both directions under the plain name, and each under its own."""
    metrics = {f"{kind}{name}": (a + directions[1][name]) / 2 for name, a in directions[0].items()}
    for direction, values in zip(DIRECTIONS, directions, strict=True):
        metrics |= {f"{kind}{direction}/{name}": value for name, value in values.items()}
    return metrics


def _margin(video: np.ndarray, text: np.ndarray, first: np.ndarray, answers: Answers) -> float:
    """Return mean cosine of the pairs minus mean cosine of the wrong combinations."""
    texts = text[first]
    wrong_count = answers.queries * answers.candidates - len(answers.query)
    if not wrong_count:
        return float("nan")
    right = sum(
        np.einsum("PE,PE->", video[answers.query[part]], texts[answers.candidate[part]])
        for part in _slices(len(answers.query))
    )
    everything = video.sum(axis=0) @ texts.sum(axis=0)
    positive = np.einsum("NE,NE->", video, text) / len(video)
    return float(positive - (everything - right) / wrong_count)


def _slices(count: int, size: int = 4096) -> list[slice]:
    return [slice(begin, begin + size) for begin in range(0, count, size)]


def _chance(answers: Answers) -> dict[str, float]:
    n = answers.candidates
    if not answers.queries:
        return {f"recall@{k}": float("nan") for k in RECALL_AT}
    right, weight = np.unique(answers.counts(), return_counts=True)
    weight = weight / answers.queries
    missed = np.ones(len(right))  # P(rank > k), k = 0 so far, for each number of right candidates
    within = [0.0]  # share of queries with rank <= k
    while within[-1] < 0.5 or len(within) <= max(RECALL_AT):
        k = len(within) - 1
        missed = missed * np.maximum(n - right - k, 0) / max(n - k, 1)
        within.append(float(weight @ (1 - missed)))
    harmonic = np.sum(1 / np.arange(1, n + 1))
    precision = (harmonic + (n - harmonic) * (right - 1) / max(n - 1, 1)) / n
    recalls = {f"recall@{k}": within[k] for k in RECALL_AT}
    median = int(np.argmax(np.asarray(within) >= 0.5))
    return recalls | {"median_rank": float(median), "mAP": float(weight @ precision)}
