import dataclasses

import pytest

from tests import commands
from tests.campaigns import long_run
from tests.campaigns.long_run import Sample

STEPS = 1000
_FLAT = Sample(0, 0.0, 0.0, 900 * 2**20, 13, 100, 3, 10**6, 10**6)


def samples(**growing: float) -> list[Sample]:
    """Return 100 samples; of the fields named, what is added a step."""
    made = []
    for step in range(10, STEPS + 1, 10):
        rates = {"seconds": 0.05, "cpu_seconds": 0.03} | growing
        added = {name: getattr(_FLAT, name) + rate * step for name, rate in rates.items()}
        made.append(dataclasses.replace(_FLAT, step=step, **added))
    return made


def test_a_flat_run_has_not_grown():
    lines, grown = long_run.compare(samples(other_bytes=5000.0), STEPS)
    assert grown == []
    assert len(lines) == 1 + len(long_run.QUANTITIES)


@pytest.mark.parametrize(
    ("field", "rate", "names"),
    [
        ("resident_bytes", 2e5, ["memory, typical (MiB)", "memory, at most (MiB)"]),
        ("files", 0.005, ["open files, typical"]),
        ("threads", 0.05, ["threads, typical", "threads, at most"]),
        ("checkpoints", 0.005, ["checkpoints, at most"]),
        ("checkpoint_bytes", 1000.0, ["checkpoints on disk, at most (MiB)"]),
    ],
)
def test_what_leaks_has_grown(field, rate, names):
    lines, grown = long_run.compare(samples(**{field: rate}), STEPS)
    assert grown == names
    assert sum("GROWN" in line for line in lines) == len(names)


def test_steps_that_take_ever_longer_have_grown():
    made = [dataclasses.replace(s, cpu_seconds=1e-5 * s.step**2) for s in samples()]
    assert long_run.compare(made, STEPS)[1] == ["processor time a step (ms)"]


@pytest.mark.slow
def test_nothing_grows_in_20_000_steps(tmp_path):
    commands.run("data/demo/make_demo.py", f"--out={tmp_path}/recordings")
    recordings, dataset = tmp_path / "recordings", tmp_path / "dataset"
    annotations = f"--annotations={recordings}/train.json,{recordings}/val.json"
    more = [f"--videos={recordings}/videos", f"--out={dataset}", "--image_size=64", "--frames=4"]
    commands.run("launch/prepare.py", annotations, *more)
    found = long_run.watch(str(dataset), tmp_path, steps=20_000)
    lines, grown = long_run.compare(found, found[-1].step)
    print("\n".join(lines))
    assert grown == []
