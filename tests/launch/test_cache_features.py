"""Features written by two processes; training and evaluation from them, killed in between."""

import json

import pytest

from tests import commands
from tests.launch.small_dataset import make_small_dataset
from tests.launch.test_several_processes import finish, start
from tests.launch.test_train import CONFIG, kill_when, rows, train_arguments

SHORT = "--config.train.epochs=2"  # of 3 steps
OVERRIDE = "--config.train.log_every_steps=2"


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def dataset(tmp):
    return make_small_dataset(tmp)


def cache_arguments(dataset, *more):
    return ["launch/cache_features.py", f"--config={CONFIG}", f"--config.data.dir={dataset}", *more]


@pytest.fixture(scope="module")
def written(tmp, dataset):
    """What two processes said, and the features beside the dataset."""
    more = ["--dtype=float32", "--shard_mb=0.3", "--pairs_per_second=50", OVERRIDE]
    done = finish(start(tmp, 2, 1, *cache_arguments(dataset, *more)))
    assert [code for code, _ in done] == [0, 0], done
    return done[0][1], done[1][1], dataset.with_name("dataset_features")


def test_two_processes_say_what_it_costs_and_write_their_own_files(written, dataset):
    first, second, folder = written
    assert "features after the vision tower, a record for each stored frame, float32" in first
    assert "MB/s for 50 pairs a second on 2 host(s)" in first
    assert "times the pairs a second at equal utilisation" in first
    named = f"--config={CONFIG} --config.data.dir={dataset} {OVERRIDE}"
    assert first.splitlines()[-1] == (
        f"next: python launch/train.py {named} --config.data.feature_cache={folder}"
    )
    index = json.loads((folder / "train" / "index.json").read_text())
    assert len(index["file_bytes"]) == 4  # 24 clips of 49,152 bytes, 6 a file
    assert "features-00000-of-00004" in first
    assert "features-00001-of-00004" in second
    assert "next:" not in second


@pytest.fixture(scope="module")
def plain(tmp, dataset):
    """The rows of an uncached run."""
    commands.run(*train_arguments(dataset, tmp / "plain", SHORT))
    return rows(tmp / "plain")


def check(workdir, expected):
    """Compare every number but those of speed; None is NaN."""
    found = rows(workdir)
    assert len(found) == len(expected)
    for row in zip(found, expected, strict=True):
        ours, theirs = ({k: -1.0 if v is None else v for k, v in each.items()} for each in row)
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)


def test_a_cached_run_has_the_losses_and_recall_of_an_uncached_one(tmp, dataset, written, plain):
    cached = tmp / "cached"
    more = [SHORT, f"--config.data.feature_cache={written[2]}"]
    output = commands.run(*train_arguments(dataset, cached, *more))
    assert "reading features (tower, float32) instead of frames" in output
    check(cached, plain)

    output = commands.run("launch/evaluate.py", f"--checkpoint={cached}", "--json")
    assert "reading features" in output
    result, _ = json.JSONDecoder().raw_decode(output[output.index("{\n") :])
    evaluated = result["rows"]["checkpoint"]
    trained = [row for row in plain if row["step"] and "val/recall@5" in row]
    best = max(trained, key=lambda row: row["val/recall@5"])
    for name in ("recall@1", "recall@5"):
        assert evaluated[name] == pytest.approx(best[f"val/{name}"])


@pytest.mark.slow
def test_a_cached_run_killed_in_an_epoch_ends_as_an_uncached_one(tmp, dataset, written, plain):
    killed = tmp / "killed"
    saved = killed / "checkpoints" / "4"  # the first step of the second epoch
    arguments = train_arguments(dataset, killed, SHORT, f"--config.data.feature_cache={written[2]}")
    process = commands.start(*arguments)
    kill_when(process, saved.exists)
    output = commands.run(*arguments, "--config.data.workers=1")
    assert "resuming after step 4" in output
    check(killed, plain)


def test_too_large_features_are_refused_unless_meant(tmp, dataset):
    arguments = cache_arguments(dataset, "--max_gb=0.0001", f"--out={tmp / 'large'}")
    line = commands.one_error_line(commands.run(*arguments, code=2))
    assert "--max_gb=0.0001" in line
    assert not (tmp / "large").exists()
