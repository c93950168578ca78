import math
import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import silhouette_samples, silhouette_score

from tests.evaluation.ranked import unit
from vtalign_jax.evaluation import silhouette as silhouettes
from vtalign_jax.evaluation.silhouette import silhouette


def clustered(seed, rows=120, texts=17, size=9):
    random = np.random.default_rng(seed)
    label = random.integers(0, texts, rows) * 7
    centres = random.standard_normal((texts, size))
    z = centres[label // 7] + random.standard_normal((rows, size))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32), label


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("texts", [2, 17, 80])
def test_it_is_scikit_learns(seed, texts):
    z, label = clustered(seed, texts=texts)
    if texts == 80:
        assert 1 in np.bincount(label)  # texts of one clip
    expected = silhouette_score(z.astype(np.float64), label, metric="cosine")
    assert silhouette(z, label) == pytest.approx(expected, abs=1e-6)


def test_of_many_clips_a_fixed_sample_is_compared_with_all_texts():
    z, label = clustered(3, rows=400, texts=60)
    each = silhouette_samples(z.astype(np.float64), label, metric="cosine")
    found = silhouette(z, label, most=100)
    assert found == silhouette(z, label, most=100)
    assert found != silhouette(z, label)
    assert found == pytest.approx(np.mean(each), abs=4 * np.std(each) / 10)
    means = {round(silhouette(z, label, most=most), 9) for most in (399, 398, 100, 50)}
    assert len(means) == 4


def test_two_tight_texts_apart_give_one_and_clips_in_the_wrong_text_less_than_zero():
    z = np.repeat(np.eye(2, 5, dtype=np.float32), 3, axis=0)
    assert silhouette(z, np.array([0, 0, 0, 1, 1, 1])) == 1.0
    assert silhouette(z, np.array([0, 1, 0, 1, 0, 1])) < 0


def test_where_all_clips_lie_together_it_is_zero_not_rounding():
    z = np.repeat(unit(np.random.default_rng(0), 1, 300), 12, axis=0)
    assert silhouette(z, np.arange(12) // 3) == 0.0


@pytest.mark.parametrize("label", [np.zeros(8), np.arange(8), np.zeros(1)])
def test_one_text_or_only_texts_of_one_clip_have_none(label):
    z = unit(np.random.default_rng(0), len(label))
    assert math.isnan(silhouette(z, label))


@pytest.mark.parametrize(("clips", "texts"), [(4000, 100), (6000, 3000)])
def test_no_square_of_clips_or_texts_is_held(clips, texts):
    z = unit(np.random.default_rng(0), clips, 8)
    tracemalloc.start()
    silhouette(z, np.arange(clips) % texts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6  # bytes; all distances would take eight each


def test_texts_beyond_a_tile_are_compared_as_well():
    z, label = clustered(5, rows=900, texts=700)
    assert len(np.unique(label)) > silhouettes._TEXTS > 256
    expected = silhouette_score(z.astype(np.float64), label, metric="cosine")
    assert silhouette(z, label) == pytest.approx(expected, abs=1e-6)
