"""launch/pod.sh with two hosts on this machine and a gcloud that writes down what it is asked."""

import json
import os
import pathlib
import shutil
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / "launch").glob("*.sh"))
UNFINISHED = "stopped after step 3, saved; the same command goes on from there"

# Of each host: uv makes an environment whose python plays the next line of `plan`.
PYTHON3 = """#!/usr/bin/env bash
case "$*" in *"uv venv"*) mkdir -p .venv/bin && cp ../bin/training .venv/bin/python ;; esac
"""
TRAINING = f"""#!/usr/bin/env bash
printf '%s\\n' "${{@:-none}}" >> ../arguments
next=$(head -n 1 ../plan)
sed -i 1d ../plan
trap 'echo "{UNFINISHED}"; exit 0' TERM
case $next in
  wait) while true; do sleep 0.05; done ;;
  slow) sleep 1.5 ;;
  unfinished) echo "{UNFINISHED}" ;;
  mistaken) echo "error: no such field"; exit 2 ;;
  lost) exit 1 ;;
esac
"""


def write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def pod(tmp_path):
    """Two hosts that are not there yet, and a repository with the scripts."""
    write(tmp_path / "bin" / "gcloud", (ROOT / "tests/launch/fake_gcloud.py").read_text())
    for name in SCRIPTS:
        write(tmp_path / "code" / "launch" / name, (ROOT / "launch" / name).read_text())
    git = ["git", "-C", str(tmp_path / "code"), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "scripts"]):
        subprocess.run([*git, *command], check=True)
    for number in range(2):
        write(tmp_path / f"host{number}" / "bin" / "python3", PYTHON3)
        write(tmp_path / f"host{number}" / "bin" / "training", TRAINING)
        (tmp_path / f"host{number}" / "plan").write_text("done\n")
    (tmp_path / "states").write_text("ABSENT ACTIVE")
    return tmp_path


def call(pod, *arguments: str, code: int = 0, **extra: str) -> str:
    """Return what the script printed."""
    environment = os.environ | {
        "PATH": f"{pod}/bin:{os.environ['PATH']}",
        "FAKE_GCLOUD": str(pod),
        "NAME": "align",
        "ZONE": "us-west4-a",
        "TYPE": "v5litepod-16",
        "POLL_SECONDS": "0.2",
        **extra,
    }
    done = subprocess.run(
        [pod / "code" / "launch" / "pod.sh", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def calls(pod, verb: str) -> list[list[str]]:
    found = [json.loads(line) for line in (pod / "calls").read_text().splitlines()]
    return [each[4:] for each in found if each[3] == verb]


def wait_for(path: pathlib.Path) -> str:
    deadline = time.monotonic() + 20
    while not path.exists() or not path.read_text().strip():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.05)
    return path.read_text().strip()


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_bash_and_executable(name):
    subprocess.run(["bash", "-n", ROOT / "launch" / name], check=True)
    assert os.access(ROOT / "launch" / name, os.X_OK)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", ROOT / "launch" / name], check=True)


@pytest.mark.parametrize(
    ("play", "code"), [("done", 0), ("unfinished", 75), ("mistaken", 2), ("lost", 1)]
)
def test_a_host_tells_a_finished_run_from_one_to_start_again(tmp_path, play, code):
    (tmp_path / "plan").write_text(play)
    write(tmp_path / "here" / "training", TRAINING)
    command = ["bash", ROOT / "launch" / "run.sh", "./training"]
    done = subprocess.run(command, cwd=tmp_path / "here", capture_output=True, text=True)
    assert done.returncode == int((tmp_path / "here" / "run.code").read_text()) == code
    assert done.stdout == (tmp_path / "here" / "run.log").read_text()
    assert (UNFINISHED in done.stdout) == (play == "unfinished")


def test_sigterm_to_a_host_reaches_the_command(tmp_path):
    (tmp_path / "plan").write_text("wait")
    write(tmp_path / "here" / "training", TRAINING)
    command = ["bash", ROOT / "launch" / "run.sh", "./training"]
    process = subprocess.Popen(command, cwd=tmp_path / "here", stdout=subprocess.PIPE, text=True)
    wait_for(tmp_path / "arguments")
    time.sleep(0.2)  # until its trap is set
    process.terminate()
    printed, _ = process.communicate(timeout=20)
    assert process.returncode == 75
    assert UNFINISHED in printed


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["--runtime-version=v2-alpha-tpuv5-lite", "--node-id=align"]),
        ({"TYPE": "v6e-16"}, ["--runtime-version=v2-alpha-tpuv6e", "--node-id=align"]),
        ({"TYPE": "v4-32"}, ["--runtime-version=tpu-ubuntu2204-base", "--node-id=align"]),
        ({"RUNTIME": "own"}, ["--runtime-version=own", "--node-id=align"]),
        (
            {"TYPE": "v5p-128", "SLICES": "2"},
            ["--runtime-version=v2-alpha-tpuv5", "--node-count=2", "--node-prefix=align"],
        ),
    ],
)
def test_a_pod_is_asked_for_by_type_and_slices(pod, settings, expected):
    (pod / "states").write_text("WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
    printed = call(pod, "create", "--spot", **settings)
    [asked] = calls(pod, "create")
    kind = f"--accelerator-type={settings.get('TYPE', 'v5litepod-16')}"
    scope = "--scopes=https://www.googleapis.com/auth/cloud-platform"
    assert asked == ["align", "--zone=us-west4-a", kind, *expected, scope, "--spot"]
    assert "align is PROVISIONING" in printed
    assert "align is there" in printed


def test_a_refused_pod_and_missing_settings_are_one_line(pod):
    (pod / "states").write_text("WAITING_FOR_RESOURCES FAILED")
    assert "error: align is FAILED" in call(pod, "create", code=2)
    assert "error: launch/pod.sh create|" in call(pod, "creates", code=2)
    assert "the zone, for instance" in call(pod, "status", code=1, ZONE="")
    write(pod / "code" / "launch" / "run.sh", "changed")
    assert "commit them" in call(pod, "install", code=2)


def test_every_host_gets_the_commit_and_runs_the_command_until_stopped(pod):
    call(pod, "install")
    [sent] = calls(pod, "scp")
    assert sent[1:] == ["align:", "--zone=us-west4-a", "--node=all", "--worker=all"]
    for number in range(2):
        (pod / f"host{number}" / "plan").write_text("wait\n")
    command = ["python", "launch/train.py", "--config.data.dir=gs://a b/$HOME,gs://c/'d'"]
    call(pod, "run", *command)
    for number in range(2):
        wait_for(pod / f"host{number}" / "vtalign_jax" / "run.pid")
        arguments = wait_for(pod / f"host{number}" / "arguments").splitlines()
        assert arguments == command[1:]
        assert (pod / f"host{number}" / "vtalign_jax" / ".git").is_dir()
    assert "a run is under way" in call(pod, "run", *command, code=2)
    call(pod, "stop")
    assert wait_for(pod / "host0" / "vtalign_jax" / "run.code") == "75"  # it was not done
    assert UNFINISHED in (pod / "host0" / "vtalign_jax" / "run.log").read_text()
    # In a pod JAX tells the others. Here the VM of the second one goes away: SIGTERM to all of it.
    assert not (pod / "host1" / "vtalign_jax" / "run.code").exists()
    os.kill(int((pod / "host1" / "vtalign_jax" / "run.pid").read_text()), 15)
    assert wait_for(pod / "host1" / "vtalign_jax" / "run.code") == "75"


def test_keep_goes_on_after_lost_hosts_and_preemptions_until_the_run_is_done(pod):
    states = ["ABSENT", "PROVISIONING", *["ACTIVE"] * 9, "SUSPENDING", "SUSPENDED", "ABSENT"]
    (pod / "states").write_text(" ".join([*states, "DOWN", "ACTIVE"]))
    (pod / "host0" / "plan").write_text("lost\nunfinished\nwait\ndone\n")
    printed = call(pod, "keep", "--spot", "--", "python", "launch/train.py", "--config=x")
    assert (pod / "host0" / "plan").read_text() == ""
    assert "the run is failed; starting it again" in printed
    assert "the run is unfinished; starting it again" in printed
    assert "the run is done" in printed
    created = calls(pod, "create")
    assert len(created) == 2
    assert all(each[-1] == "--spot" for each in created)
    assert calls(pod, "delete")[0] == ["align", "--zone=us-west4-a", "--force", "--quiet"]
    assert len(calls(pod, "scp")) == 2  # each pod is installed once
    starts = (pod / "host0" / "arguments").read_text().splitlines()
    assert starts == ["launch/train.py", "--config=x"] * 4


def test_keep_ends_on_a_mistake_of_the_command(pod):
    (pod / "host0" / "plan").write_text("mistaken\n")
    printed = call(pod, "keep", "--", "python", "launch/train.py", code=2)
    assert "error: no such field" in printed
    assert "error: the run ended with the mistake above" in printed


def test_keep_takes_up_a_run_that_is_under_way(pod):
    (pod / "states").write_text("ACTIVE")
    call(pod, "install")
    (pod / "host0" / "plan").write_text("slow\n")
    call(pod, "run", "python", "launch/train.py")
    wait_for(pod / "host0" / "arguments")
    assert "the run is done" in call(pod, "keep", "--", "python", "launch/train.py")
    assert len(calls(pod, "scp")) == 1  # of the first line
    assert (pod / "host0" / "arguments").read_text() == "launch/train.py\n"
