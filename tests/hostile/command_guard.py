"""Runs mutated command lines, each in a fork of a process that has imported the libraries.

    python tests/hostile/command_guard.py SEEDS WORK

reads `commands number` a line and answers with one line of JSON each, as guard.py does.
"""

import importlib
import json
import os
import pathlib
import random
import resource
import runpy
import shutil
import signal
import sys
import time

from tests.hostile import guard
from tests.hostile.mutations import mutate_arguments
from tests.tools.command_server import LIBRARIES

_WALL = 50.0  # seconds
_AT_WORK = ("ablate", "bench", "doctor", "plan")  # what passes their flags may work for minutes
_FINDS = ("doctor", "lint", "plan")  # exit with 1 by their results
_ANNOTATIONS = ("--annotations={seeds}/annotations/flat.json", "--videos={seeds}/frames")
_RUN = ("--config={root}/configs/tiny.py", "--config.data.dir={seeds}/nothing", "--workdir=run")
COMMANDS = {
    "prepare": (*_ANNOTATIONS, "--out=out", "--image_size=32", "--frames=2", "--workers=1"),
    "lint": (*_ANNOTATIONS, "--json", "--workers=1"),
    "train": _RUN,
    "cache_features": (*_RUN[:2], "--out=features"),
    "evaluate": ("--checkpoint={seeds}/nothing", "--dataset={seeds}/dataset", "--json"),
    "export": ("--checkpoint={seeds}/nothing", "--format=peft", "--out=exported"),
    "convert": ("--base={seeds}/nothing", "--out=converted"),
    "ground": ("--checkpoint={seeds}/nothing", "--video={seeds}/frames/v.mp4", "--text=x"),
    "report": ("--workdir={seeds}/report", "--out=page.html"),
    "plan": ("--config={root}/configs/nothing.py", "--topology=v5e:1x1"),
    "doctor": ("--process_id=1", "--json", "--num_processes=0"),
    "bench": ("nothing", "--size=tiny"),
    "ablate": (*_RUN[:2], "--presets=plan", "--seeds=0"),
}


def run_item(number: int, seeds: pathlib.Path, work: pathlib.Path, watch: guard.Watch) -> dict:
    """Run one command line, and tell what became of it."""
    rng = random.Random(f"commands/{number}")
    name = rng.choice(list(COMMANDS))
    plain = [part.format(seeds=seeds, root=guard.ROOT) for part in COMMANDS[name]]
    arguments = mutate_arguments(rng, plain)
    folder = work / f"commands-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    said = {"kind": "commands", "number": number, "file": f"{name} {arguments}"[:500]}
    output, opened = work / "output.txt", work / "opened.txt"
    before, begun = guard.resident("VmRSS"), time.monotonic()
    child = os.fork()
    if child == 0:
        _become(name, arguments, folder, watch, output, opened)
    while not (ended := os.wait4(child, os.WNOHANG))[0]:
        if time.monotonic() - begun > _WALL:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    _, status, used = ended
    code, text = os.waitstatus_to_exitcode(status), output.read_text(errors="replace")
    is_at_work = name in _AT_WORK and code in (-signal.SIGKILL, -signal.SIGXCPU)
    said["outcome"] = "refused" if code == 2 else "used"
    lines = opened.read_text().splitlines()
    said["opened"] = [line for line in lines if not _is_named(line, arguments, folder)]
    said["bytes"] = max(0, used.ru_maxrss * 1024 - before)
    said["seconds"] = 0.0 if is_at_work else used.ru_utime + used.ru_stime
    if not is_at_work and (wrong := _wrong(name, code, text)):
        said |= {"outcome": "failed", "error": f"{wrong}: {text[-1500:]}"}
    if "error" not in said:
        shutil.rmtree(folder, ignore_errors=True)
    return said


def _is_named(line: str, arguments: list[str], folder: pathlib.Path) -> bool:
    """Return whether a file that was opened is one that the command line itself names."""
    values = [argument.split("=", 1)[-1] for argument in arguments]
    named = [os.path.realpath(folder / value) for value in values if value.strip("./~")]
    return any(line.startswith(path) for path in named)


def _wrong(name: str, code: int, text: str) -> str:
    """Return what a command did that none may do."""
    if "Traceback" in text:
        return "a traceback"
    errors = sum(line.startswith("error: ") for line in text.splitlines())
    if code == 2 and errors != 1:
        return f"code 2 with {errors} error lines"
    if code not in (0, 1, 2) or (code == 1 and name not in (*_FINDS, "export")):
        return f"code {code}"
    return ""


def _become(name, arguments, folder, watch, output, opened) -> None:
    """Turn this process into the command."""
    os.chdir(folder)
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    seen = os.open(opened, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(written, 1)
    os.dup2(written, 2)
    seconds = int(guard.MOST_SECONDS) + 5
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    most = guard.resident("VmData") + 3 * guard.MOST_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    watch.report = lambda line: os.write(seen, f"{line}\n".encode(errors="replace"))
    watch.item = str(folder)
    sys.stdout = open(1, "w", closefd=False, buffering=1, errors="replace")  # noqa: SIM115
    sys.argv = [f"launch/{name}.py", *arguments]
    script = guard.ROOT / "launch" / f"{name}.py"
    sys.path[0] = str(script.parent)
    code = 0
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(bool(ending.code))
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Answer until stdin ends."""
    seeds, work = map(pathlib.Path, sys.argv[1:3])
    answers = os.fdopen(os.dup(1), "w")
    os.environ |= {"HOME": str(work), "XDG_CACHE_HOME": str(work), "TMPDIR": str(work)}
    for library in LIBRARIES:
        importlib.import_module(library)
    watch = guard.Watch(work, seeds)
    for line in sys.stdin:
        said = run_item(int(line.split()[1]), seeds, work, watch)
        answers.write(json.dumps(said, default=str) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
