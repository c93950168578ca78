"""A run's bookkeeping over restarts: early stop, patience, skipped updates."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from tests.tiny_aligner import make_config
from vtalign_jax import sharding
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.result import Evaluation
from vtalign_jax.locks import LOCK
from vtalign_jax.training import optim
from vtalign_jax.training.checkpoint import read_extra
from vtalign_jax.training.manifest import Fingerprints
from vtalign_jax.training.session import Session
from vtalign_jax.training.state import init_state

EPOCH_STEPS = 3
CLIPS = {"window_seconds": 2.5, "fit": "center_crop", "rotate": 90}


def open_session(workdir, **train):
    values = {"epochs": 9, "min_epochs": 1, "patience": 3, "log_every_steps": 5} | train
    config = make_config(train=values)
    session = Session(str(workdir), config, Fingerprints("base", "data"), EPOCH_STEPS, CLIPS)
    session.open()
    return session, config


def fresh_state(config):
    params = {"log_temperature": np.float32(-2.0), "head.fc1.kernel": np.ones((2, 3), np.float32)}
    optimizer = optim.make_optimizer(config.optim, 27)
    return init_state(params, optimizer, config.train.seed, sharding.make_mesh(config.mesh))


def evaluate(session, state, epoch: int, recall: float) -> bool:
    done = epoch * EPOCH_STEPS
    session.evaluated(done, Evaluation({"recall@1": 0.0, "recall@5": recall}), state)
    return session.is_over(done)


def test_patience_and_best_survive_a_restart(tmp_path):
    session, config = open_session(tmp_path)
    state = session.start(fresh_state(config))
    assert not session.is_resumed
    assert not evaluate(session, state, 1, 0.5)
    assert not evaluate(session, state, 2, 0.4)
    assert not evaluate(session, state, 3, 0.5)  # equal is not better
    session.close()

    session, config = open_session(tmp_path)
    session.start(fresh_state(config))
    assert (session.is_resumed, session.step) == (True, 9)
    assert (session.early.best, session.early.best_step, session.early.waited) == (0.5, 3, 2)
    assert evaluate(session, state, 4, 0.3)
    early, best = session.summary().splitlines()[:2]
    assert early.startswith("ended early, after step 12 of ")
    assert early.endswith("has not risen in 3 evaluations (config.train.patience)")
    assert "0.5000, after step 3: " in best
    session.close()

    session, config = open_session(tmp_path)
    session.start(fresh_state(config))
    assert session.is_over(session.step)
    session.close()
    kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()}
    assert kept == {3, 12}  # the best and the newest


def test_the_margin_of_the_configuration_decides_what_counts_but_not_what_is_kept(tmp_path):
    session, config = open_session(tmp_path, min_recall_gain=0.125, patience=2)
    state = session.start(fresh_state(config))
    assert not evaluate(session, state, 1, 0.5)
    assert not evaluate(session, state, 2, 0.5625)
    assert evaluate(session, state, 3, 0.53125)
    assert "best val/recall@5 0.5625, after step 6" in session.summary()
    session.close()
    assert (tmp_path / "checkpoints" / "6").exists()


def test_an_evaluation_is_written_whole_beside_its_scalars(tmp_path):
    group = {"clips": 3, "texts": 2, "recall@1": 0.0, "recall@5": 0.25, "recall@10": 1.0}
    found = Evaluation(
        {"recall@1": 0.0, "recall@5": 0.25, "margin": math.nan},
        {"recall@5": (0.125, 0.5), "mAP": (0.0, 1.0)},
        {"dataset": {"a": group}, "level": {"step": group}, "recording": {"r": group}},
    )
    session, config = open_session(tmp_path)
    session.start(fresh_state(config))
    session.record(0, "zero_shot", found)
    session.close()
    (line,) = (tmp_path / "evaluations.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "step": 0,
        "row": "zero_shot",
        "metrics": {"recall@1": 0.0, "recall@5": 0.25, "margin": None},
        "intervals": {"recall@5": [0.125, 0.5], "mAP": [0.0, 1.0]},
        "groups": {"dataset": {"a": group}, "level": {"step": group}, "recording": {"r": group}},
    }
    again = Evaluation.from_json(json.loads(line))
    assert math.isnan(again.metrics.pop("margin"))
    assert again == dataclasses.replace(found, metrics={"recall@1": 0.0, "recall@5": 0.25})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "step": 0,
        "zero_shot/recall@1": 0.0,
        "zero_shot/recall@5": 0.25,
        "zero_shot/margin": None,
        "zero_shot/recall@5_low": 0.125,
        "zero_shot/recall@5_high": 0.5,
        "zero_shot/dataset/a/recall@5": 0.25,
        "zero_shot/level/step/recall@5": 0.25,
    }


def test_a_save_between_evaluations_cannot_end_the_run(tmp_path):
    session, config = open_session(tmp_path, patience=1)
    state = session.start(fresh_state(config))
    evaluate(session, state, 1, 0.5)
    assert evaluate(session, state, 2, 0.1)
    assert not session.is_over(2 * EPOCH_STEPS + 1)
    session.close()


def test_a_checkpoint_says_how_clips_were_made(tmp_path):
    session, config = open_session(tmp_path)
    session.save(3, session.start(fresh_state(config)))
    session.close()
    extra = read_extra(tmp_path / "checkpoints" / "3")
    assert {name: extra[name] for name in CLIPS} == CLIPS


def test_another_configuration_is_refused_before_anything_is_loaded(tmp_path):
    session, config = open_session(tmp_path)
    session.save(3, session.start(fresh_state(config)))
    session.close()
    with pytest.raises(UserError, match=r"config\.train\.epochs was 9 and is now 8"):
        open_session(tmp_path, epochs=8)


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to --workdir"):
        open_session(tmp_path / "file")


def run_until(workdir, steps, *, close):
    """Take a session from where it stands through `steps`: a log line a step, two evaluations."""
    session, config = open_session(workdir, log_every_steps=1)
    state = session.start(fresh_state(config))
    for done in range(session.step + 1, steps + 1):
        session._writer.write(done, {"train/loss": 1 / done})
        if done % EPOCH_STEPS == 0:
            evaluate(session, state, done // EPOCH_STEPS, done / 100)
        elif done == 4:
            session.save(done, state)
    if close:
        session.close()
    else:  # the process is killed: nothing is uploaded any more, what Orbax has begun may be there
        session._checkpoints.wait()
    return session.step


def test_a_run_in_a_bucket_goes_on_after_a_kill_as_one_on_a_disk_does(tmp_path, bucket):
    workdir = f"{bucket.url}/runs/a"
    for place in (workdir, tmp_path):
        assert run_until(place, 5, close=False) == 0
    kept = bucket.read("runs/a/metrics.jsonl").decode()
    assert '"step": 4,' in kept  # saved at 4: the rows of a checkpoint are never lost
    for name in ("state/d/part", "extra/metadata"):  # a save that a kill has cut off
        bucket.put(f"runs/a/checkpoints/5/{name}", b"{}")
    for place in (workdir, tmp_path):
        assert run_until(place, 6, close=True) == 4
    there = {name.removeprefix("runs/a/") for name in bucket.names("runs/a/")}
    local = (tmp_path / "metrics.jsonl").read_text()
    assert bucket.read("runs/a/metrics.jsonl").decode() == local
    evaluations = (tmp_path / "evaluations.jsonl").read_text()
    assert bucket.read("runs/a/evaluations.jsonl").decode() == evaluations
    assert [json.loads(line)["step"] for line in evaluations.splitlines()] == [3, 6]
    assert sum('"train/loss"' in line for line in local.splitlines()) == 6
    assert {name.split("/")[1] for name in there if name.startswith("checkpoints/")} == {"6"}
    files = {name for name in there if "/" not in name}
    assert files == {p.name for p in tmp_path.iterdir() if p.is_file()} - {LOCK}
    assert sum(name.startswith("tensorboard/") for name in there) == 2  # one a start
    starts = json.loads(bucket.read("runs/a/manifest.json"))["starts"]
    assert [start["restored_step"] for start in starts] == [None, 4]


@pytest.mark.parametrize(("longest", "is_fatal"), [(9, False), (10, True)])
def test_a_streak_of_lost_updates_between_two_log_lines_is_seen(tmp_path, longest, is_fatal):
    session, config = open_session(tmp_path)
    session.start(fresh_state(config))
    session.progress.advance(0.0)
    metrics = {"loss": jax.numpy.float32(1.0), "longest_skipped": jax.numpy.int32(longest)}
    assert [session.is_log_due(done) for done in (4, 5, 10, 26, 27)] == [0, 1, 1, 0, 1]
    if is_fatal:
        with pytest.raises(UserError, match="not finite in 10 steps in a row"):
            session.log(5, metrics, {})
    else:
        session.log(5, metrics, {})
    session.close()


def test_a_second_session_of_one_workdir_is_refused_until_the_first_is_closed(tmp_path):
    session, config = open_session(tmp_path)
    session.start(fresh_state(config))
    with pytest.raises(UserError, match="is being written by process"):
        open_session(tmp_path)
    session.close()
    open_session(tmp_path)[0].start(fresh_state(config))


def test_an_error_lets_the_save_under_way_end(tmp_path):
    session, config = open_session(tmp_path)
    state = session.start(fresh_state(config))

    def fail_while_it_saves():
        with session.settled():
            session.save(1, state)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_it_saves()
    assert (tmp_path / "checkpoints" / "1").exists()
    session.close()
