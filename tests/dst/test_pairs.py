import pytest

from vtalign_jax.dst.nodes import Node, Video
from vtalign_jax.dst.pairs import frame_times, make_pairs, parse_levels
from vtalign_jax.errors import UserError

TREE = Video(
    "assembly_r__cam1",
    (
        Node("S1", "step", 0.0, 20.0, "Fix the wheels", (), False),
        Node("S1.1", "substep", 0.0, 20.0, "fixing", ("S1",), False),
        Node("S1.1.b", "action", 10.0, 10.0, "turn wheel", ("S1", "S1.1")),
        Node("S1.1.a", "action", 2.0, 3.0, "Attach the wheel", ("S1", "S1.1")),
        Node("S2", "step", 30.0, 40.0, "rest"),
    ),
    dataset="assembly101",
)


def _window(video, node):
    del video
    middle = (node.start + node.end) / 2
    return middle - 2.0, middle + 2.0


def _pairs(levels="leaves", frames=8):
    return make_pairs(TREE, parse_levels(levels), _window, frames)


def test_the_leaves_are_taken_by_default_and_by_time():
    assert [pair.node_id for pair in _pairs()] == ["S1.1.a", "S1.1.b", "S2"]


@pytest.mark.parametrize(
    ("levels", "count"), [("all", 5), ("step", 2), ("step,substep", 3), ("action", 2)]
)
def test_levels_choose(levels, count):
    assert len(_pairs(levels)) == count


def test_unknown_levels_are_refused():
    for text in ("scene", "", "leaf"):
        with pytest.raises(UserError, match="--levels"):
            parse_levels(text)


def test_eight_frames_in_four_seconds_are_the_two_a_second_rows():
    assert frame_times(0.0, 4.0, 8) == (0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75)
    assert frame_times(10.0, 14.0, 4) == (10.5, 11.5, 12.5, 13.5)


def test_the_window_is_the_chosen_one_unclipped():
    first, second, third = _pairs()
    assert (first.window_start, first.window_end) == (0.5, 4.5)
    assert (second.window_start, second.window_end) == (8.0, 12.0)
    assert (third.window_start, third.window_end) == (33.0, 37.0)
    early = make_pairs(Video("v", (Node("S1", "step", 0, 1, "x"),)), ("leaves",), _window, 8)[0]
    assert early.window_start == -1.5
    assert early.times[0] == -1.25


def test_identity_of_a_pair():
    first = _pairs()[0]
    assert first.clip_id == "assembly_r__cam1/S1.1.a"
    assert (first.text, first.parent_text) == ("Attach the wheel", "fixing")
    assert (first.recording_id, first.dataset, first.level) == ("r", "assembly101", "action")
    assert first.ancestor_ids == ("S1", "S1.1")
    assert _pairs()[2].parent_text == ""


def test_order_is_the_rank_by_time_within_the_level():
    orders = {pair.node_id: pair.order for pair in _pairs("all")}
    assert orders == {"S1": 0, "S2": 1, "S1.1": 0, "S1.1.a": 0, "S1.1.b": 1}
