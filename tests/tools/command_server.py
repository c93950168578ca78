"""Forks commands off a process that has imported their libraries already.

Importing JAX, Flax, Orbax and Grain takes a command longer than most of what tests ask of it. A
fork has its own process id, signals, exit code, flags and backend; of this package nothing is
imported before it. `tests/commands.py` is the other side.

A request is one line of JSON, `{"arguments", "environment"}`, and the two descriptors that become
stdout and stderr; the answers are the process id and, at its end, the exit code, a line each.
"""

import contextlib
import gc
import importlib
import json
import os
import pathlib
import runpy
import selectors
import signal
import socket
import sys
from typing import Any

LIBRARIES = (
    "absl.app",
    "array_record.python.array_record_module",
    "flax.nnx",
    "grain",
    "jax",
    "jax.experimental.multihost_utils",
    "ml_collections",
    "optax",
    "orbax.checkpoint",
    "tensorboardX",
    "tensorflow_datasets",
    "transformers",
)
_MOST_BYTES = 2**20  # of a request


def serve(path: str) -> dict[str, Any]:
    """Answer requests until stdin is closed; return one of them, in the process made for it.

    Args:
      path: of the socket to listen at.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen()
    os.rename(f"{path}.new", path)  # whoever sees it can connect
    children: dict[int, socket.socket] = {}
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the tests as well
    selector = selectors.DefaultSelector()
    for waited in (listener, sys.stdin.fileno(), awake):
        selector.register(waited, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                text, streams, *_ = socket.recv_fds(connection, _MOST_BYTES, 2)
                pid = os.fork()
                if pid == 0:
                    selector.close()
                    for given in (listener, connection, *children.values()):
                        given.close()
                    return json.loads(text) | {"streams": streams}
                for given in streams:
                    os.close(given)
                children[pid] = connection
                connection.sendall(f"{pid}\n".encode())
            elif key.fileobj == awake:
                os.read(awake, _MOST_BYTES)
                _report_ended(children)
            elif not os.read(sys.stdin.fileno(), 1):  # the tests have ended, in order or not
                for pid in children:
                    os.kill(pid, signal.SIGKILL)
                sys.exit()


def _report_ended(children: dict[int, socket.socket]) -> None:
    """Send the exit codes of the children that have ended, as `subprocess` counts them."""
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        # OSError: the test has given it up.
        with children.pop(pid) as connection, contextlib.suppress(OSError):
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def become(request: dict[str, Any]) -> None:
    """Turn this process into a command that has just been started."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, stream in enumerate(request["streams"], start=1):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(request["environment"])
    _configure_jax()
    sys.argv = request["arguments"]
    sys.path[0] = str(pathlib.Path(sys.argv[0]).resolve().parent)


def _configure_jax() -> None:
    """Read the variables again that JAX reads when it is imported."""
    import jax

    for variable, text in os.environ.items():
        name = variable.lower()
        if variable.startswith("JAX_") and name in jax.config.values:
            kind = type(jax.config.values[name])
            is_text = kind in (str, type(None))
            jax.config.update(name, text if is_text else kind(json.loads(text.lower())))


if __name__ == "__main__":
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or the first collection of each command would copy every page of it
    become(serve(sys.argv[1]))
    runpy.run_path(sys.argv[0], run_name="__main__")
