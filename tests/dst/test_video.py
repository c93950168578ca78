import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from tests.index_video import (
    NTSC,
    ask_video,
    constant_ticks,
    decode_all,
    read_index,
    shown_index,
    write_video,
)
from vtalign_jax.dst.faults import FrameError, FrameFault
from vtalign_jax.dst.video import VideoFile, frame_rate


def _check_exact(path, ticks, asked):
    expected = [(time, shown_index(ticks, time)) for time in sorted(asked)]
    assert ask_video(path, asked) == expected


RATES = [15, 24, 25, NTSC, 30, Fraction(60000, 1001)]


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
@pytest.mark.parametrize("rate", RATES, ids=lambda rate: f"{float(rate):.2f}")
def test_the_frame_is_the_one_shown_at_that_time(tmp_path, rate, extension):
    path = tmp_path / f"v.{extension}"
    ticks = constant_ticks(200, rate)
    write_video(path, ticks, rate=rate)
    if extension == "mkv":  # its clock ticks in milliseconds
        ticks = [int(tick * 1000 + 0.5) / 1000 for tick in ticks]
    rng = np.random.default_rng(0)
    asked = [0.0, *rng.uniform(0, ticks[-1], 40), *ticks[1::13]]
    _check_exact(path, ticks, asked)


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_variable_frame_rate_goes_by_presentation_time(tmp_path, extension):
    rng = np.random.default_rng(1)
    gaps = rng.choice([0.02, 0.04, 0.1, 0.5, 1.2], 150)
    ticks = [round(float(tick), 3) for tick in np.concatenate([[0.0], np.cumsum(gaps)])]
    path = tmp_path / f"v.{extension}"
    write_video(path, ticks, options={"g": "20"})
    _check_exact(path, ticks, [*rng.uniform(0, ticks[-1], 60), *ticks[::7]])


@pytest.mark.parametrize(
    ("extension", "codec"),
    [("ts", "libx264"), ("mpeg", "mpeg2video"), ("avi", "mpeg4"), ("webm", "libvpx")],
)
def test_containers_whose_seeks_land_late_or_lack_an_index(tmp_path, extension, codec):
    path = tmp_path / f"v.{extension}"
    rate = 25
    ticks = constant_ticks(500, rate)
    options = {"ts": {"g": "30"}, "mpeg": {"g": "12", "bf": "0"}, "avi": {"g": "30", "bf": "0"}}
    # several frames in one pack of an MPEG program stream would share a time: make them larger
    size = {"width": 640, "height": 480} if extension == "mpeg" else {}
    write_video(path, ticks, rate=rate, codec=codec, options=options.get(extension), **size)
    # one by one, so that each is a jump; then far apart, so that the pass jumps on its own
    for time in (19.9, 12.34, 1.01, 0.0):
        _check_exact(path, ticks, [time])
    _check_exact(path, ticks, [0.1, 0.2, 5.0, 18.0, 18.5, 19.99])


def test_times_count_from_the_first_frame_of_a_stream_that_starts_late(tmp_path):
    ticks = constant_ticks(60, 30)
    for extension in ("mkv", "ts", "mp4"):
        path = tmp_path / f"late.{extension}"
        write_video(path, [tick + 7.0 for tick in ticks])
        _check_exact(path, ticks, [0.0, 0.5, 1.0, 1.5])


def test_times_outside_the_video_give_nothing(tmp_path):
    path = tmp_path / "v.mp4"
    write_video(path, constant_ticks(30, 30))
    assert ask_video(path, [-0.5, 0.5, 0.99, 1.01, 3.0]) == [(0.5, 15), (0.99, 29)]


def test_duration_counts_the_last_frame(tmp_path):
    for extension in ("mp4", "mkv", "ts"):
        path = tmp_path / f"v.{extension}"
        write_video(path, constant_ticks(75, 25), rate=25)
        assert VideoFile(str(path)).duration == pytest.approx(3.0, abs=0.06)


def test_times_on_one_frame_give_the_same_picture_object(tmp_path):
    path = tmp_path / "v.mp4"
    write_video(path, constant_ticks(30, 10), rate=10)
    (_, first), (_, second), (_, third) = VideoFile(str(path)).frames_at([1.01, 1.05, 1.11])
    assert first is second
    assert third is not second


def test_rotation_side_data_is_applied_as_players_do(tmp_path):
    path = tmp_path / "v.mp4"
    write_video(path, constant_ticks(10, 10), rate=10)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    # 90 degrees clockwise: (x, y) -> (-y, x); ISO/IEC 14496-12, 8.3.2
    turned = (0, 1 << 16, 0, -(1 << 16), 0, 0, 96 << 16, 0, 1 << 30)
    data[matrix : matrix + 36] = struct.pack(">9i", *turned)
    path.write_bytes(data)
    ((_, picture),) = VideoFile(str(path)).frames_at([0.5])
    assert picture.size == (96, 128)
    assert read_index(picture) == -1
    assert read_index(picture.transpose(Image.Transpose.ROTATE_90)) == 5


def test_damage_costs_the_frames_up_to_the_next_keyframe_and_no_other(tmp_path):
    path = tmp_path / "v.mkv"
    ticks = constant_ticks(120, 30)
    write_video(path, ticks, options={"g": "30", "bf": "0", "sc_threshold": "0"})
    path.write_bytes(_without_packets(path, range(40, 44)))
    found = dict(ask_video(path, [0.1, 1.1, 1.6, 1.9, 2.1, 3.5]))
    assert found[0.1] == 3
    assert found[1.1] == 33
    assert isinstance(found[1.6], FrameFault)
    assert isinstance(found[1.9], FrameFault)
    assert "damaged" in found[1.6].reason
    assert found[2.1] == 63
    assert found[3.5] == 105


def test_no_frame_with_errors_painted_over_is_handed_out(tmp_path):
    path = tmp_path / "v.mkv"
    ticks = constant_ticks(90, 30)
    options = {"g": "30", "bf": "0"}
    write_video(path, ticks, options=options, width=320, height=240)
    whole = path.read_bytes()
    packets = _packets(path)
    rng = np.random.default_rng(0)
    faults = 0
    for _ in range(60):  # one byte near the head of a slice: what ffmpeg is best at hiding
        data, packet = bytearray(whole), packets[rng.integers(31, 59)]
        data[data.index(packet) + 8] = rng.integers(256)
        path.write_bytes(data)
        found = ask_video(path, [tick + 0.01 for tick in ticks])
        good = [(time, index) for time, index in found if not isinstance(index, FrameFault)]
        assert good == [(time, shown_index(ticks, time)) for time, _ in good]
        faults += len(found) > len(good)
    assert faults > 10


def _count_pulls(monkeypatch):
    pulls = []
    real = VideoFile._pull
    monkeypatch.setattr(VideoFile, "_pull", lambda self, **k: pulls.append(1) or real(self, **k))
    return pulls


def test_one_pass_decodes_each_frame_once_and_jumps_over_gaps(tmp_path, monkeypatch):
    path = tmp_path / "v.mp4"
    write_video(path, constant_ticks(600, 30), options={"g": "30", "sc_threshold": "0"})
    pulls = _count_pulls(monkeypatch)
    just_before_keyframes = [n - 0.02 for n in range(1, 20)]
    ask_video(path, [n / 4 for n in range(80)] + just_before_keyframes)
    assert len(pulls) <= 601
    pulls.clear()
    ask_video(path, [0.5, 10.5, 18.5])
    assert len(pulls) <= 3 * 32


def test_a_damaged_stretch_is_not_decoded_again_for_each_time(tmp_path, monkeypatch):
    path = tmp_path / "v.mkv"
    write_video(path, constant_ticks(120, 30), options={"g": "60", "bf": "0", "sc_threshold": "0"})
    path.write_bytes(_without_packets(path, range(30, 34)))
    pulls = _count_pulls(monkeypatch)
    found = ask_video(path, [1.1 + n / 50 for n in range(40)])
    assert all(isinstance(index, FrameFault) for _, index in found)
    assert len(pulls) <= 32 + 2 * 40


def _packets(path):
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(container.streams.video[0]) if p.size]


def _without_packets(path, broken):
    """Return the file's bytes with the payload of some packets overwritten."""
    data, packets = bytearray(path.read_bytes()), _packets(path)
    for number in broken:
        start = data.index(packets[number])
        data[start + 5 : start + len(packets[number])] = b"\xff" * (len(packets[number]) - 5)
    return bytes(data)


def test_files_that_are_no_video_are_refused_with_a_reason(tmp_path):
    good = tmp_path / "good.mp4"
    write_video(good, constant_ticks(30, 30))
    cases = {
        "empty.mp4": b"",
        "text.mp4": b"this is no video" * 50,
        "cut.mp4": good.read_bytes()[: good.stat().st_size // 2],
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FrameError, match="unreadable video"):
            VideoFile(str(tmp_path / name))
    with pytest.raises(FrameError, match=r"unreadable video: .*empty\.mp4: the file is empty$"):
        VideoFile(str(tmp_path / "empty.mp4"))
    with pytest.raises(FrameError, match=r"unreadable video: .*No such file"):
        VideoFile(str(tmp_path / "missing.mp4"))


def test_a_matroska_file_cut_in_the_middle_gives_what_is_there(tmp_path):
    path = tmp_path / "v.mkv"
    write_video(path, constant_ticks(120, 30), options={"g": "30"})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    left = len(decode_all(path))
    assert 10 < left < 110
    found = ask_video(path, [tick + 0.01 for tick in constant_ticks(120, 30)])
    good = [index for _, index in found if not isinstance(index, FrameFault)]
    assert good == list(range(len(good)))
    assert len(good) >= left - 5


def test_frame_rate_is_the_exact_average(tmp_path):
    path = tmp_path / "v.mp4"
    write_video(path, constant_ticks(60, NTSC), rate=NTSC)
    assert frame_rate(str(path)) == pytest.approx(30000 / 1001, rel=1e-9)
