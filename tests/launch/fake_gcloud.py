#!/usr/bin/env python3
"""Stands for gcloud in tests of launch/pod.sh: writes down what it is asked, and plays two hosts.

In the folder FAKE_GCLOUD: `calls` (JSON, one a line), `states` (one a line, the next answers of
`describe`; the last one stays), `host0` and `host1`, where commands of `ssh` run.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

FOLDER = pathlib.Path(os.environ["FAKE_GCLOUD"])


def hosts(arguments: list[str]) -> list[pathlib.Path]:
    return [FOLDER / "host0"] if "--worker=0" in arguments else sorted(FOLDER.glob("host?"))


def describe() -> int:
    states = (FOLDER / "states").read_text().split()
    if len(states) > 1:
        (FOLDER / "states").write_text("\n".join(states[1:]))
    if states[0] in ("ABSENT", "DOWN"):
        print({"ABSENT": "NOT_FOUND: no such", "DOWN": "no network"}[states[0]], file=sys.stderr)
        return 1
    print(states[0])
    return 0


def ssh(arguments: list[str]) -> int:
    [command] = [x.removeprefix("--command=") for x in arguments if x.startswith("--command=")]
    codes = []
    for host in hosts(arguments):
        environment = os.environ | {"HOME": str(host), "PATH": f"{host}/bin:{os.environ['PATH']}"}
        codes.append(subprocess.run(["bash", "-c", command], cwd=host, env=environment).returncode)
    return max(codes)


def end(host: pathlib.Path) -> None:
    """End what runs on a host, as its VM does, and forget what lay there."""
    with contextlib.suppress(OSError):
        os.kill(int((host / "vtalign_jax" / "run.pid").read_text()), signal.SIGKILL)
    shutil.rmtree(host / "vtalign_jax", ignore_errors=True)


def main() -> int:
    arguments = sys.argv[1:]
    with (FOLDER / "calls").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    assert arguments[:3] == ["compute", "tpus", "queued-resources"], arguments
    if arguments[3] == "describe":
        return describe()
    if arguments[3] == "ssh":
        return ssh(arguments)
    if arguments[3] == "delete":
        for host in hosts(arguments):
            end(host)
    if arguments[3] == "scp":
        for host in hosts(arguments):
            shutil.copy(arguments[4], host)
    return 0


if __name__ == "__main__":
    sys.exit(main())
