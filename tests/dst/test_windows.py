import pytest

from vtalign_jax.dst.nodes import Node, Video
from vtalign_jax.dst.pairs import make_pairs
from vtalign_jax.dst.windows import STRATEGIES, window_chooser

LEAVES = ("leaves",)


def _video(uid, *spans):
    nodes = [Node(f"S{n}", "step", start, end, f"do {n}") for n, (start, end) in enumerate(spans)]
    return Video(uid, tuple(nodes))


def _points(uid, *times):
    return _video(uid, *((time, time) for time in times))


def _windows(strategy, videos, window_seconds=4.0, pad_seconds=0.5, frames=8):
    """Return {uid: [(start, end) of each node]}."""
    window_of = window_chooser(
        strategy,
        videos,
        LEAVES,
        window_seconds=window_seconds,
        pad_seconds=pad_seconds,
        frames=frames,
    )
    return {video.uid: [window_of(video, node) for node in video.nodes] for video in videos}


def _lengths(*arguments, **flags):
    found = _windows(*arguments, **flags)
    return {uid: [end - start for start, end in windows] for uid, windows in found.items()}


def test_center_is_the_middle_and_half_the_length_to_each_side_unclipped():
    video = _video("v", (2.0, 3.0), (10.0, 10.0), (0.0, 1.0), (30.0, 90.0))
    assert _windows("center", [video])["v"] == [(0.5, 4.5), (8.0, 12.0), (-1.5, 2.5), (58.0, 62.0)]
    assert _windows("center", [video], window_seconds=1.5)["v"][1] == (9.25, 10.75)


def test_span_is_the_nodes_own_and_the_padding_so_that_a_point_has_a_window():
    video = _video("v", (2.0, 3.0), (10.0, 10.0), (0.0, 1.0), (30.0, 7230.0))
    assert _windows("span", [video])["v"] == [(1.5, 3.5), (9.5, 10.5), (-0.5, 1.5), (29.5, 7230.5)]
    assert _windows("span", [video], pad_seconds=2.0)["v"][1] == (8.0, 12.0)


def test_adaptive_follows_the_recordings_mean_gap_with_the_given_mean_over_recordings():
    dense, sparse = _points("dense", 0, 1, 2, 4, 5), _points("sparse", 10, 15)  # gaps 1.25 and 5
    lengths = _lengths("adaptive", [dense, sparse], window_seconds=5.0)
    assert lengths["dense"] == pytest.approx([2.0] * 5)
    assert lengths["sparse"] == pytest.approx([8.0] * 2)
    starts = [start for start, _ in _windows("adaptive", [dense, sparse], 5.0)["dense"]]
    assert starts == pytest.approx([-1.0, 0.0, 1.0, 3.0, 4.0])  # still around the middle


def test_adaptive_with_a_mean_of_one_second_is_egovlps_own():
    videos = [_points("a", 0, 2, 6), _points("b", 1, 10)]  # beta 3 and 9, alpha 6
    lengths = _lengths("adaptive", videos, window_seconds=1.0)
    assert lengths["a"] == pytest.approx([3 / 6] * 3)
    assert lengths["b"] == pytest.approx([9 / 6] * 2)


def test_adaptive_takes_the_gaps_of_every_camera_in_its_own_order():
    # As one sequence of both cameras the gaps would be half as long.
    cameras = [_points("r__1", 0, 4, 8), _points("r__2", 2, 6, 10), _points("alone", 0, 8)]
    lengths = _lengths("adaptive", cameras, window_seconds=6.0)
    assert lengths["r__1"] == lengths["r__2"] == pytest.approx([4.0] * 3)
    assert lengths["alone"] == pytest.approx([8.0] * 2)


def test_adaptive_measures_the_chosen_nodes_alone():
    step = Node("S9", "step", 0.0, 1000.0, "all of it", is_leaf=False)
    video = Video("v", (step, *_points("v", 0, 1, 2).nodes))
    other = _points("w", 0, 3)
    assert _lengths("adaptive", [video, other])["v"][1] == pytest.approx(2.0)


@pytest.mark.parametrize("times", [(5,), (5, 5, 5)])
def test_adaptive_gives_a_recording_without_gaps_the_mean_length(times):
    alone, other = _points("alone", *times), _points("other", 0, 9)
    assert _lengths("adaptive", [alone, other])["alone"] == pytest.approx([4.0] * len(times))
    assert _lengths("adaptive", [alone])["alone"] == pytest.approx([4.0] * len(times))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_lengths_are_whole_hundredths_and_leave_room_for_the_frames(strategy):
    videos = [_video("a", (0, 1.23456), (4.7, 9.1)), _points("b", 0, 0.001), _points("c", 0, 90)]
    found = _lengths(strategy, videos, window_seconds=3.14159, pad_seconds=0.05, frames=16)
    for length in (length for lengths in found.values() for length in lengths):
        assert length == pytest.approx(round(length, 2), abs=1e-9)
        assert length > 0.1599


def test_the_frames_are_spread_over_each_window():
    video = _video("v", (2.0, 3.0), (10.0, 16.0))
    window_of = window_chooser(
        "span", [video], LEAVES, window_seconds=4.0, pad_seconds=0.5, frames=2
    )
    short, long = make_pairs(video, LEAVES, window_of, 2)
    assert short.times == (2.0, 3.0)
    assert (long.window_start, long.window_end, long.times) == (9.5, 16.5, (11.25, 14.75))
