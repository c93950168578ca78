import subprocess
import sys

import pytest

from data.demo import run_demo
from tests import commands
from tests.browser import SECTIONS, open_everywhere
from vtalign_jax.errors import UserError


def test_only_an_earlier_demo_is_replaced(tmp_path):
    out = tmp_path / "demo"
    run_demo._make_folder(out)
    (out / "recordings").mkdir()
    run_demo._make_folder(out)
    assert [path.name for path in out.iterdir()] == [run_demo._MARK]

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(UserError, match="no demo"):
        run_demo._make_folder(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").exists()


@pytest.mark.parametrize(
    ("reached", "is_kept"),
    [
        ({"recall@5": 0.9, "recall@1": 0.5, run_demo.GROUNDING: 0.3}, True),
        ({"recall@5": 0.95, "recall@1": 0.49, run_demo.GROUNDING: 0.9}, False),
        ({"recall@5": 0.95, "recall@1": 0.95, run_demo.GROUNDING: 0.29}, False),
    ],
)
def test_a_broken_promise_fails_the_demo(reached, is_kept, capsys):
    if is_kept:
        run_demo._check(reached)
    else:
        with pytest.raises(SystemExit) as stopped:
            run_demo._check(reached)
        assert stopped.value.code == 1
    assert ("MISSED" in capsys.readouterr().out) is not is_kept


def test_a_failing_command_ends_the_demo_with_its_code(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit(2)")
    with pytest.raises(SystemExit) as stopped:
        run_demo._run(str(script))
    assert stopped.value.code == 2


@pytest.mark.slow
def test_the_demo_keeps_its_promises_and_its_report_opens_everywhere(tmp_path):
    out = tmp_path / "demo"
    command = [sys.executable, "data/demo/run_demo.py", f"--out={out}"]
    done = subprocess.run(command, cwd=commands.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for seen in open_everywhere([out / "run" / "report.html"]):
        assert seen["ids"] == SECTIONS
        assert "after step 720" in seen["text"]
        assert "None yet" not in seen["text"]
        assert "8 videos" in seen["text"].split("Grounding")[-1]
        assert "passed" in seen["text"].split("Exports")[-1]
