import numpy as np
import pytest

from vtalign_jax.evaluation.grounding_metrics import (
    format_metrics,
    grounding_metrics,
    judge,
)
from vtalign_jax.evaluation.spans import WindowGrid


def _iou(a, b):
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / ((a[1] - a[0]) + (b[1] - b[0]) - shared)


def _cases():
    """(level, answer, windows, right spans) of some videos."""
    rng = np.random.default_rng(0)
    for number in range(30):
        windows = WindowGrid((2.0, 4.0, 8.0), 0.25).over(rng.uniform(9, 40))
        starts = rng.uniform(0, 20, 1 + number % 3)
        right = np.stack([starts, starts + rng.uniform(0.5, 9, len(starts))], axis=1)
        answer = windows[rng.integers(len(windows))]
        if number % 2:  # a good one
            answer = windows[np.argmin(np.abs(windows - right[0]).sum(axis=1))]
        yield ("step", "action")[number % 4 == 0], tuple(answer), windows, right


def _reference(cases):
    """What is expected of each row, question by question in plain Python."""
    rows = {"model": [], "random": [], "best": []}
    for _, answer, windows, right in cases:
        of_windows = [max(_iou(window, span) for span in right) for window in windows]
        of_answer = max(_iou(answer, span) for span in right)
        for name, ious in (
            ("model", [of_answer]),
            ("random", of_windows),
            ("best", [max(of_windows)]),
        ):
            hits = [sum(iou >= t for iou in ious) / len(ious) for t in (0.3, 0.5, 0.7)]
            rows[name].append([*hits, sum(ious) / len(ious)])
    return {name: np.mean(values, axis=0) for name, values in rows.items()}


def test_metrics_equal_a_plain_reference_overall_and_a_level():
    cases = list(_cases())
    found = grounding_metrics([judge(*case) for case in cases])
    assert list(found) == ["all", "action", "step"]
    names = ["recall@1_iou_0.3", "recall@1_iou_0.5", "recall@1_iou_0.7", "mean_iou"]
    for group, of_group in found.items():
        chosen = [case for case in cases if group in ("all", case[0])]
        assert of_group["questions"] == len(chosen)
        for row, expected in _reference(chosen).items():
            assert list(of_group[row]) == names
            np.testing.assert_allclose(list(of_group[row].values()), expected, rtol=1e-12)
        assert of_group["random"]["mean_iou"] < of_group["best"]["mean_iou"]


def test_the_random_row_is_what_drawing_converges_to():
    (_, _, windows, right) = next(_cases())
    rng = np.random.default_rng(1)
    drawn = windows[rng.integers(len(windows), size=20_000)]
    of_draws = np.array([max(_iou(window, span) for span in right) for window in drawn])
    expected = [*(np.mean(of_draws >= t) for t in (0.3, 0.5, 0.7)), of_draws.mean()]
    found = judge("", (0.0, 2.0), windows, right).random
    np.testing.assert_allclose(found, expected, atol=0.015)


def test_any_occurrence_is_right_and_an_iou_on_the_threshold_counts():
    windows = np.array([[0.0, 2.0], [0.0, 4.0], [10.0, 14.0]])
    right = np.array([[0.0, 4.0], [10.0, 14.0]])
    found = grounding_metrics(
        [judge("step", (10.0, 14.0), windows, right), judge("step", (0.0, 2.0), windows, right)]
    )
    assert found["all"]["model"]["mean_iou"] == pytest.approx(0.75)
    assert found["step"]["model"]["recall@1_iou_0.5"] == 1.0
    assert found["step"]["model"]["recall@1_iou_0.7"] == 0.5
    assert found["step"]["random"]["recall@1_iou_0.7"] == pytest.approx(2 / 3)


def test_a_text_without_a_level_counts_in_all_alone_and_nothing_gives_nothing():
    windows = np.array([[0.0, 2.0]])
    found = grounding_metrics([judge("", (0.0, 2.0), windows, windows)])
    assert list(found) == ["all"]
    assert grounding_metrics([]) == {}
    lines = format_metrics(found).splitlines()
    assert lines[2].startswith("all, 1 text ")
    assert [line.split()[-4:] for line in lines[2:]] == [["1.000"] * 4] * 3
