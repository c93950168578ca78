"""Tiles against whole matrices and scikit-learn; shares of several processes against one."""

import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from tests.evaluation.ranked import make_split, unit
from tests.objectives.identities import make_identity
from vtalign_jax.evaluation.ranking import Share, on_grid
from vtalign_jax.evaluation.retrieval import rank_queries

DEGENERATE = {
    "one clip": make_identity([0]),
    "two clips": make_identity([0, 1]),
    "one text": make_identity(np.arange(9), text=np.zeros(9)),
    "one recording": make_identity(np.zeros(9), text=np.arange(9) // 2),
    "all of one moment": make_identity(np.zeros(9), span=[[0, 4]] * 9),
}


def assert_equal(found, expected):
    for ours, theirs in zip(
        (*found.multi, *found.plain), (*expected.multi, *expected.plain), strict=True
    ):
        np.testing.assert_array_equal(ours.rank, theirs.rank)
        np.testing.assert_array_equal(ours.precision, theirs.precision)


def scores_and_right(z_video, z_text, ranked):
    """The whole matrices [queries, candidates] that the tiles are cut from, each direction."""
    _, first = np.unique(ranked.identity.text, return_index=True)
    scores = on_grid(z_video) @ on_grid(z_text[first]).T
    right = np.zeros(scores.shape, bool)
    right[ranked.answers.query, ranked.answers.candidate] = True
    return (scores, right), (scores.T, right.T)


def assert_is_brute_force(z_video, z_text, identity, **tile):
    ranked = rank_queries(z_video, z_text, identity, **tile)
    both = scores_and_right(z_video, z_text, ranked)
    for ranks, (scores, right) in zip(ranked.multi, both, strict=True):
        best = np.max(np.where(right, scores, -np.inf), axis=1)
        expected = 1 + np.sum(~right & (scores >= best[:, None]), axis=1)
        np.testing.assert_array_equal(ranks.rank, expected)


@pytest.mark.parametrize(("seed", "tile"), [(0, 5), (1, 70), (2, 2048)])
def test_average_precision_is_scikit_learns_and_ranks_are_brute_force(seed, tile):
    z_video, z_text, identity = make_split(seed, rows=120, texts=30)
    ranked = rank_queries(z_video, z_text, identity, tile=tile)
    for ranks, (scores, right) in zip(
        ranked.multi, scores_and_right(z_video, z_text, ranked), strict=True
    ):
        expected = [average_precision_score(r, s) for r, s in zip(right, scores, strict=True)]
        np.testing.assert_allclose(ranks.precision, expected, rtol=1e-12)
    assert_is_brute_force(z_video, z_text, identity, tile=tile)


def test_ties_stand_before_the_right_one():
    """Embeddings of few values: most scores tie with others."""
    random = np.random.default_rng(0)
    z = random.integers(0, 2, (2, 60, 4)) + np.array([1, 0, 0, 0])
    z_video, z_text = (z / np.linalg.norm(z, axis=2, keepdims=True)).astype(np.float32)
    identity = make_identity(random.integers(0, 6, 60), text=random.integers(0, 20, 60))
    assert_is_brute_force(z_video, z_text, identity, tile=16)
    # Right ones that tie stand one after the other; scikit-learn would take them all at once.
    ranked = rank_queries(z_video, z_text, identity)
    scores, right = scores_and_right(z_video, z_text, ranked)[0]
    for query in range(60):
        order = np.lexsort((right[query], -scores[query]))
        place = np.flatnonzero(right[query][order]) + 1
        nth = np.arange(1, len(place) + 1)
        assert ranked.multi[0].precision[query] == pytest.approx(np.mean(nth / place))


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_splits_are_brute_force_in_any_tile(name):
    identity, random = DEGENERATE[name], np.random.default_rng(0)
    rows = len(identity.text)
    z_video, z_text = unit(random, rows), unit(random, rows)
    same = np.repeat(z_text[:1], rows, axis=0)
    for video, text in ((z_video, z_text), (same, z_text), (same, same)):
        whole = rank_queries(video, text, identity)
        assert_equal(rank_queries(video, text, identity, tile=4), whole)
        assert_is_brute_force(video, text, identity)


def test_rows_that_tie_in_float32_but_not_exactly_are_told_apart():
    """A product of 2,048 numbers in float32 is off by more than these two differ."""
    z_video = np.full((2, 2048), 2048**-0.5, np.float32)
    z_text = z_video.copy()
    z_text[1, 0] += 2.0**-24
    ranked = rank_queries(z_video, z_text, make_identity([0, 1]))
    assert ranked.multi[0].rank.tolist() == [2, 1]


@pytest.mark.parametrize("processes", [2, 3])
def test_shares_of_several_processes_add_up_to_what_one_finds(processes):
    z_video, z_text, identity = make_split(4, rows=90)
    parts = []

    def keep(counts):
        parts.append(counts)
        return counts + len(z_text)  # any that can be: what this process finds is not looked at

    for index in range(processes - 1):
        rank_queries(z_video, z_text, identity, Share(index, processes, keep), tile=8)
    last = Share(processes - 1, processes, lambda counts: counts + sum(parts))
    found = rank_queries(z_video, z_text, identity, last, tile=8)
    assert all(part.any() for part in parts)
    assert_equal(found, rank_queries(z_video, z_text, identity))


def test_memory_is_that_of_a_tile_not_of_all_pairs():
    rows, random = 3000, np.random.default_rng(0)
    z_video, z_text = unit(random, rows, 8), unit(random, rows, 8)
    identity = make_identity(np.arange(rows) // 4)
    tracemalloc.start()
    rank_queries(z_video, z_text, identity, tile=300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 300 * 300 * 8 + 400 * rows
