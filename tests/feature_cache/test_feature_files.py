"""What is on disk: whole or refused, of this run or refused, and written once."""

import dataclasses
import json
import pathlib
import pickle

import numpy as np
import pytest

from tests.feature_cache.small_features import (
    BASE,
    EDGE,
    FINGERPRINT,
    attached,
    make_machine,
    make_run,
    make_small_splits,
    make_target,
    with_cache,
    write_features,
)
from vtalign_jax.errors import UserError
from vtalign_jax.feature_cache import cost, keys, write
from vtalign_jax.feature_cache.stored import DTYPES, INDEX, Layout
from vtalign_jax.pipeline.dataset import open_split


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_small_splits(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def written(dataset, tmp_path_factory):
    """A configuration with the tower's features of its dataset."""
    folder = tmp_path_factory.mktemp("features")
    config = make_run(dataset)
    write_features(config, folder, "tower", "bfloat16")
    return with_cache(config, folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8"])
def test_vectors_come_back_as_they_were_packed(dtype):
    layout = Layout("tower", dtype, 5, 2)
    rng = np.random.default_rng(0)
    values = rng.integers(-100, 100, (3, 4, 2, 5)).astype(DTYPES[dtype])
    scales = rng.random((3, 4, 2), np.float32) if dtype == "int8" else None
    raw = layout.pack(values, scales)
    assert raw.shape == (3, 4, 2, layout.vector_bytes)
    found, found_scales = layout.unpack(raw)
    np.testing.assert_array_equal(found, values)
    assert (found_scales is None) == (scales is None)
    if scales is not None:
        np.testing.assert_array_equal(found_scales, scales)


def test_every_stored_frame_of_every_clip_is_there_whatever_a_run_shows(written):
    train, _ = attached(written)
    counts = train.table["num_frames"].to_pylist()
    assert set(counts) == {2, 4}
    again = pickle.loads(pickle.dumps(train.features))  # as a worker process gets it
    for index, count in enumerate(counts):
        assert train.features.frames(index).shape == (count, 16, 2 * 24)
        np.testing.assert_array_equal(again.frames(index), train.features.frames(index))


def test_the_deepest_point_is_below_everything_trained():
    for connector, blocks, depth in [
        ("lora", 2, "tower"),
        ("full", 0, "tower"),
        ("frozen", 3, "connector"),
        ("frozen", 2, "decoder"),
        ("frozen", 0, "decoder"),
    ]:
        config = make_run("x", tune={"connector": connector, "text_blocks": blocks})
        assert keys.deepest(config, BASE) == depth
        keys.check_depth(depth, config, train=True)


@pytest.mark.parametrize(
    ("depth", "sections", "told"),
    [
        ("connector", {}, "config.tune.connector=lora"),
        ("decoder", {"data": {"jitter": True}}, "config.data.jitter=True"),
        ("decoder", {"data": {"parent_text_probability": 0.3}}, "parent_text_probability=0.3"),
    ],
)
def test_depths_that_are_not_the_same_in_every_epoch_are_refused(depth, sections, told):
    connector = "lora" if depth == "connector" else "frozen"
    config = make_run("x", tune={"connector": connector}, **sections)
    with pytest.raises(UserError, match=told):
        keys.check_depth(depth, config, train=True)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"model": {"compute_dtype": "bfloat16"}}, "config.model.compute_dtype"),
        ({"data": {"feature_cache": "nowhere"}}, "no features in nowhere/train"),
    ],
)
def test_stale_and_absent_features_are_refused_with_the_command(written, changed, told):
    sections = {
        name: dataclasses.replace(getattr(written, name), **fields)
        for name, fields in changed.items()
    }
    with pytest.raises(UserError, match=told) as caught:
        attached(dataclasses.replace(written, **sections))
    assert "python launch/cache_features.py --config" in str(caught.value)


def test_features_of_other_weights_or_data_are_refused(written):
    train, _ = attached(written)
    with pytest.raises(UserError, match=r"stale features .* files of config.model.base"):
        keys.attach(written, "other", 16, train=train)
    train.fingerprint = "other"
    with pytest.raises(UserError, match=r"stale features .* the dataset of config.data.dir"):
        keys.attach(written, "b" * 16, 16, train=train)


def test_a_part_of_the_files_is_no_cache_and_the_rest_is_written_later(dataset, tmp_path):
    config = make_run(dataset)
    target, machine = make_target(config, tmp_path, "train", "tower"), make_machine(config)
    write.begin(target, overwrite=False)
    write.write_shards(target, machine, config, (1, 2), train=True)  # the second of two
    there = [(tmp_path / "train" / name).exists() for name in target.names]
    assert there == [False, True, False, True, False]
    with pytest.raises(UserError, match="lacks features-00000"):
        write.finish(target)
    cached = with_cache(config, tmp_path)
    with pytest.raises(UserError, match=r"incomplete features in .* run python launch/cache_feat"):
        attached(cached)

    kept = (tmp_path / "train" / target.names[1]).stat().st_mtime_ns
    (tmp_path / "train" / f"{target.names[0]}.partial").write_text("of a killed process")
    write.begin(target, overwrite=False)
    write.write_shards(target, machine, config, (0, 1), train=True)
    write.finish(target)
    assert (tmp_path / "train" / target.names[1]).stat().st_mtime_ns == kept
    train = attached_train(cached)
    sizes = {len(train.features.vectors(index)) for index in range(len(train))}
    assert sizes == {2 * 16, 4 * 16}

    file = tmp_path / "train" / target.names[1]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="missing or cut off"):
        attached_train(cached)


def attached_train(config):
    """Return the training split with its features; there are none of the other here."""
    train = open_split(config.data.dir, "train")
    keys.attach(config, FINGERPRINT, EDGE, train=train)
    return train


def test_other_features_are_replaced_only_if_asked(written):
    folder = pathlib.Path(written.data.feature_cache)
    other = make_target(written, folder, "train", "tower", "int8")
    with pytest.raises(UserError, match="--dtype or --shard_mb; --overwrite replaces"):
        write.begin(other, overwrite=False)
    assert (folder / "train" / INDEX).exists()
    changed = other._replace(folder=folder / "in_the_way")
    changed.folder.mkdir()
    (changed.folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is in the way"):
        write.begin(changed, overwrite=True)
    assert (changed.folder / "notes.txt").exists()


def test_sizes_said_before_are_those_written_after(written):
    train, val = attached(written)
    for split in (train, val):
        folder = pathlib.Path(written.data.feature_cache) / split.name
        index = json.loads((folder / INDEX).read_text())
        said = cost.of_split(split, Layout(**index["layout"]), 0)
        assert said.clip_bytes == 4 * 16 * 24 * 2
        assert said.total_bytes == sum(
            x.nbytes for x in map(split.features.vectors, range(len(split)))
        )
