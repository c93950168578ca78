import numpy as np
import pytest

from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.spans import WindowGrid, interval_iou, suppress


def _iou(a, b):
    """Of two spans, in plain Python."""
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    covered = (a[1] - a[0]) + (b[1] - b[0]) - shared
    return shared / covered if covered else 0.0


def _spans(count, seed):
    rng = np.random.default_rng(seed)
    starts = rng.uniform(0, 20, count).round(1)
    return np.stack([starts, starts + rng.choice([0.0, 0.5, 2.0, 4.0, 9.0], count)], axis=1)


def test_iou_equals_plain_python_with_empty_and_touching_spans():
    left, right = _spans(40, 0), np.array([[0, 4], [4, 8], [4, 4], [0, 30], *_spans(20, 1)])
    expected = [[_iou(a, b) for b in right] for a in left]
    np.testing.assert_allclose(interval_iou(left, right), expected, atol=1e-12)
    assert interval_iou(np.array([[0.0, 4.0]]), np.array([[4.0, 8.0]])) == 0
    assert interval_iou(left, np.zeros((0, 2))).shape == (40, 0)


@pytest.mark.parametrize("most_iou", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("keep", [1, 4, 100])
def test_suppression_equals_brute_force(most_iou, keep):
    windows = _spans(60, 2)
    scores = np.random.default_rng(3).normal(size=60).round(1)  # with ties
    kept = []
    for place in sorted(range(60), key=lambda place: (-scores[place], place)):
        if len(kept) < keep and all(_iou(windows[place], windows[k]) <= most_iou for k in kept):
            kept.append(place)
    assert suppress(windows, scores, most_iou, keep) == kept


def test_windows_of_every_width_cover_the_video_and_none_sticks_out():
    for seconds in (3.7, 20.0, 20.13):
        windows = WindowGrid((2.0, 4.0, 30.0), 0.25).over(seconds)
        assert windows.min() == 0
        assert windows.max() == seconds
        for width in (2.0, 4.0):
            of_width = windows[np.isclose(np.ptp(windows, axis=1), width)]
            if width < seconds:
                steps = np.diff(of_width[:, 0])
                assert of_width[0, 0] == 0
                assert of_width[-1, 1] == seconds
                assert np.all((steps > 0) & (steps <= width / 4 + 1e-9))
        assert sum(np.ptp(windows, axis=1) == seconds) == 1  # the whole video, once
        assert len(np.unique(windows, axis=0)) == len(windows)


def test_the_grid_of_ten_seconds_is_this():
    windows = WindowGrid((8.0, 4.0), 0.5).over(10.0)
    assert windows.tolist() == [[0, 4], [2, 6], [4, 8], [6, 10], [0, 8], [2, 10]]
    assert WindowGrid((4.0,), 1.0).over(10.0).tolist() == [[0, 4], [4, 8], [6, 10]]
    assert WindowGrid((4.0, 8.0), 1.0).over(3.0).tolist() == [[0, 3]]


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (WindowGrid(()), "widths are missing"),
        (WindowGrid((4.0, 0.0)), "widths must lie in .* got 0"),
        (WindowGrid((float("nan"),)), "widths must lie in"),
        (WindowGrid((4.0,), 0.0), "stride is a share"),
        (WindowGrid((4.0,), 1.5), "stride is a share"),
    ],
)
def test_a_grid_out_of_range_is_named(grid, expected):
    with pytest.raises(UserError, match=expected):
        grid.check(8)


def test_windows_without_end_are_refused():
    with pytest.raises(UserError, match="more than 500,000 windows; give wider widths"):
        WindowGrid((0.08,), 0.01).over(36_000.0)
