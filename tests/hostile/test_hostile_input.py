"""Files and command lines from strangers: used, reported or refused, and nothing else.

The long run, with its table: `pytest -s -m slow tests/hostile`.
"""

import collections
import subprocess
import sys

import pytest

from tests.commands import environment
from tests.hostile import campaign, guard, seeds
from tests.hostile.targets import TARGETS

_LONG = {
    "annotations": 500,
    "videos": 250,
    "dataset": 250,
    "base": 200,
    "export": 200,
    "checkpoint": 200,
    "commands": 200,
}
_OTHERS = 150
_SHORT, _SHORT_COMMANDS = 12, 8


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return seeds.write_seeds(tmp_path_factory.mktemp("seeds"))


def _run(sound, tmp_path, items):
    count = campaign.run(sound, tmp_path, items)
    print("\n" + "\n".join(count.lines()))
    assert count.faults == []
    assert count.items == sum(map(len, items.values()))
    return count


def test_a_few_mutations_of_everything_that_is_read(sound, tmp_path):
    items = {kind: range(_SHORT) for kind in TARGETS}
    count = _run(sound, tmp_path, items | {campaign.COMMANDS: range(_SHORT_COMMANDS)})
    outcomes = sum(count.outcomes.values(), collections.Counter())
    assert min(outcomes[name] for name in ("used", "reported", "refused")) > 0


@pytest.mark.slow
def test_thousands_of_mutations_of_everything_that_is_read(sound, tmp_path):
    kinds = [*TARGETS, campaign.COMMANDS]
    items = {kind: range(1000, 1000 + _LONG.get(kind, _OTHERS)) for kind in kinds}
    assert sum(map(len, items.values())) >= 2000
    _run(sound, tmp_path, items)


def test_the_guard_sees_what_it_is_there_for(sound, tmp_path):
    """A reader that fails, opens a file elsewhere, or takes time or memory, is found out."""
    lying = {"kind": "x", "number": 0, "outcome": "used"}
    assert guard.faults(lying) == []
    for fault in (
        {"error": "Traceback"},
        {"seconds": guard.MOST_SECONDS + 1},
        {"bytes": guard.MOST_BYTES + 1},
        {"opened": ["/etc/passwd (read)"]},
        {"message": " "},
    ):
        assert len(guard.faults(lying | fault)) == 1
    program = f"""
import pathlib
from tests.hostile.guard import Watch
watch = Watch(pathlib.Path({str(tmp_path)!r}), pathlib.Path({str(sound)!r}))
watch.item = "item"
open({str(tmp_path / "inside")!r}, "w").close()
open({str(sound / "base" / "config.json")!r}).close()
open("/etc/passwd").close()
try:
    open({str(sound / "written")!r}, "w")
except OSError:
    pass
watch.item = ""
print(len(watch.seen))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=guard.ROOT,
        env=environment(),
    )
    assert done.stdout == "2\n"


@pytest.mark.slow
def test_coverage_guided_fuzzing_of_the_parsers(tmp_path):
    script = guard.ROOT / "tests" / "hostile" / "fuzz_parsers.py"
    command = [sys.executable, str(script), str(tmp_path), "-runs=60000", "-max_total_time=120"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment(), check=False
    )
    print("\n" + "\n".join(line for line in done.stderr.splitlines() if "done " in line.lower()))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done " in done.stderr
