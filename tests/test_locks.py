import os
import signal
import subprocess
import sys

import pytest

from vtalign_jax import locks
from vtalign_jax.errors import UserError


def test_a_folder_is_held_by_one_until_it_lets_go(tmp_path):
    with locks.hold(tmp_path / "run", "--workdir"):
        with pytest.raises(UserError, match=rf"--workdir=.*by process {os.getpid()} on .*wait"):
            locks.hold(tmp_path / "run", "--workdir")
        locks.hold(tmp_path / "other", "--workdir").close()
    locks.hold(tmp_path / "run", "--workdir").close()
    assert [file.name for file in (tmp_path / "run").iterdir()] == [locks.LOCK]


def test_a_killed_process_holds_nothing(tmp_path):
    code = """if True:
        import sys, time
        from vtalign_jax import locks
        held = locks.hold(sys.argv[1], "--workdir")
        print("held", flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
    with process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"by process {process.pid} on"):
            locks.hold(tmp_path, "--workdir")
        process.send_signal(signal.SIGKILL)
    locks.hold(tmp_path, "--workdir").close()


def test_a_file_system_without_locks_is_told_and_refuses_nobody(tmp_path, monkeypatch, capsys):
    def refuse(file, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    for _ in range(2):
        locks.hold(tmp_path, "--out")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"warning: the file system of --out={tmp_path} has no locks")
