"""The commands with everything in a bucket: a server of the tests' own, the real clients."""

import json
import signal
import time

import pytest

from tests import commands
from tests.launch.small_dataset import make_small_recordings, prepare_arguments
from tests.launch.test_several_processes import CONFIG, STEPS, finish, start

# The compiled programs go to the bucket, too.
COMPILED = {"JAX_COMPILATION_CACHE_DIR": ""}


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
    return tmp_path_factory.mktemp("bucket")


@pytest.fixture(scope="module")
def bucket(gcs, tmp):
    """A bucket with annotations and videos, and what `prepare` made of them."""
    bucket = gcs.make_bucket()
    bucket.put_folder(make_small_recordings(tmp), "recordings")
    arguments = prepare_arguments(f"{bucket.url}/recordings", f"{bucket.url}/datasets/a")
    output = run(tmp, "launch/prepare.py", *arguments, "--workers=2")
    assert f"wrote {bucket.url}/datasets/a/dst_clips/1.0.0" in output
    return bucket


def run(tmp, *arguments, **more) -> str:
    return commands.run(*arguments, XDG_CACHE_HOME=str(tmp / "cache"), **(COMPILED | more))


def train_arguments(bucket, workdir: str) -> list[str]:
    return [
        "launch/train.py",
        f"--config={CONFIG}",
        f"--config.data.dir={bucket.url}/datasets/a",
        f"--workdir={bucket.url}/{workdir}",
    ]


def wait_for_step(process, bucket, workdir: str, step: int) -> None:
    """Wait until the rows of a step are in the bucket, and so its checkpoint soon will be."""
    deadline = time.monotonic() + 300
    while not (
        bucket.names(f"{workdir}/metrics.jsonl")
        and f'"step": {step},' in bucket.read(f"{workdir}/metrics.jsonl").decode()
    ):
        assert time.monotonic() < deadline, "the step never came"
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)


def steps_of(bucket, workdir: str) -> list[int]:
    rows = map(json.loads, bucket.read(f"{workdir}/metrics.jsonl").decode().splitlines())
    return [row["step"] for row in rows if "train/loss" in row]


@pytest.fixture(scope="module")
def stopped(bucket, tmp):
    """What a run printed that got SIGTERM after step 4."""
    environment = COMPILED | {"XDG_CACHE_HOME": str(tmp / "cache")}
    process = commands.start(*train_arguments(bucket, "runs/a"), **environment)
    wait_for_step(process, bucket, "runs/a", 4)
    process.send_signal(signal.SIGTERM)
    [(code, output)] = finish([process])
    assert code == 0, output
    return output


@pytest.fixture(scope="module")
def finished(bucket, tmp, stopped):
    """What the second start of that run printed, and the programs compiled before it."""
    before = bucket.names("runs/a/compilation_cache/")
    return run(tmp, *train_arguments(bucket, "runs/a")), before


def test_prepare_leaves_the_dataset_in_the_bucket_and_nothing_here(bucket, tmp):
    names = bucket.names("datasets/a/")
    assert "datasets/a/skipped.jsonl" in names
    assert "datasets/a/dst_clips/1.0.0/prepare.json" in names
    assert not list((tmp / "cache" / "vtalign_jax").glob("outgoing*"))
    arguments = prepare_arguments(f"{bucket.url}/recordings", f"{bucket.url}/datasets/a")
    assert "holds exactly this already" in run(tmp, "launch/prepare.py", *arguments)


def test_an_upload_of_prepare_that_was_cut_off_goes_on_without_rendering(bucket, tmp):
    arguments = prepare_arguments(f"{bucket.url}/recordings", f"{bucket.url}/datasets/b")
    place = "datasets/b/dst_clips/1.0.0"
    bucket.server.refuse = lambda method, name: 403 if name == f"{place}/features.json" else 0
    line = commands.one_error_line(run(tmp, "launch/prepare.py", *arguments, code=2))
    assert "the same command goes on from there" in line
    assert f"{place}/prepare.json" not in bucket.names()
    bucket.server.refuse = lambda method, name: 0
    output = run(tmp, "launch/prepare.py", *arguments)
    assert "rendering" not in output
    assert f"wrote {bucket.url}/{place}" in output
    whole = [name.replace("datasets/a", "datasets/b") for name in bucket.names("datasets/a")]
    assert bucket.names("datasets/b") == whole


def test_the_data_is_copied_once_and_said_in_one_line(bucket, stopped, finished):
    line = f"copying {bucket.url}/datasets/a/dst_clips/1.0.0 to "
    assert stopped.count(line) == 1
    assert "7 files, " in stopped
    assert line not in finished[0]


def test_a_run_in_a_bucket_goes_on_where_sigterm_stopped_it(bucket, stopped, finished):
    assert "the same command goes on from there" in stopped
    assert "resuming after step " in finished[0]
    assert "best val/recall@5" in finished[0]
    assert steps_of(bucket, "runs/a") == list(range(1, STEPS + 1))
    for name in ("config.json", "manifest.json", "confused.jsonl"):
        assert bucket.read(f"runs/a/{name}")
    assert bucket.names("runs/a/tensorboard/")


def test_a_second_start_compiles_nothing(bucket, finished):
    _, before = finished
    assert before
    assert bucket.names("runs/a/compilation_cache/") == before


@pytest.mark.slow
def test_a_checkpoint_in_a_bucket_is_evaluated_and_exported_there(bucket, tmp, finished):
    output = run(tmp, "launch/evaluate.py", f"--checkpoint={bucket.url}/runs/a")
    assert f"checkpoint {bucket.url}/runs/a/checkpoints/" in output
    assert f"{bucket.url}/datasets/a, val: 48 clips" in output
    arguments = [f"--checkpoint={bucket.url}/runs/a", "--format=peft", "--certificate_clips=4"]
    out = f"{bucket.url}/runs/a/exports/peft"
    assert f"wrote {out}\n" in run(tmp, "launch/export.py", *arguments)
    assert f"export {out}\n" in run(tmp, "launch/evaluate.py", f"--checkpoint={out}")
    card = bucket.read("runs/a/exports/peft/README.md")
    bucket.put("runs/a/exports/peft/README.md", b"")
    assert "verified; the figures are in" in run(tmp, "launch/export.py", f"--verify={out}")
    assert len(bucket.read("runs/a/exports/peft/README.md")) >= len(card)


def test_a_base_is_converted_into_a_bucket_and_read_from_there(bucket, tmp):
    out = f"{bucket.url}/bases/tiny"
    run(tmp, "launch/convert.py", "--base=tiny", f"--out={out}")
    assert "bases/tiny/vtalign_base.json" in bucket.names("bases/")
    arguments = [*train_arguments(bucket, "runs/b"), f"--config.model.base={out}"]
    # Another run's configuration: refused once both bases are looked at, before any compilation.
    arguments[-2] = f"--workdir={bucket.url}/runs/a"
    line = commands.one_error_line(
        run(tmp, *arguments, "--config.tune.rank=3", code=2, JAX_COMPILATION_CACHE_DIR="none")
    )
    assert "config.tune.rank was 2 and is now 3" in line
    assert "the files of config.model.base" not in line  # the same fingerprint in either form


@pytest.mark.slow
def test_two_processes_share_a_workdir_in_a_bucket(bucket, tmp):
    environment = COMPILED | {"XDG_CACHE_HOME": str(tmp / "cache")}
    more = ["--config.mesh.data=2", "--config.mesh.fsdp=2"]
    for name, value in environment.items():
        pytest.MonkeyPatch().setenv(name, value)
    processes = start(tmp, 2, 2, *train_arguments(bucket, "runs/two"), *more)
    wait_for_step(processes[0], bucket, "runs/two", 4)
    processes[1].send_signal(signal.SIGTERM)
    ends = finish(processes)
    assert [code for code, _ in ends] == [0, 0], ends
    for code, output in finish(start(tmp, 2, 2, *train_arguments(bucket, "runs/two"), *more)):
        assert code == 0, output
    assert steps_of(bucket, "runs/two") == list(range(1, STEPS + 1))
    assert not [name for name in bucket.names("runs/two/") if ".shared_" in name]
