"""Annotations drawn by hypothesis: any tree, any value, and what a reader may make of it."""

import json

import pytest
from hypothesis import HealthCheck, given, settings, target
from hypothesis import strategies as st

from vtalign_jax.dst.json_readers import read_json
from vtalign_jax.dst.step_text import read_step_text
from vtalign_jax.dst.tables import Columns, read_csv, read_tsv
from vtalign_jax.dst.tree import MAX_SECONDS, build_videos
from vtalign_jax.errors import UserError

_SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
_LONG = settings(_SETTINGS, max_examples=4000, derandomize=False)

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
_TIMES = st.one_of(st.floats(-1, 50), st.sampled_from(["0:05", "1:00:02.5", "3", "x"]), _VALUES)
_IDS = st.sampled_from(["S1", "S1.1", "S1.1.a", "S2", "1", ".", "S1..a", ""])
_NAMES = st.sampled_from(["take", "put the <b>", "", "a" * 1001]) | _VALUES
_NODES = st.fixed_dictionaries(
    {},
    optional={
        "id": _IDS | _VALUES,
        "type": st.sampled_from(["step", "Substep", "action", "x"]) | _VALUES,
        "start_ts": _TIMES,
        "end_ts": _TIMES,
        "name": _NAMES,
    },
)
_STAMPS = st.fixed_dictionaries({}, optional={"start_ts": _TIMES, "end_ts": _TIMES})
_NESTED = st.recursive(
    st.fixed_dictionaries({"name": _NAMES, "timestamps": _STAMPS | _VALUES}),
    lambda inner: st.fixed_dictionaries(
        {"name": _NAMES, "step_id": _IDS | _VALUES, "substeps": st.lists(inner) | _VALUES}
    ),
    max_leaves=5,
)
_ROWS = st.fixed_dictionaries(
    {"video_uid": st.sampled_from(["u1", "u2", "../u", "\ud800", "~", "a" * 300]) | _VALUES},
    optional={
        "dst": st.lists(_NODES | _VALUES, max_size=5)
        | st.fixed_dictionaries({"steps": st.lists(_NESTED, max_size=3) | _VALUES})
        | _VALUES,
        "dataset": _VALUES,
        "parsed_video_anns": _VALUES
        | st.fixed_dictionaries({"all_step_descriptions": st.text() | _VALUES, "fps": _VALUES}),
    },
)


def _check_rows(rows):
    text = json.dumps(rows, ensure_ascii=False)
    videos, skips = read_json(text, "a.json")
    assert len(videos) + len(skips) == len(rows)  # each row is one or the other
    checked = build_videos(videos)
    target(float(sum(len(video.nodes) for video in checked.videos)), label="nodes kept")
    for video in checked.videos:
        for node in video.nodes:
            assert 0 <= node.start <= node.end <= MAX_SECONDS
            assert node.name.strip()
            node.name.encode()
    kept = {(video.uid, node.node_id) for video in checked.videos for node in video.nodes}
    named = {skip.uid for skip in checked.skips}
    for row in videos:
        for node in row.nodes:
            is_kept = (row.uid, str(node.node_id).strip()) in kept
            assert is_kept or row.uid in named or row.uid[:200] in named
    for skip in skips + checked.skips:
        json.dumps(vars(skip))
        assert skip.reason


@_SETTINGS
@given(st.lists(_ROWS, max_size=4))
def test_every_row_and_node_is_used_or_named(rows):
    _check_rows(rows)


@pytest.mark.slow
@_LONG
@given(st.lists(_ROWS, max_size=4))
def test_every_row_and_node_is_used_or_named_in_thousands(rows):
    _check_rows(rows)


_CELLS = st.sampled_from(["u1", "0", "1.5", "take", '"', '"a,b"', "nan", "", "-1", "\ud800"])


@_SETTINGS
@given(st.lists(st.lists(_CELLS, max_size=7), max_size=6), st.sampled_from([",", "\t", ";"]))
def test_every_line_of_a_table_is_used_or_named(rows, delimiter):
    header = ["narration_id", *vars(Columns()).values()][:5]
    lines = [delimiter.join(cells) for cells in [header, *rows]]
    try:
        videos, skips = read_csv("\n".join(lines), "a.csv", Columns())
    except UserError:
        return
    build_videos(videos)
    assert all(skip.where for skip in skips)


@_SETTINGS
@given(st.text(alphabet='[]-. 0123456789sabc\n":()mistake', max_size=200))
def test_any_step_text_is_read(text):
    nodes, _ = read_step_text(text)
    assert all(node.where for node in nodes)


@_SETTINGS
@given(st.text(max_size=60))
def test_any_node_table_is_read_or_refused(text):
    header = "type\tid\tstart_ts\tend_ts\tname\n"
    videos, _ = read_tsv(header + text, "a.tsv")
    build_videos(videos)
