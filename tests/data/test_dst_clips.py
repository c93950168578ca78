import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import tensorflow_datasets as tfds

from data.dst_clips.dst_clips_dataset_builder import make_pool, render_all
from data.dst_clips.write import dataset_path, existing_fingerprint, write_dataset
from tests.index_video import constant_ticks, write_video
from vtalign_jax.dst.plan import Settings, make_plan
from vtalign_jax.errors import UserError


def _accept(skips, taken):
    del skips, taken


def _ignore(*arguments):
    del arguments


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
    return write_dataset(plan, str(tmp_path_factory.mktemp("out")), 1, _ignore, _ignore, _accept)


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
    assert (described["window_seconds"], described["strategy"]) == (4.0, "center")


def test_a_process_pool_gives_the_same_records_in_the_same_order(plan):
    jobs = plan.jobs["train"] * 4
    with make_pool(1) as none, make_pool(2) as pool:
        alone, together = list(render_all(jobs, none)), list(render_all(jobs, pool))
    assert none is None
    assert len(together) == len(jobs)
    assert [rendered.records for rendered in together] == [done.records for done in alone]


def test_a_refusal_leaves_nothing_under_the_final_name(plan, tmp_path):
    seen = []

    def refuse(skips, taken):
        seen.append((len(skips), taken))
        raise UserError("too many")

    with pytest.raises(UserError, match="too many"):
        write_dataset(plan, str(tmp_path), 1, _ignore, _ignore, refuse)
    assert seen == [(3, 21)]
    assert list(tmp_path.iterdir()) == []
    assert existing_fingerprint(str(tmp_path)) is None


def test_remains_of_a_killed_run_are_cleared(plan, tmp_path):
    remains = tmp_path / ".dst_clips.incomplete" / "dst_clips" / "1.0.0"
    remains.mkdir(parents=True)
    (remains / "features.json").write_text("{half")
    write_dataset(plan, str(tmp_path), 1, _ignore, _ignore, _accept)
    assert existing_fingerprint(str(tmp_path)) == plan.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["dst_clips"]


def test_a_dataset_without_its_description_has_no_fingerprint(tmp_path):
    dataset_path(str(tmp_path)).mkdir(parents=True)
    assert existing_fingerprint(str(tmp_path)) == ""


def test_a_split_whose_clips_are_all_lost_is_an_error(plan, tmp_path):
    lost = {
        split: [job for job in jobs if job.pairs[0].uid != "c"] for split, jobs in plan.jobs.items()
    }
    jobs = lost | {"val": []}
    broken = type(plan)(**{**vars(plan), "jobs": jobs})
    with pytest.raises(UserError, match="no clip of split val"):
        write_dataset(broken, str(tmp_path), 1, _ignore, _ignore, _accept)


def test_neither_tensorflow_nor_jax_nor_torch_is_imported():
    code = (
        "import sys; from data.dst_clips import write; import vtalign_jax.dst.report\n"
        "print([m for m in ('tensorflow', 'jax', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
