"""The ablation as a process: runs, goes on, compares, and fails with one line."""

import json
import shutil
import signal
import time

import pytest

from tests import commands
from tests.pipeline.clip_fixtures import FRAMES, jpeg, make_clip, write_dataset
from vtalign_jax.training import ablation, manifest
from vtalign_jax.training.ablation import FIGURES

SIZE = 64  # pixels, of the tiny base


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
    return tmp_path_factory.mktemp("ablate")


@pytest.fixture(scope="module")
def dataset(tmp):
    """3 recordings to train on and 2 to validate, 8 texts in each, 20 seconds apart."""

    def clips(name, count):
        return [
            make_clip(
                f"{name}{r}",
                f"S{n}",
                20.0 * n + 10,
                f"do thing {n}",
                frames=[jpeg((25 * n, 50 * r, 9 * k), SIZE) for k in range(FRAMES)],
            )
            for r in range(count)
            for n in range(8)
        ]

    splits = {"train": clips("t", 3), "val": clips("v", 2)}
    write_dataset(tmp / "dataset", splits, image_size=SIZE)
    return tmp / "dataset"


def arguments(dataset, out, *more):
    """One epoch of two steps."""
    fixed = {
        "data.dir": dataset,
        "train.contrastive_batch": 12,
        "train.epochs": 1,
        "train.eval_batch": 16,
    }
    overrides = [f"--config.{name}={value}" for name, value in fixed.items()]
    config = "--config=tests/launch/small_run.py"
    return ["launch/ablate.py", config, *overrides, f"--out={out}", *more]


@pytest.fixture(scope="module")
def finished(tmp, dataset):
    """Return the folder and the output of two presets with one seed."""
    out = tmp / "finished"
    more = ["--presets=plan,infonce", "--seeds=3"]
    return out, commands.run(*arguments(dataset, out, *more))


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_presets_are_trained_and_compared(finished):
    out, output = finished
    assert "2 runs in" in output
    assert f"{out}/plan-3: the best checkpoint by val/recall@5 is that of step 2" in output
    table = output[output.index("objective.preset  ") :].splitlines()
    assert [line.split()[0] for line in table[2:10:2]] == ["chance", "zero_shot", "plan", "infonce"]
    written = json.loads((out / "ablation.json").read_text())
    assert written["field"] == "objective.preset"
    assert written["overrides"]["train.contrastive_batch"] == 12
    for value in ("plan", "infonce"):
        config = json.loads((out / f"{value}-3" / "config.json").read_text())
        assert config["objective"]["preset"] == value
        assert (config["train"]["seed"], config["train"]["epochs"]) == (3, 1)
        last = next(row for row in rows_of(out / f"{value}-3")[::-1] if "val/recall@5" in row)
        assert last["step"] == 2
        for name in FIGURES:
            assert written["rows"][value][name]["mean"] == pytest.approx(last[f"val/{name}"])
    assert written["rows"]["chance"]["choice_intra"]["mean"] == pytest.approx(0.2)
    assert "next: python launch/evaluate.py --checkpoint=" in output.splitlines()[-1]


def test_another_seed_is_added_and_finished_runs_are_not_run_again(tmp, dataset, finished):
    out, _ = finished
    before = (out / "plan-3" / "manifest.json").read_text()
    output = commands.run(*arguments(dataset, out, "--presets=plan", "--seeds=3,5"))
    assert "2 runs in" in output
    assert "1 of them finished before" in output
    assert (out / "plan-3" / "manifest.json").read_text() == before
    written = json.loads((out / "ablation.json").read_text())["rows"]["plan"]["recall@5"]
    assert written["runs"] == 2
    reached = [rows_of(out / f"plan-{seed}")[-1]["val/recall@5"] for seed in (3, 5)]
    assert (written["low"], written["high"]) == (min(reached), max(reached))


def test_a_run_of_another_configuration_in_the_way_is_named(tmp, dataset, finished):
    out, _ = finished
    more = ["--presets=plan", "--seeds=3", "--config.tune.rank=3"]
    line = commands.one_error_line(commands.run(*arguments(dataset, out, *more), code=2))
    assert "config.tune.rank was 2 and is now 3" in line


def test_a_run_whose_newest_checkpoint_is_damaged_is_trained_on(tmp, finished):
    """`train` moves it away and goes on from the one before."""
    out = tmp / "damaged"
    shutil.copytree(finished[0] / "plan-3", out / "plan-3")
    config = manifest.read_config(out / "plan-3")
    (run,) = ablation.make_runs(config, "objective.preset", ["plan"], [3], str(out))
    assert ablation.find_reached(run).step == 2
    extra = out / "plan-3" / "checkpoints" / "2" / "extra" / "metadata"
    extra.write_text(extra.read_text()[:-9])
    assert ablation.find_reached(run) is None


def test_a_failing_run_ends_the_command_with_its_error(tmp, dataset):
    out = tmp / "failing"
    out.mkdir()
    (out / "0.3-0").write_text("in the way")
    more = ["--vary=objective.same_recording_weight=0.3,0.4", "--seeds=0"]
    line = commands.one_error_line(commands.run(*arguments(dataset, out, *more), code=2))
    assert line.startswith(f"error: {out}/0.3-0: cannot write to --workdir")
    assert not (out / "0.4-0").exists()


@pytest.mark.slow
def test_sigterm_reaches_the_run_and_the_same_command_goes_on(tmp, dataset):
    out = tmp / "terminated"
    command = arguments(dataset, out, "--presets=plan", "--seeds=0", "--config.train.epochs=40")
    process = commands.start(*command)
    metrics = out / "plan-0" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and '"step": 3,' in metrics.read_text()):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert f"stopped in {out}/plan-0; the same command goes on from there" in output
    saved = [int(p.name) for p in (out / "plan-0" / "checkpoints").iterdir() if p.name.isdigit()]
    assert max(saved) >= 3
    shutil.rmtree(out)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--presets=plan", "--vary=tune.rank=2,3"], "give one of them"),
        (["--config.train.seed=4"], "--config.train.seed is for all runs, --seeds for each"),
        (["--seeds=a"], "--seeds=a"),
        (["--seeds="], "no seed is named"),
        (["--presets="], "no value is named"),
    ],
)
def test_a_users_mistake_ends_in_one_line_before_anything_runs(tmp, dataset, more, told):
    out = tmp / "mistaken"
    output = commands.run(*arguments(dataset, out, *more), code=2)
    assert told in commands.one_error_line(output)
    assert not out.exists()


def test_comparing_starts_no_backend_that_a_run_would_need(tmp, finished, dataset):
    """A TPU belongs to one process at a time."""
    out, _ = finished
    script = f"""
from jax._src import xla_bridge
from vtalign_jax.training import ablation, manifest
config = manifest.read_config("{out}/plan-3")
(run,) = ablation.make_runs(config, "objective.preset", ["plan"], [3], "{out}")
assert ablation.find_reached(run).step == 2
assert not xla_bridge.backends_are_initialized()
"""
    commands.run("-c", script)
