"""The main job as processes: stopped anywhere it reaches the same end; mistakes are one line."""

import json
import pathlib
import re
import shutil
import signal
import time

import pytest

from tests import commands
from tests.browser import SECTIONS, open_everywhere
from tests.launch.small_dataset import make_small_dataset
from vtalign_jax.training.checkpoint import find_checkpoint
from vtalign_jax.training.metrics import TIMING
from vtalign_jax.training.trained import load_trained

CONFIG = "tests/launch/small_run.py"


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def dataset(tmp):
    return make_small_dataset(tmp)


def train_arguments(dataset: pathlib.Path, workdir: pathlib.Path, *more: str) -> list[str]:
    base = [f"--config={CONFIG}", f"--config.data.dir={dataset}", f"--workdir={workdir}"]
    return ["launch/train.py", *base, *more]


@pytest.fixture(scope="module")
def finished(tmp, dataset):
    """The workdir of a run that nobody disturbed: 4 epochs of 3 steps."""
    workdir = tmp / "finished"
    output = commands.run(*train_arguments(dataset, workdir), "--quiet")
    (tmp / "finished.txt").write_text(output)
    return workdir


def rows(workdir: pathlib.Path) -> list[dict]:
    """Return the rows of metrics.jsonl without what depends on the machine's speed."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]


def kill_when(process, condition, limit_seconds: float = 120.0) -> None:
    """Send SIGKILL the moment `condition()` holds."""
    deadline = time.monotonic() + limit_seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "the moment to kill never came"
        time.sleep(0.001)
    process.kill()
    process.wait()


def test_a_run_leaves_what_it_should(finished, dataset):
    recorded = rows(finished)
    assert [row["step"] for row in recorded if "val/recall@5" in row] == [0, 3, 6, 9, 12]
    assert [row["step"] for row in recorded if "train/loss" in row] == list(range(1, 13))
    trained = [row for row in recorded if "train/loss" in row]
    for row in map(json.loads, (finished / "metrics.jsonl").read_text().splitlines()):
        assert "train/loss" not in row or 0.05 < row["train/host_gib"] < 16
    for row in trained:  # one recording alone is trained on
        assert row["train/gradient/same_recording"] == pytest.approx(1.0)
        assert row["train/pairs/cross_recording"] == 0.0
    named = [json.loads(line) for line in (finished / "confused.jsonl").read_text().splitlines()]
    assert [row["step"] for row in named] == list(range(1, 13))
    assert all(row["pairs"] for row in named)
    whole = [json.loads(line) for line in (finished / "evaluations.jsonl").read_text().splitlines()]
    assert [(row["step"], row["row"]) for row in whole] == [
        *((0, row) for row in ("chance", "zero_shot", "val")),
        *((step, "val") for step in (3, 6, 9, 12)),
    ]
    last = [row for row in recorded if "val/recall@5" in row][-1]
    assert whole[-1]["metrics"]["recall@5"] == last["val/recall@5"]
    ends = [last["val/recall@5_low"], last["val/recall@5_high"]]
    assert whole[-1]["intervals"]["recall@5"] == ends
    assert len(whole[-1]["groups"]["recording"]) == 2
    assert recorded[0]["step"] == 0
    assert "chance/recall@5" in recorded[0]
    assert any("zero_shot/recall@5" in row for row in recorded[:2])
    assert json.loads((finished / "config.json").read_text())["data"]["dir"] == str(dataset)
    manifest = json.loads((finished / "manifest.json").read_text())
    assert 0 < manifest["trainable_parameters"] < manifest["total_parameters"]
    assert list((finished / "tensorboard").iterdir())
    facts = load_trained(finished).facts
    assert (facts["window_seconds"], facts["fit"], facts["rotate"]) == (4.0, "center_crop", 0)


def test_a_quiet_run_tells_warnings_evaluations_and_the_end_alone(tmp, finished):
    lines = (tmp / "finished.txt").read_text().splitlines()
    ours = [line for line in lines if not re.match(r"\S+ \S+ \S+ \S+\] |WARNING|\*|\[", line)]
    assert [line for line in ours if "val/recall@1" in line]
    assert ours[-2:] == [
        f"report: {finished}/report.html",
        f"next: python launch/evaluate.py --checkpoint={finished}",
    ]
    told = ("warning:", "step ", "negatives:", "best ", "report:", "next:")
    assert [line for line in ours if not line.startswith(told)] == []
    assert not [line for line in ours if "loss" in line]


def test_its_report_opens_with_what_was_trained(finished):
    """The demo's recordings and model, fewer of them; the demo's own is opened under `slow`."""
    page = finished / "report.html"
    for seen in open_everywhere([page]):
        assert seen["ids"] == SECTIONS
        assert "after step 12" in seen["text"]
        assert "left out" not in seen["text"].split("Gallery")[-1].split("Embedding map")[0]
    text = page.read_text()
    assert text.count("image/jpeg;base64") >= 8  # frames of the queries
    assert (finished / "evaluation_sample.npz").stat().st_size < 100_000


def test_a_finished_run_started_again_changes_nothing(tmp, finished, dataset):
    before, config = rows(finished), (finished / "config.json").read_text()
    (finished / "config.json").write_text("")
    output = commands.run(*train_arguments(dataset, finished))
    assert "resuming after step 12 of 12" in output
    assert (finished / "config.json").read_text() == config
    assert rows(finished) == before


def test_similar_texts_are_no_negatives_and_steps_are_profiled_if_asked_for(tmp, dataset):
    more = ["--config.train.epochs=1", "--config.objective.similar_text_threshold=0.5"]
    more += ["--profile_steps=2:3"]
    output, again = (
        commands.run(*train_arguments(dataset, tmp / "similar", *more)) for _ in range(2)
    )
    assert re.search(r"comparing \d+ distinct texts by the base", output)
    assert "comparing" not in again  # it was over
    assert len(list((tmp / "similar" / "tensorboard").glob("plugins/profile/*/*.xplane.pb"))) == 1
    assert "--profile_steps=2:3 are none of the steps made" in again
    share = "train/pairs/similar_text"
    assert max(row[share] for row in rows(tmp / "similar") if share in row) > 0


def test_a_run_starts_where_another_ended_and_reads_it_once(tmp, finished, dataset):
    given, workdir = shutil.copytree(find_checkpoint(finished)[0], tmp / "given"), tmp / "continued"
    more = [f"--config.tune.init={given}", "--config.train.epochs=1"]
    output = commands.run(*train_arguments(dataset, workdir, *more))
    assert f"starting from checkpoint {given}" in output
    before = {name: value for row in rows(finished) for name, value in row.items()}
    at_start = {name: value for row in rows(workdir)[:3] for name, value in row.items()}
    best = json.loads((given / "metrics" / "metrics").read_text())["val/recall@5"]
    assert at_start["val/recall@5"] == pytest.approx(best)
    assert at_start["zero_shot/recall@5"] == before["zero_shot/recall@5"]
    shutil.rmtree(given)
    output = commands.run(*train_arguments(dataset, workdir, *more))
    assert "resuming after step 3 of 3" in output
    manifest = json.loads((workdir / "manifest.json").read_text())
    assert manifest["started_from"]["path"] == str(given)
    assert len(manifest["starts"]) == 2


@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGTERM, 0), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_saves_and_the_same_command_goes_on(tmp, finished, dataset, sent, code):
    workdir = tmp / f"ended_by_{sent.name}"
    kept = {"JAX_COMPILATION_CACHE_DIR": ""}  # in the workdir
    process = commands.start(*train_arguments(dataset, workdir), **kept)
    metrics = workdir / "metrics.jsonl"
    while not (metrics.exists() and '"step": 5,' in metrics.read_text()):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.001)
    process.send_signal(sent)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert "the same command goes on" in output
    step = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    programs = workdir / "compilation_cache"
    compiled = set(programs.iterdir())
    assert compiled
    output = commands.run(*train_arguments(dataset, workdir), **kept)
    assert set(programs.iterdir()) == compiled  # a second start compiles nothing
    assert f"resuming after step {step} of 12" in output
    assert rows(workdir) == rows(finished)


def test_checkpoints_hold_no_frozen_leaf(finished):
    newest = max(finished.glob("checkpoints/[0-9]*"), key=lambda path: int(path.name))
    stored = json.loads((newest / "state" / "_METADATA").read_text())["tree_metadata"]
    trained = r"lora_[ab]|head\.fc[12]\.(kernel|bias)|log_temperature"
    counter = r"step|seed|skipped|skipped_in_a_row|longest_skipped|count"
    assert any("mu" in name for name in stored)
    for name in stored:
        assert re.search(rf"({trained}|\b({counter}))\W*$", name), name


@pytest.mark.parametrize("line", ["clips to train on", "compiling that first"])
def test_sigterm_before_the_first_step_ends_at_once_and_loses_nothing(tmp, dataset, line):
    """A preempted machine is gone before a large model is compiled."""
    workdir = tmp / f"early_{len(line)}"
    process = commands.start(
        *train_arguments(dataset, workdir), JAX_COMPILATION_CACHE_DIR=str(tmp / "none")
    )
    while line not in (printed := process.stdout.readline()):
        assert printed, "it ended before"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 5
    assert process.returncode == 0, output
    assert "stopped before the first step; the same command goes on from there" in output
    assert "step 1/" not in output
    assert not list(workdir.glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--config.optim.learning_rat=1"], "learning_rat"),
        (["--config=configs/nothing.py"], "configs/nothing.py"),
        (["--config.data.dir=nowhere"], "python launch/prepare.py"),
        (["--config.model.base=nowhere/base"], "nowhere/base"),
        (["--config.tune.rank=3", "--workdir={finished}"], "config.tune.rank was 2 and is now 3"),
        (["--workdir=s3://bucket/run"], "neither a path of this machine nor gs://"),
    ],
)
def test_a_users_mistake_ends_in_one_line_and_code_2(tmp, dataset, finished, arguments, told):
    more = [argument.format(finished=finished) for argument in arguments]
    arguments = train_arguments(dataset, tmp / "mistaken", *more)
    line = commands.one_error_line(commands.run(*arguments, code=2))
    assert told in line
    assert not (tmp / "mistaken" / "checkpoints").exists() or not list(
        (tmp / "mistaken" / "checkpoints").iterdir()
    )


def test_texts_cut_short_and_batches_that_stay_short_are_told(tmp, dataset):
    more = ["--config.data.max_text_tokens=9", "--config.train.contrastive_batch=32"]
    more += ["--config.data.feature_cache=nowhere"]  # found out later, and before any compilation
    output = commands.run(*train_arguments(dataset, tmp / "short", *more), code=2)
    assert re.search(r"warning: \d+ distinct texts are longer than .*max_text_tokens=9", output)
    assert "contrastive_batch=32 is more than the 24 clips" in output
