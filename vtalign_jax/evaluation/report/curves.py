"""Which lines are drawn of a run, and of several runs beside one another."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from vtalign_jax.evaluation.columns import CHOICES, CLUSTERS, heading
from vtalign_jax.evaluation.report.charts import Chart, Series, line_chart
from vtalign_jax.evaluation.report.run import Run
from vtalign_jax.evaluation.retrieval import RECALL_AT
from vtalign_jax.objectives.mask_report import PAIRED

_LOSSES = {
    "train/loss": "all",
    "train/loss_itc": "contrastive",
    "train/loss_itm": "matching",
    "train/loss_caption": "caption",
}
_RECALLS = {f"recall@{k}": heading(f"recall@{k}") for k in RECALL_AT}


class _Single(NamedTuple):
    """A chart of one scalar of the logged steps; also drawn run beside run."""

    metric: str
    title: str
    note: str = ""
    low: float | None = None
    form: str = ".3g"


_SINGLES = (
    _Single("train/temperature", "Temperature", form=".4f"),
    _Single("train/gradient_norm", "Gradient norm", "before clipping", 0.0),
    _Single("train/pairs_per_second", "Pairs a second", "evaluations left out", 0.0, ",.0f"),
    _Single("train/data_wait", "Waiting for data", "share of the steps' time", 0.0, ".1%"),
)
_NEGATIVES = _Single("train/effective_negatives", "Effective negatives a row", "", 0.0, ".1f")


def run_curves(run: Run) -> list[Chart]:
    """Return the charts of one run."""
    losses = [_logged(run, metric, name) for metric, name in _LOSSES.items()]
    if len([one for one in losses if one.xs]) == 2 and losses[1].ys == losses[0].ys:
        losses = losses[:1]  # the whole loss is the contrastive one
    charts = [line_chart("Loss", losses, form=".4f"), _recall_chart(run)]
    charts += [_single_chart(run, single) for single in _SINGLES]
    choices = [_evaluated(run, metric, each.others) for metric, each in CHOICES.items()]
    charts.append(line_chart("Five-way choice", choices, low=0.0, high=1.0, form=".3f"))
    margins = [_evaluated(run, metric, metric) for metric in CLUSTERS]
    charts.append(line_chart("Margin and silhouette", margins, form=".3f"))
    return _drawn(charts)


def mask_curves(run: Run) -> list[Chart]:
    """Return what the weights did over time."""
    classes = [name for name in PAIRED if name != "cross_recording"]
    shares = [_logged(run, f"train/pairs/{name}", name.replace("_", " ")) for name in classes]
    shares = [one for one in shares if any(one.ys)]
    gradients = [_logged(run, f"train/gradient/{name}", name.replace("_", " ")) for name in PAIRED]
    return _drawn(
        [
            _single_chart(run, _NEGATIVES),
            line_chart(
                "Share of pairs",
                shares,
                note="other recordings are the rest",
                low=0.0,
                form=".2%",
            ),
            line_chart("Share of the gradient", gradients, low=0.0, high=1.0, form=".1%"),
        ]
    )


def compared_curves(runs: Sequence[Run]) -> list[Chart]:
    """Return the charts in which each run is a line."""
    charts = [
        line_chart(
            title,
            [_evaluated(run, metric, run.name) for run in runs],
            note="validation",
            low=0.0,
            high=1.0,
            form=".3f",
        )
        for metric, title in _RECALLS.items()
    ]
    singles = (_Single("train/loss", "Loss", form=".4f"), *_SINGLES, _NEGATIVES)
    for single in singles:
        lines = [_logged(run, single.metric, run.name) for run in runs]
        charts.append(
            line_chart(single.title, lines, note=single.note, low=single.low, form=single.form)
        )
    return _drawn(charts)


def _recall_chart(run: Run) -> Chart | None:
    series = [_evaluated(run, metric, name) for metric, name in _RECALLS.items()]
    for row, title in (("zero_shot", "R@5 zero-shot"), ("chance", "R@5 chance")):
        found = run.reference(row)
        if found is not None:
            value = found.metrics.get("recall@5")
            series.append(Series(title, [0], [value], is_reference=True))
    return line_chart("Recall", series, note="validation", low=0.0, high=1.0, form=".3f")


def _single_chart(run: Run, single: _Single) -> Chart | None:
    line = _logged(run, single.metric, single.title.lower())
    return line_chart(single.title, [line], note=single.note, low=single.low, form=single.form)


def _logged(run: Run, metric: str, name: str) -> Series:
    rows = [row for row in run.rows if metric in row]
    return Series(name, [row["step"] for row in rows], [row[metric] for row in rows])


def _evaluated(run: Run, metric: str, name: str) -> Series:
    rows = [each for each in run.evaluations if each.row == "val" and metric in each.metrics]
    bands: list[Any] = [each.intervals.get(metric) for each in rows]
    return Series(
        name,
        [each.step for each in rows],
        [each.metrics[metric] for each in rows],
        [tuple(band) if band and None not in band else None for band in bands],
    )


def _drawn(charts: Iterable[Chart | None]) -> list[Chart]:
    return [chart for chart in charts if chart is not None]
