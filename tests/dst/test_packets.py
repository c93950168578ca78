import dataclasses

import av
import numpy as np
import pytest

from tests.index_video import constant_ticks, read_index, shown_index, write_video
from vtalign_jax.dst.packets import mark_needed
from vtalign_jax.dst.video import VideoFile


@dataclasses.dataclass
class Packet:
    pts: int | None


def _needed(decoding_order, wanted):
    packets = [Packet(pts) for pts in decoding_order]
    marked = list(mark_needed(packets, wanted))
    assert [packet for packet, _ in marked] == packets
    return [packet.pts for packet, is_needed in marked if is_needed]


def test_the_frame_shown_at_each_wanted_time_is_needed_and_no_other():
    order = [0, 40, 20, 10, 30, 80, 60, 50, 70]
    assert _needed(order, [0.0]) == [0]
    assert _needed(order, [19.9]) == [10]
    assert _needed(order, [20.0, 35.0, 79.9]) == [20, 30, 70]
    assert _needed(order, [9.0, 45.0]) == [0, 40]


def test_the_last_frame_is_needed_for_all_times_after_it():
    assert _needed([0, 20, 10], [25.0, 1e9]) == [20]
    assert _needed([0, 20, 10], [1e9]) == [20]


def test_without_wanted_times_or_before_them_nothing_is_needed():
    assert _needed([0, 20, 10], []) == []
    assert _needed([10, 30, 20], [5.0]) == []


def test_a_packet_that_does_not_tell_its_time_is_needed():
    assert _needed([0, None, 10, None], [100.0]) == [None, 10, None]


def test_no_needed_frame_is_lost_where_frames_are_reordered_further_than_looked_at():
    rng = np.random.default_rng(0)
    for _ in range(20):
        order = rng.permutation(200).tolist()
        wanted = np.sort(rng.uniform(0, 200, 10)).tolist()
        assert {int(tick) for tick in wanted} <= set(_needed(order, wanted))


def _count_decoded(monkeypatch):
    decoded = []
    real = VideoFile._pull
    monkeypatch.setattr(VideoFile, "_pull", lambda self, **k: decoded.append(1) or real(self, **k))
    return decoded


OPTIONS = {
    "default": "",
    "no pyramid": "b-pyramid=none:b-adapt=0:bframes=2",
    "deep": "b-pyramid=normal:b-adapt=0:bframes=15:ref=8:keyint=60",
    "strict, open": "b-pyramid=strict:open-gop=1:keyint=24:min-keyint=1:b-adapt=0:bframes=5",
    "none": "bframes=0",
    "refresh": "intra-refresh=1:bframes=3:keyint=30",
    "interlaced": "tff=1:bframes=3",
}


@pytest.mark.parametrize("extension", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("params", OPTIONS.values(), ids=OPTIONS)
def test_frames_left_undecoded_change_no_frame_that_is_handed_out(tmp_path, params, extension):
    path = tmp_path / f"v.{extension}"
    rng = np.random.default_rng(0)
    ticks = np.cumsum([0.0, *rng.choice([0.02, 0.04, 0.1], 200)]).round(3).tolist()
    write_video(path, ticks, options={"x264-params": params} if params else {"bf": "3"})
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    for wanted in (3, 17, 150):
        video = VideoFile(str(path))
        times = np.sort(rng.uniform(0, ticks[-1], wanted)).tolist()
        found = list(video.frames_at(times))
        assert [time for time, _ in found] == times
        for time, picture in found:
            assert read_index(picture) == shown_index(ticks, time)
            np.testing.assert_array_equal(picture, whole[shown_index(ticks, time)])


def test_frames_that_no_other_needs_and_no_time_wants_stay_undecoded(tmp_path, monkeypatch):
    path = tmp_path / "v.mp4"
    params = "b-pyramid=none:b-adapt=0:bframes=3:keyint=250"
    write_video(path, constant_ticks(240, 30), options={"x264-params": params})
    decoded = _count_decoded(monkeypatch)
    times = [float(time) for time in range(8)]
    assert [read_index(picture) for _, picture in VideoFile(str(path)).frames_at(times)] == [
        30 * second for second in range(8)
    ]
    assert len(decoded) <= 240 / 4 + 16  # three of four are such frames
