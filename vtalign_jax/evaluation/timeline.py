"""Draws where texts are shown in a video: small pictures along time, and a row for each text."""

import bisect
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vtalign_jax.dst.typeface import Typeface
from vtalign_jax.evaluation.grounding import Grounding, Span
from vtalign_jax.evaluation.questions import Question

ROWS = 24  # of one picture

_SCALE = 2  # drawn so much larger, then shrunk: Pillow's lines have steps
_WIDTH, _LABEL, _SCORE, _MARGIN = 1500, 330, 64, 16  # pixels of the picture
_SIGHT = 82  # height of the strip of small pictures
_CURVE, _BAR, _GAP = 30, 7, 3  # heights within a row
_ROW = _CURVE + 2 * _BAR + 4 * _GAP
_TITLE, _TEXT, _SMALL = 20, 15, 12  # letters
_COLUMNS = 1000  # of a curve
_FLOOR = 0.25  # of all scores of the curves lie below what is drawn, so that peaks stand out
_TICKS = 10  # at most
_STEPS = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)  # seconds

_PAPER, _INK, _FAINT, _LINES, _BAND = "#ffffff", "#16202c", "#66707c", "#dfe3e8", "#f6f7f9"
_LINE, _FILL = "#5b6b7f", "#dde4ec"
_BEST, _OTHERS, _RIGHT = "#1f6fd6", "#a9cbf5", "#2f9e44"


def draw_timeline(
    found: Grounding,
    questions: Sequence[Question],
    title: str,
    face: Typeface,
    rows: int = ROWS,
) -> list[Image.Image]:
    """Return RGB pictures with at most `rows` texts each.

    A row shows the score over time (the highest over the widths, each of them drawn from middle to
    middle of its windows, all rows on one scale, the lowest quarter cut off), the best span in
    blue, the next ones in light blue, and below them in green where the annotation has the text.

    Args:
      found: the answers.
      questions: as many as `found.texts`.
      title: one line at the top.
      face: of all letters.
      rows: at least 1.
    """
    starts = range(0, len(questions), rows)
    times = (np.arange(_COLUMNS) + 0.5) * found.seconds / _COLUMNS
    curves = [score_curve(found.windows, scores, times) for scores in found.scores]
    pages = []
    for page, first in enumerate(starts, 1):
        said = f"{title}, page {page} of {len(starts)}" if len(starts) > 1 else title
        count = min(rows, len(questions) - first)
        drawing = _Page(found.seconds, count, face, (np.quantile(curves, _FLOOR), np.max(curves)))
        drawing.head(said, found, any(question.annotated for question in questions))
        for row in range(count):
            place = first + row
            drawing.row(row, questions[place], curves[place], found.spans[place])
        pages.append(drawing.finished())
    return pages


def score_curve(windows: np.ndarray, scores: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the score at each time: float64[T].

    Args:
      windows: float64[W, 2], seconds.
      scores: float[W].
      times: float64[T], seconds, ascending.
    """
    lengths = np.round(np.ptp(windows, axis=1), 3)
    curves = []
    for length in np.unique(lengths):
        places = np.flatnonzero(lengths == length)
        middles = windows[places].mean(axis=1)
        order = np.argsort(middles)
        curves.append(np.interp(times, middles[order], scores[places][order]))
    return np.max(curves, axis=0)


class _Page:
    """One picture while it is drawn; all places in its own pixels, `_SCALE` times as fine."""

    def __init__(self, seconds: float, rows: int, face: Typeface, scores: tuple[float, float]):
        """Take the paper.

        Args:
          seconds: length of the video.
          rows: texts.
          face: of all letters.
          scores: at the foot of a row and at its top.
        """
        self._seconds, self._face, self._scores = seconds, face, scores
        self._fonts: dict[int, Any] = {}
        self._left, self._right = _MARGIN + _LABEL, _WIDTH - _MARGIN - _SCORE
        self._top = _MARGIN + _TITLE + 2 * _SMALL + 2 * _GAP + _SIGHT + 2 * _SMALL + 2 * _GAP
        self._bottom = self._top + rows * _ROW
        size = _WIDTH * _SCALE, (self._bottom + 2 * _SMALL + _MARGIN) * _SCALE
        self._paper = Image.new("RGB", size, _PAPER)
        self._draw = ImageDraw.Draw(self._paper)
        width = (self._right - self._left) / _COLUMNS
        self._columns = self._left + (np.arange(_COLUMNS) + 0.5) * width

    def head(self, title: str, found: Grounding, is_annotated: bool) -> None:
        """Draw what stands above the rows, and the lines of the time axis behind them."""
        width = _WIDTH - 2 * _MARGIN
        self._letters(_MARGIN, _MARGIN, self._fitted(title, _TITLE, width), _TITLE, _INK)
        self._legend(_MARGIN + _TITLE + _SMALL // 2 + _GAP, is_annotated)
        self._strip(self._top - _SIGHT - 2 * _SMALL - 2 * _GAP, found)
        for row in range(0, (self._bottom - self._top) // _ROW, 2):
            top = self._top + row * _ROW
            self._box(_MARGIN, top, _WIDTH - _MARGIN, top + _ROW, _BAND)
        for time in _tick_times(self._seconds):
            x = self._x(time)
            self._box(x - 0.25, self._top, x + 0.25, self._bottom, _LINES)
            for y in (self._top - _SMALL - 2 * _GAP, self._bottom + _GAP):
                self._letters(x, y, _clock(time, self._seconds), _SMALL, _FAINT, "ma")

    def row(self, row: int, question: Question, curve: np.ndarray, spans: Sequence[Span]) -> None:
        """Draw one text.

        Args:
          row: counted from 0.
          question: the text, and where it is annotated.
          curve: float[_COLUMNS], the score in the middle of each column.
          spans: best first.
        """
        top = self._top + row * _ROW
        label = self._fitted(question.text, _TEXT, _LABEL - 2 * _MARGIN)
        self._letters(_MARGIN + 6, top + 8, label, _TEXT, _INK)
        said = f"{question.level}   " if question.level else ""
        said += f"{spans[0].start:.1f} to {spans[0].end:.1f} s"
        self._letters(_MARGIN + 6, top + 14 + _TEXT, said, _SMALL, _FAINT)
        score = f"{spans[0].score:.3f}"
        self._letters(_WIDTH - _MARGIN - 6, top + 8, score, _TEXT, _INK, "ra")
        self._curve(top + _GAP, curve)
        bar = top + _GAP + _CURVE + _GAP
        for span in reversed(spans):  # the best one on top
            self._span(span.start, span.end, bar, _BEST if span is spans[0] else _OTHERS)
        for start, end in question.annotated:
            self._span(start, end, bar + _BAR + _GAP, _RIGHT)

    def finished(self) -> Image.Image:
        """Return the picture."""
        size = self._paper.width // _SCALE, self._paper.height // _SCALE
        return self._paper.resize(size, Image.Resampling.LANCZOS)

    def _legend(self, top: int, is_annotated: bool) -> None:
        entries = [("best span", _BEST), ("next best", _OTHERS)]
        entries += [("annotated", _RIGHT)] if is_annotated else []
        x = self._left
        for said, colour in entries:
            self._box(x, top + 3, x + 22, top + 3 + _BAR, colour)
            self._letters(x + 28, top, said, _SMALL, _FAINT)
            x += 44 + self._length(said, _SMALL)
        self._letters(_WIDTH - _MARGIN - 6, top, "cosine", _SMALL, _FAINT, "ra")

    def _strip(self, top: int, found: Grounding) -> None:
        """Draw the small pictures, each around its own time."""
        if not found.sights:
            return
        room = (self._right - self._left) // len(found.sights) - _GAP
        for time, sight in found.sights.items():
            ratio = min(room / sight.width, _SIGHT / sight.height)
            size = [max(1, round(edge * ratio * _SCALE)) for edge in sight.size]
            x = round(self._x(time) * _SCALE) - size[0] // 2
            y = (top + _SIGHT) * _SCALE - size[1]
            self._paper.paste(sight.resize(size, Image.Resampling.LANCZOS), (x, y))

    def _curve(self, top: float, curve: np.ndarray) -> None:
        low, high = self._scores
        height = (curve - low) / (high - low) if high > low else np.full(len(curve), 0.5)
        height = np.maximum(height, 0.0)
        ys = top + _CURVE * (1 - height)
        points = [(x * _SCALE, y * _SCALE) for x, y in zip(self._columns, ys, strict=True)]
        floor = (top + _CURVE) * _SCALE
        self._draw.polygon([(points[0][0], floor), *points, (points[-1][0], floor)], _FILL)
        self._draw.line(points, _LINE, round(1.2 * _SCALE), joint="curve")

    def _span(self, start: float, end: float, top: float, colour: str) -> None:
        """Draw a bar, a moment as one that can be seen."""
        left, right = self._x(max(start, 0.0)), self._x(min(end, self._seconds))
        if start > self._seconds:
            return
        if right - left < 3:
            left, right = (left + right) / 2 - 1.5, (left + right) / 2 + 1.5
        self._box(left - 1, top, right + 1, top + _BAR, _PAPER)  # from a neighbour
        self._box(left, top, right, top + _BAR, colour)

    def _x(self, time: float) -> float:
        return self._left + (self._right - self._left) * time / self._seconds

    def _box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        corners = [round(edge * _SCALE) for edge in (left, top, right, bottom)]
        corners[2:] = (max(corners[0], corners[2] - 1), max(corners[1], corners[3] - 1))
        self._draw.rectangle(corners, colour)

    def _letters(
        self, x: float, y: float, text: str, size: int, colour: str, anchor: str = "la"
    ) -> None:
        font = self._font(size)
        self._draw.text((x * _SCALE, y * _SCALE), text, colour, font, anchor=anchor)

    def _font(self, size: int) -> Any:
        if size not in self._fonts:
            self._fonts[size] = self._face.font(size * _SCALE)
        return self._fonts[size]

    def _length(self, text: str, size: int) -> float:
        return self._font(size).getlength(text) / _SCALE

    def _fitted(self, text: str, size: int, most: float) -> str:
        """Return one line that can be drawn and takes at most `most` pixels."""
        readable = text.encode("utf-8", "replace").decode()  # halves of surrogates
        line = " ".join(self._face.letters(readable[:1000]).split())
        line = "".join(char for char in line if char.isprintable())
        if self._length(line, size) <= most:
            return line
        dots = "..."
        lengths = range(len(line))
        fits = bisect.bisect(
            lengths, most, key=lambda count: self._length(line[:count] + dots, size)
        )
        return line[: max(fits - 1, 0)].rstrip() + dots


def _tick_times(seconds: float) -> list[float]:
    step = next((step for step in _STEPS if seconds / step <= _TICKS), seconds / _TICKS)
    return list(itertools.takewhile(lambda time: time <= seconds, itertools.count(0, step)))


def _clock(time: float, seconds: float) -> str:
    """Return a time as 12.5, or in long videos as 1:02 or 1:02:03."""
    if seconds < 120:
        return f"{time:g} s"
    minutes, rest = divmod(round(time), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if seconds >= 3600 else f"{minutes}:{rest:02}"
