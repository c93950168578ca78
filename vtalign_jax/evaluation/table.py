"""Metrics as a table: chance, zero-shot and the checkpoint under one another.

R@k is recall@k, median the median rank. Below: the last row's recalls a dataset and a level.
"""

import math
from collections.abc import Mapping

from vtalign_jax.evaluation.columns import (
    BLOCKS,
    CHOICES,
    CLUSTERS,
    GROUPS,
    RANKS,
    REPEATED,
    heading,
)
from vtalign_jax.evaluation.result import Evaluation, Groups
from vtalign_jax.evaluation.retrieval import RECALL_AT, REPEATED_AT

_INTERVAL = ("  95 % interval: from", "  to")
_FIRST, _SECOND, _OTHER = 29, 11, 8  # characters


def format_table(rows: Mapping[str, Evaluation]) -> str:
    """Return the table.

    Args:
      rows: name of the row -> what `Evaluator.score` or `Evaluator.chance` returned.
    """
    metrics = {name: row.metrics for name, row in rows.items()}
    head = _line("", "", [column.heading for column in RANKS.values()])
    lines = [head, "-" * len(head)]
    for prefix, title in BLOCKS.items():
        forms = {prefix + name: column.form for name, column in RANKS.items()}
        lines += _block(title, metrics, forms)
        if not prefix:
            lines += _interval_block(rows)
    lines += _block(REPEATED, metrics, {f"recall@{k}_repeated": ".3f" for k in REPEATED_AT})
    for name, title in CLUSTERS.items():
        lines += _block(title, metrics, {name: ".3f"})
    lines += ["", _line("", "", [each.heading for each in CHOICES.values()]), "-" * len(head)]
    lines += _block("five-way choice", metrics, dict.fromkeys(CHOICES, ".3f"))
    lines += _group_block(list(rows.values())[-1].groups, len(head))
    return "\n".join([*lines, *_counts(next(iter(metrics.values())))])


def _block(
    title: str, rows: Mapping[str, Mapping[str, float]], forms: Mapping[str, str]
) -> list[str]:
    """Return a line for each row that has these metrics, the title before the first."""
    lines = []
    for name, metrics in rows.items():
        if forms.keys() <= metrics.keys():
            cells = [_cell(metrics[metric], form) for metric, form in forms.items()]
            lines.append(_line("" if lines else title, name, cells))
    return lines


def _interval_block(rows: Mapping[str, Evaluation]) -> list[str]:
    """Return two lines for each row with intervals: where they begin and where they end."""
    lines = []
    for name, row in rows.items():
        if not row.intervals:
            continue
        for end, title in enumerate(_INTERVAL):
            ends = [row.intervals.get(name, (math.nan,) * 2)[end] for name in RANKS]
            cells = [_cell(value, ".3f") for value in ends]
            lines.append(_line(title, "" if end else name, cells))
    return lines


def _group_block(groups: Groups, width: int) -> list[str]:
    """Return a line for each dataset and level: clips, texts and recalls."""
    recalls = [f"recall@{k}" for k in RECALL_AT]
    headings = [heading(recall) for recall in recalls]
    lines = []
    for kind in (kind for kind, group in GROUPS.items() if not group.is_many):
        for name, found in groups.get(kind, {}).items():
            counts = [f"{found[column]:,}" for column in ("clips", "texts")]
            cells = counts + [_cell(found[recall], ".3f") for recall in recalls]
            title = _shortened(f"{kind} {name}")
            lines.append(_line(title[:_FIRST], title[_FIRST:], cells))
    if not lines:
        return []
    return ["", _line("", "", ["clips", "texts", *headings]), "-" * width, *lines, ""]


def _shortened(title: str) -> str:
    most = _FIRST + _SECOND - 1
    return title if len(title) <= most else title[: most - 1] + "…"


def _cell(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _counts(metrics: Mapping[str, float]) -> list[str]:
    """Return what the table's small figures rest on."""
    intra, inter = ((metrics[f"{k}_queries"], metrics[f"{k}_left_out"]) for k in CHOICES)
    within, across = (choice.others for choice in CHOICES.values())
    return [
        f"{metrics['texts_repeated']:,} texts stand in several recordings",
        f"five-way choice {within}: {intra[0]:,} questions, {intra[1]:,} clips left out "
        "for want of four others",
        f"five-way choice {across}: {inter[0]:,} questions, {inter[1]:,} left out",
    ]


def _line(title: str, name: str, cells: list[str]) -> str:
    return f"{title:{_FIRST}}{name:{_SECOND}}" + "".join(f"{cell:>{_OTHER}}" for cell in cells)
