"""Training on two datasets with windows of many lengths, jitter and parent texts, as a process."""

import json

import pytest

from tests import commands
from tests.pipeline.clip_fixtures import jpeg, make_clip, write_dataset
from vtalign_jax.dst.pairs import frame_times
from vtalign_jax.training.checkpoint import read_extra

SIZE, FRAMES = 64, 8  # pixels of the tiny base; frames stored


def _clips(uid, count, length):
    """Return clips of one recording; clip n has a window of `length` + n seconds."""
    clips = []
    for n in range(count):
        start, end = 10.0 * n, 11.0 * n + length
        clips.append(
            make_clip(
                uid,
                f"S{n}",
                0.0,
                f"do {n % 2}",
                parent_text=f"part {n % 3}",
                frames=[jpeg((30 * n, 9 * k, 99), SIZE) for k in range(FRAMES)],
                frame_times=frame_times(start, end, FRAMES),
                window_start=start,
                window_end=end,
                order=n,
            )
        )
    return clips


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    splits = {
        "one": {"train": _clips("a", 6, 1.0), "val": _clips("b", 6, 2.0)},
        "two": {"train": _clips("c", 20, 0.5)},
        "leaks": {"train": _clips("b", 3, 1.0)},
    }
    for number, (name, clips) in enumerate(splits.items()):
        settings = {"image_size": SIZE, "frames": FRAMES, "fingerprint": str(number) * 64}
        write_dataset(folder / name, clips, **settings)
    return folder


def _train(tmp, names, *more, **options):
    dirs = ",".join(str(tmp / name) for name in names)
    return commands.run(
        "launch/train.py",
        "--config=tests/launch/small_run.py",
        f"--config.data.dir={dirs}",
        f"--workdir={tmp}/run",
        "--config.train.epochs=1",
        *more,
        **options,
    )


def test_shares_windows_and_shown_texts_reach_the_run_and_its_checkpoint(tmp):
    said = _train(
        tmp,
        ("one", "two"),
        "--config.data.weights=1,2",
        "--config.data.jitter=True",
        "--config.data.parent_text_probability=0.5",
        "--config.data.eval_parent_text=True",
    )
    assert "18 clips to train on and 6 to validate, 1 epoch of 3 steps" in said
    assert f"an epoch takes 6 clips of {tmp}/one, 12 of 20 clips of {tmp}/two" in said
    assert f"validating on 6 clips of {tmp}/one, 0 clips of {tmp}/two" in said
    first = json.loads((tmp / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["chance/texts"] == 6  # of 2 names below 3 parents
    extra = read_extra(tmp / "run" / "checkpoints" / "3")
    assert extra["window_seconds"] == 7.5  # of 1 to 6 and 0.5 to 19.5 s: the median


def test_a_recording_on_both_sides_of_two_datasets_and_wrong_weights_are_one_line(tmp):
    leaking = commands.one_error_line(_train(tmp, ("one", "leaks"), code=2))
    assert f"recording b is trained on in {tmp}/leaks and validated on in {tmp}/one" in leaking
    wrong = commands.one_error_line(
        _train(tmp, ("one", "two"), "--config.data.weights=1,2,3", code=2)
    )
    assert "config.data.weights '1,2,3' must give each dataset" in wrong
