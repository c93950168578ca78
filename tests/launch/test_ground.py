import json
import os

import pytest
from PIL import Image

from tests import commands
from tests.index_video import constant_ticks, write_video
from tests.interop.checkpoints import make_config, write_base, write_checkpoint


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A run, and annotations of three videos: one whole, one damaged, one absent."""
    folder = tmp_path_factory.mktemp("ground")
    workdir = write_checkpoint(folder / "run", make_config(write_base(folder / "base", "smolvlm")))
    (workdir / "config.json").write_text("{}")
    (folder / "videos").mkdir()
    write_video(folder / "videos" / "a.mp4", constant_ticks(50, 10), rate=10)
    (folder / "videos" / "bad.mp4").write_text("not a video")
    nodes = [
        {"type": "step", "id": "S1", "start_ts": 0, "end_ts": 5, "name": "build"},
        {"type": "action", "id": "S1.1.a", "start_ts": 1.0, "end_ts": 1.0, "name": "screw"},
        {"type": "action", "id": "S1.1.b", "start_ts": 2.0, "end_ts": 4.0, "name": "<b>\u05d0"},
    ]
    rows = [{"video_uid": uid, "dst": nodes} for uid in ("a", "bad", "absent")]
    (folder / "val.json").write_text(json.dumps(rows))
    return folder


def _ground(*arguments):
    return commands.run_apart("launch/ground.py", *arguments)


def test_annotated_videos_are_searched_and_what_cannot_be_is_told(tree):
    run = tree / "run"
    done = _ground(f"--checkpoint={run}", f"--annotations={tree}/val.json", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["failed"]) == {"bad", "absent"}
    assert "left out: absent: no frames for uid absent; tried" in done.stderr
    assert "left out: bad: cannot read" in done.stderr
    (document,) = found["videos"]
    assert json.loads((run / "grounding" / "a.json").read_text()) == document
    assert sorted(os.listdir(run / "grounding")) == ["a.json", "a.png"]
    assert [text["text"] for text in document["texts"]] == ["build", "screw", "<b>\u05d0"]
    assert document["texts"][1]["annotated"] == [[1.0, 1.0]]
    assert all(0 <= text["iou"] <= 1 for text in document["texts"])
    assert all(text["spans"] for text in document["texts"])
    assert found["metrics"] == document["metrics"]
    assert list(found["metrics"]) == ["all", "step", "action"]
    assert 0 < found["metrics"]["all"]["random"]["mean_iou"] < 1
    with Image.open(run / "grounding" / document["picture"]) as picture:
        assert picture.width == 1500
    assert done.stderr.splitlines()[-1] == f"next: python launch/report.py --workdir={run}"
    assert "random" in done.stderr


def test_when_no_video_can_be_searched_one_line_says_why(tree):
    done = _ground(
        f"--checkpoint={tree}/run", f"--video={tree}/videos/bad.mp4", "--text=a", "--json"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "bad.mp4: unreadable video" in commands.one_error_line(done.stderr)
