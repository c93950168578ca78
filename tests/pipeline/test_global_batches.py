"""Any number of processes and any restart: the same global batches, field by field."""

import operator
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.pipeline.clip_fixtures import make_clips, write_dataset
from tests.pipeline.one_process import BATCH, digest, load
from vtalign_jax.pipeline.dataset import open_split

ROOT = pathlib.Path(__file__).parents[2]
STEPS, RESTART = 200, 137
EPOCH_CLIPS, EPOCH_STEPS = 100, 7  # 60 of 60 clips and 40 of 50: the last step has 4 rows


@pytest.fixture(scope="module")
def data_dirs(tmp_path_factory):
    """Two datasets, mixed by weights, with more frames stored than a clip shows."""
    directories = []
    for number, nodes in enumerate((6, 5)):
        directory = tmp_path_factory.mktemp("prepared")
        clips = make_clips(recordings=5, nodes=nodes, cameras=2)
        for clip in clips:
            clip["parent_text"] = "parent"
            clip["recording_id"] += f" of {number}"
        write_dataset(directory, {"train": clips}, shards=2, fingerprint=str(number) * 64)
        directories.append(str(directory))
    return ",".join(directories)


@pytest.fixture(scope="module")
def split(data_dirs):
    return open_split(data_dirs, "train")


@pytest.fixture(scope="module")
def alone(split):
    """The batches of one process."""
    return [batch for _, batch in load(split)]


def assert_continues(alone, split, start, count, workers=0, steps=None):
    """Check the slices of `count` processes from `start` on against the batches of one."""
    steps = steps or STEPS - start
    loaders = [
        load(split, process=p, count=count, start=start, steps=steps, workers=workers)
        for p in range(count)
    ]
    seen = 0
    for whole, *slices in zip(alone[start : start + steps], *loaders, strict=True):
        assert {step for step, _ in slices} == {start + seen}
        joined = jax.tree.map(lambda *rows: np.concatenate(rows), *(batch for _, batch in slices))
        jax.tree.map(np.testing.assert_array_equal, whole, joined)
        seen += 1
    assert seen == steps


@pytest.mark.parametrize("count", [1, 2, 4])
def test_1_2_and_4_processes_see_the_same_200_batches(alone, split, count):
    assert len(alone) == STEPS
    assert_continues(alone, split, 0, count)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_restart_at_step_137_on_any_number_of_processes_goes_on_with_them(alone, split, count):
    assert_continues(alone, split, RESTART, count)


def test_worker_processes_change_nothing_before_or_after_a_restart(alone, split):
    assert_continues(alone, split, 0, 1, workers=2, steps=3 * EPOCH_STEPS)
    assert_continues(alone, split, RESTART, 1, workers=1)


def test_four_real_processes_and_two_after_a_restart_see_the_batches_of_one(alone, data_dirs):
    runs = [(p, 4, 0, RESTART) for p in range(4)]
    runs += [(p, 2, RESTART, STEPS - RESTART) for p in range(2)]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.pipeline.one_process", data_dirs, *map(str, run)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for run in runs
    ]
    for (process, count, start, steps), running in zip(runs, started, strict=True):
        printed, _ = running.communicate(timeout=120)
        rows = slice(process * BATCH // count, (process + 1) * BATCH // count)
        expected = [
            f"{step} {digest(jax.tree.map(operator.itemgetter(rows), alone[step]))}"
            for step in range(start, start + steps)
        ]
        assert printed.splitlines() == expected


def test_every_epoch_is_its_length_without_a_clip_twice_and_draws_its_share_anew(alone):
    whole_epochs = STEPS // EPOCH_STEPS
    left_out = set()
    for epoch in range(whole_epochs):
        steps = alone[epoch * EPOCH_STEPS : (epoch + 1) * EPOCH_STEPS]
        records = np.concatenate([batch.identity.record for batch in steps])
        assert (records[EPOCH_CLIPS:] == -1).all()
        taken = records[:EPOCH_CLIPS]
        assert len(set(taken.tolist())) == EPOCH_CLIPS
        assert (taken < 60).sum() == 60  # weights 3 : 2
        left_out.add(frozenset(range(110)) - frozenset(taken.tolist()))
    assert len(left_out) == whole_epochs
    assert len(frozenset.union(*left_out)) == 50  # each of the larger dataset, some time


def test_what_is_drawn_at_random_differs_between_the_batches(alone):
    shown = {batch.clip_ids[row].tobytes() for batch in alone for row in range(BATCH)}
    assert len(shown) == 5  # of 2 x 2 ways to draw frames, and the padding's
    lengths = [batch.text_mask.sum(axis=1) for batch in alone[: EPOCH_STEPS - 1]]
    assert len(set(np.concatenate(lengths).tolist())) == 2  # with the parent and without
