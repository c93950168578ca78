import json

import pytest

from vtalign_jax.dst.json_readers import read_json
from vtalign_jax.dst.nodes import RawNode
from vtalign_jax.dst.tree import build_videos
from vtalign_jax.errors import UserError

FLAT_NODE = {"type": "step", "id": "S1", "start_ts": 1, "end_ts": "2.5", "name": "do it"}
FLAT = {"video_uid": "v1", "dst": [FLAT_NODE]}
TEXT = "[1.0s-2.0s] from text"


def _stamps(start, end):
    return {"timestamps": {"start_ts": start, "end_ts": end}}


NESTED = {
    "video_uid": "v2",
    "dst": {
        "steps": [
            {
                "step_id": "S1",
                "name": "wheels",
                **_stamps(0, 9),
                "substeps": [
                    {
                        "sub_id": "S1.1",
                        "name": "attaching",
                        **_stamps(0.0, "9"),
                        "actions": [
                            {
                                "act_id": "S1.1.a",
                                "name": "attach",
                                "args_schema": {},
                                **_stamps(1, 1),
                            }
                        ],
                    }
                ],
            },
            {"step_id": "S2", "name": "cabin", **_stamps(9, 12), "substeps": None},
        ]
    },
}


def _read(rows, form=""):
    return read_json(json.dumps(rows), "/x/a.json", form)


def _checked_nodes(row):
    videos, skips = _read(row)
    checked = build_videos(videos)
    assert skips + checked.skips == []
    return checked.videos[0].nodes


def test_a_list_a_single_object_and_json_lines_read_alike():
    lines = json.dumps(FLAT) + "\r\n\n" + json.dumps(FLAT) + "\n"
    for text, count in ((json.dumps([FLAT, FLAT]), 2), (json.dumps(FLAT), 1), (lines, 2)):
        videos, skips = read_json(text, "/x/a.json")
        assert [video.uid for video in videos] == ["v1"] * count
        assert videos[0].nodes == (RawNode("S1", "step", 1, "2.5", "do it", where="node 1"),)
        assert skips == []
    assert [video.where for video in read_json(lines, "/x/a.json")[0]] == [
        "a.json line 1",
        "a.json line 3",
    ]


def test_line_separators_within_a_text_do_not_end_a_json_line():
    row = FLAT | {"inferred_goal": "one\u2028two\u0085"}
    text = json.dumps(row, ensure_ascii=False)
    videos, skips = read_json(f"{text}\n{text}", "a.json")
    assert (len(videos), skips) == (2, [])


def test_nested_trees_keep_ids_levels_and_hierarchy():
    nodes = _checked_nodes(NESTED)
    assert [(n.node_id, n.level, n.start, n.end, n.name, n.ancestor_ids) for n in nodes] == [
        ("S1", "step", 0.0, 9.0, "wheels", ()),
        ("S1.1", "substep", 0.0, 9.0, "attaching", ("S1",)),
        ("S1.1.a", "action", 1.0, 1.0, "attach", ("S1", "S1.1")),
        ("S2", "step", 9.0, 12.0, "cabin", ()),
    ]
    assert [node.is_leaf for node in nodes] == [False, False, True, True]


@pytest.mark.parametrize("place", ["dst", "top"])
def test_steps_with_t0_and_t1_are_a_nested_tree_too(place):
    steps = [
        {"id": 1, "name": "grind", "t0": 3.0, "t1": "21.5", "conf": 0.9},
        {"id": 2, "name": "pour", "t0": 21.5, "t1": 30.0, "conf": 0.4},
    ]
    row = {"dst": {"steps": steps}} if place == "dst" else {"steps": steps}
    nodes = _checked_nodes({"video_uid": "v3", **row})
    assert [(n.node_id, n.level, n.start, n.end, n.is_leaf) for n in nodes] == [
        ("1", "step", 3.0, 21.5, True),
        ("2", "step", 21.5, 30.0, True),
    ]


def test_nested_ids_that_start_again_below_each_parent_stay_apart():
    actions = [{"act_id": "a", "name": "turn", "start_ts": 1, "end_ts": 2}]
    substeps = [{"sub_id": 1, "name": "s", **_stamps(0, 3), "actions": actions}]
    steps = [{"step_id": n, "name": "t", **_stamps(0, 3), "substeps": substeps} for n in "AB"]
    steps.append({"name": "no id", **_stamps(0, 3), "actions": [{"name": "n", **_stamps(1, 2)}]})
    nodes = _checked_nodes({"video_uid": "v", "dst": {"steps": steps}})
    assert [node.node_id for node in nodes] == [
        *("A", "A.1", "A.1.a", "B", "B.1", "B.1.a", "S3", "S3.1")
    ]
    assert nodes[2].ancestor_ids == ("A", "A.1")
    assert (nodes[-1].level, nodes[-1].ancestor_ids) == ("action", ("S3",))


def test_dots_in_nested_ids_say_nothing():
    steps = [{"id": node_id, "name": "n", "t0": 0, "t1": 1} for node_id in (1, 1.5, "1.5.2")]
    nodes = _checked_nodes({"video_uid": "v", "steps": steps})
    assert [(n.node_id, n.ancestor_ids, n.is_leaf) for n in nodes] == [
        ("1", (), True),
        ("1.5", (), True),
        ("1.5.2", (), True),
    ]


def test_what_is_no_node_within_a_tree_costs_itself_only():
    steps = [7, {"step_id": "S2", "name": "ok", **_stamps(0, 3), "substeps": {"S2.1": {}}}]
    videos, skips = _read([FLAT | {"dst": ["S1", FLAT_NODE]}, {"video_uid": "v", "steps": steps}])
    assert skips == []
    checked = build_videos(videos)
    assert [(skip.uid, skip.reason) for skip in checked.skips] == [
        ("v1", "not a node"),
        ("v", "not a node"),
        ("v", "substeps is no list"),
    ]
    assert (checked.skips[1].where, checked.skips[1].detail) == ("a.json row 2 step 1", "7")
    assert [len(video.nodes) for video in checked.videos] == [1, 1]


def test_step_text_stands_in_parsed_video_anns_or_at_the_top():
    for row in (
        {"parsed_video_anns": {"all_step_descriptions": TEXT}},
        {"all_step_descriptions": TEXT},
    ):
        (node,) = _checked_nodes({"video_uid": "v", **row})
        assert (node.node_id, node.level, node.name) == ("S1", "step", "from text")


@pytest.mark.parametrize("row", [FLAT, NESTED])
def test_a_tree_wins_over_step_text(row):
    nodes = _checked_nodes(row | {"all_step_descriptions": TEXT})
    assert "from text" not in [node.name for node in nodes]


@pytest.mark.parametrize("tree", [[], None, {}, {"steps": []}, {"steps": None}])
def test_a_tree_without_nodes_gives_way_to_step_text(tree):
    (node,) = _checked_nodes({"video_uid": "v", "dst": tree, "all_step_descriptions": TEXT})
    assert node.name == "from text"


def test_rows_of_several_formats_may_stand_in_one_file():
    text = {"video_uid": "v3", "all_step_descriptions": f"{TEXT}\nSummary: done"}
    videos, skips = _read([FLAT, NESTED, text])
    assert skips == []
    assert [(video.uid, len(video.nodes)) for video in videos] == [("v1", 1), ("v2", 4), ("v3", 1)]
    assert [dict(video.asides) for video in videos] == [{}, {}, {"summary": 1}]


def test_dataset_and_frame_rate_come_from_the_row_or_below():
    rows = [
        FLAT | {"dataset": "wtag"},
        FLAT | {"parsed_video_anns": {"dataset": "ego4d", "fps": "29.97", "video_start_time": 120}},
        FLAT | {"parsed_video_anns": None},
    ]
    videos, _ = _read(rows)
    assert [(video.dataset, video.source_fps) for video in videos] == [
        ("wtag", None),
        ("ego4d", "29.97"),
        ("", None),
    ]


def test_a_number_may_be_the_uid():
    videos, skips = _read([FLAT | {"video_uid": 48}, FLAT | {"video_uid": True}])
    assert [video.uid for video in videos] == ["48"]
    assert len(skips) == 1


def test_rows_of_another_form_are_skipped_one_by_one():
    rows = [FLAT, 7, {"dst": []}, {"video_uid": "v2", "dst": "S1"}, {"video_uid": "v3"}]
    rows += [{"video_uid": ["v4"], "dst": []}]
    videos, skips = _read(rows)
    assert len(videos) == 1
    assert [(skip.uid, skip.reason) for skip in skips] == [
        ("", "row in no known form"),
        ("", "row in no known form"),
        ("v2", "row in no known form"),
        ("v3", "row in no known form"),
        ("", "row in no known form"),
    ]
    assert [f"row {n}" in skip.where for n, skip in enumerate(skips, 2)] == [True] * 5


def test_a_broken_line_costs_that_line():
    text = json.dumps(FLAT) + "\n{broken\n" + json.dumps(FLAT)
    videos, skips = read_json(text, "/x/a.jsonl")
    assert len(videos) == 2
    assert [skip.reason for skip in skips] == ["line is not JSON"]
    assert skips[0].where == "a.jsonl line 2"


@pytest.mark.parametrize(
    "text", ["[1, 2", "{\n broken\n}", '{\n "dst": [\n{},\n', "[\n{}\n", '{\n "a": [\n1,\n2\n']
)
def test_broken_json_is_an_error_that_names_the_file(text):
    with pytest.raises(UserError, match=r"a\.json is not JSON"):
        read_json(text, "a.json")


def _nested_text(depth):
    inner = '{"name": "n", "start_ts": 0, "end_ts": 1, "substeps": ['
    return '{"video_uid": "v", "steps": [' + inner * depth + "]}" * depth + "]}"


def test_json_nested_beyond_reason_is_an_error_not_a_crash():
    checked = build_videos(read_json(_nested_text(200), "a.json")[0])
    assert len(checked.videos[0].nodes) + len(checked.skips) == 200
    with pytest.raises(UserError, match=r"a\.json is nested too deeply"):
        read_json(_nested_text(100_000), "a.json")


@pytest.mark.parametrize("number", ["1e400", "1" + "0" * 400, "1" + "0" * 5000, "-1" + "0" * 5000])
def test_numbers_beyond_any_float_are_unusable_times(number):
    text = json.dumps(FLAT).replace("2.5", number).replace(f'"{number}"', number)
    videos, skips = read_json(text, "a.json")
    assert skips == []
    assert [skip.reason for skip in build_videos(videos).skips] == ["unusable time"]
