import base64
import io
import math

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.index_video import (
    NTSC,
    constant_ticks,
    decode_all,
    draw_index,
    read_index,
    shown_index,
    write_video,
)
from tests.proassist_tree import write_arrow
from vtalign_jax.dst import arrow
from vtalign_jax.dst.arrow import ArrowFrames, row_step
from vtalign_jax.dst.faults import FrameError, FrameFault
from vtalign_jax.dst.finder import Finder
from vtalign_jax.dst.frames import open_source
from vtalign_jax.dst.nodes import Video
from vtalign_jax.dst.video import frame_rate


def _jpeg(index):
    buffer = io.BytesIO()
    Image.fromarray(draw_index(index, 96, 96)).save(buffer, "JPEG")
    return buffer.getvalue()


def _write(path, indices, **options):
    write_arrow(path, [base64.b64encode(_jpeg(index)).decode() for index in indices], **options)


def _write_rows(path, rows, kind):
    schema = pa.schema([("frame", kind)])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array(rows, kind)], schema=schema))


def _ask(frames, times):
    return [
        (time, found if isinstance(found, FrameFault) else read_index(_open(found)))
        for time, found in frames.frames_at(times)
    ]


def _open(data):
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize(
    ("fps", "step", "rate"),
    [
        (30.0, 15, 2.0),
        (60.0, 30, 2.0),
        (30000 / 1001, 14, 2.141),
        (25.0, 12, 2.083),
        (60000 / 1001, 29, 2.067),
        (24.0, 12, 2.0),
        (15.0, 7, 2.143),
    ],
)
def test_row_step_is_that_of_the_users_files(fps, step, rate):
    assert row_step(fps) == step
    assert fps / row_step(fps) == pytest.approx(rate, abs=5e-4)


RATES = [15, 24, 25, NTSC, 30, NTSC * 2]


def _write_by_the_rule(root, extension, ticks, rate):
    """Write a video and the Arrow frames that the users' own script makes of it.

    Returns:
      The source, and (frames a second, step) as that script sees them.
    """
    video, path = root / f"v.{extension}", root / "v.arrow"
    write_video(video, ticks, rate=rate, width=96)
    fps = frame_rate(str(video))
    step = int((int(fps) + 0.5) // 2)
    kept = [read_index(frame) for frame in decode_all(video)[::step]]
    assert kept == list(range(0, len(ticks), step))
    _write(path, kept, rows_a_batch=7)
    source, _, _ = Finder((str(root),)).find(Video("v", ()))
    assert (source.kind, source.video_path) == ("arrow", str(video))
    return source, fps, step


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
@pytest.mark.parametrize("rate", RATES, ids=lambda rate: f"{float(rate):.2f}")
def test_rows_written_by_the_rule_show_the_frame_begun_last(tmp_path, rate, extension):
    ticks = constant_ticks(400, rate)
    source, fps, step = _write_by_the_rule(tmp_path, extension, ticks, rate)
    assert fps == pytest.approx(float(rate), rel=1e-7)
    kept = ticks[::step]
    end = len(kept) * step / float(rate)
    # Just after the start of rows, since mkv states a rate near the true one (19001/317).
    asked = [0.0, *np.random.default_rng(0).uniform(0, end, 50), *(t + 1e-5 for t in kept[::3])]
    expected = [(time, step * shown_index(kept, time)) for time in sorted(asked)]
    frames = open_source(source)
    assert _ask(frames, asked) == expected
    assert frames.duration == pytest.approx(end)


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_rows_of_a_variable_rate_go_by_its_average_as_the_rule_does(tmp_path, extension):
    rng = np.random.default_rng(1)
    ticks = np.cumsum(rng.choice([0.02, 0.04, 0.06], 400)).round(3)
    ticks = [float(tick) for tick in ticks - ticks[0]]
    source, fps, step = _write_by_the_rule(tmp_path, extension, ticks, 25)
    asked = rng.uniform(0, 12, 50).tolist()
    expected = [(time, step * math.floor(time * fps / step)) for time in sorted(asked)]
    assert _ask(open_source(source), asked) == expected


def test_assuming_two_rows_a_second_would_be_far_off(tmp_path):
    path = tmp_path / "v.arrow"
    _write(path, range(1210))
    ((_, index),) = _ask(ArrowFrames(str(path), 30000 / 1001), [560.56])
    assert index == 1200  # at 2.0 rows a second it would be 1121, 39 s earlier


def test_times_before_the_first_and_past_the_last_row_give_nothing(tmp_path):
    path = tmp_path / "v.arrow"
    _write(path, range(4))
    frames = ArrowFrames(str(path), 30.0)
    assert _ask(frames, [-0.1, 0.0, 1.99, 2.0, 50.0]) == [(0.0, 0), (1.99, 3)]


def test_bytes_come_back_as_stored_and_once_a_row(tmp_path):
    path = tmp_path / "v.arrow"
    _write(path, range(4), column="image")
    (_, first), (_, second), (_, third) = ArrowFrames(str(path), 30.0).frames_at([0.6, 0.9, 1.0])
    assert first == _jpeg(1)
    assert first is second
    assert third == _jpeg(2)


def test_a_file_cut_in_the_middle_gives_its_rows_and_names_the_cut(tmp_path):
    path = tmp_path / "v.arrow"
    _write(path, range(40), rows_a_batch=10)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * 0.6)])
    found = dict(_ask(ArrowFrames(str(path), 30.0), [0.0, 9.9, 10.0, 15.0]))
    assert (found[0.0], found[9.9]) == (0, 19)
    for time in (10.0, 15.0):
        assert isinstance(found[time], FrameFault)
        assert "cut off after row 20" in found[time].detail


def test_the_file_format_of_arrow_is_read_like_the_stream_even_if_cut(tmp_path):
    path = tmp_path / "v.arrow"
    table = pa.table({"frame": [base64.b64encode(_jpeg(index)).decode() for index in range(40)]})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    assert _ask(ArrowFrames(str(path), 30.0), [0.0, 19.9, 20.0]) == [(0.0, 0), (19.9, 39)]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * 0.6)])
    found = dict(_ask(ArrowFrames(str(path), 30.0), [9.9, 10.0]))
    assert found[9.9] == 19
    assert "cut off after row 20" in found[10.0].detail


def test_what_is_no_frame_file_is_refused_with_a_reason(tmp_path):
    path = tmp_path / "v.arrow"
    for content in (b"", b"no arrow" * 20):
        path.write_bytes(content)
        with pytest.raises(FrameError, match="unreadable Arrow"):
            ArrowFrames(str(path), 30.0)
    _write(path, range(2), column="pixels")
    with pytest.raises(FrameError, match="no column frame or image"):
        ArrowFrames(str(path), 30.0)
    _write(path, range(2))
    with pytest.raises(FrameError, match="frame rate below 2"):
        ArrowFrames(str(path), 1.5)
    with pytest.raises(FrameError, match="unreadable Arrow"):
        ArrowFrames(str(tmp_path / "missing.arrow"), 30.0)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_text_and_bytes_of_either_length_are_read(tmp_path, kind):
    rows = [_jpeg(0), _jpeg(1)]
    if kind in (pa.string(), pa.large_string()):
        rows = [base64.b64encode(row).decode() for row in rows]
    _write_rows(tmp_path / "v.arrow", rows, kind)
    frames = ArrowFrames(str(tmp_path / "v.arrow"), 30.0)
    assert [found for _, found in frames.frames_at([0.1, 0.6])] == [_jpeg(0), _jpeg(1)]


def test_columns_of_other_types_are_refused_with_their_type(tmp_path):
    path = tmp_path / "v.arrow"
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    _write_rows(path, [{"bytes": b"1", "path": ""}], kind)
    with pytest.raises(FrameError, match=r"column frame is struct<.*neither base64 text nor bytes"):
        ArrowFrames(str(path), 30.0)
    _write_rows(path, [1, 2], pa.int64())
    with pytest.raises(FrameError, match="column frame is int64"):
        ArrowFrames(str(path), 30.0)


@pytest.mark.parametrize("kind", [pa.string(), pa.binary()])
def test_a_field_that_is_too_long_is_refused_before_it_is_copied(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(arrow, "MAX_BYTES", 300)
    values = {True: ["A" * 404, "A" * 400], False: [b"A" * 301, b"A" * 300]}
    _write_rows(tmp_path / "v.arrow", values[kind == pa.string()], kind)
    frames = ArrowFrames(str(tmp_path / "v.arrow"), 30.0)
    (_, refused), (_, taken) = frames.frames_at([0.1, 0.6])
    assert isinstance(refused, FrameFault)
    assert "bytes are too many" in refused.detail
    assert len(taken) == 300


@pytest.mark.parametrize("offset", [2**31 - 1, -5, 1])
def test_rows_whose_place_in_the_file_is_damaged_are_faults_and_do_not_end_the_process(
    tmp_path, offset
):
    path = tmp_path / "v.arrow"
    row = base64.b64encode(_jpeg(0)).decode()
    _write_rows(path, [row] * 5, pa.string())
    whole = path.read_bytes()
    places = [np.int32(n * len(row)).tobytes() for n in range(6)]
    damaged = [*places[:2], np.int32(offset).tobytes(), *places[3:]]
    assert whole.count(b"".join(places)) == 1
    path.write_bytes(whole.replace(b"".join(places), b"".join(damaged)))
    found = dict(_ask(ArrowFrames(str(path), 30.0), [0.1, 0.6, 1.1, 1.6]))
    assert (found[0.1], found[1.6]) == (0, 0)
    for time in (0.6, 1.1):
        assert isinstance(found[time], FrameFault)
        assert found[time].reason == "damaged picture"


def test_a_row_that_is_not_base64_is_a_fault_and_its_neighbours_are_fine(tmp_path):
    path = tmp_path / "v.arrow"
    rows = [base64.b64encode(_jpeg(0)).decode(), "*no base64*", None]
    _write_rows(path, rows, pa.string())
    found = dict(_ask(ArrowFrames(str(path), 30.0), [0.1, 0.6, 1.1]))
    assert found[0.1] == 0
    assert isinstance(found[0.6], FrameFault)
    assert isinstance(found[1.1], FrameFault)
