"""How good spans are: R@1 at an IoU and mean IoU, beside chance and what the windows allow."""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vtalign_jax.evaluation.spans import interval_iou
from vtalign_jax.wording import counted

THRESHOLDS = (0.3, 0.5, 0.7)  # of the IoU, from which on an answer is right
ROWS = ("model", "random", "best")
_SLACK = 1e-9
_HEADINGS = [*(f"R@1 IoU {threshold}" for threshold in THRESHOLDS), "mean IoU"]


class Answer(NamedTuple):
    """How one question was answered.

    Attributes:
      level: of the question.
      model: IoU of the best span with the right one that fits it best.
      random: float64[len(THRESHOLDS) + 1]: how often a window drawn from all windows of the video
        is right, and its IoU, both expected: the mean over the windows, nothing is drawn.
      best: IoU of the window that fits best, which no score can exceed.
    """

    level: str
    model: float
    random: np.ndarray
    best: float


def judge(level: str, span: tuple[float, float], windows: np.ndarray, right: np.ndarray) -> Answer:
    """Return how good an answer is.

    Args:
      level: of the question.
      span: (start, end) of the answer, seconds.
      windows: float64[W, 2], all that could have been answered.
      right: float64[M, 2], M >= 1, of `questions.right_spans`: any of them will do.
    """
    model = interval_iou(np.array([span]), right).max()
    of_windows = interval_iou(windows, right).max(axis=1)  # [W]
    shares = [np.mean(_is_right(of_windows, threshold)) for threshold in THRESHOLDS]
    random = np.array([*shares, of_windows.mean()])
    return Answer(level, float(model), random, float(of_windows.max()))


def metric_names() -> list[str]:
    """Return the names of the metrics of a row."""
    return [*(f"recall@1_iou_{threshold}" for threshold in THRESHOLDS), "mean_iou"]


def grounding_metrics(answers: Sequence[Answer]) -> dict[str, dict]:
    """Return the metrics of all questions and of those of each level.

    Returns:
      `{"all": {"questions": n, "model": {name: value}, "random": ..., "best": ...}, level: ...}`,
      names of `metric_names`; {} without answers. "random" is what a window drawn at random is
      expected to reach, "best" what the best window of each question does.
    """
    if not answers:
        return {}
    levels = dict.fromkeys(answer.level for answer in answers if answer.level)
    groups = {"all": answers} | {
        level: [answer for answer in answers if answer.level == level] for level in levels
    }
    return {name: _of_group(group) for name, group in groups.items()}


def format_metrics(metrics: dict[str, dict]) -> str:
    """Return the metrics of `grounding_metrics` as a table; the only level is not repeated."""
    head = _line("", "", _HEADINGS)
    lines = [head, "-" * len(head)]
    for name, group in itertools.islice(metrics.items(), 1 if len(metrics) == 2 else None):
        title = f"{name}, {counted(group['questions'], 'text')}"
        for row in ROWS:
            cells = [f"{group[row][metric]:.3f}" for metric in metric_names()]
            lines.append(_line("" if row != ROWS[0] else title, row, cells))
    return "\n".join(lines)


def _of_group(answers: Sequence[Answer]) -> dict:
    rows = {
        "model": _scores(answer.model for answer in answers),
        "random": np.mean([answer.random for answer in answers], axis=0),
        "best": _scores(answer.best for answer in answers),
    }
    named = {
        row: dict(zip(metric_names(), map(float, values), strict=True))
        for row, values in rows.items()
    }
    return {"questions": len(answers)} | named


def _scores(ious: Iterable[float]) -> np.ndarray:
    """Return float64[len(THRESHOLDS) + 1]: how often right, and the mean IoU."""
    found = np.array(list(ious))
    return np.array([*(np.mean(_is_right(found, t)) for t in THRESHOLDS), found.mean()])


def _is_right(iou: np.ndarray, threshold: float) -> np.ndarray:
    return iou >= threshold - _SLACK


def _line(title: str, row: str, cells: list[str]) -> str:
    return f"{title:{24}}{row:{8}}" + "".join(f"{cell:>13}" for cell in cells)
