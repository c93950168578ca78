"""Feeds items to a guarded process, ends it where it hangs, and counts what became of them."""

import collections
import dataclasses
import json
import pathlib
import select
import subprocess
import sys

from tests.commands import environment
from tests.hostile import command_guard, guard

COMMANDS = "commands"  # the kind that are command lines, not files
_HANGS = 60.0  # seconds without an answer, on a machine with other jobs


@dataclasses.dataclass
class Count:
    """What became of the items of a campaign.

    Attributes:
      outcomes: kind -> outcome -> items.
      faults: what may not happen, a line each.
      most_bytes: of one item.
      most_seconds: of processor time, of one item.
    """

    outcomes: dict[str, collections.Counter] = dataclasses.field(default_factory=dict)
    faults: list[str] = dataclasses.field(default_factory=list)
    most_bytes: int = 0
    most_seconds: float = 0.0

    @property
    def items(self) -> int:
        """How many there were."""
        return sum(counts.total() for counts in self.outcomes.values())

    def add(self, said: dict) -> None:
        """Count one answer."""
        self.outcomes.setdefault(said["kind"], collections.Counter())[said["outcome"]] += 1
        self.faults += guard.faults(said)
        self.most_bytes = max(self.most_bytes, said.get("bytes", 0))
        self.most_seconds = max(self.most_seconds, said.get("seconds", 0.0))

    def lines(self) -> list[str]:
        """Return a table."""
        names = ("used", "reported", "refused", "failed", "died", "hung")
        rows = [f"| {'kind':12} | {' | '.join(names)} |"]
        rows += [
            f"| {kind:12} | {' | '.join(str(counts[name]) for name in names)} |"
            for kind, counts in self.outcomes.items()
        ]
        most = f"{self.most_bytes / 2**20:.0f} MiB, {self.most_seconds:.1f} s at most"
        return [*rows, *self.faults, f"{self.items} items, {len(self.faults)} faults; {most}"]


class Guarded:
    """The guarded process; started anew after an end that was not asked for."""

    def __init__(self, seeds: pathlib.Path, work: pathlib.Path, script: str) -> None:
        self._seeds, self._work, self._script, self._process = seeds, work, script, None

    def ask(self, kind: str, number: int) -> dict:
        """Return what became of an item."""
        if self._process is None:
            self._start()
        self._process.stdin.write(f"{kind} {number}\n")
        self._process.stdin.flush()
        said = {"kind": kind, "number": number}
        ready, _, _ = select.select([self._process.stdout], [], [], _HANGS)
        line = self._process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        if ready:
            code = self._process.wait()
            self._process = None
            return said | {"outcome": "died", "error": f"the process ended with {code}"}
        self.close()
        return said | {"outcome": "hung", "error": f"no answer in {_HANGS:g} s"}

    def _start(self) -> None:
        # glibc's arenas would hold on to what one item took.
        extra = {"PYTHONPATH": str(guard.ROOT), "MALLOC_ARENA_MAX": "2"}
        extra["XDG_CACHE_HOME"] = str(self._work)
        self._process = subprocess.Popen(
            [sys.executable, self._script, str(self._seeds), str(self._work)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(**extra),
            cwd=self._work,
            text=True,
        )

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def run(seeds: pathlib.Path, work: pathlib.Path, items: dict[str, range]) -> Count:
    """Read all items of some kinds; return what became of them."""
    count = Count()
    files, lines = (Guarded(seeds, work, each.__file__) for each in (guard, command_guard))
    try:
        for kind, numbers in items.items():
            guarded = lines if kind == COMMANDS else files
            for number in numbers:
                count.add(guarded.ask(kind, number))
    finally:
        files.close()
        lines.close()
    return count
