import collections
import io
import json
import os
import pathlib
import subprocess
import sys
import time

import pyarrow as pa
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tests.examples import stored_examples
from tests.index_video import constant_ticks, read_index, write_video
from tests.proassist_tree import FPS, STEP, make_proassist_tree

ROOT = pathlib.Path(__file__).parents[2]


def _prepare(*flags, cwd=ROOT):
    command = [sys.executable, str(ROOT / "launch" / "prepare.py"), *map(str, flags)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def _refused(*flags):
    done = _prepare(*flags)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def _table(out, split):
    with pa.ipc.open_file(f"{out}/dst_clips/1.0.0/clips-{split}.arrow") as reader:
        return reader.read_all().to_pylist()


def _records(out, split):
    directory = f"{out}/dst_clips/1.0.0"
    return list(tfds.builder_from_directory(directory).as_data_source(split))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("proassist")
    return make_proassist_tree(root, train=1, val=1, seconds=16, size=96, keep_videos=True)


def _tree_flags(tree, frames, out):
    return (
        f"--annotations={tree.annotations}",
        f"--videos={frames}",
        "--layout=assembly101",
        "--image_size=96",
        f"--out={out}",
    )


@pytest.fixture(scope="module")
def from_arrow(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("arrow")
    done = _prepare(*_tree_flags(tree, tree.frames, out), "--workers=1")
    assert done.returncode == 0, done.stderr
    return out, done


@pytest.fixture(scope="module")
def from_video(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("video")
    done = _prepare(*_tree_flags(tree, tree.videos, out), "--workers=2")
    assert done.returncode == 0, done.stderr
    return out, done


def _shown(record, rotate=0):
    pictures = [Image.fromarray(frame) for frame in record["frames"]]
    return [read_index(picture.rotate(rotate)) for picture in pictures]


def test_a_proassist_tree_becomes_a_dataset_with_the_rows_of_its_times(tree, from_arrow):
    out, _ = from_arrow
    for split, uids in tree.uids.items():
        rows = _table(out, split)
        assert {row["uid"] for row in rows} == set(uids)
        assert len(rows) == tree.clips[split]
        assert len({row["recording_id"] for row in rows}) == 1
        assert {row["dataset"] for row in rows} == {"assembly101"}
    for record in _records(out, "val"):
        expected = [int(time * FPS / STEP + 1e-6) * STEP for time in record["frame_times"]]
        assert _shown(record, rotate=-90) == expected


def test_arrow_jpegs_of_the_right_size_are_stored_byte_for_byte(tree, from_arrow):
    import base64

    out, _ = from_arrow
    uid = tree.uids["val"][0].removeprefix("assembly_")
    with pa.OSFile(f"{tree.frames}/{uid}.arrow") as file:
        stored = {
            base64.b64decode(text) for text in pa.ipc.open_stream(file).read_all()[0].to_pylist()
        }
    source = tfds.builder_from_directory(f"{out}/dst_clips/1.0.0").as_data_source("val")
    raw = source.data_source[0]
    assert sum(jpeg in raw for jpeg in stored) == len(source[0]["frames"])


def test_raw_videos_of_the_layout_show_the_same_moments_cropped_and_turned(from_arrow, from_video):
    rows = {record["clip_id"]: record for record in _records(from_video[0], "val")}
    arrow = {record["clip_id"]: record for record in _records(from_arrow[0], "val")}
    assert rows.keys() == arrow.keys()
    for clip_id, record in rows.items():
        shown = _shown(record, rotate=-90)
        assert shown == [int(time * FPS + 1e-6) for time in record["frame_times"]]
        times = arrow[clip_id]["frame_times"]
        by_time = dict(zip(times, _shown(arrow[clip_id], rotate=-90), strict=True))
        for at, index in zip(record["frame_times"], shown, strict=True):
            assert 0 <= index - by_time[at] < STEP


def test_it_ends_with_a_table_and_the_next_command(tree, from_arrow):
    out, done = from_arrow
    lines = done.stdout.splitlines()
    clips = sum(tree.clips.values())
    assert ["clips", str(tree.clips["train"]), str(tree.clips["val"])] in map(str.split, lines)
    assert f"taken {clips} clips, skipped 0 (0.0%)" in lines
    assert any(line.startswith(f"prepare: {clips}/{clips} clips") for line in lines)
    last = "next: python launch/train.py --config=configs/pretrain.py --config.data.dir="
    assert lines[-1] == f"{last}{out}"
    assert "--config=configs/tiny.py tries it on a laptop" in lines[-2]
    assert done.stderr == ""
    assert (out / "skipped.jsonl").read_text() == ""


def test_the_same_command_again_has_nothing_to_do_and_another_must_overwrite(tree, from_arrow):
    out, _ = from_arrow
    before = (out / "dst_clips/1.0.0/prepare.json").stat().st_mtime_ns
    again = _prepare(*_tree_flags(tree, tree.frames, out))
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    other = (*_tree_flags(tree, tree.frames, out), "--limit_videos=2")
    assert "--overwrite" in _refused(*other)
    assert (out / "dst_clips/1.0.0/prepare.json").stat().st_mtime_ns == before
    assert _prepare(*other, "--overwrite").returncode == 0
    assert {split: len({row["uid"] for row in _table(out, split)}) for split in tree.uids} == {
        "train": 1,
        "val": 1,
    }


def test_a_killed_prepare_goes_on_with_the_same_command_and_leaves_no_process(tree, tmp_path):
    flags = (*_tree_flags(tree, tree.videos, tmp_path / "killed"), "--workers=2")
    command = [sys.executable, str(ROOT / "launch" / "prepare.py"), *map(str, flags)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT, env=environment
    )
    rendered = tmp_path / "killed" / ".dst_clips.incomplete" / "rendered"
    while not list(rendered.glob("*.arrow")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.kill()
    process.stdout.read()  # ends when the last of its workers has let go of it
    assert _prepare(*flags).returncode == 0
    assert [path.name for path in (tmp_path / "killed").glob("*dst_clips*")] == ["dst_clips"]
    whole = _prepare(*_tree_flags(tree, tree.videos, tmp_path / "whole"), "--workers=1")
    assert whole.returncode == 0
    for split in tree.uids:
        assert _table(tmp_path / "killed", split) == _table(tmp_path / "whole", split)
        examples = [
            stored_examples(tmp_path / name / "dst_clips" / "1.0.0", split)
            for name in ("killed", "whole")
        ]
        assert examples[0] == examples[1]


def test_without_a_split_that_training_needs_the_next_command_asks_for_it(tree, tmp_path):
    _, *others = _tree_flags(tree, tree.frames, tmp_path)
    for split, missing in (("train", "val"), ("val", "train")):
        only = f"--annotations={pathlib.Path(tree.annotations.split(',')[0]).parent}/{split}.json"
        done = _prepare(only, *others, "--overwrite")
        assert done.returncode == 0, done.stderr
        last = done.stdout.splitlines()[-1]
        assert last.startswith(f"next, with a DATASET of split {missing}: python launch/train.py ")
        assert last.endswith(f"--config.data.dir={tmp_path},DATASET")


def test_flags_of_machines_that_do_not_fit_are_refused(tree, tmp_path):
    flags = _tree_flags(tree, tree.frames, tmp_path)
    assert "--workers must be 0 or more" in _refused(*flags, "--workers=-1")
    assert "--beam_runner" in _refused(*flags, "--beam_options=direct_num_workers=2")
    assert "no --beam_runner=NoRunner: " in _refused(*flags, "--beam_runner=NoRunner")


BAD = [
    {"type": "action", "id": "S1", "start_ts": 9.0, "end_ts": 4.0, "name": "attach wheel"},
    {"type": "action", "id": "S2", "start_ts": float("nan"), "end_ts": 4.0, "name": "attach"},
    {"type": "action", "id": "S3", "start_ts": 1.0, "end_ts": 4.0, "name": "  "},
    {"type": "action", "id": "S4", "start_ts": 80.0, "end_ts": 81.0, "name": "too late"},
    {"type": "action", "id": "S5", "start_ts": "00:00:01.50", "end_ts": "2.5", "name": "fine"},
    {"type": "action", "id": "S5", "start_ts": 3.0, "end_ts": 4.0, "name": "twice"},
]


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    root = tmp_path_factory.mktemp("mistakes")
    for uid in ("v", "w"):
        write_video(root / f"{uid}.mp4", constant_ticks(150, 30))
    (root / "broken.mp4").write_bytes(b"no video")
    fine = [BAD[4] | {"id": f"S{n}"} for n in range(4)]
    rows = [
        {"video_uid": "v", "dst": BAD},
        {"video_uid": "broken", "dst": fine},
        {"video_uid": "absent", "dst": fine},
        {"video_uid": "../../etc/passwd", "dst": fine},
    ]
    (root / "train.json").write_text(json.dumps(rows))
    (root / "val.json").write_text(json.dumps([{"video_uid": "w", "dst": fine}]))
    return root


def _mistake_flags(root, out):
    files = f"{root}/train.json,{root}/val.json"
    return f"--annotations={files}", f"--videos={root}", f"--out={out}", "--workers=1"


REASONS = {
    "reversed times": 1,
    "unusable time": 1,
    "empty text": 1,
    "span outside the video": 1,
    "duplicate id": 1,
    "unreadable video": 4,
    "no frames": 4,
    "unsafe uid": 4,
}


def _reasons(out):
    counts = collections.Counter()
    for line in (pathlib.Path(out) / "skipped.jsonl").read_text().splitlines():
        skip = json.loads(line)
        counts[skip["reason"]] += skip["clips"]
    return dict(counts)


def test_what_cannot_be_used_is_named_and_the_rest_is_kept(mistakes, tmp_path):
    done = _prepare(*_mistake_flags(mistakes, tmp_path), "--max_skipped=0.9")
    assert done.returncode == 0, done.stderr
    assert _reasons(tmp_path) == REASONS
    for reason, count in REASONS.items():
        assert f"  {count} skipped: {reason}" in done.stdout.splitlines()
    assert [row["clip_id"] for row in _table(tmp_path, "train")] == ["v/S5"]
    assert len(_table(tmp_path, "val")) == 4


def test_too_many_skips_fail_before_and_after_decoding_and_leave_no_dataset(mistakes, tmp_path):
    before = _refused(*_mistake_flags(mistakes, tmp_path))
    assert "12 of 22 clips are skipped" in before
    assert "--max_skipped=0.05" in before
    after = _refused(*_mistake_flags(mistakes, tmp_path), "--max_skipped=0.6")
    assert "17 of 22 clips are skipped" in after
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".dst_clips.incomplete",  # what is rendered, for the next try
        ".lock",
        "skipped.jsonl",
    ]
    assert _reasons(tmp_path) == REASONS


def test_mistakes_on_the_command_line_are_one_line_and_code_2(mistakes, tmp_path):
    files, videos, out, _ = _mistake_flags(mistakes, tmp_path)
    assert "--annotations is missing" in _refused(videos, out)
    assert "nowhere.json" in _refused("--annotations=nowhere.json", videos, out)
    assert "no folder /nowhere" in _refused(files, "--videos=/nowhere", out)
    assert "--max_skipped" in _refused(files, videos, out, "--max_skipped=5")
    blocked = tmp_path / "file"
    blocked.write_text("")
    flags = (f"--out={blocked}/x", "--max_skipped=0.9")
    assert "cannot write below" in _refused(files, videos, *flags)


def test_decoded_frames_are_jpegs_of_the_wanted_size(from_video):
    out, _ = from_video
    record = _records(out, "train")[0]
    assert {frame.shape for frame in record["frames"]} == {(96, 96, 3)}
    source = tfds.builder_from_directory(f"{out}/dst_clips/1.0.0").as_data_source("train")
    start = source.data_source[0].index(b"\xff\xd8\xff")
    assert Image.open(io.BytesIO(source.data_source[0][start:])).size == (96, 96)
