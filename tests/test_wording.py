import re
import shlex
from pathlib import Path

from vtalign_jax.wording import counted, typed_command, typed_overrides

ROOT = Path(__file__).parents[1]


def test_a_noun_has_an_s_but_for_one():
    counts = [counted(number, "clip") for number in (0, 1, 2000)]
    assert counts == ["0 clips", "1 clip", "2,000 clips"]


def test_a_command_is_read_by_a_shell_as_it_was_meant():
    fields = typed_overrides({"data.dir": "my clips/it's", "data.weights": "0.5,0.5"})
    shown = typed_command("train", "--config=configs/tiny.py", *fields)
    assert shlex.split(shown) == [
        *("python", "launch/train.py", "--config=configs/tiny.py"),
        *("--config.data.dir=my clips/it's", "--config.data.weights=0.5,0.5"),
    ]
    assert typed_command("report", "--workdir=runs/a") == "python launch/report.py --workdir=runs/a"


def test_no_next_command_is_put_together_without_quotes():
    sources = [file for part in ("launch", "vtalign_jax") for file in (ROOT / part).rglob("*.py")]
    by_hand = re.compile(r"\bnext\b.*: python launch/")
    found = [str(file) for file in sources if by_hand.search(file.read_text(encoding="utf-8"))]
    assert len(sources) > 100
    assert found == []
