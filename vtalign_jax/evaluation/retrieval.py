"""How well clips find their texts and texts their clips (docs/plan.md).

*Multi-instance*: a clip ranks the distinct texts, a distinct text ranks the clips. Right for a clip
is its own text, and every text of another clip of the same moment: same recording, same level,
overlapping node spans (another camera). Right for a text is every clip it is right for. *Plain*:
row to row, only the pair itself is right. A query's rank is that of its best right candidate; wrong
candidates that tie with it stand before it.

Texts with equal `text_key` differ at most as normalisation allows; the embedding of the first row
stands for all.
"""

from typing import NamedTuple

import numpy as np

from vtalign_jax.array_types import Identity
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.ranking import (
    ALONE,
    TILE,
    Answers,
    Ranks,
    Share,
    check_finite,
    on_grid,
    pair_scores,
    rank_both_ways,
)

RECALL_AT = (1, 5, 10)
REPEATED_AT = (1, 5)
DIRECTIONS = ("video_to_text", "text_to_video")


class Ranked(NamedTuple):
    """How every query of a split was answered.

    Attributes:
      identity: the N real rows.
      answers: which of the T distinct texts are right for which clip.
      multi: of the clips' N and of the texts' T queries, multi-instance.
      plain: of N and N queries.
      margin: mean cosine of the pairs minus that of all wrong (clip, text) combinations, NaN where
        nothing is wrong.
    """

    identity: Identity
    answers: Answers
    multi: tuple[Ranks, Ranks]
    plain: tuple[Ranks, Ranks]
    margin: float


def rank_queries(
    z_video: np.ndarray,
    z_text: np.ndarray,
    identity: Identity,
    share: Share = ALONE,
    tile: int = TILE,
) -> Ranked:
    """Return how every query is answered, both ways, multi-instance and plain.

    Args:
      z_video: float32[N, E], unit norm.
      z_text: float32[N, E], unit norm; row i describes clip i.
      identity: N rows of NumPy arrays; those with `row_mask` False are left out.
      share: which part of the work this process does; every process gets the whole result.
      tile: clips, and texts, scored at a time: memory grows with its square.

    Raises:
      UserError: no row is real, or an embedding is not finite.
    """
    mask = np.asarray(identity.row_mask)
    identity = _real_rows(identity)
    if not mask.all():
        z_video, z_text = z_video[mask], z_text[mask]
    check_finite("clip", z_video)
    check_finite("text", z_text)
    first, _ = _distinct(identity.text)
    answers = right_answers(identity)
    multi, plain = rank_both_ways(z_video, z_text, first, answers, share, tile)
    return Ranked(identity, answers, multi, plain, _margin(z_video, z_text, first, answers))


def retrieval_metrics(
    z_video: np.ndarray, z_text: np.ndarray, identity: Identity, tile: int = TILE
) -> dict[str, float]:
    """Return `summary` of `rank_queries`."""
    return summary(rank_queries(z_video, z_text, identity, tile=tile))


def summary(ranked: Ranked) -> dict[str, float]:
    """Return recall@{1, 5, 10}, median rank and mAP, both ways, multi-instance and plain.

    Names: `recall@5` (mean of both directions, multi-instance), `video_to_text/recall@5`,
    `plain/recall@5`, `plain/text_to_video/recall@5`; likewise `median_rank` and `mAP`.
    `recall@1_repeated` and `recall@5_repeated` are those of the queries alone whose text stands in
    several recordings, NaN where none does. `margin` is `Ranked.margin`. `clips` and `texts` count
    the queries, `texts_repeated` those texts.
    """
    metrics = {}
    for kind, both in (("", ranked.multi), ("plain/", ranked.plain)):
        metrics |= _both_ways(kind, [_summary(*ranks) for ranks in both])
    repeated = _repeated(ranked.identity)
    metrics |= _of_repeated(
        [_recalls(ranks.rank[mask]) for ranks, mask in zip(ranked.multi, repeated, strict=True)]
    )
    metrics["margin"] = ranked.margin
    return metrics | _counts(ranked.answers, repeated)


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


def _margin(z_video: np.ndarray, z_text: np.ndarray, first: np.ndarray, answers: Answers) -> float:
    """Return mean cosine of the pairs minus mean cosine of the wrong combinations."""
    wrong_count = answers.queries * answers.candidates - len(answers.query)
    if not wrong_count:
        return float("nan")
    right = np.sum(pair_scores(z_video, z_text, answers.query, first[answers.candidate]))
    everything = _total(z_video, np.arange(len(z_video))) @ _total(z_text, first)
    own = np.arange(len(z_video))
    positive = np.mean(pair_scores(z_video, z_text, own, own))
    return float(positive - (everything - right) / wrong_count)


def _total(z: np.ndarray, rows: np.ndarray, size: int = 4096) -> np.ndarray:
    """Return the sum of some rows: float64[E]."""
    parts = [rows[begin : begin + size] for begin in range(0, len(rows), size)]
    return np.sum([on_grid(z[part]).sum(axis=0) for part in parts], axis=0)


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
