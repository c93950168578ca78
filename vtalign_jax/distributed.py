"""The processes of a run: how they find each other, end together, and notice that one is lost.

`jax.distributed` connects them. On top of it every process holds one TCP connection to process 0,
over which it says how it ends. A connection that closes without a word is a lost process; a host
that falls silent is noticed by the kernel's keep-alive probes, however busy the Python code is.
Without this the others would wait in a collective, or be aborted by JAX without saying why.
"""

import contextlib
import hashlib
import importlib.util
import os
import pathlib
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping
from typing import NoReturn

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.experimental import multihost_utils

from vtalign_jax.errors import UserError
from vtalign_jax.secret_words import redact

_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "host:port of process 0, a free port there; with --num_processes and --process_id. TPU VMs and "
    "GKE need none of the three",
)
_PROCESSES = flags.DEFINE_integer(
    "num_processes", 0, "processes of the run; 1 looks for no others", lower_bound=0
)
_PROCESS = flags.DEFINE_integer("process_id", -1, "number of this process, from 0")

# A silent host is lost after idle + count * interval seconds.
_KEEP_ALIVE_SECONDS = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
_CONNECT_SECONDS = 60.0
_VERDICT_SECONDS = 2.0  # how long news of another process may overtake an error of this one
# What processes tell each other: all is done; one has failed; all that hear it are to end.
_DONE, _FAILED, _END = "done", "failed", "end"
_TPU_DEVICES = ("accel[0-9]*", "vfio/[0-9]*")  # below /dev


@contextlib.contextmanager
def connected(*, saves_on_sigterm: bool = False) -> Iterator[None]:
    """Connect this process with the others of the run, if there are any, and watch over them.

    A body that ends in order waits for the others. One that raises takes them down with it: each
    prints one line that names the process, and none of them hangs.

    Args:
      saves_on_sigterm: the body asks an `Ending`; other commands end at once, where JAX would
        wait for a training to save.

    Raises:
      UserError: the flags do not fit together, or the others cannot be reached.
    """
    _initialize()
    if not saves_on_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if jax.process_count() == 1:
        yield
        return
    watch = _Watch()
    try:
        watch.begin()
        yield
    except SystemExit:
        watch.done()
        raise
    except KeyboardInterrupt:
        watch.fail("interrupted", 128 + signal.SIGINT)
    except UserError as error:
        watch.fail(f"error: {' '.join(str(error).split())}", 2)
    except BaseException as error:
        # A collective fails where another process is lost or has failed: then that is the news.
        time.sleep(2 * _VERDICT_SECONDS)
        line = f"error: {type(error).__name__}: {_first_line(error)}"
        watch.fail(line, 1, traceback.format_exc())
    watch.done()


def _initialize() -> None:
    given = bool(_COORDINATOR.value), _PROCESSES.value > 0, _PROCESS.value >= 0
    if _PROCESSES.value == 1 and not given[0]:
        return
    if any(given):
        _initialize_by_flags(*given)
    elif _has_tpu():
        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"the processes of this TPU do not find each other ({_first_line(error)}); start "
                "the command on every host, or give --num_processes=1 on a host of its own"
            ) from error


def _initialize_by_flags(*given: bool) -> None:
    if not all(given):
        raise UserError("--coordinator, --num_processes and --process_id go together; give all")
    if _PROCESS.value >= _PROCESSES.value:
        raise UserError(
            f"--process_id={_PROCESS.value} must be below --num_processes={_PROCESSES.value}"
        )
    host, _, port = _COORDINATOR.value.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator={_COORDINATOR.value} must be host:port")
    try:
        jax.distributed.initialize(
            _COORDINATOR.value,
            _PROCESSES.value,
            _PROCESS.value,
            cluster_detection_method="deactivate",
        )
    except RuntimeError as error:
        raise UserError(
            f"process {_PROCESS.value} of {_PROCESSES.value} does not reach the others at "
            f"--coordinator={_COORDINATOR.value} ({_first_line(error)}); start the command on "
            "every host, and look at name, port and firewall"
        ) from error


def _has_tpu() -> bool:
    """Return whether JAX will use TPU chips of this host; asking JAX would start its backends."""
    platforms = os.environ.get("JAX_PLATFORMS") or "tpu"
    if platforms.split(",")[0] != "tpu":
        return False
    is_there = any(any(pathlib.Path("/dev").glob(pattern)) for pattern in _TPU_DEVICES)
    return is_there and importlib.util.find_spec("libtpu") is not None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


class _Watch:
    """The connections over which processes say how they end; each is read by a thread."""

    def __init__(self) -> None:
        self._number, self._count = jax.process_index(), jax.process_count()
        self._peers: dict[int, socket.socket] = {}
        self._last_words = threading.Lock()  # taken once, by the thread that ends the process

    def begin(self) -> None:
        """Connect every process with process 0.

        Raises:
          UserError: process 0 cannot be reached.
        """
        listener = socket.create_server(("", 0)) if self._number == 0 else None
        told = np.zeros(9, np.int32)  # address, port, token
        if listener is not None:
            told[:4] = list(socket.inet_aton(_own_address()))
            told[4] = listener.getsockname()[1]
            told[5:] = list(os.urandom(4))
        told = [int(number) for number in multihost_utils.broadcast_one_to_all(told)]
        token = bytes(told[5:]).hex()
        if listener is None:
            self._connect(".".join(map(str, told[:4])), told[4], token)
        else:
            self._accept(listener, token)
        for number, peer in self._peers.items():
            threading.Thread(target=self._listen, args=(number, peer), daemon=True).start()

    def _connect(self, host: str, port: int, token: str) -> None:
        try:
            peer = socket.create_connection((host, port), _CONNECT_SECONDS)
            peer.sendall(f"{token} {self._number}\n".encode())
        except OSError as error:
            raise UserError(
                f"process {self._number} cannot reach process 0 at {host}:{port} ({error}); allow "
                "TCP between the hosts of the run"
            ) from error
        self._peers[0] = _kept_alive(peer)

    def _accept(self, listener: socket.socket, token: str) -> None:
        """Wait for the other processes; whoever else connects does not know the token."""
        listener.settimeout(_CONNECT_SECONDS)
        expected = {f"{token} {number}": number for number in range(1, self._count)}
        try:
            while len(self._peers) < self._count - 1:
                peer, _ = listener.accept()
                number = expected.get(_read_line(peer))
                if number is None:
                    peer.close()
                else:
                    self._peers[number] = _kept_alive(peer)
        except OSError as error:
            missing = sorted(set(range(1, self._count)) - self._peers.keys())
            raise UserError(
                f"processes {missing} did not connect with process 0 ({error}); allow TCP between "
                "the hosts of the run"
            ) from error
        finally:
            listener.close()

    def _listen(self, number: int, peer: socket.socket) -> None:
        """Wait for how another process ends."""
        try:
            said = _read_line(peer)
        except OSError as error:
            said, cause = "", f" ({error.strerror or error})"
        else:
            cause = ""
        if said == _DONE:
            return
        if said.startswith(_FAILED):
            time.sleep(_VERDICT_SECONDS)  # the same error may be about to end this process, too
        if not said:
            said = (
                f"error: process {number} of {self._count} was lost{cause}: killed, out of memory, "
                "or its host is gone; the same command on every host goes on from the last "
                "checkpoint"
            )
        line = said.removeprefix(_FAILED).removeprefix(_END).strip()
        self._end(line, 1, f"{_END} {line}")

    def fail(self, message: str, code: int, details: str = "") -> NoReturn:
        """Say why this process ends, tell the others, and end at once.

        Ending in order would wait for the others, which wait for this one.

        Args:
          message: the line.
          code: exit code.
          details: printed before it, here alone.
        """
        message = redact(message)
        cause = message.removeprefix("error: ")
        told = f"error: process {self._number} of {self._count} ended ({cause})"
        self._end(redact(details) + message, code, f"{_FAILED} {told}")

    def _end(self, message: str, code: int, told: str) -> NoReturn:
        self._last_words.acquire()
        sys.stdout.flush()
        os.write(sys.stderr.fileno(), f"{message}\n".encode())
        self._tell(told)
        if self._number == 0:  # JAX aborts the others as soon as this process is gone
            time.sleep(2 * _VERDICT_SECONDS)
        os._exit(code)

    def done(self) -> None:
        """Say that this process has done its work, and wait until all have."""
        self._tell(_DONE)
        jax.distributed.shutdown()

    def _tell(self, line: str) -> None:
        for peer in self._peers.values():
            with contextlib.suppress(OSError):  # it has ended, too
                peer.sendall(f"{line}\n".encode())


def _own_address() -> str:
    """Return the address by which other hosts reach this one: of the interface that leads out."""
    host = _COORDINATOR.value.rpartition(":")[0]
    if host:
        return socket.gethostbyname(host.strip("[]"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # of the block for documentation; nothing is sent
            return probe.getsockname()[0]
        except OSError:  # no way out of this network
            return socket.gethostbyname(socket.gethostname())


def _kept_alive(peer: socket.socket) -> socket.socket:
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE_SECONDS.items():
        if hasattr(socket, name):  # macOS names the first one otherwise
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return peer


def _read_line(peer: socket.socket) -> str:
    """Return the next line, "" if the connection has closed before its end."""
    received = b""
    while not received.endswith(b"\n"):
        part = peer.recv(4096)
        if not part:
            return ""
        received += part
    return received.decode().strip()


class Ending:
    """Tells after each step whether to save and end, the same to every process.

    Alone: after SIGTERM or the first Ctrl-C; before `begin`, SIGTERM ends it at once. Of several
    processes: at a step that JAX's preemption service has agreed on after one of them received
    either.
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self._is_alone = jax.process_count() == 1
        if self._is_alone:  # among several, JAX has its own handler since they connected
            signal.signal(signal.SIGTERM, self._receive)
            self._woken, self._waking = socket.socketpair()
            self._waking.setblocking(False)
            signal.set_wakeup_fd(self._waking.fileno())
            threading.Thread(target=self._end_at_once, daemon=True).start()

    def _end_at_once(self) -> None:
        """End on SIGTERM while there is nothing to save; a handler would wait for a compilation."""
        while self._woken.recv(1) != bytes([signal.SIGTERM]):
            pass
        print("stopped before the first step; the same command goes on from there", flush=True)
        os._exit(0)

    def begin(self) -> None:
        """From now on finish the step under way and save, after the first Ctrl-C as well."""
        if self._is_alone:
            signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, self._receive)

    def is_due(self, done: int) -> bool:
        """Return whether to save and end after `done` steps; every process asks once a step."""
        if self._is_alone:
            return bool(self._received)
        return multihost_utils.reached_preemption_sync_point(done)

    def exit_code(self) -> int:
        """Return 130 after Ctrl-C, as a shell reports it, whose loops then end too; else 0."""
        return 128 + signal.SIGINT if signal.SIGINT in self._received else 0

    def _receive(self, number: int, frame: object) -> None:
        self._received.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if not self._is_alone:
                os.kill(os.getpid(), signal.SIGTERM)


def check_agreement(facts: Mapping[str, str]) -> None:
    """Make sure that every process was started with the same things.

    Args:
      facts: what to compare, by the name that an error gives it.

    Raises:
      UserError: names what differs, in every process.
    """
    if jax.process_count() == 1:
        return
    digests = [hashlib.sha256(value.encode()).digest()[:8] for value in facts.values()]
    own = np.frombuffer(b"".join(digests), np.uint8).reshape(len(facts), 8)
    everyone = multihost_utils.process_allgather(own)
    differing = [
        name for place, name in enumerate(facts) if np.any(everyone[:, place] != everyone[0, place])
    ]
    if differing:
        raise UserError(
            f"the processes differ in {' and in '.join(differing)}; start the same command with "
            "the same files on every host"
        )


def check_shared(folder: str | epath.Path, flag: str = "--workdir") -> None:
    """Make sure that every process sees the same folder.

    Args:
      folder: which, made if absent.
      flag: that named it, for the error.

    Raises:
      UserError: it lies on a host of its own.
    """
    if jax.process_count() == 1:
        return
    folder = epath.Path(folder)
    token = multihost_utils.broadcast_one_to_all(np.frombuffer(uuid.uuid4().bytes, np.uint8))
    mark = folder / f".shared_{bytes(token).hex()}"
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    multihost_utils.sync_global_devices("the folder is marked")
    is_seen = multihost_utils.process_allgather(np.array([mark.exists()]))
    if jax.process_index() == 0:
        mark.unlink()
    if not np.all(is_seen):
        raise UserError(
            f"{flag}={folder} is not the same folder on every host; name one that they share, "
            "on a network file system or in a bucket (gs://)"
        )
