"""Runs the commands as a user does: real processes, from the root of the repository."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def environment(tmp: pathlib.Path, **extra: str) -> dict[str, str]:
    """Return the environment of a command: one CPU device, compilations kept between commands."""
    return os.environ | {
        "XLA_FLAGS": "",
        "PYTHONUNBUFFERED": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **extra,
    }


def start(tmp: pathlib.Path, *arguments: object, **extra: str) -> subprocess.Popen:
    """Start `python <arguments>`; stdout and stderr come together."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment(tmp, **extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(tmp: pathlib.Path, *arguments: object, code: int = 0, **extra: str) -> str:
    """Return what the command printed, after checking its exit code."""
    process = start(tmp, *arguments, **extra)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def one_error_line(output: str) -> str:
    """Return the one line `error: ...` of a failed command; a traceback fails the test."""
    assert "Traceback" not in output, output
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, output
    return lines[0]
