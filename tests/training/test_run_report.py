"""What training draws, and that no drawing ends it."""

import io
import struct
import threading

import pytest
from tensorboardX.proto.event_pb2 import Event

from tests.evaluation.test_report_sample import make_sample
from tests.report_runs import ORDINARY, make_run
from tests.tiny_aligner import make_config
from vtalign_jax.evaluation.report import page
from vtalign_jax.evaluation.report import sample as samples
from vtalign_jax.training.board import Board
from vtalign_jax.training.run_report import RunReport


@pytest.fixture
def workdir(tmp_path):
    return make_run(tmp_path / "run", ORDINARY)


def _tags(workdir) -> list[str]:
    (file,) = (workdir / "tensorboard").iterdir()
    stream, tags = io.BytesIO(file.read_bytes()), []
    while head := stream.read(12):
        event = Event.FromString(stream.read(struct.unpack("<Q", head[:8])[0]))
        stream.read(4)
        tags += [value.tag for value in event.summary.value]
    return tags


def test_an_evaluation_is_kept_drawn_and_shown_in_tensorboard(workdir):
    (workdir / samples.FILE).unlink()
    board = Board(str(workdir / "tensorboard"), 0)
    report = RunReport(str(workdir), board, make_config())
    assert report.evaluated(20, lambda step: make_sample()[0]._replace(step=step)) == []
    assert report.close(30, 0.75) == []
    board.close()
    assert samples.read(workdir).step == 20
    assert "after step 20" in (workdir / page.FILE).read_text()
    assert {"val/similarity", "best/recall_5", "_hparams_/experiment"} <= set(_tags(workdir))


def test_what_cannot_be_drawn_is_a_warning_with_its_cause(workdir):
    board = Board(str(workdir / "tensorboard"), 0)
    report = RunReport(str(workdir), board, make_config())

    def fail(step):
        raise RuntimeError("no embedding\nof step 20")

    (line,) = report.evaluated(20, fail) + report.close(20, None)
    assert line.startswith("warning: report.html could not be drawn (no embedding of step 20)")
    assert f"python launch/report.py --workdir={workdir}" in line
    board.close()


def test_no_step_waits_for_a_drawing_and_one_not_begun_gives_way_to_the_next(workdir):
    board = Board(str(workdir / "tensorboard"), 0)
    report = RunReport(str(workdir), board, make_config())
    begun, released, drawn = threading.Event(), threading.Event(), []

    def wait(step):
        begun.set()
        assert released.wait(60)
        drawn.append(step)
        raise RuntimeError("the first")

    assert report.evaluated(10, wait) == []
    assert begun.wait(60)
    for step in (20, 30):
        assert report.evaluated(step, lambda step: drawn.append(step) or make_sample()[0]) == []
    released.set()
    (line,) = report.close(30, None)
    assert drawn == [10, 30]
    assert "(the first)" in line
    board.close()


def test_a_row_that_tensorboard_cannot_take_is_a_warning(workdir, monkeypatch):
    board = Board(str(workdir / "tensorboard"), 0)
    report = RunReport(str(workdir), board, make_config())
    monkeypatch.setattr(board, "hyper_parameters", lambda *given: 1 / 0)
    (line,) = report.close(20, 0.5)
    assert line == "warning: TensorBoard has no row of this run (division by zero)"
    board.close()


def test_other_processes_draw_nothing(workdir):
    (workdir / samples.FILE).unlink()
    report = RunReport(str(workdir), None, make_config())
    assert report.evaluated(20, lambda step: make_sample()[0]) == []
    assert report.close(20, 0.5) == []
    assert not (workdir / samples.FILE).exists()
    assert not (workdir / page.FILE).exists()


def test_a_workdir_in_a_bucket_is_drawn_there(workdir, bucket, tmp_path):
    bucket.put_folder(workdir, "run")
    board = Board(str(tmp_path / "tensorboard"), 0)
    report = RunReport(f"{bucket.url}/run", board, make_config())
    assert report.evaluated(20, lambda step: make_sample()[0]._replace(step=step)) == []
    assert report.close(None, None) == []
    board.close()
    drawn = bucket.read(f"run/{page.FILE}").decode()
    for shown in ("after step 20", "IoU 0.80", "UNVERIFIED", "0.200 to 0.900"):
        assert shown in drawn
    assert "Could not be read" not in drawn
