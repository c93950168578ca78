"""What `prepare` tells while it runs and at the end."""

import collections
import dataclasses
import json
import sys
import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import tqdm
from etils import epath

from vtalign_jax.dst.nodes import Remark, Skip
from vtalign_jax.errors import UserError
from vtalign_jax.wording import counted

MAX_SKIPPED = 0.05  # share of the clips, unless --max_skipped says otherwise

_SECONDS_BETWEEN_LINES = 10.0
_EXAMPLES = 3  # of each kind of warning
_ASIDES = {  # one, several
    "dialogue": ("line of dialogue", "lines of dialogue"),
    "summary": ("summary", "summaries"),
    "start": ("start mark", "start marks"),
}


class ProgressLine:
    """A bar on a terminal, a plain line every ten seconds otherwise."""

    def __init__(self, total: int, what: str, unit: str = "clip") -> None:
        """Start at 0 of `total` clips or other units; lines go to what is standard output now."""
        self._output = sys.stdout
        self._total, self._what, self._done, self._skipped = total, what, 0, 0
        self._unit = unit
        self._started = self._printed = time.monotonic()
        self._bar = tqdm.tqdm(total=total, unit=unit, desc=what) if sys.stderr.isatty() else None

    def advance(self, taken: int, skipped: int) -> None:
        """Count units that were taken or skipped."""
        self._done += taken + skipped
        self._skipped += skipped
        if self._bar is not None:
            self._bar.update(taken + skipped)
            self._bar.set_postfix(skipped=self._skipped)
            return
        waited = time.monotonic() - self._printed
        if waited >= _SECONDS_BETWEEN_LINES or self._done == self._total:
            self._print()

    def say(self, line: str) -> None:
        """Print a line without disturbing the bar."""
        if self._bar is not None:
            self._bar.clear()
        print(line, file=self._output, flush=True)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()

    def _print(self) -> None:
        self._printed = time.monotonic()
        seconds = self._printed - self._started
        left = seconds / max(1, self._done) * (self._total - self._done)
        self.say(
            f"{self._what}: {self._done}/{self._total} {self._unit}s, {self._skipped} skipped, "
            f"{seconds:.0f} s, {left:.0f} s left"
        )


def write_skips(skips: list[Skip], path: epath.Path) -> None:
    """Write one JSON object a line for everything that was left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(dataclasses.asdict(skip)) + "\n" for skip in skips))


def check_share(skips: list[Skip], taken: int, max_skipped: float, where: Any) -> None:
    """Raise UserError if more than `max_skipped` of all clips are left out."""
    lost = sum(skip.clips for skip in skips)
    if lost <= max_skipped * (lost + taken):
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in count_reasons(skips) if count)
    raise UserError(
        f"{lost} of {lost + taken} clips are skipped ({reasons}), more than "
        f"--max_skipped={max_skipped:g} allows; see {where}, mend them or raise --max_skipped"
    )


def count_reasons(skips: list[Skip]) -> list[tuple[str, int]]:
    """Return (reason, clips lost by it), most frequent first."""
    counts: collections.Counter[str] = collections.Counter()
    for skip in skips:
        counts[skip.reason] += skip.clips
    return counts.most_common()


def print_warnings(warnings: list[Remark]) -> None:
    """Print each kind of warning once, with examples."""
    kinds: dict[str, list[str]] = {}
    for warning in warnings:
        example = " ".join(filter(None, (warning.uid, warning.node_id, warning.detail)))
        kinds.setdefault(warning.reason, []).append(example)
    for kind, examples in kinds.items():
        shown = "; ".join(filter(None, examples[:_EXAMPLES]))
        times = f" ({len(examples)} times)" if len(examples) > 1 else ""
        print(f"warning: {kind}{times}{': ' if shown else ''}{shown}")


def print_asides(asides: collections.Counter[str]) -> None:
    """Print how many lines of the annotations are no nodes by nature, if there are any."""
    counts = [f"{asides[kind]} {_ASIDES[kind][asides[kind] > 1]}" for kind in asides]
    if counts:
        print(f"passed over {', '.join(counts)}")


def closing_table(
    tables: dict[str, pa.Table], num_bytes: dict[str, int], skips: list[Skip], dropped: int
) -> str:
    """Return the table of what was taken, what was skipped, and why.

    Args:
      tables: by split, a row a clip.
      num_bytes: by split, the size of its records.
      skips: what was left out.
      dropped: clips removed from train because of leakage.
    """
    rows = split_table({split: _measures(t, num_bytes[split]) for split, t in tables.items()})
    taken = sum(table.num_rows for table in tables.values())
    lost = sum(skip.clips for skip in skips)
    rows.append(
        f"taken {counted(taken, 'clip')}, skipped {lost} ({lost / max(1, lost + taken):.1%})"
    )
    for reason, count in count_reasons(skips):
        if count:
            rows.append(f"  {count} skipped: {reason}")
        else:  # a file in which there is none
            files = sum(skip.reason == reason for skip in skips)
            rows.append(f"  {counted(files, 'file')} skipped: {reason}")
    if dropped:
        rows.append(f"  {dropped} dropped from train: recording also in val or test")
    return "\n".join(rows)


def split_table(figures: dict[str, dict[str, str]]) -> list[str]:
    """Return the lines of a table with a column a split.

    Args:
      figures: by split, then by name; every split has the same names.
    """
    names = next(iter(figures.values()))
    lines = [("", *figures), *((name, *(f[name] for f in figures.values())) for name in names)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    return [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]


def _measures(table: pa.Table, num_bytes: int) -> dict[str, str]:
    """Return the figures of one split by name."""
    distinct = {
        name: pc.count_distinct(table[name]).as_py()
        for name in ("uid", "recording_id", "text", "text_key")
    }
    a_recording = sorted(pc.value_counts(table["recording_id"]).field("counts").to_pylist())
    clip_seconds = pc.sum(pc.subtract(table["window_end"], table["window_start"])).as_py()
    durations = table.group_by("uid").aggregate([("video_duration", "max")])
    video_seconds = pc.sum(durations["video_duration_max"]).as_py()
    return {
        "videos": f"{distinct['uid']:,}",
        "hours of video": f"{video_seconds / 3600:,.2f}",
        "recordings": f"{distinct['recording_id']:,}",
        "clips": f"{table.num_rows:,}",
        "hours of clips": f"{clip_seconds / 3600:,.2f}",
        "clips a recording, least": f"{a_recording[0]:,}",
        "clips a recording, median": f"{a_recording[len(a_recording) // 2]:,}",
        "clips a recording, most": f"{a_recording[-1]:,}",
        "frames": f"{pc.sum(table['num_frames']).as_py():,}",
        "distinct texts": f"{distinct['text']:,}",
        "distinct texts, normalised": f"{distinct['text_key']:,}",
        "MB": f"{num_bytes / 1e6:,.1f}",
    }
