import json

import numpy as np
import pytest

from benchmarks import prepare
from data.dst_clips.write import Listeners, Machines, write_dataset
from tests.commands import one_error_line, run
from tests.index_video import constant_ticks, write_video
from vtalign_jax.dst.plan import Settings, make_plan


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    root = tmp_path_factory.mktemp("recordings")
    for uid in ("a", "b"):
        write_video(root / f"{uid}.mp4", constant_ticks(240, 24), rate=24)
    nodes = [
        {"type": "action", "id": f"S{n}", "start_ts": n, "end_ts": n + 1, "name": f"do {n}"}
        for n in range(9)
    ]
    rows = [{"video_uid": uid, "dst": nodes} for uid in ("a", "b")]
    (root / "train.json").write_text(json.dumps(rows))
    return root


def test_prepare_is_measured_beside_a_loop_over_the_same_clips(recordings, tmp_path):
    where = f"--annotations={recordings}/train.json", f"--videos={recordings}"
    (line,) = run("launch/bench.py", "prepare", *where, "--repeats=1", "--workers=2").splitlines()
    row = json.loads(line)
    assert (row["part"], row["clips"], row["videos"], row["workers"]) == ("prepare", 18, 2, 2)
    assert row["seconds"].keys() == {"loop", "one_process", "prepare"}
    ratio = row["seconds"]["loop"] / row["seconds"]["prepare"]
    assert row["ratio_to_loop"] == pytest.approx(ratio, rel=0.1)


def test_ways_that_give_other_frames_are_not_compared(recordings, monkeypatch):
    plan = make_plan(Settings(f"{recordings}/train.json", str(recordings), val_fraction=0.0))
    prepare._check_same_frames(plan.jobs["train"])
    monkeypatch.setattr(prepare, "render_clip_by_clip", lambda job: [[b"other"]])
    with pytest.raises(AssertionError, match="other frames"):
        prepare._check_same_frames(plan.jobs["train"])


def test_the_memory_of_a_worker_is_that_of_a_process_of_its_own(recordings):
    settings = Settings(f"{recordings}/train.json", str(recordings))
    held = np.ones(2**30, np.uint8)  # by the process that measures
    assert 50 < prepare._peak_mib(settings) < held.nbytes / 2**20


@pytest.mark.slow
@pytest.mark.parity
def test_input_is_measured_on_one_core_beside_torch(recordings, tmp_path):
    plan = make_plan(
        Settings(f"{recordings}/*.json", str(recordings), image_size=32, val_fraction=0.0)
    )
    write_dataset(plan, str(tmp_path / "dataset"), Machines(), Listeners())
    flags = f"--dataset={tmp_path}/dataset", "--repeats=1"
    (line,) = run("launch/bench.py", "input", *flags).splitlines()
    row = json.loads(line)
    rates = row["clips_a_second_a_core"]
    assert rates.keys() == {"threads", "worker", "torch", "torch_worker"}
    assert (row["clips"], row["frames"], row["image_size"]) == (18, 8, 32)
    ours, peer = (
        max(rates[a], rates[b]) for a, b in [("threads", "worker"), ("torch", "torch_worker")]
    )
    assert row["ratio_to_torch"] == pytest.approx(ours / peer, rel=0.05)


def test_ranking_is_measured_with_the_memory_it_takes():
    printed = run("launch/bench.py", "recall", "--clips=1500", "--embedding_dim=64")
    row = json.loads(printed.splitlines()[-1])
    assert (row["part"], row["clips"], row["texts"]) == ("recall", 1500, 1500)
    assert row["pairs"] == 1500**2
    assert row["embeddings_gib"] == 0.0  # 0.7 MiB
    assert 0 <= row["more_memory_gib"] < 0.5
    assert row["seconds"] > 0
    assert row["processor_seconds"] > 0
    low, high = row["recall@5_interval"]
    assert 0 < low <= row["recall@5"] <= high < 1


def test_a_part_that_is_missing_unknown_or_too_many_is_one_line(tmp_path):
    for parts in ((), ("everything",)):
        said = one_error_line(run("launch/bench.py", *parts, code=2))
        assert "say which part: prepare" in said
    extra = one_error_line(run("launch/bench.py", "prepare", "more", code=2))
    assert "unexpected argument 'more'" in extra
