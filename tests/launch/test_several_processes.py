"""The main job as several processes with several devices each: one run, whoever takes part."""

import json
import pathlib
import shutil
import signal
import socket
import subprocess
import time

import numpy as np
import pytest

from tests import commands
from tests.launch.small_dataset import make_small_dataset
from tests.training.test_session import fresh_state, open_session

CONFIG = "tests/launch/small_run.py"
STEPS = 12


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def dataset(tmp):
    return make_small_dataset(tmp)


def start(tmp: pathlib.Path, count: int, devices: int, *arguments: object) -> list:
    """Start `count` processes of one command with `devices` devices each."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    together = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
    return [
        commands.start(
            *arguments,
            *([*together, f"--process_id={number}"] if count > 1 else []),
            JAX_NUM_CPU_DEVICES=str(devices),
        )
        for number in range(count)
    ]


def finish(processes: list, timeout: float = 300.0) -> list[tuple[int, str]]:
    """Return (exit code, output) of each process."""
    found = []
    for process in processes:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            [each.kill() for each in processes]
            raise
        found.append((process.returncode, output))
    return found


def train(tmp: pathlib.Path, count: int, devices: int, dataset, workdir, *more: str) -> list:
    run = [f"--config={CONFIG}", f"--config.data.dir={dataset}", f"--workdir={workdir}"]
    return start(tmp, count, devices, "launch/train.py", *run, *more)


def trace(workdir: pathlib.Path) -> list[float]:
    """Return the loss of every step."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row["train/loss"] for row in rows if "train/loss" in row]


def wait_for_step(processes: list, workdir: pathlib.Path, step: int) -> None:
    metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + 300
    while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
        assert time.monotonic() < deadline, "the step never came"
        for process in processes:
            assert process.poll() is None, process.stdout.read()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def alone(tmp, dataset):
    """The workdir of one process with one device."""
    workdir = tmp / "alone"
    [(code, output)] = finish(train(tmp, 1, 1, dataset, workdir))
    assert code == 0, output
    return workdir


@pytest.fixture(scope="module")
def stopped(tmp, dataset):
    """The workdir of two processes, one of which got SIGTERM after step 4; and their ends."""
    workdir = tmp / "stopped"
    processes = train(tmp, 2, 2, dataset, workdir, "--config.mesh.data=2", "--config.mesh.fsdp=2")
    wait_for_step(processes, workdir, 4)
    processes[1].send_signal(signal.SIGTERM)
    return workdir, finish(processes)


def test_sigterm_to_one_of_two_saves_and_ends_both(stopped):
    workdir, ends = stopped
    assert [code for code, _ in ends] == [0, 0], ends
    assert "the same command goes on from there" in ends[0][1]
    assert "step 4/" in ends[0][1]
    assert "step 4/" not in ends[1][1]  # process 0 alone prints
    assert len(trace(workdir)) < STEPS


def test_one_process_goes_on_from_two_with_the_same_loss_in_every_step(
    tmp, dataset, stopped, alone
):
    workdir, _ = stopped
    done = len(trace(workdir))
    [(code, output)] = finish(train(tmp, 1, 1, dataset, workdir))
    assert code == 0, output
    assert f"resuming after step {done} of {STEPS}" in output
    np.testing.assert_allclose(trace(workdir), trace(alone), rtol=2e-5)
    recalls = [
        (path / "metrics.jsonl").read_text().count("val/recall@5") for path in (workdir, alone)
    ]
    assert recalls[0] == recalls[1]


def test_processes_that_see_other_checkpoints_go_on_from_the_one_that_the_first_took(tmp):
    """The first one's newest is damaged; the other does not see that, nor that it is moved."""
    views = tmp / "views"
    session, config = open_session(views / "0")
    state = session.start(fresh_state(config))
    for step in (1, 2):
        session.save(step, state._replace(step=state.step + step), {"val/recall@5": 1 / step})
    session.close()
    shutil.copytree(views / "0", views / "1")
    extra = views / "0" / "checkpoints" / "2" / "extra" / "metadata"
    extra.write_text(extra.read_text()[:-9])
    for code, output in finish(
        start(tmp, 2, 1, "tests/launch/differing_views.py", f"--workdir={views}")
    ):
        assert code == 0, output
        assert "at 1 of [1]" in output
    assert (views / "0" / "damaged" / "2").is_dir()
    assert (views / "1" / "checkpoints" / "2").is_dir()


def kill_and_see(processes: list, killed: int) -> None:
    """Kill one of several processes; the others end within a minute with a line that names it."""
    processes[killed].kill()
    began = time.monotonic()
    processes[killed].communicate()
    for code, output in finish(processes[:killed] + processes[killed + 1 :]):
        assert code == 1, output
        lines = [line for line in output.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, output
        assert f"process {killed} of {len(processes)} was lost" in lines[0]
        assert "goes on from the last checkpoint" in lines[0]
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("killed", [0, 2])
def test_a_killed_process_ends_the_others_with_a_line_that_names_it(tmp, killed):
    processes = start(tmp, 3, 1, "tests/launch/endless_sum.py")
    for process in processes:
        while "3 devices" not in (line := process.stdout.readline()):
            assert line, "it ended before it began"
    kill_and_see(processes, killed)


@pytest.mark.parametrize("raises", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_an_error_in_one_process_ends_the_other_with_its_line(tmp, raises):
    ends = finish(start(tmp, 2, 1, "tests/launch/endless_sum.py", f"--raises={raises}"))
    assert [code for code, _ in ends] == [1, 1], ends
    assert "error: OSError: no space left" in ends[raises][1]
    assert "Traceback" in ends[raises][1]
    told = f"error: process {raises} of 2 ended (OSError: no space left)"
    assert told in ends[1 - raises][1]
    assert "Traceback" not in ends[1 - raises][1]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_training_process_ends_the_other_and_the_run_goes_on(tmp, dataset, alone, killed):
    workdir = tmp / f"killed_{killed}"
    processes = train(tmp, 2, 1, dataset, workdir)
    wait_for_step(processes, workdir, 4)
    kill_and_see(processes, killed)
    for code, output in finish(train(tmp, 2, 1, dataset, workdir)):
        assert code == 0, output
    np.testing.assert_allclose(trace(workdir), trace(alone), rtol=2e-5)


def test_a_mistake_in_one_process_ends_all_with_its_line(tmp, dataset):
    """The second one has another learning rate, and another workdir, that holds no checkpoint."""
    workdir = tmp / "differing"
    saved = workdir / "0" / "checkpoints" / "5"
    for folder in ("state", "extra"):
        (saved / folder).mkdir(parents=True)
    (saved / "extra" / "metadata").touch()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    run = [f"--config={CONFIG}", f"--config.data.dir={dataset}"]
    run += [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    processes = [
        commands.start(
            "launch/train.py",
            *run,
            f"--process_id={number}",
            f"--workdir={workdir}/{number}",
            f"--config.optim.learning_rate={1 + number}e-4",
        )
        for number in range(2)
    ]
    for code, output in finish(processes):
        assert code == 2, output
        assert "error: the processes differ in --config and in --workdir" in output
    assert not (workdir / "1" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--num_processes=2"], "go together"),
        (["--coordinator=nowhere", "--num_processes=2", "--process_id=0"], "host:port"),
        (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "must be below"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(tmp, given, told):
    arguments = ["launch/train.py", f"--config={CONFIG}", f"--workdir={tmp}/none", *given]
    assert told in commands.one_error_line(commands.run(*arguments, code=2))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(8, 1), (2, 4), (1, 8)], ids=str)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_twenty_steps_lose_the_same_on_every_mesh(tmp, dataset, count, mesh):
    more = ["--config.train.epochs=7", "--config.train.eval_every_epochs=7"]
    more += [f"--config.mesh.data={mesh[0]}", f"--config.mesh.fsdp={mesh[1]}"]
    reference, workdir = tmp / "reference", tmp / f"{count}_{mesh}"
    if not reference.exists():
        [(code, output)] = finish(train(tmp, 1, 1, dataset, reference, *more[:2]))
        assert code == 0, output
    for code, output in finish(train(tmp, count, 8 // count, dataset, workdir, *more), 900):
        assert code == 0, output
    assert len(trace(workdir)) == 21
    np.testing.assert_allclose(trace(workdir), trace(reference), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("saved_by", "restored_by"), [(2, 1), (2, 4), (1, 2), (4, 2)])
def test_a_checkpoint_gives_any_number_of_processes_the_same_state_and_batches(
    tmp, dataset, saved_by, restored_by
):
    workdir = tmp / f"saved_by_{saved_by}"
    if not workdir.exists():
        for code, output in finish(train(tmp, saved_by, 4 // saved_by, dataset, workdir), 900):
            assert code == 0, output
        newest = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
        assert int(newest.name) == STEPS
    seen = {}
    for count in {saved_by, restored_by}:
        out = tmp / f"{saved_by}_seen_by_{count}"
        out.mkdir(exist_ok=True)
        arguments = ["tests/launch/resumed_state.py", f"--workdir={workdir}", f"--out={out}"]
        for code, output in finish(start(tmp, count, 4 // count, *arguments), 900):
            assert code == 0, output
        seen[count] = [np.load(out / f"{number}.npz") for number in range(count)]
    before, after = seen[saved_by], seen[restored_by]
    for process in [*before, *after]:
        for name in set(process.files) - {"records"}:
            np.testing.assert_array_equal(process[name], before[0][name])
    joined = [np.concatenate([p["records"] for p in each], axis=1) for each in (before, after)]
    np.testing.assert_array_equal(*joined)
