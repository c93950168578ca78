"""`launch/report.py` as a user starts it; what the page holds is tested with the page."""

from tests import commands
from tests.report_runs import ORDINARY, make_run


def test_runs_are_drawn_side_by_side(tmp_path):
    runs = [make_run(tmp_path / each, ORDINARY) for each in ("a", "b")]
    out = tmp_path / "pages" / "both.html"
    told = commands.run("launch/report.py", "--compare", *runs, f"--out={out}")
    assert told == f"report: {out}\n"
    assert "tune.rank" not in out.read_text()  # equal


def test_a_page_without_frames_is_told_on_the_terminal_too(tmp_path):
    run = make_run(tmp_path / "run", ORDINARY)  # whose dataset was never there
    report, warning = sorted(commands.run("launch/report.py", f"--workdir={run}").splitlines())
    assert report == f"report: {run / 'report.html'}"
    assert warning.startswith("warning: pictures are left out (the dataset is not at hand: no data")
    assert warning.endswith("; --dataset says where the dataset is now")
