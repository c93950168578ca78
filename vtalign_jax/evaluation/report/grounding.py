"""Grounding timelines: what `launch/ground.py` found in whole videos, drawn from its JSON."""

import io
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from PIL import Image

from vtalign_jax.evaluation.report.charts import Tick, round_ticks
from vtalign_jax.evaluation.report.tables import NOTHING, Cell, Table

WIDTH, HEIGHT = 600, 18  # of a text's line; pixels
_MOST_TEXTS = 24  # of a video
_MOST_SPANS = 3  # of a text
_THINNEST = 2.0  # bar
_PICTURE = 1200, 1600  # pixels, at most
_BRIEF = "recall@1_iou_0.5"
_WAYS = {"model": "found", "random": "a window at random", "best": "the best window"}


class Bar(NamedTuple):
    """A span in the picture; `rank` 0 is annotated, 1 the best that was found."""

    begin: float
    width: float
    rank: int
    told: str


class Asked(NamedTuple):
    """One text: its bars, and the overlap of the best with what is annotated ("" for unknown)."""

    text: str
    level: str
    bars: list[Bar]
    iou: str


class Timeline(NamedTuple):
    """One video.

    Attributes:
      video: its name.
      seconds: its length.
      asked: its texts.
      more: how many are left out.
      ticks: of the axis, seconds.
      metrics: R@1 and mean IoU of what was found, of chance and of the best windows; None for none.
      brief: the figure that stands beside the name, "" for none.
      picture: JPEG of what `ground.py` drew, None if there is none.
      fault: why its picture is missing, "" if it is there or there was none.
    """

    video: str
    seconds: float
    asked: list[Asked]
    more: int
    ticks: list[Tick]
    metrics: Table | None
    brief: str
    picture: bytes | None
    fault: str


def timelines(found: list[tuple[str, dict[str, Any], bytes | None]]) -> list[Timeline]:
    """Return the timelines of documents as `launch/ground.py` writes them.

    The summary of several, the one that names "videos", comes first and has the levels: of each
    video the whole is enough then.
    """
    has_summary = any("videos" in value and value.get("metrics") for _, value, _ in found)
    return [
        _timeline(name, value, picture, has_levels="videos" in value or not has_summary)
        for name, value, picture in found
    ]


def _timeline(
    name: str, value: Mapping[str, Any], picture: bytes | None, *, has_levels: bool
) -> Timeline:
    texts = [each for each in _list(value.get("texts")) if isinstance(each, Mapping)]
    ends = [end for each in texts for _, end in _annotated(each) + _spans(each)]
    seconds = _number(value.get("seconds")) or max(ends, default=0.0) or 1.0
    small, fault = _smaller(picture)
    metrics = _table(value.get("metrics"), has_levels=has_levels)
    return Timeline(
        video=str(value.get("video") or name),
        seconds=seconds,
        asked=[_asked(each, seconds) for each in texts[:_MOST_TEXTS]],
        more=max(len(texts) - _MOST_TEXTS, 0),
        ticks=[Tick(at / seconds * WIDTH, f"{at:g} s") for at in round_ticks(0.0, seconds)],
        metrics=metrics,
        brief=_brief(metrics),
        picture=small,
        fault=fault,
    )


def _asked(each: Mapping[str, Any], seconds: float) -> Asked:
    scale = WIDTH / seconds
    bars = [
        Bar(
            begin * scale,
            max((end - begin) * scale, _THINNEST),
            rank,
            f"{told}: {begin:.1f} to {end:.1f} s",
        )
        for rank, told, begin, end in [
            *((0, "annotated", *span) for span in _annotated(each)),
            *((n, f"found, number {n}", *s) for n, s in enumerate(_spans(each)[:_MOST_SPANS], 1)),
        ]
    ]
    iou = _number(each.get("iou"))
    level = each.get("level")
    shown = "" if level is None else str(level)
    return Asked(str(each.get("text", "")), shown, bars, "" if iou is None else f"{iou:.2f}")


def _annotated(each: Mapping[str, Any]) -> list[tuple[float, float]]:
    pairs = [_list(span) for span in _list(each.get("annotated"))]
    known = [[_number(edge) for edge in pair] for pair in pairs if len(pair) == 2]
    return [(a, b) for a, b in known if a is not None and b is not None]


def _spans(each: Mapping[str, Any]) -> list[tuple[float, float]]:
    spans = [span for span in _list(each.get("spans")) if isinstance(span, Mapping)]
    known = [(_number(span.get("start")), _number(span.get("end"))) for span in spans]
    return [(a, b) for a, b in known if a is not None and b is not None]


def _table(metrics: Any, *, has_levels: bool) -> Table | None:
    """Return a row for each group of questions and each way to answer them."""
    groups = dict(metrics) if isinstance(metrics, Mapping) else {}
    groups = {name: rows for name, rows in groups.items() if isinstance(rows, Mapping)}
    if not has_levels or len(groups) == 2:  # all of them, and the one level that they are of
        groups = dict(itertools.islice(groups.items(), 1))
    found = [
        (_WAYS.get(way, str(way)), f"{_group(group)}{rows.get('questions', '?')} texts", values)
        for group, rows in groups.items()
        for way, values in rows.items()
        if isinstance(values, Mapping)
    ]
    names = list(dict.fromkeys(name for _, _, values in found for name in values))
    rows = [
        (way, group, [_figure(values.get(name)) for name in names]) for way, group, values in found
    ]
    return Table("", ["", *map(_heading, names)], rows) if rows else None


def _brief(metrics: Table | None) -> str:
    """Return the figure that a video is known by, of what was found."""
    heading = _heading(_BRIEF)
    if metrics is None or heading not in metrics.head:
        return ""
    return f"{heading}: {metrics.rows[0][2][metrics.head.index(heading) - 1].value}"


def _group(name: Any) -> str:
    return "" if name == "all" else f"{name}, "


def _heading(metric: Any) -> str:
    return str(metric).replace("_", " ").replace("iou", "IoU").replace("recall", "R")


def _figure(value: Any) -> Cell:
    number = _number(value)
    return Cell(NOTHING if number is None else f"{number:.3f}")


def _smaller(picture: bytes | None) -> tuple[bytes | None, str]:
    if picture is None:
        return None, ""
    try:
        with Image.open(io.BytesIO(picture)) as opened:
            opened.thumbnail(_PICTURE)
            stream = io.BytesIO()
            opened.convert("RGB").save(stream, "JPEG", quality=80)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return None, f"its picture cannot be read: {error}"
    return stream.getvalue(), ""


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
