"""The tables of a page: rows of text, ready to be printed. Policy stands in the lists on top."""

import collections
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from vtalign_jax import config as config_lib
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.columns import (
    BLOCKS,
    CHOICES,
    CLUSTERS,
    GROUPS,
    RANKS,
    REPEATED,
    heading,
)
from vtalign_jax.evaluation.report.run import Run, Scores, finite
from vtalign_jax.evaluation.result import Evaluation
from vtalign_jax.evaluation.retrieval import REPEATED_AT
from vtalign_jax.interop import certificate
from vtalign_jax.objectives import negatives
from vtalign_jax.objectives.mask_report import PAIRED
from vtalign_jax.secret_words import redact
from vtalign_jax.training.manifest import flat

_OTHERS = {  # metric: what it is called
    **{name: f"five-way choice {choice.others}" for name, choice in CHOICES.items()},
    **{f"recall@{k}_repeated": f"{heading(f'recall@{k}')} of {REPEATED}" for k in REPEATED_AT},
    **CLUSTERS,
}
FAILED, UNVERIFIED, UNKNOWN = "FAILED", "UNVERIFIED", "certificate not understood"  # exports
NOTHING = "\N{EN DASH}"  # in place of a figure
_MOST_GROUPS, _MOST_CONFUSED = 60, 16
_SHARES = ("pairs", "loss", "gradient")
_PROVED = ("recall@1", "recall@5")  # of an export
_RECENT = 10  # logged steps that the shares of classes are averaged over


class Cell(NamedTuple):
    """A figure: as text, its interval ("" for none), and as a share of 1 for a bar (None: none)."""

    value: str
    interval: str = ""
    share: float | None = None


class Table(NamedTuple):
    """Rows under headings.

    Attributes:
      title: "" for none.
      head: headings; the first column names the row.
      rows: (name, what stands small beside it, cells).
      note: below the table, "" for none.
    """

    title: str
    head: list[str]
    rows: list[tuple[str, str, list[Cell]]]
    note: str = ""


def shown_evaluations(run: Run) -> list[tuple[str, str, Scores]]:
    """Return (name, step, evaluation) of a run's recall table: chance and zero-shot first."""
    rows = [("chance", "", run.reference("chance")), ("zero-shot", "", run.reference("zero_shot"))]
    untrained = next((e for e in run.evaluations if e.row == "val" and e.step == 0), None)
    rows.append(("before training", "step 0", untrained))
    best, last = run.best, run.trained[-1] if run.trained else None
    if best is not None and best.step > 0:
        rows.append(("best", f"step {best.step:,}", best))
    if last is not None and last is not best:
        rows.append(("last", f"step {last.step:,}", last))
    return [(name, step, found) for name, step, found in rows if found is not None]


def recall_tables(rows: Sequence[tuple[str, str, Scores | Evaluation]]) -> list[Table]:
    """Return a table for each direction, then one of the figures beside recall.

    Args:
      rows: name, what stands small beside it, and what was found.
    """
    tables = []
    for prefix, title in BLOCKS.items():
        if any(prefix + "recall@1" in each.metrics for _, _, each in rows):
            forms = {prefix + name: column.form for name, column in RANKS.items()}
            head = ["", *(column.heading for column in RANKS.values())]
            tables.append(
                Table(title.replace("->", "→"), head, [_row(*row, forms) for row in rows])
            )
    others = [name for name in _OTHERS if any(name in each.metrics for _, _, each in rows)]
    if others:
        head = ["", *(_OTHERS[name] for name in others)]
        forms = dict.fromkeys(others, ".3f")
        tables.append(Table("Beside recall", head, [_row(*row, forms) for row in rows]))
    return tables


def group_tables(evaluation: Scores | Evaluation | None) -> list[Table]:
    """Return recall by dataset, level and recording, as far as it was measured."""
    groups = {} if evaluation is None else evaluation.groups
    tables = []
    for kind, group in GROUPS.items():
        found = list((groups.get(kind) or {}).items())
        if group.is_many:
            found.sort(key=lambda each: (finite(each[1].get("recall@5")), str(each[0])))
        recalls = [name for name in RANKS if any(name in one for _, one in found)]
        rows = [
            (
                str(name),
                "",
                [
                    *(Cell(f"{one.get(what, 0):,.0f}") for what in ("clips", "texts")),
                    *(_cell(one.get(what), RANKS[what].form, what) for what in recalls),
                ],
            )
            for name, one in found[:_MOST_GROUPS]
        ]
        if rows:
            head = ["", "clips", "texts", *(heading(name) for name in recalls)]
            tables.append(Table(group.title, head, rows, _more(len(found) - len(rows))))
    return tables


def mask_table(run: Run) -> Table | None:
    """Return each class's weight and shares, averaged over the last logged steps."""
    logged = [row for row in run.rows if "train/pairs/cross_recording" in row][-_RECENT:]
    if not logged:
        return None
    weights = _class_weights(run)
    rows = []
    for name in PAIRED:
        shares = [_mean(row.get(f"train/{what}/{name}") for row in logged) for what in _SHARES]
        if any(shares):
            cells = [
                Cell(NOTHING if share is None else f"{share:.2%}", "", share) for share in shares
            ]
            rows.append((name.replace("_", " "), "", [Cell(weights.get(name, NOTHING)), *cells]))
    note = f"Mean of the last {len(logged)} logged steps. The loss and gradient of right answers"
    return Table(
        "",
        ["class of pairs", "weight", "pairs", "loss", "gradient"],
        rows,
        f"{note} are left out.",
    )


class Confused(NamedTuple):
    """A text that clips of another text were taken for.

    Attributes:
      own: the clip's text.
      taken: the wrong text.
      kind: class of the pair.
      times: in how many logged steps it was among the most confused.
      highest: its highest probability.
      example: a clip of it.
      step: the last of those steps.
    """

    own: str
    taken: str
    kind: str
    times: int
    highest: float
    example: str
    step: int


def confused(run: Run) -> list[Confused]:
    """Return the pairs of texts that were confused most often, then most clearly."""
    found: dict[tuple[str, str, str], list[tuple[float, str, int]]] = collections.defaultdict(list)
    for row in run.confused:
        for pair in row.get("pairs", []):
            key = str(pair["clip_text"]), str(pair["text"]), str(pair["class"])
            found[key].append((float(pair["probability"]), str(pair["clip"]), row["step"]))
    rows = [
        Confused(*key, len(seen), max(seen)[0], max(seen)[1], max(step for _, _, step in seen))
        for key, seen in found.items()
    ]
    return sorted(rows, key=lambda row: (-row.times, -row.highest))[:_MOST_CONFUSED]


def export_table(run: Run) -> Table | None:
    """Return the certificates of the workdir's exports."""
    rows = []
    for name, found in run.exports:
        try:
            rows += _certified(name, found)
        except (KeyError, TypeError, ValueError, AttributeError):  # of another version, or damaged
            rows.append((name, UNKNOWN, [Cell(NOTHING)] * 5))
    head = ["export", "lowest cosine of clips", "of texts", "largest error"]
    head += ["R@1, R@5 here → there", "with"]
    note = "Every embedding of the export beside the checkpoint's, on the files as written."
    return Table("", head, rows, note) if rows else None


def _certified(name: str, found: dict[str, Any]) -> list[tuple[str, str, list[Cell]]]:
    rows = []
    for result in found["results"]:
        error = max(result["max_error_video"], result["max_error_text"])
        recall = result.get("recall")
        figures = [
            *(f"{result[f'cosine_{kind}']:.7f}" for kind in ("video", "text")),
            f"{error:.1e}",
            ", ".join(f"{recall['jax'][k]:.3f} → {recall['export'][k]:.3f}" for k in _PROVED)
            if recall
            else NOTHING,
            certificate.libraries(result),
        ]
        verdict = "passed" if certificate.is_passed(result) else FAILED
        rows.append((name, verdict, list(map(Cell, figures))))
    return rows or [(name, UNVERIFIED, [Cell(NOTHING)] * 5)]


def run_facts(run: Run) -> list[tuple[str, str]]:
    """Return what the run was made from, as the manifest says."""
    starts = run.manifest.get("starts") or [{}]
    first, last = starts[0], starts[-1]
    git, devices = last.get("git"), last.get("devices") or {}
    counts = [run.manifest.get(f"{kind}_parameters") for kind in ("trainable", "total")]
    base, data = (run.config.get(part, {}) for part in ("model", "data"))
    prints = run.manifest.get("fingerprints") or {}
    facts = {
        "base": _with(base.get("base"), prints.get("base")),
        "dataset": _with(data.get("dir"), prints.get("data")),
        "parameters": f"{counts[0]:,} trained of {counts[1]:,}" if all(counts) else "",
        "started": first.get("time", ""),
        "starts": str(len(starts)) if len(starts) > 1 else "",
        "devices": f"{devices['count']} x {devices['kind']}, {devices['processes']} process(es)"
        if devices
        else "",
        "revision": _revision(git),
        "command": redact(" ".join(last.get("command") or [])),
        "versions": ", ".join(f"{a} {b}" for a, b in (last.get("versions") or {}).items()),
        "seeds": ", ".join(f"{a} {b}" for a, b in (run.manifest.get("seeds") or {}).items()),
    }
    return [(name, str(value)) for name, value in facts.items() if value]


def differences(runs: Sequence[Run]) -> Table:
    """Return the fields and facts in which runs differ; a run without a config has no fields."""
    columns = [flat(run.config) for run in runs]
    known = [column for column in columns if column]
    names = sorted({name for column in known for name in column})
    rows = [
        (name, "", [Cell(NOTHING if name not in one else str(one[name])) for one in columns])
        for name in names
        if len({repr(one.get(name)) for one in known}) > 1
    ]
    facts = [dict(run_facts(run)) for run in runs]
    for name in ("base", "dataset", "parameters", "devices", "revision", "versions"):
        if len({one.get(name) for one in facts}) > 1:
            rows.append((name, "manifest", [Cell(one.get(name, NOTHING)) for one in facts]))
    return Table("", ["field", *(run.name for run in runs)], rows)


def comparison_table(runs: Sequence[Run]) -> Table:
    """Return the best evaluation of each run, figure by figure, below chance and zero-shot."""
    names = [(name, column.heading, column.form) for name, column in RANKS.items()]
    names += [(name, title, ".3f") for name, title in _OTHERS.items()]
    rows = []
    for row, title in (("chance", "R@5 by chance"), ("zero_shot", "R@5 of the base alone")):
        found = [run.reference(row) for run in runs]
        values = [each and each.metrics.get("recall@5") for each in found]
        rows.append((title, "", [_cell(value, ".3f", "recall@5") for value in values]))
    for name, title, form in names:
        found = [run.best.metrics.get(name) if run.best else None for run in runs]
        bands = [run.best.intervals.get(name) if run.best else None for run in runs]
        if any(value is not None for value in found):
            cells = [_cell(v, form, name, b) for v, b in zip(found, bands, strict=True)]
            rows.append((title, "", cells))
    steps = [
        Cell(f"{run.best.step:,} of {run.last_step:,}" if run.best else NOTHING) for run in runs
    ]
    rows.append(("best at step", "", steps))
    return Table("", ["", *(run.name for run in runs)], rows)


def _row(name: str, step: str, found: Scores | Evaluation, forms: dict[str, str]) -> tuple:
    cells = [
        _cell(found.metrics.get(metric), form, metric, found.intervals.get(metric))
        for metric, form in forms.items()
    ]
    return name, step, cells


def _cell(
    value: float | None, form: str, metric: str, interval: Sequence[float] | None = None
) -> Cell:
    if value is None or math.isnan(value):
        return Cell(NOTHING)
    is_share = "recall" in metric or metric.startswith("choice") or metric.endswith("mAP")
    between = ""
    if interval and all(edge is not None and math.isfinite(edge) for edge in interval):
        between = f"{interval[0]:{form}} to {interval[1]:{form}}"
    return Cell(format(value, form), between, min(max(value, 0.0), 1.0) if is_share else None)


def _class_weights(run: Run) -> dict[str, str]:
    try:
        objective = config_lib.resolve(run.config).objective
    except UserError:  # written by another version
        return {}
    weights = negatives.class_weights(objective)
    return {name: f"{weight:.3g}" for name, weight in zip(negatives.CLASSES, weights, strict=True)}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _with(value: Any, fingerprint: Any) -> str:
    return f"{value} (fingerprint {str(fingerprint)[:16]})" if fingerprint else str(value or "")


def _revision(git: dict[str, Any] | None) -> str:
    if not git:
        return ""
    return f"{git['revision'][:12]}{', with local changes' if git.get('is_changed') else ''}"


def _more(count: int) -> str:
    return f"{count:,} more are in evaluations.jsonl." if count > 0 else ""
