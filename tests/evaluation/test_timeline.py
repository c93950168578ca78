import numpy as np
import pytest
from PIL import ImageColor

from vtalign_jax.dst.typeface import Typeface
from vtalign_jax.evaluation.grounding import Grounding, Span
from vtalign_jax.evaluation.questions import Question
from vtalign_jax.evaluation.spans import WindowGrid, suppress
from vtalign_jax.evaluation.timeline import draw_timeline, score_curve

BLUE, GREEN = ImageColor.getrgb("#1f6fd6"), ImageColor.getrgb("#2f9e44")
HOSTILE = [
    "<script>alert(1)</script>",
    "\u05d4\u05e8\u05db\u05d1 \u05d0\u05ea \u05d4\u05d2\u05dc\u05d2\u05dc",  # right to left
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 emoji",
    "two\nlines\tand\x00control",
    "half a surrogate \ud800",
    "word " * 400,
    "x" * 5000,
    "",
]


def _found(texts, seconds=40.0, seed=0):
    windows = WindowGrid((4.0, 8.0), 0.25).over(seconds)
    scores = np.random.default_rng(seed).uniform(-1, 1, (len(texts), len(windows)))
    spans = []
    for row in scores:
        places = suppress(windows, row, 0.3, 3)
        spans.append(tuple(Span(*windows[place], row[place]) for place in places))
    return Grounding(seconds, tuple(texts), windows, scores, tuple(spans), {}, {})


def _columns(picture, colour, rows=slice(120, None)):
    """The columns in which a picture has a colour below its legend."""
    pixels = np.asarray(picture)[rows].astype(int)
    return np.flatnonzero((np.abs(pixels - colour).max(axis=2) < 12).any(axis=0))


def test_hostile_texts_and_titles_are_drawn_within_the_picture():
    found = _found(HOSTILE)
    questions = [Question(text, "action", ((1.0, 1.0), (-5, 90))) for text in HOSTILE]
    (page,) = draw_timeline(found, questions, "/tmp/\ud800" + "long name " * 100, Typeface())
    (plain,) = draw_timeline(found, [Question("x")] * len(HOSTILE), "x", Typeface())
    assert page.size == plain.size
    margin = np.asarray(page)[:, -12:]
    assert (margin == 255).all()  # nothing runs over the edge


def test_bars_stand_where_the_spans_are():
    found = _found(["a"])
    span = found.spans[0][0]
    (page,) = draw_timeline(found, [Question("a", "step", ((10.0, 20.0),))], "t", Typeface())
    green, blue = _columns(page, GREEN), _columns(page, BLUE)
    per_second = (green[-1] + 1 - green[0]) / 10.0
    assert blue[-1] + 1 - blue[0] == pytest.approx((span.end - span.start) * per_second, abs=3)
    assert blue[0] - green[0] == pytest.approx((span.start - 10.0) * per_second, abs=3)
    assert not len(_columns(draw_timeline(found, [Question("a")], "t", Typeface())[0], GREEN))


def test_many_texts_go_on_several_pages():
    texts = [f"text {n}" for n in range(11)]
    pages = draw_timeline(_found(texts), [Question(t) for t in texts], "t", Typeface(), rows=4)
    assert len(pages) == 3
    assert pages[0].size == pages[1].size
    assert pages[2].height < pages[0].height


def test_the_curve_is_the_best_width_at_each_time():
    windows = np.array([[0.0, 2.0], [2.0, 4.0], [0.0, 4.0]])
    curve = score_curve(windows, np.array([0.0, 1.0, 0.25]), np.array([0.0, 1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_allclose(curve, [0.25, 0.25, 0.5, 1.0, 1.0])


@pytest.mark.parametrize("seconds", [0.04, 3.0, 700.0, 90_000.0])
def test_videos_of_any_length_and_equal_scores_are_drawn(seconds):
    found = _found(["a", "b"], seconds=min(seconds, 50.0))
    scale = seconds / found.seconds
    found = Grounding(
        seconds, found.texts, found.windows * scale, found.scores * 0, found.spans, {}, {}
    )
    (page,) = draw_timeline(found, [Question("a"), Question("b")], "t", Typeface())
    assert page.width == 1500
