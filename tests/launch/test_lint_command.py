"""The linter as a process: what it prints, writes and exits with."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from PIL import Image

from tests.index_video import constant_ticks, write_video

ROOT = pathlib.Path(__file__).parents[2]


def _lint(*flags, code):
    command = [sys.executable, "launch/lint.py", *map(str, flags)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120
    )
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done


def _refused(*flags):
    lines = [line for line in _lint(*flags, code=2).stderr.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def _rows(uid, shift=0.0):
    nodes = [
        {"type": "step", "id": f"S{n}", "start_ts": n + shift, "end_ts": n + 0.9, "name": f"do {n}"}
        for n in range(4)
    ]
    return [{"video_uid": uid, "dst": nodes}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("lint")
    for uid in ("v", "w"):
        write_video(root / f"{uid}.mp4", constant_ticks(120, 25), rate=25)
    (root / "train.json").write_text(json.dumps(_rows("v")))
    (root / "val.json").write_text(json.dumps(_rows("w")))
    return root


def test_a_clean_set_exits_0_with_totals_a_sheet_and_prepares_command(folder, tmp_path):
    flags = [f"--annotations={folder}/train.json,{folder}/val.json", f"--videos={folder}"]
    flags += ["--levels=all", "--image_size=64"]
    sheet = tmp_path / "made" / "sheet.png"
    done = _lint(*flags, f"--contact_sheet={sheet}", "--contact_sheet_clips=3", code=0)
    lines = done.stdout.splitlines()
    assert "found nothing wrong" in lines
    assert "prepare would take 8 clips and leave out 0 (0.0%)" in lines
    assert [line.split() for line in lines if line.startswith("clips")] == [["clips", "4", "4"]]
    assert lines[-1].startswith(f"next: python launch/prepare.py {flags[0]} {flags[1]} ")
    assert {"--levels=all", "--image_size=64"} <= set(lines[-1].split())
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
        assert picture.height > 3 * 128
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]


def test_findings_exit_1_as_a_table_or_as_json_alone_on_standard_output(folder, tmp_path):
    (tmp_path / "train.json").write_text(json.dumps(_rows("v", shift=1.0)))
    flags = [f"--annotations={tmp_path}/train.json", f"--videos={folder}", "--decode"]
    done = _lint(*flags, code=1)
    assert "4 errors: prepare leaves these out, or refuses" in done.stdout
    assert "train.json row 1 node 1: v S0: 1.0 to 0.9" in done.stdout
    assert "more than --max_skipped=0.05 allows" in done.stdout
    assert done.stderr == ""
    out = tmp_path / "lint.json"
    done = _lint(*flags, "--json", f"--out={out}", "--max_skipped=1", code=1)
    document = json.loads(done.stdout)
    assert document["counts"] == {"error": 4, "warning": 0, "info": 0}
    assert {found["check"] for found in document["findings"]} == {"reversed times"}
    assert json.loads(out.read_text()) == document
    last = done.stderr.splitlines()[-1]
    assert last.startswith("next, once the errors are mended: python launch/prepare.py ")
    assert last.endswith(f"--videos={folder} --max_skipped=1")


def test_warnings_alone_exit_0_where_only_errors_count(folder, tmp_path):
    rows = _rows("v")
    rows[0]["dst"][1]["name"] += " (mistake: twice)"
    (tmp_path / "train.json").write_text(json.dumps(rows))
    annotations = f"--annotations={tmp_path}/train.json"
    done = _lint(annotations, code=1)
    assert "1 warning: kept, but they look wrong" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("--videos=VIDEOS")
    _lint(annotations, "--fail_on=error", code=0)


def test_mistakes_on_the_command_line_are_one_line_and_code_2(folder, tmp_path):
    annotations = f"--annotations={folder}/train.json"
    assert "--annotations is missing" in _refused(f"--videos={folder}")
    assert "nowhere.json" in _refused("--annotations=nowhere.json")
    assert "--decode needs frames" in _refused(annotations, "--decode")
    sheet = (annotations, f"--videos={folder}")
    assert "end it in .png" in _refused(*sheet, "--contact_sheet=sheet.jpg")
    assert "--workers" in _refused(annotations, "--workers=-1")
    assert "--fail_on" in _refused(annotations, "--fail_on=never")
    (tmp_path / "file").write_text("")
    assert "cannot write --out" in _refused(annotations, f"--out={tmp_path}/file/x.json")
    assert "that is a folder" in _refused(annotations, f"--out={tmp_path}")
    (tmp_path / "broken.json").write_text("[{")
    assert "is not JSON" in _refused(f"--annotations={tmp_path}/broken.json")
