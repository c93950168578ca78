"""The reference is written from the definitions in plain Python, a query at a time."""

import itertools
import math
import statistics

import numpy as np
import pytest

from tests.objectives.identities import make_identity
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.retrieval import (
    DIRECTIONS,
    chance_metrics,
    retrieval_metrics,
    right_answers,
)


def _unit(rng, rows, size=7):
    z = rng.standard_normal((rows, size))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def _random_dataset(seed, rows=40):
    """Few recordings, texts, levels and instants, so that every rule meets every other."""
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 12, rows).astype(np.float32)
    span = np.stack([start, start + rng.integers(0, 4, rows)], axis=1)
    identity = make_identity(
        rng.integers(0, 4, rows),
        text=rng.choice([3, 5, 8, 13, 21, 34, 55, 89, 99, 120, 7, 1], rows),
        level=rng.integers(0, 2, rows),
        uid=rng.integers(0, 9, rows),
        span=span,
    )
    return _unit(rng, rows), _unit(rng, rows), identity


def _is_overlap(a, b):
    """Half-open spans [start, end); a point in time holds its own instant."""
    (a0, a1), (b0, b1) = a, b
    if a0 == a1 and b0 == b1:
        return a0 == b0
    if a0 == a1:
        return b0 <= a0 < b1
    if b0 == b1:
        return a0 <= b0 < a1
    return max(a0, b0) < min(a1, b1)


def _reference_queries(z_video, z_text, identity):
    """Per direction, for each query the list of (score, whether right) over its candidates."""
    rows = range(len(z_video))
    texts = sorted(set(identity.text.tolist()))
    first = {key: min(i for i in rows if identity.text[i] == key) for key in texts}

    def same_moment(i, j):
        return (
            identity.recording[i] == identity.recording[j]
            and identity.level[i] == identity.level[j]
            and _is_overlap(identity.span[i].tolist(), identity.span[j].tolist())
        )

    def is_right(i, key):
        return any(identity.text[j] == key and (i == j or same_moment(i, j)) for j in rows) or (
            identity.text[i] == key
        )

    def score(i, j):
        return math.fsum(float(a) * float(b) for a, b in zip(z_video[i], z_text[j], strict=True))

    multi = [[(score(i, first[key]), is_right(i, key)) for key in texts] for i in rows]
    plain = [[(score(i, j), i == j) for j in rows] for i in rows]
    return {
        "video_to_text": multi,
        "text_to_video": [list(column) for column in zip(*multi, strict=True)],
        "plain/video_to_text": plain,
        "plain/text_to_video": [list(column) for column in zip(*plain, strict=True)],
    }


def _reference_summary(queries):
    ranks, precisions = [], []
    for query in queries:
        ordered = sorted(query, key=lambda item: (-item[0], item[1]))  # wrong before right in a tie
        places = [place for place, (_, right) in enumerate(ordered, start=1) if right]
        ranks.append(places[0])
        precisions.append(
            statistics.fmean(nth / place for nth, place in enumerate(places, start=1))
        )
    summary = {f"recall@{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
    summary["median_rank"] = statistics.median(ranks)
    return summary | {"mAP": statistics.fmean(precisions)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tile", [1, 7, 1000])
def test_metrics_equal_a_plain_reference(seed, tile):
    z_video, z_text, identity = _random_dataset(seed)
    metrics = retrieval_metrics(z_video, z_text, identity, tile=tile)
    reference = _reference_queries(z_video, z_text, identity)
    for direction, queries in reference.items():
        for name, value in _reference_summary(queries).items():
            assert metrics[f"{direction}/{name}"] == pytest.approx(value, rel=1e-12), name
    for kind, name in itertools.product(("", "plain/"), ("recall@1", "recall@5", "mAP")):
        both = [metrics[f"{kind}{direction}/{name}"] for direction in DIRECTIONS]
        assert metrics[f"{kind}{name}"] == pytest.approx(sum(both) / 2)
    pairs = [score for query in reference["video_to_text"] for score, right in query if not right]
    own = statistics.fmean(reference["plain/video_to_text"][i][i][0] for i in range(len(z_video)))
    assert metrics["margin"] == pytest.approx(own - statistics.fmean(pairs), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_recall_among_repeated_texts_is_that_of_their_queries_alone(seed):
    z_video, z_text, identity = _random_dataset(seed, rows=24)
    places = {
        key: set(identity.recording[identity.text == key].tolist()) for key in set(identity.text)
    }
    texts = [key for key in sorted(places) if len(places[key]) > 1]
    assert 0 < len(texts) < len(places)
    reference = _reference_queries(z_video, z_text, identity)
    asked = {
        "video_to_text": np.isin(identity.text, texts),
        "text_to_video": np.isin(sorted(places), texts),
    }
    found = retrieval_metrics(z_video, z_text, identity)
    for k in (1, 5):
        both = [
            _reference_summary(itertools.compress(reference[direction], asked[direction]))
            for direction in DIRECTIONS
        ]
        expected = sum(summary[f"recall@{k}"] for summary in both) / 2
        assert found[f"recall@{k}_repeated"] == pytest.approx(expected)
    assert found["texts_repeated"] == len(texts)


def test_chance_among_repeated_texts_is_what_random_rankings_reach():
    rng = np.random.default_rng(0)
    identity = make_identity(np.arange(24) // 6, text=[*range(12), *range(6), *range(20, 26)])
    chance = chance_metrics(identity)
    reached = [
        retrieval_metrics(_unit(rng, 24), _unit(rng, 24), identity)["recall@5_repeated"]
        for _ in range(300)
    ]
    assert chance["recall@5_repeated"] == pytest.approx(np.mean(reached), abs=0.02)
    assert chance["texts_repeated"] == 6


def test_where_every_text_stands_in_one_recording_there_is_no_recall_of_repeated_ones():
    identity = make_identity([0, 0, 1, 1], text=[1, 1, 2, 3])
    z = np.eye(4, dtype=np.float32)
    for found in (retrieval_metrics(z, z, identity), chance_metrics(identity)):
        assert math.isnan(found["recall@1_repeated"])
        assert math.isnan(found["recall@5_repeated"])
        assert found["texts_repeated"] == 0


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_answers_do_not_depend_on_the_chunk(chunk):
    _, _, identity = _random_dataset(9, rows=60)
    for ours, whole in zip(right_answers(identity, chunk), right_answers(identity), strict=True):
        np.testing.assert_array_equal(ours, whole)


def test_padding_rows_change_nothing():
    z_video, z_text, identity = _random_dataset(1)

    def pad(x):
        return np.concatenate([x[:10], x[:3], x[10:]])

    padded = type(identity)(*(pad(values) for values in identity))
    padded.row_mask[10:13] = False
    padded.text[10:13] = 1000
    metrics = retrieval_metrics(pad(z_video), pad(z_text), padded)
    assert metrics == retrieval_metrics(z_video, z_text, identity)
    assert chance_metrics(padded) == chance_metrics(identity)


def test_order_of_rows_changes_nothing():
    z_video, z_text, identity = _random_dataset(2)
    z_text = z_text[np.unique(identity.text, return_index=True)[1]][  # equal text, equal embedding
        np.unique(identity.text, return_inverse=True)[1]
    ]
    order = np.random.default_rng(0).permutation(len(z_video))
    shuffled = type(identity)(*(values[order] for values in identity))
    metrics = retrieval_metrics(z_video[order], z_text[order], shuffled)
    assert metrics == pytest.approx(retrieval_metrics(z_video, z_text, identity), rel=1e-12)


def test_collapsed_embeddings_have_the_worst_rank():
    rows = 37
    z = np.repeat(_unit(np.random.default_rng(0), 1, size=1024), rows, axis=0)
    metrics = retrieval_metrics(z, z, make_identity(np.arange(rows)), tile=8)
    for kind in ("", "plain/"):
        assert [metrics[f"{kind}recall@{k}"] for k in (1, 5, 10)] == [0, 0, 0]
        assert metrics[f"{kind}median_rank"] == rows
        assert metrics[f"{kind}mAP"] == pytest.approx(1 / rows)
    assert metrics["margin"] == pytest.approx(0, abs=1e-6)


def test_perfect_embeddings_have_rank_1():
    z = np.eye(20, dtype=np.float32)
    metrics = retrieval_metrics(z, z, make_identity(np.arange(20)))
    assert (metrics["recall@1"], metrics["plain/recall@1"], metrics["mAP"]) == (1, 1, 1)
    assert (metrics["margin"], metrics["clips"], metrics["texts"]) == (1, 20, 20)


def test_text_of_another_camera_of_the_moment_is_right():
    # Two cameras word the same moment differently; the third clip is a later moment.
    identity = make_identity(
        [0, 0, 0], uid=[0, 1, 0], text=[0, 1, 2], span=[[0, 4], [3, 6], [6, 9]]
    )
    answers = right_answers(identity)
    pairs = list(zip(answers.query.tolist(), answers.candidate.tolist(), strict=True))
    assert pairs == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 2)]
    z_video = np.eye(3, dtype=np.float32)
    swapped = z_video[[1, 0, 2]]
    metrics = retrieval_metrics(z_video, swapped, identity)
    assert (metrics["recall@1"], metrics["plain/recall@1"]) == (1, pytest.approx(1 / 3))


@pytest.mark.parametrize("other", [{"recording": [0, 1]}, {"level": [0, 1]}])
def test_other_recording_or_level_is_another_moment(other):
    fields = {"recording": [0, 0], "text": [0, 1], "span": [[0, 4], [0, 4]]} | other
    assert right_answers(make_identity(**fields)).counts().tolist() == [1, 1]


def test_equal_text_in_any_recording_is_right():
    identity = make_identity([0, 1, 2], text=[4, 4, 6])
    z_video = np.eye(3, dtype=np.float32)
    metrics = retrieval_metrics(z_video, z_video[[1, 1, 2]], identity)
    assert metrics["texts"] == 2
    assert metrics["text_to_video/recall@1"] == 1
    assert metrics["video_to_text/recall@1"] == pytest.approx(2 / 3)  # clip 0 ties both texts


@pytest.mark.parametrize(
    "identity",
    [make_identity([0]), make_identity(np.arange(6), text=np.zeros(6))],
    ids=["one clip", "one text"],
)
def test_without_wrong_answers_everything_is_right_and_margin_undefined(identity):
    z = _unit(np.random.default_rng(0), len(identity.text))
    metrics, chance = retrieval_metrics(z, z[::-1], identity), chance_metrics(identity)
    for values in (metrics, chance):
        assert (values["recall@1"], values["median_rank"], values["mAP"]) == (1, 1, 1)
    assert math.isnan(metrics["margin"])


def test_nothing_to_evaluate_is_a_user_error():
    empty = make_identity([0, 1], real=0)
    with pytest.raises(UserError, match="no clips"):
        retrieval_metrics(np.ones((2, 3)), np.ones((2, 3)), empty)


def test_embeddings_that_are_not_finite_raise_instead_of_ranking_first():
    z = np.eye(3, dtype=np.float32)
    lost = np.where(np.arange(3)[:, None] == 1, np.nan, z)
    with pytest.raises(UserError, match=r"1 of 3 clip embeddings .* damaged or diverged"):
        retrieval_metrics(lost, z, make_identity(np.arange(3)))


def test_chance_equals_the_mean_over_all_rankings():
    identity = make_identity([0, 0, 1, 2, 3], text=[0, 1, 0, 2, 3], span=[[0, 4]] * 5)
    counts = {"video_to_text": (4, [2, 2, 1, 1, 1]), "text_to_video": (5, [3, 2, 1, 1])}
    chance = chance_metrics(identity)
    for direction, (candidates, right) in counts.items():
        ranks, recalls, precisions = [], [], []
        for r in right:
            orders = list(itertools.permutations([True] * r + [False] * (candidates - r)))
            summaries = [_reference_summary([list(enumerate(order))]) for order in orders]
            recalls.append(statistics.fmean(s["recall@1"] for s in summaries))
            precisions.append(statistics.fmean(s["mAP"] for s in summaries))
            ranks += [s["median_rank"] for s in summaries] * (math.factorial(5) // len(orders))
        assert chance[f"{direction}/recall@1"] == pytest.approx(statistics.fmean(recalls))
        assert chance[f"{direction}/mAP"] == pytest.approx(statistics.fmean(precisions))
        assert chance[f"{direction}/median_rank"] == statistics.median_low(ranks)
        assert chance[f"{direction}/recall@5"] == 1


def test_chance_of_one_right_answer_is_k_of_n():
    chance = chance_metrics(make_identity(np.arange(40)))
    for kind in ("", "plain/"):
        assert chance[f"{kind}recall@1"] == pytest.approx(1 / 40)
        assert chance[f"{kind}recall@5"] == pytest.approx(5 / 40)
        assert chance[f"{kind}median_rank"] == 20


def test_random_embeddings_reach_chance():
    rng = np.random.default_rng(0)
    _, _, identity = _random_dataset(3, rows=50)
    runs = [retrieval_metrics(_unit(rng, 50, 64), _unit(rng, 50, 64), identity) for _ in range(100)]
    chance = chance_metrics(identity)
    for name in ("recall@1", "recall@5", "mAP", "plain/recall@5"):
        assert np.mean([run[name] for run in runs]) == pytest.approx(chance[name], abs=0.012), name
