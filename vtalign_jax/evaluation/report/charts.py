"""Line charts as geometry: what the template draws as SVG, and what the pointer reads from it."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 46, WIDTH - 12, 10, HEIGHT - 26  # of the lines' own area
_MOST_POINTS = 240  # of a line; more are averaged in order
_INK = 8  # colours of lines


class Series(NamedTuple):
    """A line by name, or what it is measured against.

    Attributes:
      name: for the legend.
      xs: steps, ascending.
      ys: values; None and what is not finite leave a gap.
      band: low and high of each point, None where there is none.
      is_reference: drawn thin and dashed over the whole width, at its last value.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    band: Sequence[tuple[float, float] | None] = ()
    is_reference: bool = False


class Tick(NamedTuple):
    """Where a label stands, in the picture's units."""

    at: float
    label: str


class Line(NamedTuple):
    """A drawn series.

    Attributes:
      name: for the legend.
      ink: number of its colour, from 1; 0 for a reference.
      path: of an SVG path.
      band: of an SVG path around it, "" for none.
      last: its last value, as text.
      end: x and y of its last point.
      is_point: whether there is one point alone, of which a path shows nothing.
    """

    name: str
    ink: int
    path: str
    band: str
    last: str
    end: tuple[float, float]
    is_point: bool


class Chart(NamedTuple):
    """One picture.

    Attributes:
      title: what it shows.
      note: a line below the title, "" for none.
      lines: in the order given.
      x_ticks: steps.
      y_ticks: values.
      points: for the pointer: name, ink and points (x, y in the picture, step, value as text).
    """

    title: str
    note: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    points: list[dict]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    low: float | None = None,
    high: float | None = None,
    form: str = ".3g",
) -> Chart | None:
    """Return the chart, None where nothing is finite.

    Args:
      title: what it shows.
      series: at most eight beside references.
      note: a line below the title.
      low: bottom of the picture; by default the smallest value.
      high: its top, likewise.
      form: how values are printed.
    """
    drawn = [(one, thinned(one)) for one in series]
    drawn = [(one, points) for one, points in drawn if points]
    moving = [points for one, points in drawn if not one.is_reference]
    if not moving:
        return None
    xs = [point[0] for points in moving for point in points]
    ys = [point[1] for _, points in drawn for point in points]
    ys += [edge for _, points in drawn for point in points for edge in (point[2] or ())]
    x_scale = _Scale(min(xs), max(xs), LEFT, RIGHT)
    y_low, y_high, y_values = _rounded(
        min(ys) if low is None else low, max(ys) if high is None else high
    )
    y_scale = _Scale(y_low, y_high, BOTTOM, TOP)
    lines, readable, ink = [], [], 0
    for one, points in drawn:
        number = 0 if one.is_reference else (ink := ink + 1)
        lines.append(
            _line(one, points, (number - 1) % _INK + 1 if number else 0, x_scale, y_scale, form)
        )
        if not one.is_reference:
            readable.append(
                {
                    "name": one.name,
                    "ink": lines[-1].ink,
                    "at": [
                        [x_scale(x), y_scale(y), _count(x), format(y, form)] for x, y, _ in points
                    ],
                }
            )
    return Chart(
        title,
        note,
        lines,
        [Tick(x_scale(x), _short(x)) for x in round_ticks(min(xs), max(xs))],
        [Tick(y_scale(y), f"{100 * y:.4g}%" if "%" in form else _short(y)) for y in y_values],
        readable,
    )


def thinned(series: Series, most: int = _MOST_POINTS) -> list[tuple[float, float, tuple | None]]:
    """Return (x, y, band) of the finite points; of too many, the means of as many runs of them."""
    bands = series.band or [None] * len(series.xs)
    points = [
        (float(x), float(y), band)
        for x, y, band in zip(series.xs, series.ys, bands, strict=True)
        if y is not None and math.isfinite(y)
    ]
    if len(points) <= most:
        return points
    edges = [round(k * len(points) / most) for k in range(most + 1)]
    parts = [points[a:b] for a, b in itertools.pairwise(edges)]
    # A step that was logged, the last of each run; its value is the run's mean.
    return [(part[-1][0], sum(y for _, y, _ in part) / len(part), None) for part in parts]


class _Scale:
    """A value's place in the picture."""

    def __init__(self, low: float, high: float, begin: float, end: float) -> None:
        self._low, self._span = low, (high - low) or 1.0
        self._begin, self._end = begin, end
        self._is_flat = high == low

    def __call__(self, value: float) -> float:
        if self._is_flat:
            return (self._begin + self._end) / 2
        share = min(max((value - self._low) / self._span, 0.0), 1.0)
        return round(self._begin + share * (self._end - self._begin), 1)


def _line(one: Series, points: list, ink: int, x_scale: _Scale, y_scale: _Scale, form: str) -> Line:
    at = [(x_scale(x), y_scale(y)) for x, y, _ in points]
    if one.is_reference:
        at = [(float(LEFT), at[-1][1]), (float(RIGHT), at[-1][1])]
    return Line(
        one.name,
        ink,
        _path(at),
        _band(points, x_scale, y_scale),
        format(points[-1][1], form),
        at[-1],
        len(at) == 1,
    )


def _band(points: list, x_scale: _Scale, y_scale: _Scale) -> str:
    """Return the area around a line, only between neighbours that both have an interval."""
    areas = []
    for is_known, run in itertools.groupby(points, key=lambda point: point[2] is not None):
        edges = [(x_scale(x), y_scale(e[0]), y_scale(e[1])) for x, _, e in run] if is_known else []
        if len(edges) > 1:
            around = [(x, high) for x, _, high in edges] + [(x, low) for x, low, _ in edges[::-1]]
            areas.append(_path(around) + "Z")
    return "".join(areas)


def _path(at: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in at) if at else ""


def _rounded(low: float, high: float) -> tuple[float, float, list[float]]:
    """Return edges around two values and the ticks between them."""
    if high <= low:
        room = abs(low) * 0.1
        low, high = (low - room, high + room) if room else (0.0, 1.0)
    step = _step((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return first * step, last * step, [k * step for k in range(first, last + 1)]


def round_ticks(low: float, high: float) -> list[float]:
    """Return round numbers from one to another, for the axis below; whole ones where they fit."""
    if high <= low:
        return [low]
    step = _step((high - low) / 4)
    step = max(step, 1.0) if high - low >= 1 else step
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _step(rough: float) -> float:
    size = 10.0 ** math.floor(math.log10(rough))
    return next(size * k for k in (1, 2, 2.5, 5, 10) if size * k >= rough * 0.999)


def _short(value: float) -> str:
    """Return a label: 12,000 as 12k, 0.30000000000000004 as 0.3."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / min(size, 1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:.6g}"


def _count(step: float) -> str:
    return f"{step:,.0f}"
