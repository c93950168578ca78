"""What a linter found, as a table to read and as JSON."""

import collections
import dataclasses
from typing import Any

from vtalign_jax.dst.findings import ADVICE, SEVERITIES, Finding
from vtalign_jax.dst.identity import text_key
from vtalign_jax.dst.lint import Linted
from vtalign_jax.dst.nodes import LEVELS
from vtalign_jax.dst.pairs import is_chosen, parse_levels
from vtalign_jax.dst.plan import SPLITS
from vtalign_jax.dst.report import split_table
from vtalign_jax.wording import counted

_EXAMPLES = 3  # of each check
_MOST_CHARACTERS = 300  # of an example


def count_severities(findings: list[Finding]) -> dict[str, int]:
    """Return how many findings there are of each severity, the worst first."""
    counts = collections.Counter(found.severity for found in findings)
    return {severity: counts[severity] for severity in SEVERITIES}


def table_lines(findings: list[Finding]) -> list[str]:
    """Return the findings by check, the worst and most frequent first, with examples."""
    lines = []
    for severity, meaning in SEVERITIES.items():
        by_check: dict[str, list[Finding]] = {}
        for found in findings:
            if found.severity == severity:
                by_check.setdefault(found.check, []).append(found)
        if by_check:
            total = sum(map(len, by_check.values()))
            lines.append(f"{counted(total, severity)}: {meaning}")
        for check, of_check in sorted(by_check.items(), key=lambda item: -len(item[1])):
            advice = f": {ADVICE[check]}" if check in ADVICE else ""
            lines.append(f"  {len(of_check)} x {check}{advice}")
            lines += [f"      {_example(found)}" for found in of_check[:_EXAMPLES]]
            if len(of_check) > _EXAMPLES:
                lines.append(f"      ... and {len(of_check) - _EXAMPLES} more (--out, --json)")
    return lines


def totals(linted: Linted, levels: str) -> dict[str, dict[str, int | float]]:
    """Return by split what the annotations hold.

    Args:
      linted: what was read and found.
      levels: as of `--levels`; these nodes become clips.
    """
    chosen = parse_levels(levels)
    figures = {}
    for split in SPLITS:
        videos = [video for video in linted.videos if video.split == split and video.nodes]
        if not videos:
            continue
        nodes = [node for video in videos for node in video.nodes]
        texts = {node.name for node in nodes if is_chosen(node, chosen)}
        counts = collections.Counter(node.level for node in nodes)
        figures[split] = {
            "videos": len(videos),
            "recordings": len({video.recording_id for video in videos}),
            **{f"{level}s": counts[level] for level in LEVELS},
            "clips": sum(is_chosen(node, chosen) for node in nodes),
            "distinct_texts": len(texts),
            "distinct_texts_normalised": len(set(map(text_key, texts))),
        }
        if linted.jobs:
            found = [key for key in linted.durations if key[0] == split]
            figures[split]["videos_with_frames"] = len(found)
            hours = sum(linted.durations[key] for key in found) / 3600
            figures[split]["hours_of_video"] = round(hours, 2)
    return figures


def totals_lines(figures: dict[str, dict[str, int | float]]) -> list[str]:
    """Return the totals as a table with a column a split."""
    if not figures:
        return []
    shown = {
        split: {name.replace("_", " "): _number(value) for name, value in of_split.items()}
        for split, of_split in figures.items()
    }
    return split_table(shown)


def outlook(linted: Linted, max_skipped: float) -> str:
    """Return what `prepare` would do with all this, as one line."""
    lost = clips_left_out(linted.findings)
    share = lost / max(1, lost + linted.taken)
    line = (
        f"prepare would take {counted(linted.taken, 'clip')} and leave out {lost:,} ({share:.1%})"
    )
    return (
        f"{line}, more than --max_skipped={max_skipped:g} allows" if share > max_skipped else line
    )


def as_json(linted: Linted, levels: str) -> dict[str, Any]:
    """Return everything as one JSON document."""
    return {
        "counts": count_severities(linted.findings),
        "clips_taken": linted.taken,
        "clips_left_out": clips_left_out(linted.findings),
        "totals": totals(linted, levels),
        "asides": dict(linted.asides),
        "findings": [dataclasses.asdict(found) for found in linted.findings],
    }


def clips_left_out(findings: list[Finding]) -> int:
    """Return how many clips `prepare` would leave out because of errors."""
    return sum(found.clips for found in findings)


def _number(value: float) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


def _example(found: Finding) -> str:
    what = " ".join(filter(None, (found.uid, found.node_id)))
    line = ": ".join(filter(None, (found.where, what, found.detail)))
    printable = "".join(char if char.isprintable() else _escape(char) for char in line)
    long = len(printable) > _MOST_CHARACTERS
    return f"{printable[:_MOST_CHARACTERS]}..." if long else printable


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()
