"""Runs items in a process of its own, under limits of memory and time and with an eye on files.

    python tests/hostile/guard.py SEEDS WORK

reads `kind number` a line and answers with one line of JSON each.
"""

import contextlib
import json
import os
import pathlib
import random
import resource
import shutil
import sys
import sysconfig
import tempfile
import time
import traceback
import warnings

ROOT = pathlib.Path(__file__).parents[2]
MOST_BYTES = 2**30  # that reading one item may take
MOST_SECONDS = 10.0  # of processor time; other jobs run beside
_SYSTEM = ("/usr", "/lib", "/lib64", "/proc", "/sys", "/dev/null", "/dev/urandom", "/dev/shm")
_SYSTEM += ("/etc/ssl", "/etc/mime.types", "/etc/localtime", "/opt")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND


class Watch:
    """An audit hook: which files outside the allowed folders were opened."""

    def __init__(self, work: pathlib.Path, seeds: pathlib.Path) -> None:
        self._work = os.path.realpath(work)
        python = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()}
        readable = [*_SYSTEM, *python, str(ROOT), str(seeds), self._work]
        self._readable = tuple(os.path.realpath(path) for path in readable)
        self.item, self.seen = "", []
        self.report = lambda line: self.seen.append(line)
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple) -> None:
        if event != "open" or not self.item or not isinstance(arguments[0], str | bytes):
            return
        path = os.path.realpath(os.fsdecode(arguments[0]))
        mode, flags = arguments[1], arguments[2]
        writes = bool(flags & _WRITES) if isinstance(flags, int) else False
        writes = writes or (isinstance(mode, str) and set(mode) & set("wax+"))
        is_own = path == os.devnull or path.startswith("/proc/")  # the process's name
        roots = (self._work,) if writes and not is_own else self._readable
        if not any(path == root or path.startswith(f"{root}/") for root in roots):
            self.report(f"{path} ({'written' if writes else 'read'})")


def resident(name: str) -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def run_item(kind: str, number: int, seeds: pathlib.Path, work: pathlib.Path, watch: Watch) -> dict:
    """Make one item, read it, and tell what became of it."""
    from tests.hostile.targets import TARGETS, make_item
    from vtalign_jax.errors import UserError

    rng, target = random.Random(f"{kind}/{number}"), TARGETS[kind]
    folder = work / f"{kind}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (work / "outside").mkdir(exist_ok=True)
    file = make_item(target, seeds, folder, rng)
    said = {"kind": kind, "number": number, "file": str(file.relative_to(folder))}
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, begun = resident("VmRSS"), time.process_time()
    watch.item, watch.seen = str(folder), []
    try:
        outcome = target.read(folder, file, rng)
    except UserError as error:
        outcome = "refused"
        said["message"] = str(error)[:400]
    except BaseException as error:
        outcome = "failed"
        places = "".join(traceback.format_tb(error.__traceback__)[-5:])[-2000:]
        said["error"] = f"{places}{type(error).__name__}: {str(error)[:300]}"
    watch.item = ""
    said |= {"outcome": outcome, "seconds": time.process_time() - begun}
    said["bytes"] = max(0, resident("VmHWM") - before)
    said["opened"] = watch.seen
    if outcome != "failed" and not watch.seen:
        shutil.rmtree(folder, ignore_errors=True)
    return said


def faults(said: dict) -> list[str]:
    """Return what an item did that none may do."""
    found = [said["error"]] if "error" in said else []
    if said.get("seconds", 0.0) > MOST_SECONDS:
        found.append(f"took {said['seconds']:.1f} s")
    if said.get("bytes", 0) > MOST_BYTES:
        found.append(f"took {said['bytes'] / 2**20:.0f} MiB")
    found += [f"opened {path}" for path in said.get("opened", [])]
    message = said.get("message")
    if message is not None and (not message.strip() or "Traceback" in message):
        found.append(f"says {message!r}")
    return [f"{said['kind']}/{said['number']} {said.get('file', '')}: {each}" for each in found]


def main() -> None:
    """Answer until stdin ends."""
    seeds, work = map(pathlib.Path, sys.argv[1:3])
    os.environ["SEEDS"] = str(seeds)
    os.environ["TMPDIR"] = tempfile.tempdir = str(work)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what readers print is no answer
    warnings.simplefilter("ignore")
    import tests.hostile.targets  # noqa: F401  (before the limits and the watch)

    watch = Watch(work, seeds)
    soft = resident("VmData") + 2 * MOST_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (soft, soft))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        kind, number = line.split()
        said = run_item(kind, int(number), seeds, work, watch)
        answers.write(json.dumps(said, default=str) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
