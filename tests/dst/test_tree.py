import math
from collections import Counter

import pytest

from vtalign_jax.dst.nodes import RawNode, RawVideo, Remark
from vtalign_jax.dst.tree import build_videos, parse_seconds


def _node(node_id, start=1.0, end=4.0, name="attach wheel", level="action"):
    return RawNode(node_id, level, start, end, name)


def _build(*nodes, uid="v"):
    return build_videos([RawVideo(uid, nodes, "", "", None, "a.json row 1")])


def _reasons(checked):
    return [(skip.node_id, skip.reason) for skip in checked.skips]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (3, 3.0),
        (2.5, 2.5),
        ("2.5", 2.5),
        (" 1e2 ", 100.0),
        ("00:01:02.50", 62.5),
        ("1:02.5", 62.5),
        ("01:00:00", 3600.0),
    ],
)
def test_times_may_be_numbers_strings_or_clock_times(value, seconds):
    assert parse_seconds(value) == seconds


@pytest.mark.parametrize(
    "value",
    ["1m4s", "", "abc", None, True, [], math.nan, math.inf, "nan", 1.1e7, -1.1e7, 10**300]
    + ["1e400", "9" * 400, "9" * 5000, "9" * 5000 + ":00:01", "x" * 10**6, {"a": [1]}],
)
def test_other_times_are_refused(value):
    with pytest.raises(ValueError, match="time") as error:
        parse_seconds(value)
    assert len(str(error.value)) < 200


def test_the_tree_is_in_the_ids():
    checked = _build(
        _node("S1", 0, 10, "wheels", "STEP"),
        _node("S1.1", 0, 5, "attaching", "substep"),
        _node("S1.1.a", 0, 2, "attach wheel"),
        _node("S2", 10, 12, "alone", None),
    )
    nodes = {node.node_id: node for node in checked.videos[0].nodes}
    assert nodes["S1.1.a"].ancestor_ids == ("S1", "S1.1")
    assert nodes["S1.1"].ancestor_ids == ("S1",)
    assert [node.is_leaf for node in nodes.values()] == [False, False, True, True]
    assert [node.level for node in nodes.values()] == ["step", "substep", "action", "step"]
    assert checked.skips == []
    assert checked.warnings == []


def test_a_node_whose_children_are_bad_does_not_become_a_leaf():
    checked = _build(_node("S1", level="step"), _node("S1.a", 9, 4))
    assert [node.is_leaf for node in checked.videos[0].nodes] == [False]


def test_an_ancestor_that_is_not_there_is_no_ancestor():
    checked = _build(_node("S1", level="step"), _node("S1.1.a"))
    assert checked.videos[0].nodes[1].ancestor_ids == ("S1",)


def test_a_parent_missing_from_its_level_is_told_once():
    checked = _build(
        _node("S1", level="step"),
        _node("S1.1", level="substep"),
        _node("S1.2.a"),
        _node("S1.2.b"),
        _node("S2.1", level="substep"),
    )
    assert checked.warnings == [
        Remark("v", "S1.2.a", "parent is not there", "S1.2, of 2 node(s)"),
        Remark("v", "S2.1", "parent is not there", "S2, of 1 node(s)"),
    ]


@pytest.mark.parametrize(
    "nodes",
    [
        (_node("S1", level="step"), _node("S1.1.a")),  # no substeps at all
        (_node("S1.1.a"), _node("S1.1.b")),  # actions only
        (_node("S1", 9, 4, level="step"), _node("S1.1", level="substep"), _node("S2", level=None)),
    ],
)
def test_a_level_left_out_and_a_bad_parent_are_no_missing_parents(nodes):
    assert _build(*nodes).warnings == []


def test_every_node_and_skip_says_where_it_was():
    rows = [
        RawVideo("v", (RawNode("S1", None, 1, 2, "a", where="node 1"),), "", "", None, "f row 1"),
        RawVideo("w", (RawNode("S1", None, 2, 1, "a", where="node 1"),), "", "", None, "f row 2"),
        RawVideo("x", (), "", "", None, "f row 3"),
    ]
    checked = build_videos(rows)
    assert checked.videos[0].nodes[0].where == "f row 1 node 1"
    assert [skip.where for skip in checked.skips] == ["f row 3", "f row 2 node 1"]


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (_node("S1", 9.0, 4.0), "reversed times"),
        (_node("S1", math.nan, 4.0), "unusable time"),
        (_node("S1", "00:01:02.50", "1m4s"), "unusable time"),
        (_node("S1", -1.0, 4.0), "span outside the video"),
        (_node("S1", name="   "), "empty text"),
        (_node("S1", name=None), "empty text"),
        (_node("S1", name="a" * 1001), "over-long text"),
        (_node("S1", name="half \ud800 a pair"), "unprintable text"),
        (_node("S1", name="to \x1b[31m red"), "unprintable text"),
        (_node("S1", level="scene"), "unknown type"),
        (_node("S1", level=["step"]), "unknown type"),
        (_node(None), "no id"),
        (_node(" "), "no id"),
        (_node(["S1"]), "no id"),
        (_node("1." * 100_000), "unusable id"),
        (_node("S1\n.1"), "unusable id"),
        (RawNode(None, None, None, None, "x", fault="not a node"), "not a node"),
    ],
)
def test_a_bad_node_is_left_out_with_one_reason(node, reason):
    checked = _build(_node("S9"), node)
    assert [skip.reason for skip in checked.skips] == [reason]
    assert [node.node_id for node in checked.videos[0].nodes] == ["S9"]


def test_a_text_of_a_thousand_characters_is_kept_and_its_spaces_are_single():
    checked = _build(_node("S1", name="a" * 1000), _node("S2", name=" to\t the\u00a0left "))
    assert [len(node.name) for node in checked.videos[0].nodes] == [1000, 11]


def test_point_actions_are_fine():
    checked = _build(_node("S1", 2.0, 2.0))
    assert checked.skips == []
    assert checked.videos[0].nodes[0].end == 2.0


def test_the_second_node_of_an_id_is_left_out():
    checked = _build(_node("S1.1.a"), _node("S1.1.a", 5, 6, "attach arm"), _node("S1.1.a"))
    assert _reasons(checked) == [("S1.1.a", "duplicate id")] * 2
    assert [node.name for node in checked.videos[0].nodes] == ["attach wheel"]


def test_rows_of_one_video_are_merged():
    rows = [
        RawVideo("v", (_node("S1"), _node("S2")), "", "train", None, "row 1"),
        RawVideo("v", (_node("S1"), _node("S3")), "wtag", "train", "25", "row 2"),
        RawVideo("w", (_node("S1"),), "", "train", 0, "row 3"),
        RawVideo("v", (_node("S1", 2, 3),), "", "train", None, "row 4"),
        RawVideo("v", (_node("S1"),), "", "val", None, "row 5"),
    ]
    checked = build_videos(rows)
    assert [(v.uid, v.split, len(v.nodes)) for v in checked.videos] == [
        ("v", "train", 3),
        ("w", "train", 1),
        ("v", "val", 1),
    ]
    assert (checked.videos[0].dataset, checked.videos[0].source_fps) == ("wtag", 25.0)
    assert checked.videos[1].source_fps is None
    assert _reasons(checked) == [("S1", "rows of one video disagree")]
    assert checked.skips[0].where == "row 4"
    assert checked.skips[0].detail.endswith("1.0 to 4.0) in row 1")


def test_what_is_wrong_in_each_row_of_a_video_is_told_once():
    bad = (_node("S1", 9, 4), _node(None), _node(None), _node("S2"))
    rows = [RawVideo("v", bad, "", "", None, f"row {n}", Counter(dialogue=2)) for n in range(3)]
    rows.append(RawVideo("v", (_node("S3"),), "", "", None, "row 3", Counter(summary=1)))
    checked = build_videos(rows)
    assert _reasons(checked) == [("S1", "reversed times"), ("", "no id"), ("", "no id")]
    assert all(skip.where == "row 0" for skip in checked.skips)
    assert checked.asides == {"dialogue": 2, "summary": 1}


def test_rows_without_a_split_join_those_of_their_uid_that_have_one():
    rows = [
        RawVideo("v", (_node("S1"),), "", "", None, "all.json row 1"),
        RawVideo("v", (_node("S1"), _node("S2")), "", "val", None, "val.json row 1"),
        RawVideo("w", (_node("S1"),), "", "", None, "all.json row 2"),
    ]
    videos = build_videos(rows).videos
    assert [(v.uid, v.split, len(v.nodes)) for v in videos] == [("v", "val", 2), ("w", "", 1)]


def test_ancestors_may_be_given_apart_from_the_ids():
    nodes = (
        RawNode("1", "step", 0, 9, "a", ancestor_ids=()),
        RawNode("1.5", "step", 0, 9, "b", ancestor_ids=()),
        RawNode("x", None, 1, 2, "c", ancestor_ids=("1.5",)),
    )
    built = _build(*nodes).videos[0].nodes
    assert [(n.level, n.is_leaf, n.ancestor_ids) for n in built] == [
        ("step", True, ()),
        ("step", False, ()),
        ("substep", True, ("1.5",)),
    ]


def test_a_dataset_or_frame_rate_that_cannot_be_used_is_told():
    for dataset, fps in (("../../x", "fast"), ("a/b", 0), ("..", math.nan)):
        rows = [RawVideo("v", (_node("S1"),), dataset, "", fps, "row")] * 2
        checked = build_videos(rows)
        assert (checked.videos[0].dataset, checked.videos[0].source_fps) == ("", None)
        assert [(remark.uid, remark.reason) for remark in checked.warnings] == [
            ("v", "unusable dataset"),
            ("v", "unusable frame rate"),
        ]


def test_unsafe_uids_and_empty_rows_are_left_out():
    checked = _build(_node("S1"), _node("S2"), uid="../../etc/passwd")
    assert checked.videos == []
    assert [(skip.reason, skip.clips) for skip in checked.skips] == [("unsafe uid", 2)]
    assert [skip.reason for skip in _build(uid="empty").skips] == ["no nodes"]
    for uid, reason in (("", "no uid"), ("\ud800", "unsafe uid"), ("x" * 201, "over-long uid")):
        assert [skip.reason for skip in _build(_node("S1"), uid=uid).skips] == [reason]


def test_a_child_outside_its_parent_is_kept_with_a_warning_beyond_the_slack():
    checked = _build(
        _node("S1", 1.0, 3.0, level="step"), _node("S1.a", 0.9, 3.1), _node("S1.b", 2.0, 7.0)
    )
    assert len(checked.videos[0].nodes) == 3
    assert checked.warnings == [Remark("v", "S1.b", "child outside its parent", "by 4.00 s")]


def test_markup_in_a_text_is_kept_with_a_warning():
    checked = _build(
        _node("S1", name="<script>alert(1)</script> attach"), _node("S2", name="a < b")
    )
    assert len(checked.videos[0].nodes) == 2
    assert [(remark.node_id, remark.reason) for remark in checked.warnings] == [
        ("S1", "markup in the text")
    ]
