"""What a machine runs out of ends a command in one line; mended, the same command goes on."""

import json
import os
import pathlib
import resource
import shutil
import signal
import time

import pytest

from tests import commands
from tests.campaigns.resources import read_only, small_disk
from tests.launch.small_dataset import make_small_recordings, prepare_arguments
from tests.launch.test_train import CONFIG, kill_when, rows, train_arguments
from vtalign_jax.training.checkpoint import find_checkpoint, finished_steps

pytestmark = pytest.mark.slow
LONG = ["--config.train.epochs=300", "--config.train.eval_every_epochs=300"]  # nobody waits for it


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
    return tmp_path_factory.mktemp("resources")


@pytest.fixture(scope="module")
def recordings(tmp):
    return make_small_recordings(tmp)


@pytest.fixture(scope="module")
def dataset(tmp, recordings):
    commands.run("launch/prepare.py", *prepare_arguments(recordings, tmp / "dataset"))
    return tmp / "dataset"


@pytest.fixture(scope="module")
def finished(tmp, dataset):
    commands.run(*train_arguments(dataset, tmp / "finished"))
    return tmp / "finished"


def last_error(process, code: int = 2) -> str:
    """Return the one line `error: ...` with which a command ends."""
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    return line


def wait_for(process, condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("left", [0, 60_000])  # bytes: for a row of metrics, not for a checkpoint
def test_training_on_a_full_disk_loses_nothing(tmp, dataset, finished, left):
    with small_disk(tmp / f"full_{left}", 64) as disk:
        workdir = disk.folder / "run"
        process = commands.start(*train_arguments(dataset, workdir))
        wait_for(process, (workdir / "checkpoints" / "4").exists)
        disk.fill(process, left)
        line = last_error(process)
        assert "No space left on device" in line or "File too large" in line
        saved = finished_steps(workdir / "checkpoints")
        assert saved
        find_checkpoint(workdir)
        disk.empty()
        assert f"resuming after step {max(saved)}" in commands.run(
            *train_arguments(dataset, workdir)
        )
        assert rows(workdir) == rows(finished)


@pytest.mark.parametrize("workers", [1, 2])
def test_prepare_on_a_full_disk_goes_on_from_what_is_rendered(tmp, recordings, dataset, workers):
    with small_disk(tmp / f"prepare_{workers}", 8) as disk:
        out = disk.folder / "dataset"
        more = [*prepare_arguments(recordings, out), f"--workers={workers}"]
        disk.fill(None, 500_000)
        assert "make room" in last_error(commands.start("launch/prepare.py", *more))
        assert not (out / "dst_clips").exists()
        disk.empty()
        assert "are rendered already" in commands.run("launch/prepare.py", *more)
        assert not list(out.glob(".dst_clips*"))


def test_a_feature_cache_on_a_full_disk_goes_on_from_whole_files(tmp, dataset):
    with small_disk(tmp / "features", 16) as disk:
        out = disk.folder / "features"
        more = [f"--config={CONFIG}", f"--config.data.dir={dataset}", f"--out={out}"]
        process = commands.start("launch/cache_features.py", *more, "--shard_mb=0.3")
        wait_for(process, lambda: any(out.glob("train/*.array_record")))
        disk.fill(process)
        assert "make room" in last_error(process)
        disk.empty()
        output = commands.run("launch/cache_features.py", *more, "--shard_mb=0.3")
        assert "features-00000-of" not in output.split("val:")[0]  # of the training clips


def test_an_export_to_a_full_disk_leaves_nothing(tmp, finished):
    with small_disk(tmp / "export", 1) as disk:
        disk.fill(None, 300_000)
        more = [f"--checkpoint={finished}", f"--out={disk.folder}/export"]
        assert "make room" in last_error(commands.start("launch/export.py", *more))
        assert [path.name for path in disk.folder.iterdir()] == ["filler"]
        disk.empty()
        commands.run("launch/export.py", *more)


def test_a_folder_that_cannot_be_written_is_named(tmp, recordings, dataset, finished):
    with read_only(tmp / "read_only") as folder:
        features = [f"--config={CONFIG}", f"--config.data.dir={dataset}", f"--out={folder}/f"]
        for arguments in (
            train_arguments(dataset, folder / "run"),
            ["launch/prepare.py", *prepare_arguments(recordings, folder / "dataset")],
            ["launch/cache_features.py", *features],
            ["launch/export.py", f"--checkpoint={finished}", f"--out={folder}/export"],
        ):
            assert str(folder) in last_error(commands.start(*arguments)), arguments


@pytest.mark.parametrize("pattern", ["*-train.array_record*", "clips-train.arrow"])
@pytest.mark.parametrize("fault", ["cut off", "removed"])
@pytest.mark.parametrize("workers", [0, 1])
def test_data_lost_while_it_is_read_is_named_or_not_missed(tmp, dataset, pattern, fault, workers):
    name = f"{len(pattern)}_{fault}_{workers}".replace(" ", "_")
    data, workdir = tmp / f"data_{name}", tmp / f"run_{name}"
    shutil.copytree(dataset, data)
    more = [f"--config.data.workers={workers}", "--config.train.epochs=1"]
    process = commands.start(*train_arguments(data, workdir, *more))
    while "loading the base" not in (printed := process.stdout.readline()):
        assert printed, "it ended before"
    (file,) = data.rglob(pattern)
    if fault == "removed":
        file.unlink()
    else:
        os.truncate(file, 100)
    output, _ = process.communicate(timeout=120)
    if process.returncode == 0:  # it had what it needs: the table, or an open file
        return
    assert process.returncode == 2, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert file.name in line
    shutil.rmtree(data)
    shutil.copytree(dataset, data)
    commands.run(*train_arguments(data, workdir, *more))


def test_two_trainings_of_one_workdir_do_not_meet_and_a_killed_one_is_no_obstacle(tmp, dataset):
    workdir = tmp / "shared"
    first = commands.start(*train_arguments(dataset, workdir, *LONG))
    wait_for(first, (workdir / "checkpoints" / "2").exists)
    line = last_error(commands.start(*train_arguments(dataset, workdir, *LONG)))
    assert f"--workdir={workdir} is being written by process {first.pid} on" in line
    kill_when(first, lambda: True)
    second = commands.start(*train_arguments(dataset, workdir, *LONG))
    resumed = max(finished_steps(workdir / "checkpoints"))
    wait_for(second, lambda: max(finished_steps(workdir / "checkpoints")) > resumed)
    second.send_signal(signal.SIGTERM)
    output, _ = second.communicate()
    assert second.returncode == 0, output


@pytest.mark.parametrize("command", ["prepare", "cache_features"])
def test_two_of_a_command_do_not_write_one_folder(tmp, recordings, dataset, command):
    out = tmp / f"both_{command}"
    arguments = {
        "prepare": [*prepare_arguments(recordings, out), "--workers=1"],
        "cache_features": [f"--config={CONFIG}", f"--config.data.dir={dataset}", f"--out={out}"],
    }[command]
    first = commands.start(f"launch/{command}.py", *arguments)
    lock = out / ".lock"
    wait_for(first, lambda: lock.exists() and lock.read_text())  # its holder has written into it
    first.send_signal(signal.SIGSTOP)
    assert "is being written by" in last_error(commands.start(f"launch/{command}.py", *arguments))
    first.send_signal(signal.SIGCONT)
    output, _ = first.communicate()
    assert first.returncode == 0, output


def _loader_process(pid: int) -> int:
    """Return a worker of Grain's below a process."""
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            is_worker = b"spawn_main" in (entry / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid and is_worker:
            return int(entry.name)
    raise AssertionError("no loader process")


@pytest.mark.parametrize("fault", ["killed", "out of memory"])
def test_the_death_of_a_loader_process_is_told_and_a_save_under_way_is_kept(tmp, dataset, fault):
    workdir = tmp / f"loader_{fault.replace(' ', '_')}"
    arguments = train_arguments(dataset, workdir, *LONG, "--config.data.workers=2")
    process = commands.start(*arguments)
    wait_for(process, (workdir / "checkpoints" / "4").exists)
    worker = _loader_process(process.pid)
    if fault == "killed":
        os.kill(worker, signal.SIGKILL)
    else:
        resource.prlimit(worker, resource.RLIMIT_AS, (50 * 2**20, 50 * 2**20))
    line = last_error(process)
    assert "config.data.workers" in line
    assert not list(workdir.glob("checkpoints/*tmp*"))
    recorded = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert max(finished_steps(workdir / "checkpoints")) >= recorded[-1]["step"] // 2 * 2 - 2
