import collections
import json

from vtalign_jax.dst.findings import ADVICE, Finding
from vtalign_jax.dst.lint import Linted
from vtalign_jax.dst.lint_report import (
    as_json,
    clips_left_out,
    count_severities,
    outlook,
    table_lines,
    totals,
    totals_lines,
)
from vtalign_jax.dst.nodes import Node, Video

FINDINGS = [
    *(
        Finding("warning", "child outside its parent", "v", f"S{n}", "by 2.00 s", f"a row {n}")
        for n in range(5)
    ),
    Finding("info", "one text written in several ways", detail="'Open' (2), 'open' (1)"),
    Finding("error", "no frames", "w", "", "tried x", "", 7),
    Finding("error", "reversed times", "v", "S9", "9.0 to 4.0", "a row 9", 1),
    Finding("error", "reversed times", "v", "S8", "9.0 to 4.0", "a row 8", 1),
]


def _node(node_id, level, name, **more):
    return Node(node_id, level, 0.0, 1.0, name, **more)


VIDEOS = [
    Video(
        "r__1",
        (_node("S1", "step", "wheels", is_leaf=False), _node("S1.a", "action", "Turn")),
        split="train",
    ),
    Video(
        "r__2", (_node("S1", "action", "the turn"), _node("S2", "action", "turn")), split="train"
    ),
    Video("other", (_node("S1", "action", "turn"),), split="val"),
    Video("bad", (), split="test"),
]


def _linted(findings=FINDINGS, **more):
    given = {"jobs": {}, "taken": 91, "durations": {}} | more
    return Linted(findings, VIDEOS, collections.Counter(summary=1), **given)


def test_the_table_is_by_severity_and_count_with_advice_and_first_examples():
    assert table_lines(FINDINGS) == [
        "3 errors: prepare leaves these out, or refuses",
        f"  2 x reversed times: {ADVICE['reversed times']}",
        "      a row 9: v S9: 9.0 to 4.0",
        "      a row 8: v S8: 9.0 to 4.0",
        f"  1 x no frames: {ADVICE['no frames']}",
        "      w: tried x",
        "5 warnings: kept, but they look wrong",
        f"  5 x child outside its parent: {ADVICE['child outside its parent']}",
        "      a row 0: v S0: by 2.00 s",
        "      a row 1: v S1: by 2.00 s",
        "      a row 2: v S2: by 2.00 s",
        "      ... and 2 more (--out, --json)",
        "1 info: fine as they are, but worth a look",
        f"  1 x one text written in several ways: {ADVICE['one text written in several ways']}",
        "      'Open' (2), 'open' (1)",
    ]
    assert table_lines([]) == []


def test_what_an_annotation_holds_cannot_command_the_terminal_or_flood_it():
    found = Finding("error", "unsafe uid", "\x1b[2J\nfoo\ud800", "", "x" * 1000)
    line = table_lines([found])[-1]
    assert line.strip().startswith("\\x1b[2J\\nfoo\\ud800: xxx")
    assert line.isprintable()
    assert len(line) < 400
    json.dumps(as_json(_linted([found]), "leaves"))


def test_totals_count_usable_videos_nodes_and_texts_of_clips_by_split():
    found = totals(_linted(), "leaves")
    assert found == {
        "train": {
            "videos": 2,
            "recordings": 1,
            "steps": 1,
            "substeps": 0,
            "actions": 3,
            "clips": 3,
            "distinct_texts": 3,
            "distinct_texts_normalised": 1,
        },
        "val": dict.fromkeys(found["train"], 1) | {"steps": 0, "substeps": 0},
    }
    assert totals(_linted(), "all")["train"]["clips"] == 4
    lines = totals_lines(found)
    assert lines[0].split() == ["train", "val"]
    assert lines[-1].split() == ["distinct", "texts", "normalised", "1", "1"]
    assert totals_lines({}) == []


def test_totals_know_the_hours_of_videos_with_frames():
    linted = _linted(jobs={("train", "r__1"): []}, durations={("train", "r__1"): 5400.0})
    found = totals(linted, "leaves")
    assert (found["train"]["videos_with_frames"], found["train"]["hours_of_video"]) == (1, 1.5)
    assert (found["val"]["videos_with_frames"], found["val"]["hours_of_video"]) == (0, 0.0)


def test_the_outlook_says_what_prepare_would_lose_and_whether_it_would_refuse():
    assert clips_left_out(FINDINGS) == 9
    line = "prepare would take 91 clips and leave out 9 (9.0%)"
    assert outlook(_linted(), 0.1) == line
    assert outlook(_linted(), 0.05) == f"{line}, more than --max_skipped=0.05 allows"


def test_json_holds_every_finding_and_the_counts():
    document = json.loads(json.dumps(as_json(_linted(), "leaves")))
    assert document["counts"] == count_severities(FINDINGS) == {"error": 3, "warning": 5, "info": 1}
    assert (document["clips_taken"], document["clips_left_out"]) == (91, 9)
    assert document["asides"] == {"summary": 1}
    assert len(document["findings"]) == len(FINDINGS)
    assert document["findings"][0] == {
        "severity": "warning",
        "check": "child outside its parent",
        "uid": "v",
        "node_id": "S0",
        "detail": "by 2.00 s",
        "where": "a row 0",
        "clips": 0,
    }
