"""`launch/report.py` as a user starts it; what the page holds is tested with the page."""

from tests import commands
from tests.report_runs import ORDINARY, make_run


def test_runs_are_drawn_side_by_side(tmp_path):
    runs = [make_run(tmp_path / each, ORDINARY) for each in ("a", "b")]
    out = tmp_path / "pages" / "both.html"
    told = commands.run("launch/report.py", "--compare", *runs, f"--out={out}")
    assert told == f"report: {out}\n"
    assert "tune.rank" not in out.read_text()  # equal
