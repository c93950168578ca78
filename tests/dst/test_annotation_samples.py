"""The sample files, one in each format: every node that is in them, written out."""

import collections

import pytest

from tests.samples import SAMPLES
from vtalign_jax.dst.pairs import make_pairs
from vtalign_jax.dst.plan import Settings, read_videos

pytestmark = pytest.mark.samples

UID = (
    "assembly_nusar-2021_action_both_9011-c03f_9011_user_id_2021-02-01_160239"
    "__HMC_84355350_mono10bit"
)

# id, level, start, end, name, ancestors, leaf
TREE = [
    (
        *("S1", "step", 97.2, 116.5),
        "Assemble the chassis by attaching and screwing the chassis parts together.",
        *((), False),
    ),
    ("S1.1", "substep", 97.2, 106.8, "Attaching the chassis parts", ("S1",), False),
    ("S1.1.a", "action", 97.2, 106.8, "attach chassis to chassis", ("S1", "S1.1"), True),
    ("S1.2", "substep", 106.8, 116.5, "Screwing the chassis", ("S1",), False),
    ("S1.2.a", "action", 110.7, 110.7, "screw chassis with screwdriver", ("S1", "S1.2"), True),
    ("S1.2.b", "action", 112.7, 112.7, "screw chassis part with screwdriver", ("S1", "S1.2"), True),
    ("S2", "step", 116.5, 152.1, "Attach wheels to the chassis.", (), False),
    ("S2.1", "substep", 116.5, 152.1, "Attaching the wheels", ("S2",), False),
    ("S2.1.a", "action", 123.7, 130.7, "screw first wheel with screwdriver", ("S2", "S2.1"), True),
    ("S2.1.b", "action", 130.7, 138.2, "screw second wheel with screwdriver", ("S2", "S2.1"), True),
    ("S2.1.c", "action", 138.2, 146.8, "screw third wheel with screwdriver", ("S2", "S2.1"), True),
    ("S2.1.d", "action", 146.8, 152.1, "screw fourth wheel with screwdriver", ("S2", "S2.1"), True),
]

# The ids of TREE in numbered_upper_case.tsv.
NUMBERED = ["1", "1.1", "1.1.1", "1.2", "1.2.1", "1.2.2"]
NUMBERED += ["2", "2.1", "2.1.1", "2.1.2", "2.1.3", "2.1.4"]

STEP_TEXT = [
    ("S1", "step", 97.2, 106.8, "attach chassis to chassis", (), True),
    ("S2", "step", 106.8, 116.5, "screw chassis", (), False),
    ("S2.1", "action", 110.7, 110.7, "screw chassis with screwdriver", ("S2",), True),
    ("S2.2", "action", 112.7, 112.7, "screw chassis part with screwdriver", ("S2",), True),
    ("S3", "step", 116.5, 152.1, "attach wheel to chassis", (), False),
    ("S3.1", "action", 123.7, 123.7, "screw first wheel with screwdriver", ("S3",), True),
    ("S3.2", "action", 130.7, 130.7, "screw second wheel with screwdriver", ("S3",), True),
    ("S3.3", "action", 138.2, 138.2, "screw third wheel with screwdriver", ("S3",), True),
    ("S3.4", "action", 146.8, 146.8, "screw fourth wheel with screwdriver", ("S3",), True),
    ("S4", "step", 152.1, 163.7, "attach roller to arm", (), True),
    ("S5", "step", 163.7, 174.8, "attach arm connector to arm", (), True),
    ("S6", "step", 174.8, 185.0, "attach arm connector to chassis", (), True),
    ("S7", "step", 185.0, 197.9, "attach body to chassis", (), False),
    ("S7.1", "action", 192.2, 192.2, "screw rear body with hand", ("S7",), True),
    ("S7.2", "action", 194.4, 194.4, "screw rear body with screwdriver", ("S7",), True),
    ("S8", "step", 197.9, 203.0, "attach cabin window to cabin", (), True),
    ("S9", "step", 203.0, 212.3, "attach cabin window to chassis", (), True),
    ("S10", "step", 212.3, 225.2, "demonstrate functionality", (), True),
]

HOLOASSIST = [
    ("S1", "step", 4.0, 15.5, "open the battery door", (), False),
    ("S1.1", "action", 5.1, 6.8, "grab camera", ("S1",), True),
    ("S1.2", "action", 7.2, 9.9, "slide latch", ("S1",), True),
    ("S1.3", "action", 11.0, 13.2, "slide latch", ("S1",), True),
    ("S2", "step", 15.5, 31.0, "exchange the battery", (), False),
    ("S2.1", "action", 16.0, 18.3, "pull battery out", ("S2",), True),
    ("S2.2", "action", 24.5, 28.0, "insert new battery", ("S2",), True),
    ("S3", "step", 31.0, 36.0, "confirm with the instructor", (), True),
]
WTAG = [
    ("S1", "step", 3.0, 21.0, "measure twelve ounces of water", (), True),
    ("S2", "step", 21.0, 58.2, "grind the beans", (), True),
    ("S3", "step", 58.2, 60.0, "place the dripper on the mug", (), True),
]
EGO4D = [
    ("S1", "step", 12.0, 44.1, "remove the wheel", (), False),
    ("S1.1", "action", 13.0, 20.0, "loosen the axle nut", ("S1",), True),
    ("S1.2", "action", 20.0, 44.1, "lift the wheel out of the frame", ("S1",), True),
    ("S2", "step", 44.1, 90.0, "replace the inner tube", (), True),
]


def _read(name, **settings):
    return read_videos(Settings(str(SAMPLES / name), "", **settings))


def _rows(video):
    return [
        (n.node_id, n.level, n.start, n.end, n.name, n.ancestor_ids, n.is_leaf) for n in video.nodes
    ]


def _notes(video):
    return {node.node_id: node.note for node in video.nodes if node.note}


def _assert_clean(checked):
    assert checked.skips == []
    assert checked.warnings == []


@pytest.mark.parametrize("name", ["flat.json", "nested.json", f"{UID}.tsv"])
def test_flat_nested_and_tsv_files_hold_the_same_tree(name):
    checked = _read(f"annotation_samples/{name}")
    (video,) = checked.videos
    assert video.uid == UID
    assert _rows(video) == TREE
    assert _notes(video) == {}
    assert checked.asides == {}
    _assert_clean(checked)


def test_files_of_one_video_in_several_formats_are_merged():
    files = ",".join(
        str(SAMPLES / "annotation_samples" / name)
        for name in ("flat.json", "nested.json", f"{UID}.tsv")
    )
    checked = read_videos(Settings(files, ""))
    assert [_rows(video) for video in checked.videos] == [TREE]
    _assert_clean(checked)


def test_numbered_ids_and_upper_case_types_give_the_tree_too():
    checked = _read("annotation_samples/numbered_upper_case.tsv")
    (video,) = checked.videos
    renamed = dict(zip([row[0] for row in TREE], NUMBERED, strict=True))
    assert video.uid == "numbered_upper_case"
    assert _rows(video) == [
        (renamed[node_id], *middle, tuple(renamed[above] for above in ancestors), is_leaf)
        for node_id, *middle, ancestors, is_leaf in TREE
    ]
    _assert_clean(checked)


def test_step_text_gives_steps_and_point_children():
    for name, form in (("proassist_step_text.json", ""), ("nested.json", "step_text")):
        checked = _read(f"annotation_samples/{name}", format=form)
        (video,) = checked.videos
        assert video.uid == UID
        assert _rows(video) == STEP_TEXT
        assert _notes(video) == {}
        assert checked.asides == {}
        _assert_clean(checked)


def test_the_manners_of_holoassist_wtag_and_ego4d():
    checked = _read("annotation_samples/train_filtered.json")
    _assert_clean(checked)
    facts = [(v.uid, v.dataset, v.split, v.source_fps) for v in checked.videos]
    assert facts == [
        ("R0027-12-GoPro", "holoassist", "train", 30.0),
        ("T48", "wtag", "train", None),
        ("grp-cec778f9-0000-0000-0000-000000000000", "ego4d", "train", 29.97),
    ]
    assert [_rows(video) for video in checked.videos] == [HOLOASSIST, WTAG, EGO4D]
    assert [_notes(video) for video in checked.videos] == [
        {"S1.2": "ERROR: wrong direction"},
        {"S2": "mistake: too coarse"},
        {"S2": 'correction of "take off the tyre"'},
    ]
    assert checked.asides == {"dialogue": 4, "summary": 1, "start": 1}


def test_each_item_of_bad_json_has_one_reason():
    checked = _read("annotation_samples/bad.json")
    found = [(item.uid, item.reason) for item in [*checked.skips, *checked.warnings]]
    assert sorted(found) == [
        ("../../etc/passwd", "unsafe uid"),
        ("bad_child_outside_parent", "child outside its parent"),
        ("bad_duplicate_ids", "duplicate id"),
        ("bad_empty_text", "empty text"),
        ("bad_html_text", "markup in the text"),
        ("bad_nan", "unusable time"),
        ("bad_reversed", "reversed times"),
        ("bad_string_times", "unusable time"),
        ("empty", "no nodes"),
    ]
    kept = {video.uid: [row[:5] for row in _rows(video)] for video in checked.videos if video.nodes}
    assert kept == {
        "bad_duplicate_ids": [("S1.1.a", "action", 1.0, 4.0, "attach wheel")],
        "bad_child_outside_parent": [
            ("S1", "step", 1.0, 4.0, "wheels"),
            ("S1.1", "substep", 1.0, 4.0, "attaching"),
            ("S1.1.a", "action", 3.0, 8.0, "attach wheel"),
        ],
        "bad_html_text": [("S1.1.a", "action", 1.0, 4.0, "<script>alert(1)</script> attach wheel")],
    }


def test_every_segment_of_epic_kitchens_becomes_a_pair():
    checked = _read("epic_kitchens_100/EPIC_100_validation.csv")
    _assert_clean(checked)
    assert {(video.dataset, video.split) for video in checked.videos} == {("epickitchens", "val")}
    pairs = [
        pair
        for video in checked.videos
        for pair in make_pairs(video, ("leaves",), lambda video, node: (node.start, node.end), 8)
    ]
    assert len(pairs) == 9668
    assert len({pair.clip_id for pair in pairs}) == 9668
    assert len(checked.videos) == 138
    assert len({pair.text for pair in pairs}) == 3835
    assert len({pair.text_key for pair in pairs}) == 3740
    assert collections.Counter(pair.text for pair in pairs)["open cupboard"] == 146
    first = checked.videos[0]
    assert _rows(first)[:2] == [
        ("P01_11_0", "action", 0.0, 1.89, "take plate", (), True),
        ("P01_11_1", "action", 1.56, 2.45, "put down plate", (), True),
    ]
