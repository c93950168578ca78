"""Lint on real recordings: nothing to find in them, and ten planted mistakes found, no more."""

import json
import shutil

import pytest

from tests.samples import SAMPLES
from vtalign_jax.dst.lint import Options, lint
from vtalign_jax.dst.plan import Settings

pytestmark = pytest.mark.samples

RECORDINGS = SAMPLES / "sign_recordings"


def test_the_shared_recordings_are_clean():
    files = f"{RECORDINGS}/train.json,{RECORDINGS}/val.json"
    linted = lint(Settings(files, f"{RECORDINGS}/videos", image_size=32), Options(decode=True))
    assert linted.findings == []
    assert linted.taken == 168
    assert len(linted.durations) == 14


def _nodes(row):
    return {node["id"]: node for node in row["dst"]}


def _plant(rows, videos):
    """Plant one mistake of each kind, each in another recording; return check -> (uid, node)."""
    trees = {uid: _nodes(row) for uid, row in rows.items()}
    planted = {}

    def plant(check, number, node_id=""):
        uid = f"sign_rec_{number:02d}__cam0"
        planted[check] = (uid, node_id)
        return trees[uid].get(node_id), trees[uid]

    node, _ = plant("reversed times", 0, "S2.1.a")
    node["start_ts"], node["end_ts"] = node["end_ts"], node["start_ts"]

    node, tree = plant("siblings out of order", 1, "S1.1.b")
    for key in ("start_ts", "end_ts"):
        node[key], tree["S1.1.a"][key] = tree["S1.1.a"][key], node[key]

    node, _ = plant("siblings overlap", 2, "S1.1.b")
    node["start_ts"] -= 1.5

    node, _ = plant("child outside its parent", 3, _last_child(trees["sign_rec_03__cam0"], "S1.1"))
    node["end_ts"] += 0.3

    node, _ = plant("duplicate id", 4, "S3.1.a")
    rows["sign_rec_04__cam0"]["dst"].append(node | {"name": "Sign something else"})

    node, _ = plant("long text", 5, "S1.1.a")
    node["name"] += " and hold it" * 20

    last = _last_child(trees["sign_rec_06__cam0"], "S4.1")
    node, tree = plant("annotation past the end of the video", 6, last)
    for node_id in (last, "S4.1", "S4"):
        tree[node_id]["end_ts"] += 5.0

    plant("frame rate drift", 7)
    rows["sign_rec_07__cam0"]["parsed_video_anns"] = {"fps": 30}  # of 15

    plant("no frames", 8)
    (videos / "sign_rec_08__cam0.mp4").unlink()

    other = "sign_rec_09__cam1"
    planted["recording in train and in val or test"] = ("", "")
    (videos / f"{other}.mp4").symlink_to(videos / "sign_rec_09__cam0.mp4")
    rows[other] = rows["sign_rec_09__cam0"] | {"video_uid": other}
    return planted


def _last_child(tree, parent):
    children = [node for node in tree.values() if node["id"].startswith(f"{parent}.")]
    return max(children, key=lambda node: node["end_ts"])["id"]


def test_of_ten_planted_mistakes_lint_finds_ten(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for file in (RECORDINGS / "videos").iterdir():
        shutil.copyfile(file, videos / file.name)
    train = json.loads((RECORDINGS / "train.json").read_text())
    val = json.loads((RECORDINGS / "val.json").read_text())
    rows = {row["video_uid"]: row for row in train}
    planted = _plant(rows, videos)
    assert len(planted) == 10
    val.append(rows.pop("sign_rec_09__cam1"))
    (tmp_path / "train.json").write_text(json.dumps(list(rows.values())))
    (tmp_path / "val.json").write_text(json.dumps(val))
    files = f"{tmp_path}/train.json,{tmp_path}/val.json"
    linted = lint(Settings(files, str(videos)), Options())
    assert {found.check: (found.uid, found.node_id) for found in linted.findings} == planted
    assert len(linted.findings) == 10
    errors = {found.check for found in linted.findings if found.severity == "error"}
    assert errors == {
        "reversed times",
        "duplicate id",
        "no frames",
        "recording in train and in val or test",
    }


def _findings(path, **settings):
    return lint(Settings(str(SAMPLES / path), "", **settings), Options()).findings


@pytest.mark.parametrize(
    "name",
    [
        "assembly_nusar*.tsv",
        "flat.json",
        "nested.json",
        "numbered_upper_case.tsv",
        "proassist_step_text.json",
        "train_filtered.json",
    ],
)
def test_the_sample_of_each_format_is_clean(name):
    assert _findings(f"annotation_samples/{name}") == []


def test_each_item_of_bad_json_has_one_finding():
    found = _findings("annotation_samples/bad.json")
    assert sorted((f.severity, f.uid, f.check) for f in found) == [
        ("error", "../../etc/passwd", "unsafe uid"),
        ("error", "bad_duplicate_ids", "duplicate id"),
        ("error", "bad_empty_text", "empty text"),
        ("error", "bad_nan", "unusable time"),
        ("error", "bad_reversed", "reversed times"),
        ("error", "bad_string_times", "unusable time"),
        ("error", "empty", "no nodes"),
        ("warning", "bad_child_outside_parent", "child outside its parent"),
        ("warning", "bad_html_text", "markup in the text"),
    ]


def test_the_epic_kitchens_csv_has_texts_in_several_ways_and_four_rows_twice():
    found = _findings("epic_kitchens_100/EPIC_100_validation.csv")
    counts = {check: sum(f.check == check for f in found) for check in {f.check for f in found}}
    assert counts == {"one text written in several ways": 92, "same text at the same time": 4}
    assert all(f.where.startswith("EPIC_100_validation.csv line ") for f in found if f.uid)
