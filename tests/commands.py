"""Runs the commands as a user does: real processes, from the root of the repository."""

import atexit
import functools
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import IO

from tests.quick_compilation import XLA_FLAGS

ROOT = pathlib.Path(__file__).parents[1]
SERVER = ROOT / "tests" / "tools" / "command_server.py"
# Started by the server: what runs long enough to be worth it, and needs no fresh interpreter.
_NAMES = "ablate cache_features convert doctor evaluate export ground prepare report train"
_FORKED = tuple(f"launch/{name}.py" for name in _NAMES.split())
_SECONDS = 300  # that a command may take


class Forked:
    """A command started by the server, with what tests use of `subprocess.Popen`.

    Attributes:
      pid: of the process.
      stdout: text of both streams, or of stdout alone.
      returncode: None while it runs.
    """

    def __init__(
        self, arguments: list[str], environment: dict[str, str], errors: IO | None = None
    ) -> None:
        """Start it; stderr goes to `errors`, if given."""
        read, write = os.pipe()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(_server())
        request = json.dumps({"arguments": arguments, "environment": environment})
        streams = [write, write if errors is None else errors.fileno()]
        socket.send_fds(self._server, [request.encode()], streams)
        os.close(write)
        self.stdout, self.returncode = os.fdopen(read), None
        self.pid = self._read_line()

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        if self.returncode is None and select.select([self._server], [], [], 0)[0]:
            self.returncode = self._read_line()
            self._server.close()
        return self.returncode

    def wait(self, timeout: float = _SECONDS) -> int:
        """Return the exit code once it has ended."""
        if self.returncode is None and not select.select([self._server], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("a forked command", timeout)
        return self.poll()

    def communicate(self, timeout: float = _SECONDS) -> tuple[str, None]:
        """Return what it printed, once it has ended."""
        found, deadline = [], time.monotonic() + timeout
        reader = threading.Thread(target=lambda: found.append(self.stdout.read()), daemon=True)
        reader.start()
        reader.join(timeout)
        if reader.is_alive():
            raise subprocess.TimeoutExpired("a forked command", timeout)
        self.wait(deadline - time.monotonic())
        return found[0], None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _read_line(self) -> int:
        line = b""
        while not line.endswith(b"\n"):
            part = self._server.recv(1)
            assert part, "the command server has ended"
            line += part
        return int(line)


@functools.cache
def _server() -> str:
    """Return the socket of a server that ends with this process."""
    folder = tempfile.TemporaryDirectory()
    path = f"{folder.name}/socket"
    process = subprocess.Popen([sys.executable, SERVER, path], cwd=ROOT, stdin=subprocess.PIPE)
    while not os.path.exists(path):
        assert process.poll() is None, "the command server did not start"
        time.sleep(0.05)

    def end() -> None:
        process.stdin.close()
        process.wait()
        folder.cleanup()

    atexit.register(end)
    return path


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a command: one CPU device; see conftest.py for compilations."""
    flags = {"XLA_FLAGS": XLA_FLAGS, "PYTHONUNBUFFERED": "1"}
    return os.environ | flags | extra


def start(*arguments: object, **extra: str) -> subprocess.Popen | Forked:
    """Start `python <arguments>`; stdout and stderr come together.

    Args:
      *arguments: a script of the repository and what follows.
      **extra: variables of its environment. Those of libraries other than JAX are read at import,
        so that such a command starts from nothing.
    """
    arguments = [str(argument) for argument in arguments]
    given = environment(**extra)
    is_plain = all(name.startswith(("JAX_", "XDG_")) for name in extra)
    if arguments[0] in _FORKED and is_plain:
        return Forked(arguments, given)
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*arguments: object, code: int = 0, **extra: str) -> str:
    """Return what the command printed, after checking its exit code."""
    process = start(*arguments, **extra)
    try:
        output, _ = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == code, output
    return output


def run_apart(*arguments: object) -> subprocess.CompletedProcess:
    """Return how a command that can be forked ended and what it printed, stderr on its own."""
    with tempfile.TemporaryFile("w+") as errors:
        process = Forked([str(argument) for argument in arguments], environment(), errors)
        output, _ = process.communicate()
        errors.seek(0)
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors.read())


def one_error_line(output: str) -> str:
    """Return the one line `error: ...` of a failed command; a traceback fails the test."""
    assert "Traceback" not in output, output
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, output
    return lines[0]
