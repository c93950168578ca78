import dataclasses
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import tensorflow_datasets as tfds

from data.dst_clips import render
from data.dst_clips.write import (
    Listeners,
    Machines,
    dataset_path,
    existing_fingerprint,
    write_dataset,
)
from tests.examples import stored_examples
from tests.index_video import constant_ticks, write_video
from vtalign_jax.dst.plan import Settings, make_plan
from vtalign_jax.errors import UserError
from vtalign_jax.locks import LOCK
from vtalign_jax.pipeline.dataset import open_split
from vtalign_jax.processes import make_pool


def _write(plan, out, machines=None, **listeners):
    return write_dataset(plan, str(out), machines or Machines(), Listeners(**listeners))


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    for split, uids in (("train", ("a", "b")), ("val", ("c",))):
        rows = []
        for uid in uids:
            write_video(root / f"{uid}.mp4", constant_ticks(240, 30))
            nodes = [{"type": "step", "id": "S1", "start_ts": 0, "end_ts": 8, "name": "all é"}]
            nodes += [
                {"type": "substep", "id": f"S1.{n}", "start_ts": n, "end_ts": n, "name": f"do {n}"}
                for n in range(6)
            ]
            nodes.append(nodes[0] | {"id": "S2", "start_ts": 90, "end_ts": 99})
            rows.append({"video_uid": uid, "dataset": "demo", "dst": nodes})
        (root / f"{split}.json").write_text(json.dumps(rows))
    settings = Settings(f"{root}/*.json", str(root), image_size=48, frames=4, levels="all")
    return make_plan(settings)


@pytest.fixture(scope="module")
def written(plan, tmp_path_factory):
    return _write(plan, tmp_path_factory.mktemp("out"))


def test_the_dataset_reads_back_through_tfds(written):
    builder = tfds.builder_from_directory(str(written.path))
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {
        "train": 14,
        "val": 7,
    }
    record = builder.as_data_source("val")[0]
    assert {(frame.shape, frame.dtype) for frame in record["frames"]} == {
        ((48, 48, 3), np.dtype(np.uint8))
    }
    assert len(record["frames"]) == len(record["frame_times"])


def test_the_table_has_a_row_a_record_in_the_order_of_the_data_source(written):
    source = tfds.builder_from_directory(str(written.path)).as_data_source("train")
    with pa.ipc.open_file(str(written.path / "clips-train.arrow")) as reader:
        rows = reader.read_all().to_pylist()
    assert len(rows) == len(source) == 14
    for row, record in zip(rows, source, strict=True):
        assert row["clip_id"] == record["clip_id"].decode()
        assert row["text"] == record["text"].decode()
        assert row["num_frames"] == len(record["frames"])
        assert row["frame_times"] == list(record["frame_times"])
        assert [name.encode() for name in row["ancestor_ids"]] == list(record["ancestor_ids"])
    by_id = {row["clip_id"]: row for row in rows}
    assert by_id["a/S1"]["text"] == "all é"
    assert (by_id["a/S1.3"]["parent_text"], by_id["a/S1.3"]["order"]) == ("all é", 3)
    assert by_id["a/S1.3"]["dataset"] == "demo"
    assert by_id["b/S1.0"]["frame_times"] == [0.5, 1.5]


def test_skips_and_description_are_complete(plan, written):
    assert [(skip.uid, skip.node_id) for skip in written.skips] == [
        ("a", "S2"),
        ("b", "S2"),
        ("c", "S2"),
    ]
    described = json.loads((written.path / "prepare.json").read_text())
    assert described["fingerprint"] == plan.fingerprint
    assert described["counts"] == {"train": 14, "val": 7}
    assert (described["image_size"], described["frames"]) == (48, 4)
    windows = ("strategy", "window_seconds", "pad_seconds")
    assert [described[name] for name in windows] == ["center", 4.0, None]


@pytest.mark.parametrize(
    ("strategy", "said", "longest", "typical"),
    [("span", [None, 0.25], 8.5, 0.5), ("adaptive", [4.0, None], 4.0, 4.0)],
)
def test_windows_of_other_strategies_are_described_and_read_back(
    plan, tmp_path, strategy, said, longest, typical
):
    settings = dataclasses.replace(plan.settings, strategy=strategy, pad_seconds=0.25)
    made = _write(make_plan(settings), tmp_path)
    described = json.loads((made.path / "prepare.json").read_text())
    assert described["strategy"] == strategy
    assert [described["window_seconds"], described["pad_seconds"]] == said
    split = open_split(str(tmp_path), "train")
    assert (split.longest_window_seconds, split.window_seconds) == (longest, typical)


def test_a_process_pool_gives_the_same_results_in_the_same_order(plan, tmp_path):
    jobs = plan.jobs["train"] + plan.jobs["val"]
    results = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        with make_pool(workers) as pool:
            assert (pool is None) == (workers == 1)
            results.append(list(render.render_all(jobs, str(folder), pool)))
    assert results[0] == results[1]
    assert [taken for taken, _ in results[0]] == [7, 7, 7]
    assert all(
        (tmp_path / "1" / path.name).read_bytes() == path.read_bytes()
        for path in (tmp_path / "2").iterdir()
    )


@pytest.mark.parametrize(
    "machines", [Machines(workers=2), Machines(beam_runner="DirectRunner")], ids=["pool", "beam"]
)
def test_a_pool_and_a_beam_pipeline_write_the_same_records(plan, written, tmp_path, machines):
    other = _write(plan, tmp_path, machines)
    assert other.skips == written.skips
    for split in plan.jobs:
        assert stored_examples(other.path, split) == stored_examples(written.path, split)
        assert other.tables[split].equals(written.tables[split])
    assert other.num_bytes == written.num_bytes
    described = [json.loads((made.path / "prepare.json").read_text()) for made in (other, written)]
    assert described[0] == described[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, "dst_clips"]


def test_a_beam_pipeline_takes_options_and_refuses_like_the_pool(plan, tmp_path):
    machines = Machines(beam_runner="DirectRunner", beam_options=("direct_num_workers=1",))

    def refuse(skips, taken):
        raise UserError(f"{len(skips)} of {taken}")

    with pytest.raises(UserError, match="3 of 21"):
        _write(plan, tmp_path, machines, check_skips=refuse)
    assert existing_fingerprint(str(tmp_path)) is None
    with pytest.raises(UserError, match="no clip of split val"):
        _write(_without_val(plan), tmp_path, machines)


def test_beam_that_is_not_installed_is_said_with_the_remedy(plan, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[beam\]'"):
        _write(plan, tmp_path, Machines(beam_runner="DirectRunner"))


@pytest.mark.parametrize("runner", ["NoRunner", "no_module.NoRunner", "json.NoRunner"])
def test_a_runner_that_beam_does_not_know_is_refused_by_name(plan, tmp_path, runner):
    with pytest.raises(UserError, match=f"no --beam_runner={runner}"):
        _write(plan, tmp_path, Machines(beam_runner=runner))
    assert existing_fingerprint(str(tmp_path)) is None


def test_a_refusal_comes_before_writing_and_leaves_nothing_under_the_final_name(plan, tmp_path):
    seen, said = [], []

    def refuse(skips, taken):
        seen.append((len(skips), taken))
        raise UserError("too many")

    with pytest.raises(UserError, match="too many"):
        _write(plan, tmp_path, check_skips=refuse, say=said.append)
    assert seen == [(3, 21)]
    assert "writing the records" not in said
    assert existing_fingerprint(str(tmp_path)) is None
    assert not dataset_path(str(tmp_path)).parent.exists()


def test_what_a_killed_run_has_rendered_is_not_rendered_again(plan, tmp_path, monkeypatch):
    whole = _without_skips(plan)
    killed, reused, said = [], [], []

    def stop_after_two(taken, skipped):
        killed.append(taken)
        if len(killed) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _write(whole, tmp_path, progress=stop_after_two)
    rendered = tmp_path / ".dst_clips.incomplete" / "rendered"
    assert len(list(rendered.iterdir())) == 2
    (rendered / "0123.arrow").write_bytes(b"of another plan")
    (rendered / f"{whole.jobs['val'][0].key()}.arrow.host.17").write_bytes(b"half")
    real = render.render_into
    monkeypatch.setattr(
        render,
        "render_into",
        lambda folder, job: (
            reused.append((rendered / f"{job.key()}.arrow").exists()) or real(folder, job)
        ),
    )
    again = _write(whole, tmp_path, say=said.append)
    assert reused == [True, True, False]
    assert said[0] == "2 of 3 parts are rendered already"
    assert {split: table.num_rows for split, table in again.tables.items()} == {
        "train": 14,
        "val": 7,
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, "dst_clips"]


def test_a_part_that_lost_clips_or_was_damaged_is_rendered_again(plan, tmp_path):
    whole = _without_skips(plan)
    for broken in (plan, whole):
        with pytest.raises(UserError, match="stop"):
            _write(broken, tmp_path, check_skips=_stop)
    rendered = tmp_path / ".dst_clips.incomplete" / "rendered"
    damaged = next(rendered.iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-200])
    said = []
    with pytest.raises(UserError, match="stop"):
        _write(whole, tmp_path, check_skips=_stop, say=said.append)
    assert said == ["2 of 3 parts are rendered already"]
    with pytest.raises(UserError, match="stop"):
        _write(plan, tmp_path, check_skips=_stop, say=said.append)  # each of its jobs loses a clip
    with pytest.raises(UserError, match="stop"):
        _write(plan, tmp_path, check_skips=_stop, say=said.append)
    assert len(said) == 1


def test_remains_of_a_killed_run_are_cleared_and_an_older_dataset_is_replaced(plan, tmp_path):
    remains = tmp_path / ".dst_clips.incomplete" / "tfds" / "dst_clips" / "1.0.0"
    remains.mkdir(parents=True)
    (remains / "features.json").write_text("{half")
    older = dataset_path(str(tmp_path))
    older.mkdir(parents=True)
    (older / "old").write_text("")
    replaced = tmp_path / ".dst_clips.incomplete" / "replaced"
    replaced.mkdir()
    (replaced / "older").write_text("")
    _write(plan, tmp_path)
    assert existing_fingerprint(str(tmp_path)) == plan.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, "dst_clips"]
    assert not (older / "old").exists()


def _stop(skips, taken):
    raise UserError("stop")


def _without_skips(plan):
    """Return the plan without the nodes that lie outside their video."""
    jobs = {
        split: [
            dataclasses.replace(job, pairs=tuple(p for p in job.pairs if p.node_id != "S2"))
            for job in split_jobs
        ]
        for split, split_jobs in plan.jobs.items()
    }
    return dataclasses.replace(plan, jobs=jobs)


def _without_val(plan):
    """Return the plan with nothing but nodes outside the video in val."""
    (job,) = plan.jobs["val"]
    lost = dataclasses.replace(job, pairs=tuple(p for p in job.pairs if p.node_id == "S2"))
    return dataclasses.replace(plan, jobs=plan.jobs | {"val": [lost]})


def test_a_dataset_without_its_description_has_no_fingerprint(tmp_path):
    dataset_path(str(tmp_path)).mkdir(parents=True)
    assert existing_fingerprint(str(tmp_path)) == ""


def test_a_split_whose_clips_are_all_lost_is_an_error(plan, tmp_path):
    with pytest.raises(UserError, match=r"no clip of split val has frames \(span outside"):
        _write(_without_val(plan), tmp_path)


def test_the_reason_named_is_that_of_the_split_that_lost_its_clips(plan, tmp_path):
    job = plan.jobs["train"][0]
    gone = dataclasses.replace(job, source=dataclasses.replace(job.source, path="gone.mp4"))
    with pytest.raises(UserError, match=r"no clip of split train has frames \(unreadable video"):
        _write(dataclasses.replace(plan, jobs=plan.jobs | {"train": [gone]}), tmp_path)


def test_neither_tensorflow_nor_jax_nor_torch_is_imported():
    code = (
        "import sys; from data.dst_clips import write; import vtalign_jax.dst.report\n"
        "print([m for m in ('tensorflow', 'jax', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
