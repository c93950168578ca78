import json

import pytest

from vtalign_jax.dst import readers
from vtalign_jax.dst.readers import expand_paths, read_annotations, split_of_file
from vtalign_jax.dst.tables import Columns
from vtalign_jax.errors import UserError

ROW = {
    "video_uid": "v1",
    "inferred_goal": "g",
    "dst": [{"type": "step", "id": "S1", "start_ts": 1, "end_ts": "2.5", "name": "do it"}],
    "conversation": [],
}
TSV = "type\tid\tstart_ts\tend_ts\tname\nSTEP\t1\t0\t9\tdo it\n"
CSV = "video_id,start_timestamp,stop_timestamp,narration\nv1,00:00:01.00,00:00:02.50,do it\n"


def _write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.json", "train"),
        ("val.json", "val"),
        ("test.jsonl", "test"),
        ("validation.json", "val"),
        ("train_filtered.json", "train"),
        ("val_training.json", "val"),
        ("TEST_filtered.json", "test"),
        ("ego4d_train.json", "train"),
        ("ego4d_val_filtered.json", "val"),
        ("EPIC_100_validation.csv", "val"),
        ("goalstep-test.json", "test"),
        ("annotations.json", ""),
        ("training.json", ""),
        ("contest.json", ""),
        ("train_of_thought.json", ""),
    ],
)
def test_file_names_give_the_split(name, split):
    assert split_of_file(f"/some/val/{name}") == split


@pytest.mark.parametrize(
    ("path", "content", "split"),
    [
        ("train/v1.tsv", TSV, "train"),
        ("validation/v1.json", ROW, "val"),
        ("train/val.json", [ROW], "val"),
        ("train/take_test.tsv", TSV, "train"),
        ("train/ego4d_take_test.json", [ROW | {"video_uid": "take_test"}], "train"),
        ("other/take_test.tsv", TSV, ""),
        ("other/test.json", [ROW | {"video_uid": "test"}], "test"),
        ("other/ego4d_val.json", [ROW | {"video_uid": "l"}], "val"),
        ("other/val_filtered.json", [ROW | {"video_uid": "filtered"}], "val"),
        ("train/all.json", [ROW, ROW | {"video_uid": "v2"}], ""),
    ],
)
def test_a_file_of_one_video_may_have_its_split_from_the_folder(tmp_path, path, content, split):
    videos, _ = read_annotations(_write(tmp_path / path, content))
    assert {video.split for video in videos} == {split}


def test_the_dataset_is_in_the_row_or_else_in_the_name_of_the_file(tmp_path):
    for name, dataset in (("ego4d_grp-12.json", "ego4d"), ("v1.json", "")):
        videos, _ = read_annotations(_write(tmp_path / name, [ROW]))
        assert videos[0].dataset == dataset
    (video,), _ = read_annotations(_write(tmp_path / "EPIC_100_train.csv", CSV))
    assert (video.dataset, video.split) == ("epickitchens", "train")
    named = _write(tmp_path / "ego4d_v1.json", [ROW | {"dataset": "wtag"}])
    assert read_annotations(named)[0][0].dataset == "wtag"


@pytest.mark.parametrize("extension", ["json", "tsv", "csv", "txt"])
def test_the_content_says_which_format_it_is_not_the_extension(tmp_path, extension):
    contents = ([ROW], json.dumps(ROW) + "\n" + json.dumps(ROW), TSV, "\n" + CSV)
    for content, level in zip(contents, ("step", "step", "STEP", "action"), strict=True):
        videos, skips = read_annotations(_write(tmp_path / f"v1.{extension}", content))
        assert [(video.uid, video.nodes[0].level) for video in videos[:1]] == [("v1", level)]
        assert skips == []


@pytest.mark.parametrize("content", ["[]", CSV.splitlines()[0]])
def test_a_file_without_rows_is_named(tmp_path, content):
    videos, (skip,) = read_annotations(_write(tmp_path / "v1.txt", content))
    assert videos == []
    assert (skip.reason, skip.where, skip.clips) == ("no recordings", "v1.txt", 0)


def test_a_forced_format_is_the_only_one_tried(tmp_path):
    both = ROW | {"all_step_descriptions": "[1.0s-2.0s] one\n[2.0s-3.0s] two"}
    path = _write(tmp_path / "a.json", [both])
    assert len(read_annotations(path)[0][0].nodes) == 1
    assert len(read_annotations(path, "step_text")[0][0].nodes) == 2
    videos, skips = read_annotations(path, "nested")
    assert videos == []
    assert skips[0].uid == "v1"
    assert 'no list "steps"' in skips[0].detail
    with pytest.raises(UserError, match="no TSV of type, id, start_ts, end_ts, name"):
        read_annotations(path, "tsv")
    table = _write(tmp_path / "a.tsv", TSV)
    columns = Columns(uid="id", start="start_ts", end="end_ts", text="name")
    (video,), _ = read_annotations(table, "csv", columns)
    assert (video.uid, video.nodes[0].name) == ("1", "do it")
    with pytest.raises(UserError, match="is not JSON"):
        read_annotations(table, "flat")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("content", [json.dumps([ROW], ensure_ascii=False), TSV, CSV])
def test_utf_8_and_utf_16_with_a_byte_order_mark_are_read(tmp_path, encoding, content):
    path = tmp_path / "v1.txt"
    path.write_bytes(content.replace("do it", "caf\u00e9 \u2615").encode(encoding))
    (video,), _ = read_annotations(str(path))
    assert video.nodes[0].name == "caf\u00e9 \u2615"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"video_uid": "\u00e9"}]'.encode("latin-1"), r"a\.json is not UTF-8 \(byte 16\)"),
        ("\ufeff[1]".encode("utf-16-le")[:-1], r"a\.json is not UTF-16 \(byte 6\)"),
        ("[1]".encode("utf-16-le"), r"a\.json is not UTF-8 text \(zero byte at 1\)"),
        ("\ufeff[1]".encode("utf-32-le"), r"a\.json is not UTF-8 text \(zero byte at"),
        (b"", r"a\.json is empty"),
        (b"\n \n", r"a\.json is empty"),
        (b"take the cup", r"a\.json is in no known format"),
        (b"uid,start\n", r"a\.json has no column video_id, .*it has uid, start"),
    ],
)
def test_files_that_cannot_be_read_are_one_error_that_names_them(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_annotations(str(path))


def test_a_file_beyond_the_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_FILE_BYTES", 100)
    path = _write(tmp_path / "a.json", [ROW])
    with pytest.raises(UserError, match=r"a\.json is larger than"):
        read_annotations(path)
    with pytest.raises(UserError, match=r"cannot read .*b\.json"):
        read_annotations(f"{tmp_path}/b.json")


def test_annotations_takes_files_and_globs_once_each(tmp_path):
    for name in ("b.json", "a.json", "c.txt", "train/d.tsv", "val/d.tsv", "odd[1].json"):
        _write(tmp_path / name, [])
    (tmp_path / "folder.json").mkdir()
    found = expand_paths(f"{tmp_path}/b.json, {tmp_path}/[!o]*.json")
    assert found == [f"{tmp_path}/b.json", f"{tmp_path}/a.json"]
    assert expand_paths(f"{tmp_path}/*/d.tsv") == [
        f"{tmp_path}/train/d.tsv",
        f"{tmp_path}/val/d.tsv",
    ]
    assert expand_paths(f"{tmp_path}/odd[1].json") == [f"{tmp_path}/odd[1].json"]
    for missing in (f"{tmp_path}/x.json", f"{tmp_path}/*.tsv", "", " , "):
        with pytest.raises(UserError, match=r"no (annotation )?file"):
            expand_paths(missing)
    with pytest.raises(UserError, match=r"is a folder; give its files, such as '.*/\*\.json'"):
        expand_paths(str(tmp_path))
