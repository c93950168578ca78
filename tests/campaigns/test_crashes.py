"""Whatever moment a command is killed at, the same command ends as if nothing had happened."""

import dataclasses

import pytest

from tests import commands
from tests.campaigns import crashes
from tests.campaigns.crashes import PHASES, Job
from tests.launch.small_dataset import make_small_recordings

SEED = 0
# In `make test`: where most could be lost. A killed `prepare` and folders of exports have tests.
SHORT = (
    "train: evaluating",
    "train: writing a checkpoint",
    "train: removing a checkpoint",
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A job of 12 steps that nobody disturbs."""
    tmp = tmp_path_factory.mktemp("crashes")
    job = Job(
        folder=tmp / "undisturbed",
        recordings=make_small_recordings(tmp),
        config="tests/launch/small_run.py",
        settings=(),
        eval_every=3,
        stages=("prepare", "train"),
        shares_programs=True,
    )
    return _finished(job)


# What is aimed at in a round of the whole campaign, and how often.
ROUND = {
    "prepare: before that": 1,
    "prepare: rendering": 1,
    "prepare: writing records": 1,
    "cache_features: before that": 1,
    "cache_features: writing a file": 3,
    "train: before the first step": 1,
    "train: stepping": 2,
    "train: evaluating": 2,
    "train: writing a checkpoint": 3,
    "train: removing a checkpoint": 2,
    "export: before that": 1,
    "export: writing": 2,
}
KILLS = 100  # at least


def _finished(job: Job) -> Job:
    for stage in job.stages:
        job.finish(stage)
    return job


def _beside(job: Job, name: str) -> Job:
    return dataclasses.replace(job, folder=job.folder.with_name(name))


def _disturbed(job: Job, seed: int, phases) -> list[crashes.Kill]:
    """Run a job to its end, killing it once in each phase named."""
    kills = []
    for stage in job.stages:
        aimed = [phase for phase in phases if PHASES[phase].stage == stage]
        kills += [crashes.kill(job, each) for each in crashes.draw_moments(seed, aimed)]
        job.finish(stage)
    return kills


def test_a_job_killed_while_it_writes_ends_as_one_that_was_not(small):
    job = _beside(small, "killed")
    kills = _disturbed(job, SEED, SHORT)
    assert sum(bool(each.hit) for each in kills) >= 2, crashes.table(kills)  # others came too late
    assert crashes.judge(job, small) == []


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's model and data, a tenth of the steps: 60, that nobody disturbs."""
    tmp = tmp_path_factory.mktemp("demo")
    recordings = tmp / "recordings"
    commands.run("data/demo/make_demo.py", f"--out={recordings}", "--train=6", "--val=2")
    settings = {
        "contrastive_batch": 48,
        "epochs": 20,  # of 3 steps
        "min_epochs": 20,
        "eval_every_epochs": 4,
        "save_every_steps": 5,
        "log_every_steps": 1,
    }
    job = Job(
        folder=tmp / "undisturbed",
        recordings=recordings,
        config="configs/demo.py",
        settings=tuple(f"--config.train.{name}={value}" for name, value in settings.items()),
        eval_every=12,
    )
    return _finished(job)


@pytest.mark.slow
def test_a_hundred_kills_at_random_moments_change_nothing(demo):
    kills, seed = [], SEED
    while sum(bool(each.hit) for each in kills) < KILLS:
        job = _beside(demo, f"round_{seed}")
        aimed = [phase for phase, times in ROUND.items() for _ in range(times)]
        kills += _disturbed(job, seed, aimed)
        print(f"after round {seed}:\n{crashes.table(kills)}", flush=True)
        assert crashes.judge(job, demo) == [], seed
        seed += 1
    assert {each.hit for each in kills} >= set(PHASES)
