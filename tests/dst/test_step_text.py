import pytest

from vtalign_jax.dst.nodes import RawNode, RawVideo
from vtalign_jax.dst.step_text import read_step_text
from vtalign_jax.dst.tree import build_videos


def _nodes(text):
    return [(n.node_id, n.level, n.start, n.end, n.name, n.note) for n in read_step_text(text)[0]]


def _names(text):
    return [(n.node_id, n.name, n.note) for n in read_step_text(text)[0]]


def test_steps_have_spans_and_children_points_or_spans():
    text = (
        "[97.2s-106.8s] attach chassis\n"
        "[106.8s-116.5s] screw chassis\n"
        " - [110.7s] screw with screwdriver\n"
        " - [112.7s-113.0s] screw part\n"
        "[116.5s-152.1s] attach wheel\n"
        "- [123.7s] screw first wheel\n"
    )
    assert _nodes(text) == [
        ("S1", "step", "97.2", "106.8", "attach chassis", ""),
        ("S2", "step", "106.8", "116.5", "screw chassis", ""),
        ("S2.1", "action", "110.7", "110.7", "screw with screwdriver", ""),
        ("S2.2", "action", "112.7", "113.0", "screw part", ""),
        ("S3", "step", "116.5", "152.1", "attach wheel", ""),
        ("S3.1", "action", "123.7", "123.7", "screw first wheel", ""),
    ]


def test_a_child_before_any_step_is_a_step():
    text = "- [0.5s] start\n- [1.0s] take cup\n - [2.0s] put cup\n[3.0s-4.0s] pour\n- [3.5s] stop"
    assert _names(text) == [
        ("S1", "take cup", ""),
        ("S2", "put cup", ""),
        ("S3", "pour", ""),
        ("S3.1", "stop", ""),
    ]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (' - [13.0s] assistant: "Good"', "dialogue"),
        ('- [13.0s] user: "How much?"', "dialogue"),
        ('[13.0s] User: "How much?"', "dialogue"),
        ('user: "[3.0s] is on the clock"', "dialogue"),
        ('  - assistant: "Good"', "dialogue"),
        ("Summary: the user did it", "summary"),
        ("summary:", "summary"),
        ("- [0.5s] start", "start"),
        ("[0.0s-1.0s] Start ", "start"),
    ],
)
def test_dialogue_summaries_and_start_marks_are_counted_apart(line, kind):
    nodes, asides = read_step_text(f"[1.0s-2.0s] do it\n{line}\n\n")
    assert [node.node_id for node in nodes] == ["S1"]
    assert asides == {kind: 1}


def test_a_step_with_only_dialogue_below_it_is_a_leaf():
    nodes, asides = read_step_text('[1.0s-2.0s] confirm\n - [1.5s] assistant: "Good"\n')
    (video,) = build_videos([RawVideo("v", tuple(nodes), "", "", None, "a", asides)]).videos
    assert [(node.node_id, node.is_leaf) for node in video.nodes] == [("S1", True)]


@pytest.mark.parametrize(
    ("written", "name", "note"),
    [
        ("grind (mistake: too coarse)", "grind", "mistake: too coarse"),
        ('fix tube (correction of "take off")', "fix tube", 'correction of "take off"'),
        ("grab battery (ERROR: wrong (left) side)", "grab battery", "ERROR: wrong (left) side"),
        ("grab (error: a) (mistake: b)", "grab", "error: a; mistake: b"),
        ("grab (ERROR: cut off", "grab", "ERROR: cut off"),
        ("grab (ERROR: )", "grab", "ERROR: "),
        ("use (correction) fluid", "use (correction) fluid", ""),
        ("use (mistake: x) fluid", "use (mistake: x) fluid", ""),
        ("grab lever (left)", "grab lever (left)", ""),
        ("correction of course", "correction of course", ""),
    ],
)
def test_trailing_remarks_are_notes_not_text(written, name, note):
    for line in (f"[1.0s-2.0s] {written}", f"[0.0s-9.0s] s\n - [1.0s] {written}"):
        assert _names(line)[-1][1:] == (name, note)


def test_lines_that_fit_nothing_are_faults_with_their_line():
    text = (
        "attach chassis\n[1.0s-2.0s] do it\n\nClip 2 of 3\n - do more\n"
        'user: "Why?"\nafter a quotation\nuser: "Why\nnot?"\nafter a longer one\n'
        "[1.0s-2.0s] do (ERROR: all\nwrong)\nafter a remark"
    )
    nodes, asides = read_step_text(text)
    faulty = [(n.where, n.name) for n in nodes if n.fault == "line fits no step text"]
    assert faulty == [
        ("line 1", "attach chassis"),
        ("line 4", "Clip 2 of 3"),
        ("line 5", "- do more"),
        ("line 7", "after a quotation"),
        ("line 10", "after a longer one"),
        ("line 13", "after a remark"),
    ]
    assert asides == {"dialogue": 2}


def test_texts_with_line_breaks_are_whole():
    text = (
        "[1.0s-9.0s] open\n"
        ' - [2.0s] assistant: "Push it\nthe other way"\n'
        " - [3.0s-4.0s] slide (ERROR: wrong\ndirection)\n"
        " - [5.0s] slide\n"
        "Summary: first this.\nThen that.\n\nThen the end.\n"
        "[9.0s-10.0s] close\n"
    )
    nodes, asides = read_step_text(text)
    assert _names(text) == [
        ("S1", "open", ""),
        ("S1.1", "slide", "ERROR: wrong direction"),
        ("S1.2", "slide", ""),
        ("S2", "close", ""),
    ]
    assert asides == {"dialogue": 1, "summary": 1}
    assert [node.where for node in nodes] == ["line 1", "line 4", "line 6", "line 11"]


@pytest.mark.parametrize("written", ["abc", "", "1.0s-", "1.0s-2.0s-3.0s", "None-2.0s", "1.0s-2x"])
def test_times_that_are_none_are_left_to_the_check_of_nodes(written):
    nodes, _ = read_step_text(f"[{written}] do it")
    checked = build_videos([RawVideo("v", tuple(nodes), "", "", None, "a")])
    assert [(skip.node_id, skip.reason) for skip in checked.skips] == [("S1", "unusable time")]
    assert checked.skips[0].where == "a line 1"
    assert checked.skips[0].detail.startswith("time ")


@pytest.mark.parametrize(
    ("written", "times"),
    [
        ("1.0-2.5", (1.0, 2.5)),
        (" 1 s - 2.5 s ", (1.0, 2.5)),
        ("00:01:02.5-00:01:03", (62.5, 63.0)),
        ("7", (7.0, 7.0)),
    ],
)
def test_times_with_or_without_unit(written, times):
    nodes, _ = read_step_text(f"[{written}] do it")
    (video,) = build_videos([RawVideo("v", tuple(nodes), "", "", None, "a")]).videos
    assert (video.nodes[0].start, video.nodes[0].end) == times


def test_negative_times_are_told_as_before_the_start():
    nodes, _ = read_step_text("[-1.0s-2.0s] do it")
    assert nodes == [RawNode("S1", "step", "-1.0", "2.0", "do it", where="line 1")]


def test_long_lines_take_no_time_out_of_proportion():
    lines = [
        "[1.0s-2.0s] " + " " * 200_000 + "x",
        "(mistake:" * 20_000,
        "Summary: " + "a\n" * 50_000,
    ]
    nodes, asides = read_step_text("\n".join(lines))
    assert len(nodes) == 2
    assert asides == {"summary": 1}
