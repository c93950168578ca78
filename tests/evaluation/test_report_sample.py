import numpy as np
import pytest

from tests.report_runs import HOSTILE, ORDINARY, embeddings, make_split
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.report import sample as samples


def make_sample(names=ORDINARY, clips=40, most=samples.MOST_CLIPS, noise=1.5):
    split = make_split(names, clips)
    shown = samples.choose(split.identity, *embeddings(split.identity, noise), most)
    return samples.name(shown, 30, split, split.texts), split


def test_whole_recordings_are_kept_in_order_as_far_as_they_fit():
    sample, split = make_sample(clips=60, most=30)  # five recordings of twelve
    kept = split.identity.recording[sample.records]
    assert len(kept) == 30
    assert sorted(np.bincount(kept)[np.bincount(kept) > 0]) == [6, 12, 12]
    assert (np.diff(kept) >= 0).all()
    start = split.identity.span[sample.records, 0]
    assert (np.diff(start)[np.diff(kept) == 0] > 0).all()
    again, _ = make_sample(clips=60, most=30)
    np.testing.assert_array_equal(again.records, sample.records)


def test_what_is_read_is_what_was_written(tmp_path):
    sample, split = make_sample(HOSTILE)
    samples.write(tmp_path, sample)
    assert [path.name for path in tmp_path.iterdir()] == [samples.FILE]
    found = samples.read(tmp_path)
    for name, value in sample._asdict().items():
        if name.startswith("z_"):
            np.testing.assert_allclose(getattr(found, name), value, atol=1e-3)
        else:
            np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)
    assert found.right[np.arange(40), found.text].all()
    np.testing.assert_array_equal(found.right.sum(axis=1), 1)
    own = [found.texts[k] for k in found.text]
    assert own == [samples.cut(split.texts[row]) for row in found.records]


def test_its_size_is_bounded(tmp_path):
    split = make_split(["w" * 20_000 + str(k) for k in range(3000)], clips=3000)
    shown = samples.choose(split.identity, *embeddings(split.identity, 1.0, width=1024))
    samples.write(tmp_path, samples.name(shown, 1, split, split.texts))
    assert (tmp_path / samples.FILE).stat().st_size < 14e6  # 8 of it embeddings, and 2,000 texts


def test_a_damaged_sample_is_named_and_none_is_none(tmp_path):
    assert samples.read(tmp_path) is None
    samples.write(tmp_path, make_sample()[0])
    path = tmp_path / samples.FILE
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=samples.FILE):
        samples.read(tmp_path)
