"""Retrieval metrics as a table: chance, zero-shot and the checkpoint under one another.

R@k is recall@k, median the median rank.
"""

from collections.abc import Mapping

_BLOCKS = {  # prefix of a metric's name: what it is called
    "": "multi-instance, both ways",
    "video_to_text/": "  video -> text",
    "text_to_video/": "  text -> video",
    "plain/": "plain, both ways",
    "plain/video_to_text/": "  video -> text",
    "plain/text_to_video/": "  text -> video",
}
_COLUMNS = {  # metric: its heading and how it is printed
    "recall@1": ("R@1", ".3f"),
    "recall@5": ("R@5", ".3f"),
    "recall@10": ("R@10", ".3f"),
    "median_rank": ("median", ".1f"),
    "mAP": ("mAP", ".3f"),
}
_MARGIN = "margin (right - wrong)"
_FIRST, _SECOND, _OTHER = 27, 11, 8  # characters


def format_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return the table.

    Args:
      rows: name of the row -> what `retrieval_metrics` or `chance_metrics` returned.
    """
    head = _line("", "", [heading for heading, _ in _COLUMNS.values()])
    lines = [head, "-" * len(head)]
    for prefix, title in _BLOCKS.items():
        for name, metrics in rows.items():
            cells = [
                format(metrics[prefix + column], form) for column, (_, form) in _COLUMNS.items()
            ]
            lines.append(_line(title, name, cells))
            title = ""
    title = _MARGIN
    for name, metrics in rows.items():
        if "margin" in metrics:
            lines.append(_line(title, name, [format(metrics["margin"], ".3f")]))
            title = ""
    return "\n".join(lines)


def _line(title: str, name: str, cells: list[str]) -> str:
    return f"{title:{_FIRST}}{name:{_SECOND}}" + "".join(f"{cell:>{_OTHER}}" for cell in cells)
