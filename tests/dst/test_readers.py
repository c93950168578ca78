import json

import pytest

from vtalign_jax.dst.readers import expand_paths, read_annotations, split_of_file
from vtalign_jax.errors import UserError

ROW = {
    "video_uid": "v1",
    "inferred_goal": "g",
    "dst": [{"type": "step", "id": "S1", "start_ts": 1, "end_ts": "2.5", "name": "do it"}],
    "conversation": [],
}


def _write(path, content):
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
        ("annotations.json", ""),
        ("training.json", ""),
        ("my_train.json", ""),
    ],
)
def test_file_names_give_the_split(name, split):
    assert split_of_file(f"/some/val/{name}") == split


def test_a_list_a_single_object_and_json_lines_read_alike(tmp_path):
    files = [
        _write(tmp_path / "a.json", [ROW, ROW]),
        _write(tmp_path / "b.json", ROW),
        _write(tmp_path / "c.jsonl", json.dumps(ROW) + "\n\n" + json.dumps(ROW) + "\n"),
    ]
    for path, count in zip(files, (2, 1, 2), strict=True):
        videos, skips = read_annotations(path)
        assert [video.uid for video in videos] == ["v1"] * count
        assert videos[0].nodes[0].node_id == "S1"
        assert skips == []


def test_dataset_and_frame_rate_come_from_the_row_or_below(tmp_path):
    rows = [
        ROW | {"dataset": "wtag"},
        ROW | {"parsed_video_anns": {"dataset": "ego4d", "fps": 29.97, "video_start_time": 120}},
    ]
    videos, _ = read_annotations(_write(tmp_path / "train.json", rows))
    assert [(video.dataset, video.source_fps) for video in videos] == [
        ("wtag", None),
        ("ego4d", 29.97),
    ]
    hand_made, _ = read_annotations(_write(tmp_path / "ego4d_grp-12.json", [ROW]))
    assert hand_made[0].dataset == "ego4d"


def test_a_byte_order_mark_is_no_obstacle(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([ROW]).encode())
    assert len(read_annotations(str(path))[0]) == 1


def test_rows_of_another_form_are_skipped_one_by_one(tmp_path):
    rows = [ROW, 7, {"dst": []}, {"video_uid": "v2", "dst": {"steps": []}}, {"video_uid": "v3"}]
    rows += [{"video_uid": "v4", "dst": ["S1"]}]
    videos, skips = read_annotations(_write(tmp_path / "a.json", rows))
    assert len(videos) == 1
    assert [skip.uid for skip in skips] == ["", "", "v2", "v3", "v4"]
    assert [f"row {n}" in skip.detail for n, skip in enumerate(skips, 2)] == [True] * 5


def test_a_broken_line_costs_that_line(tmp_path):
    content = json.dumps(ROW) + "\n{broken\n" + json.dumps(ROW)
    videos, skips = read_annotations(_write(tmp_path / "a.jsonl", content))
    assert len(videos) == 2
    assert [skip.reason for skip in skips] == ["line is not JSON"]
    assert "line 2" in skips[0].detail


def test_files_that_are_no_json_are_an_error_that_names_them(tmp_path):
    path = tmp_path / "a.json"
    for content in (b"", b"[1, 2", b"uid,start\n", b"{\n broken\n}", b'{\n "dst": [\n{},\n'):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.json is not JSON"):
            read_annotations(str(path))
    path.write_bytes('[{"video_uid": "\u00e9"}]'.encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_annotations(str(path))


def test_annotations_takes_files_and_globs_once_each(tmp_path):
    for name in ("b.json", "a.json", "c.txt"):
        _write(tmp_path / name, [])
    found = expand_paths(f"{tmp_path}/b.json, {tmp_path}/*.json")
    assert found == [f"{tmp_path}/b.json", f"{tmp_path}/a.json"]
    for missing in (f"{tmp_path}/x.json", f"{tmp_path}/*.tsv", "", " , "):
        with pytest.raises(UserError, match=r"no (annotation )?file"):
            expand_paths(missing)
