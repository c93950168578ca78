"""What is drawn is what was measured."""

import io
import json

import numpy as np
from PIL import Image

from tests.evaluation.test_report_sample import make_sample
from tests.report_runs import embeddings, make_split
from vtalign_jax.evaluation.report import charts, pictures
from vtalign_jax.evaluation.report.charts import Series, line_chart
from vtalign_jax.evaluation.report.gallery import choose_queries
from vtalign_jax.evaluation.report.grounding import WIDTH, timelines
from vtalign_jax.evaluation.retrieval import retrieval_metrics


def test_a_line_goes_through_its_points_between_round_ticks():
    chart = line_chart("x", [Series("a", [0, 50, 100], [1.0, 3.0, 2.0])], low=0.0)
    assert [tick.label for tick in chart.y_ticks] == ["0", "1", "2", "3"]
    assert [tick.label for tick in chart.x_ticks] == ["0", "25", "50", "75", "100"]
    bottom, top = chart.y_ticks[0].at, chart.y_ticks[-1].at
    points = [tuple(map(float, at.split())) for at in chart.lines[0].path[1:].split("L")]
    np.testing.assert_allclose([x for x, _ in points], [t.at for t in chart.x_ticks[::2]], atol=0.1)
    heights = [(bottom - y) / (bottom - top) * 3 for _, y in points]
    np.testing.assert_allclose(heights, [1, 3, 2], atol=0.01)
    assert [point[2:] for point in chart.points[0]["at"]] == [["0", "1"], ["50", "3"], ["100", "2"]]


def test_a_band_spans_neighbours_with_intervals_alone():
    known, unknown = (0.2, 0.8), None
    bands = [known, known, unknown, known, unknown, known, known, known]
    chart = line_chart("x", [Series("a", range(8), [0.5] * 8, bands)], low=0.0, high=1.0)
    areas = chart.lines[0].band.split("Z")[:-1]
    assert [len(area.split("L")) for area in areas] == [4, 6]
    places = [tuple(map(float, at.split())) for at in areas[0][1:].split("L")]
    bottom, top = chart.y_ticks[0].at, chart.y_ticks[-1].at
    heights = [(bottom - y) / (bottom - top) for _, y in places]
    np.testing.assert_allclose(heights, [0.8, 0.8, 0.2, 0.2], atol=0.01)


def test_what_is_not_finite_is_left_out_and_nothing_at_all_is_no_chart():
    nothing = [None, float("nan"), float("inf")]
    assert line_chart("x", [Series("a", [1, 2, 3], nothing)]) is None
    assert line_chart("x", []) is None
    chart = line_chart("x", [Series("a", [1, 2, 3, 4], [*nothing, 2.0]), Series("b", [], [])])
    assert [line.name for line in chart.lines] == ["a"]
    assert chart.lines[0].is_point
    json.dumps(chart.points, allow_nan=False)


def test_nothing_but_zeros_lies_at_the_bottom():
    chart = line_chart("x", [Series("a", [1, 2], [0.0, 0.0])], low=0.0, form=".1%")
    assert [tick.label for tick in chart.y_ticks][::4] == ["0%", "100%"]
    assert chart.points[0]["at"][0][1] == chart.y_ticks[0].at


def test_extremes_and_many_points_stay_in_the_picture():
    for values in ([1e-300, 1e300], [5.0, 5.0], [0.0, 0.0], [-1e9, 1.0], [1.0, 1.0 + 1e-15]):
        chart = line_chart("x", [Series("a", [1, 2], values)])
        for _, y, _, _ in chart.points[0]["at"]:
            assert 0 <= y <= charts.HEIGHT
        assert 2 <= len(chart.y_ticks) <= 8
    steps = np.arange(100_000)
    chart = line_chart("x", [Series("a", steps, np.sin(steps / 3e4))])
    assert len(chart.points[0]["at"]) == 240
    assert chart.points[0]["at"][-1][2] == "99,999"


def test_ranks_are_those_of_the_metrics_with_ties_at_their_worst():
    split = make_split(["a", "b", "c", "d"], clips=24)
    clips, texts = embeddings(split.identity, noise=2.0)
    clips[5] = clips[7] = texts[0]
    first = np.unique(split.identity.text, return_index=True)[1]
    right = split.identity.text[:, None] == np.arange(4)
    chosen = choose_queries(clips @ texts[first].T, right, np.arange(24), count=24)
    ranks = {row: rank for _, row, rank in chosen}
    assert len(ranks) == len(chosen) == 24
    found = retrieval_metrics(clips, texts, split.identity)
    assert np.mean([r <= 1 for r in ranks.values()]) == found["video_to_text/recall@1"]
    assert np.median(list(ranks.values())) == found["video_to_text/median_rank"]
    tied = np.zeros((1, 3))
    assert choose_queries(tied, np.array([[False, True, False]]), np.array([0])) == [
        ("worst", 0, 3)
    ]


def test_kinds_are_the_clearest_the_lowest_and_the_most_misled():
    cosines = np.array([[0.9, 0.1, 0.0], [0.5, 0.4, 0.0], [0.3, 0.2, 0.1], [0.8, 0.9, 0.85]])
    right = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]], bool)
    chosen = choose_queries(cosines, right, np.arange(4), count=1)
    assert chosen == [("best", 0, 1), ("worst", 2, 3), ("confused", 3, 3)]
    right[3] = [False, True, True]  # 2 alone is misled now
    assert choose_queries(cosines, right, np.arange(4), count=1) == [
        ("best", 0, 1),
        ("worst", 2, 3),
    ]


def test_the_heat_map_holds_the_cosines_of_whole_recordings():
    sample, _ = make_sample(clips=60)
    drawn = pictures.heat_map(sample, most=30)
    assert drawn.size == 24  # two recordings of twelve
    assert [(b.begin, b.end) for b in drawn.borders] == [(0, 12), (12, 24)]
    pixels = np.asarray(Image.open(io.BytesIO(drawn.png)))
    expected = sample.z_video[:24] @ sample.z_text[sample.text[:24]].T
    found = pixels / 255 * (1 - pictures.LOW) + pictures.LOW
    np.testing.assert_allclose(found, np.clip(expected, pictures.LOW, 1), atol=0.003)
    assert drawn.own > max(drawn.same, drawn.other)
    assert pictures.heat_map(sample, most=5).size == 5  # a recording too long is cut
    assert pictures.similarity_image(sample).shape == (480, 480, 3)


def test_the_plane_shows_the_directions_of_most_variance():
    sample, _ = make_sample(noise=0.3)
    plane = pictures.plane(sample)
    points = np.concatenate([sample.z_video, sample.z_text])
    values = np.linalg.svd(points - points.mean(axis=0), compute_uv=False) ** 2
    np.testing.assert_allclose(plane.explained, values[:2] / values.sum(), rtol=1e-4)
    at = np.array([[dot.x, dot.y] for dot in plane.clips])
    assert (at >= 0).all()
    assert (at <= plane.size).all()
    own = np.array([[plane.texts[k].x, plane.texts[k].y] for k in sample.text])
    others = np.roll(own, 1, axis=0)
    assert np.linalg.norm(at - own, axis=1).mean() < np.linalg.norm(at - others, axis=1).mean()
    assert [clips for _, _, clips in plane.named] == [10] * 4
    few = pictures.plane(sample, most_named=1)
    assert (few.unnamed, {dot.text for dot in few.clips}) == (3, {0, -1})


def test_one_clip_alone_can_be_drawn():
    sample, _ = make_sample(["a"], clips=1)
    assert pictures.heat_map(sample).same is None
    assert len(pictures.plane(sample).clips) == 1


def test_a_timeline_has_spans_where_they_are():
    each = {"text": "a", "annotated": [[5, 10]], "spans": [{"start": 0, "end": 5}], "iou": None}
    (line,) = timelines([("video.json", {"seconds": 20, "texts": [each]}, None)])
    assert [(bar.begin, bar.width, bar.rank) for bar in line.asked[0].bars] == [
        (WIDTH / 4, WIDTH / 4, 0),
        (0.0, WIDTH / 4, 1),
    ]
    assert (line.video, line.asked[0].iou, line.picture) == ("video.json", "", None)


def test_levels_stand_in_the_summary_of_several_videos_or_else_with_the_video():
    way = {"model": {"mean_iou": 0.25}, "random": {"mean_iou": 0.05}}
    groups = {name: {"questions": 3} | way for name in ("all", "step", "action")}
    video, summary = (
        ("a.json", {"metrics": groups}, None),
        ("summary.json", {"metrics": groups, "videos": ["a", "b"]}, None),
    )
    (alone,) = timelines([video])
    assert len(alone.metrics.rows) == 6
    assert alone.metrics.rows[0][:2] == ("found", "3 texts")
    assert [len(line.metrics.rows) for line in timelines([summary, video])] == [6, 2]
