import numpy as np

from vtalign_jax.dst.nodes import Node, Video
from vtalign_jax.evaluation.questions import (
    Question,
    questions_for,
    questions_of,
    right_spans,
)


def _node(node_id, level, start, end, name, is_leaf=True):
    return Node(node_id, level, start, end, name, is_leaf=is_leaf)


VIDEO = Video(
    "x",
    (
        _node("S1", "step", 0, 10, "attach wheel", is_leaf=False),
        _node("S1.1.b", "action", 6, 8, "screw"),
        _node("S1.1.a", "action", 0, 4, "Attach the wheel"),
        _node("S2", "step", 10, 20, "turn", is_leaf=False),
        _node("S2.1.a", "action", 12, 13, "screw."),
    ),
)


def test_a_text_is_asked_once_a_level_and_is_shown_wherever_an_equal_text_is():
    wheel = ((0, 4), (0, 10))
    screw = ((6, 8), (12, 13))
    assert questions_of(VIDEO, ("all",)) == [
        Question("attach wheel", "step", wheel),
        Question("Attach the wheel", "action", wheel),
        Question("screw", "action", screw),
        Question("turn", "step", ((10, 20),)),
    ]
    assert [q.text for q in questions_of(VIDEO, ("leaves",))] == ["Attach the wheel", "screw"]
    assert questions_of(VIDEO, ("substep",)) == []


def test_given_texts_are_looked_up_in_the_annotation():
    assert questions_for(["the Screw", "paint", "paint"], VIDEO) == [
        Question("the Screw", "action", ((6, 8), (12, 13))),
        Question("paint"),
    ]
    assert questions_for(["paint"]) == [Question("paint")]


def test_a_moment_counts_as_its_window_and_a_span_as_itself():
    right = right_spans(((5.0, 5.0), (7.0, 7.4), (8.0, 8.5), (1.0, 9.0)), 20.0, 4.0)
    np.testing.assert_allclose(right, [[3, 7], [5.2, 9.2], [8, 8.5], [1, 9]])


def test_spans_are_cut_to_the_video_and_dropped_outside_of_it():
    right = right_spans(((-3.0, 2.0), (9.0, 15.0), (10.0, 11.0), (9.9, 9.9), (12, 12)), 10.0, 4.0)
    np.testing.assert_allclose(right, [[0, 2], [9, 10], [7.9, 10]])
    assert right_spans((), 10.0, 4.0).shape == (0, 2)
