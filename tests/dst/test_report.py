import collections
import contextlib
import io
import json
import re

import pyarrow as pa
import pytest

from vtalign_jax.dst import report
from vtalign_jax.dst.nodes import Remark, Skip
from vtalign_jax.errors import UserError

SKIPS = [Skip("v", "", "no frames", "tried x", 3, "a.json row 1"), Skip("w", "S1", "empty text")]


def test_lines_come_while_the_library_underneath_is_silenced(capsys, monkeypatch):
    monkeypatch.setattr(report, "_SECONDS_BETWEEN_LINES", 0.0)
    progress = report.ProgressLine(10, "prepare")
    with contextlib.redirect_stdout(io.StringIO()):
        progress.advance(3, 1)
        progress.say("writing")
    progress.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("prepare: 4/10 clips, 1 skipped, 0 s,")
    assert lines[1] == "writing"
    assert len(lines) == 2


def test_plain_lines_are_ten_seconds_apart(capsys):
    progress = report.ProgressLine(100, "prepare")
    for _ in range(100):
        progress.advance(1, 0)
    progress.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("prepare: 100/100 clips, 0 skipped")


def test_units_other_than_clips_are_named(capsys):
    progress = report.ProgressLine(1, "open", "file")
    progress.advance(1, 0)
    progress.close()
    assert capsys.readouterr().out.startswith("open: 1/1 files, 0 skipped")


def test_the_share_counts_clips_not_lines():
    report.check_share(SKIPS, 76, 0.05, "x")
    with pytest.raises(
        UserError, match=r"4 of 79 clips .*3 no frames, 1 empty text.*--max_skipped"
    ):
        report.check_share(SKIPS, 75, 0.05, "x")
    report.check_share([], 0, 0.0, "x")


def test_skips_are_written_one_object_a_line(tmp_path):
    report.write_skips(SKIPS, tmp_path / "a" / "skipped.jsonl")
    lines = (tmp_path / "a" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {
        "uid": "v",
        "node_id": "",
        "reason": "no frames",
        "detail": "tried x",
        "clips": 3,
        "where": "a.json row 1",
    }
    assert len(lines) == 2


def test_each_kind_of_warning_is_printed_once_with_examples(capsys):
    remarks = [Remark("v", f"S{n}", "child outside", "by 2.00 s") for n in range(5)]
    report.print_warnings([*remarks, Remark("", "", "something else")])
    assert capsys.readouterr().out.splitlines() == [
        "warning: child outside (5 times): v S0 by 2.00 s; v S1 by 2.00 s; v S2 by 2.00 s",
        "warning: something else",
    ]


def test_asides_are_one_line_or_none(capsys):
    report.print_asides(collections.Counter())
    report.print_asides(collections.Counter(dialogue=12, summary=1, start=2))
    assert capsys.readouterr().out.splitlines() == [
        "passed over 12 lines of dialogue, 1 summary, 2 start marks"
    ]


def test_the_closing_table_says_what_was_taken_and_why_the_rest_was_not():
    table = pa.table(
        {
            "uid": ["a__1", "a__2", "b__1"],
            "recording_id": ["a", "a", "b"],
            "text": ["Open", "open", "shut"],
            "text_key": ["0", "0", "1"],
            "num_frames": [8, 8, 5],
            "window_start": [0.0, 0.0, 1.0],
            "window_end": [3600.0, 3600.0, 1801.0],
            "video_duration": [7200.0, 3600.0, 900.0],
        }
    )
    tables, sizes = {"train": table, "val": table[2:]}, {"train": 1_234_567, "val": 89_000}
    skips = [*SKIPS, Skip("", "", "no recordings", clips=0, where="b.json")]
    lines = report.closing_table(tables, sizes, skips, 2).splitlines()
    assert lines[0].split() == ["train", "val"]
    assert len({len(line) for line in lines[:13]}) == 1
    figures = [re.split(r" {2,}", line) for line in lines[1:13]]
    assert figures == [
        ["videos", "3", "1"],
        ["hours of video", "3.25", "0.25"],
        ["recordings", "2", "1"],
        ["clips", "3", "1"],
        ["hours of clips", "2.50", "0.50"],
        ["clips a recording, least", "1", "1"],
        ["clips a recording, median", "2", "1"],
        ["clips a recording, most", "2", "1"],
        ["frames", "21", "5"],
        ["distinct texts", "3", "1"],
        ["distinct texts, normalised", "2", "1"],
        ["MB", "1.2", "0.1"],
    ]
    assert lines[13:] == [
        "taken 4 clips, skipped 4 (50.0%)",
        "  3 skipped: no frames",
        "  1 skipped: empty text",
        "  1 file skipped: no recordings",
        "  2 dropped from train: recording also in val or test",
    ]
