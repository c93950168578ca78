import io
import json
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from vtalign_jax.errors import UserError
from vtalign_jax.training.board import Board
from vtalign_jax.training.metrics import TIMING, MetricsWriter, Progress, read_rows


def _lines(workdir) -> list[str]:
    return (workdir / "metrics.jsonl").read_text().splitlines()


def _run(workdir, steps, restored_step=None, **options) -> None:
    """A row a step, an evaluation at every second one."""
    writer = MetricsWriter(workdir, restored_step, **options)
    for step in steps:
        writer.write(step, {"train/loss": step / 3})
        if step % 2 == 0:
            writer.write(step, {"val/recall@5": step / 7})
    writer.close()


def _tensorboard_events(path) -> list[Event]:
    """The events of a file: records of length, checksum, message, checksum."""
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def _tensorboard_scalars(path) -> list[tuple[str, int, float]]:
    return [
        (value.tag, event.step, value.simple_value)
        for event in _tensorboard_events(path)
        for value in event.summary.value
    ]


def test_a_row_is_the_step_and_plain_numbers(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(np.int64(3), {"a": jnp.float32(0.5), "b": np.int32(2), "c": jnp.nan})
    assert _lines(tmp_path) == ['{"step": 3, "a": 0.5, "b": 2, "c": null}']  # before close: flushed
    writer.close()
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 3, "a": 0.5, "b": 2, "c": None}]


def test_resumed_file_equals_that_of_an_uninterrupted_run(tmp_path):
    _run(tmp_path / "whole", range(1, 11))
    _run(tmp_path / "killed", range(1, 8))  # checkpoint at 4, killed at 7
    _run(tmp_path / "killed", range(5, 11), restored_step=4)
    assert _lines(tmp_path / "killed") == _lines(tmp_path / "whole")


def test_run_without_a_checkpoint_starts_anew(tmp_path):
    _run(tmp_path, range(5))
    _run(tmp_path, range(2))
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0, 0, 1]


def test_line_cut_off_by_a_kill_is_dropped(tmp_path):
    _run(tmp_path, [1, 3])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "train/lo')
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 3]
    _run(tmp_path, [5], restored_step=3)
    assert [json.loads(line)["step"] for line in _lines(tmp_path)] == [1, 3, 5]


def test_broken_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nhello\n{"step": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        MetricsWriter(tmp_path, 2)


def test_only_the_primary_process_writes(tmp_path):
    _run(tmp_path / "other", range(3), is_primary=False)
    assert not (tmp_path / "other").exists()


def test_tensorboard_holds_the_same_scalars(tmp_path):
    _run(tmp_path, [2, 3])
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert _tensorboard_scalars(events) == [
        ("train/loss", 2, pytest.approx(2 / 3)),
        ("val/recall_5", 2, pytest.approx(2 / 7)),
        ("train/loss", 3, pytest.approx(1.0)),
    ]


@pytest.mark.parametrize(("restored_step", "first"), [(None, 0), (4, 5)])
def test_tensorboard_hides_what_the_run_writes_again(tmp_path, restored_step, first):
    _run(tmp_path, [6], restored_step)
    (events,) = (tmp_path / "tensorboard").iterdir()
    starts = [e.step for e in _tensorboard_events(events) if e.HasField("session_log")]
    assert starts == [first]


def test_tensorboard_shows_pictures_and_hyper_parameters_with_the_result(tmp_path):
    board = Board(str(tmp_path), first_step=0)
    board.image("val/similarity", 7, np.full((4, 6, 3), 200, np.uint8))
    fields = {"optim.learning_rate": 1e-3, "tune.mlp": False, "model.base": "tiny", "a.b": None}
    board.hyper_parameters(9, fields, {"best/recall@5": 0.75})
    board.close()
    (events,) = tmp_path.iterdir()
    values = [v for event in _tensorboard_events(events) for v in event.summary.value]
    tags = {value.tag: value for value in values}
    assert (tags["val/similarity"].image.height, tags["val/similarity"].image.width) == (4, 6)
    assert tags["best/recall_5"].simple_value == 0.75
    told = tags["_hparams_/session_start_info"].metadata.plugin_data.content
    start = HParamsPluginData.FromString(told).session_start_info
    assert start.hparams["optim.learning_rate"].number_value == 1e-3
    assert start.hparams["model.base"].string_value == "tiny"
    columns = tags["_hparams_/experiment"].metadata.plugin_data.content
    experiment = HParamsPluginData.FromString(columns).experiment
    assert [each.name.tag for each in experiment.metric_infos] == ["best/recall_5"]


def test_pytorch_is_not_imported_for_tensorboard(tmp_path):
    code = """if True:
        import sys
        from vtalign_jax.training.board import Board
        Board(sys.argv[1], 0).close()
        assert not {"torch", "google.cloud.storage"} & set(sys.modules), "it was"
    """
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == 0


def test_progress_off_a_terminal_is_plain_lines():
    stream = io.StringIO()
    progress = Progress(total_steps=20, pairs_a_step=32, stream=stream)
    for _ in range(4):
        progress.advance(data_wait_seconds=0.0)
    timing = progress.timing()
    assert set(timing) == set(TIMING)
    assert timing["train/pairs_per_second"] > 0
    timing = {"train/pairs_per_second": 123.44, "train/data_wait": 0.021}
    progress.show(4, timing | {"train/loss": 2.5, "train/loss_itc": 2.25, "train/temperature": 0.1})
    progress.set_recall(0.25, 0.5)
    progress.show(5, timing | {"train/loss": 2.5, "train/loss/same_recording": 0.3})
    assert stream.getvalue().splitlines() == [
        "step 4/20: loss 2.5000, loss_itc 2.2500, 123.4 pairs/s, data wait 2%, 0:00:00 left",
        "step 5/20: loss 2.5000, 123.4 pairs/s, data wait 2%, recall@5 0.250 (best 0.500), "
        "0:00:00 left",
    ]


def test_progress_on_a_terminal_is_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    progress = Progress(total_steps=20, pairs_a_step=32, start_step=10, stream=stream)
    progress.advance(0.0)
    progress.show(11, progress.timing() | {"train/loss": 2.5})
    progress.say("evaluating")
    progress.close()
    assert "11/20" in stream.getvalue()
    assert "loss 2.5000" in stream.getvalue()
    assert "evaluating\n" in stream.getvalue()


def test_progress_says_how_much_time_is_left_at_the_pace_of_its_own_steps(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    stream = io.StringIO()
    progress = Progress(total_steps=5000, pairs_a_step=32, start_step=1000, stream=stream)
    clock[0] += 1000.0  # compiling
    progress.advance(0.0)
    progress.show(1001, progress.timing())
    for _ in range(4):
        clock[0] += 2.0
        progress.advance(0.0)
    progress.show(1005, progress.timing())
    clock[0] += 2.0
    progress.show(5000, progress.timing())
    lines = stream.getvalue().splitlines()
    assert [line.rpartition(", ")[2] for line in lines][1] == "2:13:10 left"
    assert "left" not in lines[0] + lines[2]


def test_quiet_progress_prints_what_is_said_alone():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream in (io.StringIO(), Terminal()):
        progress = Progress(total_steps=20, pairs_a_step=32, stream=stream, is_quiet=True)
        progress.advance(0.0)
        progress.show(1, progress.timing() | {"train/loss": 2.5})
        progress.say("warning: told")
        progress.close()
        assert stream.getvalue() == "warning: told\n"


def test_progress_counts_pairs_and_waiting_of_its_interval_only(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("vtalign_jax.training.metrics.host_gib", lambda: 1.5)
    progress = Progress(total_steps=20, pairs_a_step=32, stream=io.StringIO())
    progress.advance(0.5)
    progress.advance(0.5)
    clock[0] += 4.0
    assert progress.timing() == dict(zip(TIMING, (16.0, 0.25, 1.5), strict=True))
    progress.advance(0.0)
    clock[0] += 1.0
    assert progress.timing() == dict(zip(TIMING, (32.0, 0.0, 1.5), strict=True))
