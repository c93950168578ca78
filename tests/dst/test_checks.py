import pytest

from vtalign_jax.dst.checks import check_splits, check_texts, check_tree
from vtalign_jax.dst.nodes import Node, Video


def _node(node_id, start, end, name="", level="action"):
    above = node_id.split(".")[:-1]
    ancestors = tuple(".".join(above[: n + 1]) for n in range(len(above)))
    return Node(node_id, level, start, end, name or f"do {node_id}", ancestors, where="a row 1")


S1 = _node("S1", 0, 10, level="step")
S11 = _node("S1.1", 0, 10, level="substep")


def _found(*nodes):
    return [(f.check, f.node_id, f.detail) for f in check_tree(Video("v", nodes))]


def _checks(*nodes):
    return [(check, node_id) for check, node_id, _ in _found(*nodes)]


def test_a_sound_tree_has_no_findings():
    assert (
        _found(
            S1,
            S11,
            _node("S1.1.a", 0, 4),
            _node("S1.1.b", 3.95, 6),  # an overlap within the slack
            _node("S1.1.c", 7, 7),
            _node("S1.1.d", 6.95, 9),  # starts earlier, within the slack
            _node("S1.1.e", 8, 8),  # a point within its sibling
            _node("S2", 10, 12, level="step"),
            _node("S2.1", 10, 11),  # an action right below a step, as step text has it
        )
        == []
    )


def test_findings_say_what_where_and_how_much():
    (found,) = check_tree(Video("v", (S1, S11, _node("S1.1.a", 0, 4), _node("S1.1.b", 3, 6))))
    assert (found.severity, found.uid, found.node_id) == ("warning", "v", "S1.1.b")
    assert found.where == "a row 1"
    assert found.detail == "3.00-6.00 s, by 1.00 s with S1.1.a 0.00-4.00 s"


def test_a_later_id_that_starts_earlier_is_out_of_order():
    nodes = [_node(f"S1.{n}", 10 * n, 10 * n + 5) for n in (1, 3, 2, 4, 10)]
    assert _checks(S1, *nodes) == []  # the place in the file does not count
    moved = [*nodes[:2], _node("S1.2", 3, 4), *nodes[3:]]
    ((check, node_id, detail),) = _found(S1, *moved)
    assert (check, node_id) == ("siblings out of order", "S1.2")
    assert detail == "at 3.00-4.00 s, but S1.1 at 10.00-15.00 s"


def test_ids_are_ordered_as_people_count():
    letters = ["a", "b", "z", "aa", "ab"]
    nodes = [_node(f"S1.{letter}", n, n + 1) for n, letter in enumerate(letters)]
    assert _checks(S1, *nodes) == []
    steps = [_node(f"S{n}", n, n + 1, level="step") for n in range(1, 12)]
    assert _checks(*steps) == []


def test_ids_that_are_names_have_no_order():
    nodes = [_node(f"S1.{name}", 9 - n, 9 - n) for n, name in enumerate(("attach", "fix", "turn"))]
    assert _checks(S1, *nodes) == []


def test_segments_without_a_tree_may_lie_as_they_like():
    assert _checks(_node("P01_1", 5, 9), _node("P01_2", 3, 8), _node("P01_3", 0, 20)) == []


def test_each_node_that_overlaps_an_earlier_sibling_is_found_once():
    nodes = [
        _node("S1.1", 0, 20),
        _node("S1.2", 5, 6),
        _node("S1.3", 19, 30),
        _node("S1.4", 25, 26),
    ]
    assert _checks(_node("S1", 0, 30, level="step"), *nodes) == [
        ("siblings overlap", "S1.2"),
        ("siblings overlap", "S1.3"),
        ("siblings overlap", "S1.4"),
    ]


def test_the_same_text_at_the_same_time_is_one_finding_and_no_overlap():
    nodes = (_node("S1.1", 2, 4, "Turn"), _node("S1.2", 2.05, 4.05, "turn"))
    ((check, node_id, detail),) = _found(S1, *nodes)
    assert (check, node_id) == ("same text at the same time", "S1.2")
    assert detail == "'turn' at 2.05-4.05 s, as S1.1"
    again = (_node("S1.1", 2, 4, "turn"), _node("S1.2", 5, 7, "turn"))
    assert _checks(S1, *again) == []
    only_child = (_node("S2", 2, 4, "turn", "step"), _node("S2.1", 2, 4, "turn"))
    assert _checks(*only_child) == []


@pytest.mark.parametrize(
    ("nodes", "wrong", "detail"),
    [
        (
            (S1, S11, _node("S1.1.a", 1, 2, level="substep")),
            "S1.1.a",
            "a substep below S1 and S1.1",
        ),
        ((S1, _node("S1.1", 1, 2, level="step")), "S1.1", "a step below S1"),
        (
            (S1, _node("S1.1", 1, 4), _node("S1.1.a", 1, 2), _node("S1.1.b", 2, 3)),
            "S1.1",
            "an action with an action below it",
        ),
        (
            (S1, S11, _node("S1.2", 10, 11)),
            "S1.2",
            "an action beside a substep",
        ),
        (
            (S1, _node("S2", 10, 11), _node("S3", 12, 13, level="step")),
            "S2",
            "an action beside a step",
        ),
    ],
)
def test_a_level_that_does_not_fit_is_found_once(nodes, wrong, detail):
    assert _found(*nodes) == [("level unlike the place in the tree", wrong, detail)]


def test_levels_that_are_left_out_are_no_mistake():
    without_substep = Node("S1.1.a", "action", 1, 2, "turn", ("S1",))
    assert _checks(S1, without_substep, _node("S1.2", 0, 4, level="substep")) == []
    assert _checks(_node("1", 0, 1), _node("2", 1, 2)) == []


def _texts(*names, limit=200):
    nodes = tuple(_node(f"S{n}", n, n + 1, name) for n, name in enumerate(names, 1))
    return [(f.severity, f.check, f.node_id) for f in check_texts([Video("v", nodes)], limit)]


def test_texts_longer_than_the_limit_are_found_with_their_length():
    assert _texts("a" * 20, "b" * 21, limit=20) == [("warning", "long text", "S2")]
    video = Video("v", (_node("S1", 0, 1, "c" * 400),))
    (found,) = check_texts([video], 200)
    assert found.detail.startswith("400 characters, about 100 tokens")


@pytest.mark.parametrize(
    "name",
    [
        "attach wheel (mistake: wrong side)",
        "attach wheel [ERROR]",
        "attach wheel (correction of the above).",
        "attach wheel (?)",
        "attach wheel ??",
        "TODO attach wheel",
        "Note: attach wheel",
    ],
)
def test_remarks_in_a_text_are_found(name):
    assert _texts(name) == [("warning", "remark in the text", "S1")]


@pytest.mark.parametrize(
    "name",
    ["attach wheel (left)", "note the time", "correct the error in the list", "is it on?"],
)
def test_what_only_resembles_a_remark_is_fine(name):
    assert _texts(name) == []


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("attach\u200b wheel", "U+200B"),
        ("attach \ufffd wheel", "U+FFFD"),
        ("attach \ue000", "U+E000"),
        ("caf\u00c3\u00a9", "UTF-8 read as Latin-1"),
        ("don\u00e2\u20ac\u2122t", "UTF-8 read as Latin-1"),
    ],
)
def test_odd_characters_are_found_and_named(name, why):
    (found,) = check_texts([Video("v", (_node("S1", 0, 1, name),))], 200)
    assert found.check == "odd characters"
    assert why in found.detail


def test_other_scripts_are_not_odd():
    names = (
        "caf\u00e9",
        "\u628a\u8f6e\u5b50\u88c5\u5230",
        "\u0645\u06cc\u200c\u062e",
        "\U0001f600",
    )
    assert _texts(*names) == []


def test_a_text_written_in_several_ways_is_one_info_with_counts():
    videos = [
        Video("v", (_node("S1", 0, 1, "Open the door"), _node("S2", 1, 2, "open door"))),
        Video("w", (_node("S1", 0, 1, "open door"), _node("S2", 1, 2, "shut door"))),
    ]
    (found,) = check_texts(videos, 200)
    assert (found.severity, found.check) == ("info", "one text written in several ways")
    assert found.detail == "'open door' (2), 'Open the door' (1)"


def _splits(*named, on_leakage="error"):
    videos = [Video(uid, (), split=split) for uid, split in named]
    return [(f.severity, f.check, f.uid, f.detail) for f in check_splits(videos, on_leakage)]


def test_one_finding_for_each_recording_that_leaks():
    leaky = [("assembly_r__1", "train"), ("disassembly_r__2", "val"), ("assembly_r__3", "val")]
    sound = [("s__1", "train"), ("s__2", "train"), ("t", "val")]
    check = "recording in train and in val or test"
    detail = "recording r: train: assembly_r__1; val: disassembly_r__2, assembly_r__3"
    assert _splits(*leaky, *sound) == [("error", check, "", detail)]
    assert _splits(*leaky, on_leakage="drop") == [("warning", check, "", detail)]


def test_between_val_and_test_it_is_a_warning():
    ((severity, check, _, _),) = _splits(("r__1", "val"), ("r__2", "test"))
    assert (severity, check) == ("warning", "recording in val and in test")


def test_uids_in_two_splits_are_named():
    videos = [(f"r__{n}", split) for n in range(5) for split in ("val", "test")]
    detail = "r__0, r__1, r__2 and 2 more in val and test"
    assert _splits(*videos) == [("warning", "uid in two splits", "", detail)]
    assert _splits(("r", "train"), ("r", "val"), ("s", "train")) == [
        ("error", "uid in two splits", "r", "r in train and val")
    ]
