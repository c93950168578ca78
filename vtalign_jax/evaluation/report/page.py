"""`report.html`: a run on one page that needs nothing else; several side by side; an evaluation.

Jinja2 escapes every value; pictures are data URIs; the page's policy (Content-Security-Policy)
allows no request at all and no script but the one written here, by its hash. What is drawn is
bounded (clips, queries, points of a line, rows of a table), so that the page stays small.
"""

import base64
import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
from etils import epath

from vtalign_jax import remote
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.report import charts, grounding, pictures, tables
from vtalign_jax.evaluation.report.curves import compared_curves, mask_curves, run_curves
from vtalign_jax.evaluation.report.gallery import FRAMES, KINDS, Gallery, make_gallery
from vtalign_jax.evaluation.report.run import Run, Scores, read_run
from vtalign_jax.evaluation.report.sample import Sample
from vtalign_jax.evaluation.result import Evaluation
from vtalign_jax.training.manifest import flat

FILE, COMPARISON = "report.html", "comparison.html"
MOST_COMPARED = 8  # lines of one chart that can be told apart
_TEMPLATES = Path(__file__).parent / "templates"
_OPEN = 3  # groundings, the summary among them; the others open at a touch
_CUT = 90  # letters shown of a name; the rest on hover


def write_report(
    workdir: str | epath.Path,
    out: str = "",
    dataset: str = "",
    warn: Callable[[str], None] = lambda line: None,
) -> epath.Path:
    """Write the page of a run; return where.

    Args:
      workdir: of `launch/train.py`.
      out: a file; by default `report.html` in the workdir.
      dataset: where the run's dataset is, by default where it was.
      warn: called with a line for each thing that the page lacks.

    Raises:
      UserError: it is no workdir, or the page cannot be written.
    """
    run = read_run(workdir)
    path = remote.path(out) if out else run.workdir / FILE
    with _drawn(workdir):
        context = report_context(run, dataset)
        page = render("report.html.j2", context)
    _write(path, page)
    for fault in run.faults:
        warn(f"could not be read: {fault}")
    gallery = context["gallery"]
    if gallery and gallery.absent:
        warn(f"pictures are left out ({gallery.absent}); --dataset says where the dataset is now")
    return path


def write_comparison(
    workdirs: Sequence[str | epath.Path],
    out: str = "",
    warn: Callable[[str], None] = lambda line: None,
) -> epath.Path:
    """Write a page of several runs; return where.

    Args:
      workdirs: two to eight.
      out: a file; by default `comparison.html` in this folder.
      warn: called with a line for each file that could not be read.

    Raises:
      UserError: one is no workdir, there are too few or too many, or the page cannot be written.
    """
    if not 2 <= len(workdirs) <= MOST_COMPARED:
        raise UserError(
            f"--compare takes two to {MOST_COMPARED} workdirs, separated by commas; "
            f"{len(workdirs)} given"
        )
    runs = _told_apart([read_run(workdir) for workdir in workdirs])
    path = remote.path(out or COMPARISON)
    with _drawn(", ".join(map(str, workdirs))):
        page = render("comparison.html.j2", comparison_context(runs))
    _write(path, page)
    for run in runs:
        for fault in run.faults:
            warn(f"{run.name}: could not be read: {fault}")
    return path


def write_evaluation(
    out: str, title: str, about: Mapping[str, str], rows: Mapping[str, Evaluation], sample: Sample
) -> epath.Path:
    """Write the page of one evaluation, of any checkpoint on any dataset; return where.

    Args:
      out: a file.
      title: of the page.
      about: what was evaluated; its "dataset" is where frames are read, its "command" what draws
        the page again.
      rows: "chance", "zero_shot" unless there is none, and "checkpoint".
      sample: of the checkpoint's evaluation.

    Raises:
      UserError: the page cannot be written.
    """
    path = remote.path(out)
    _write(path, render("evaluation.html.j2", evaluation_context(title, about, rows, sample)))
    return path


def check_writable(out: str) -> None:
    """Find out whether a page can be written, before hours of work for it.

    Raises:
      UserError: it cannot.
    """
    with _writing(path := remote.path(out)):
        remote.check_writable(path)


def report_context(run: Run, dataset: str = "") -> dict[str, Any]:
    """Return what the template of one run shows; `dataset` as in `write_report`."""
    before = run.config.get("data", {}).get("dir", "")
    return {
        "run": run,
        "tiles": [*_recall_tiles(run.best, run.reference), *_progress_tiles(run)],
        "facts": tables.run_facts(run),
        "fields": sorted(flat(run.config).items()),
        "charts": run_curves(run),
        "recall": tables.recall_tables(tables.shown_evaluations(run)),
        "groups": tables.group_tables(run.best),
        "counts": _counts(run.evaluations),
        "mask": tables.mask_table(run),
        "mask_charts": mask_curves(run),
        "confused": tables.confused(run),
        "timelines": grounding.timelines(run.grounding),
        "open_videos": _OPEN,
        "exports": tables.export_table(run),
        **_sample_context(run.sample, dataset or str(before)),
    }


def evaluation_context(
    title: str, about: Mapping[str, str], rows: Mapping[str, Evaluation], sample: Sample
) -> dict[str, Any]:
    """Return what the template of one evaluation shows; arguments as in `write_evaluation`."""
    shown = [(name.replace("_", "-"), "", found) for name, found in rows.items()]
    return {
        "title": title,
        "command": about["command"],
        "tiles": _recall_tiles(rows["checkpoint"], rows.get),
        "facts": [(name, value) for name, value in about.items() if value],
        "recall": tables.recall_tables(shown),
        "groups": tables.group_tables(rows["checkpoint"]),
        "counts": _counts(rows.values()),
        **_sample_context(sample, about["dataset"]),
    }


def _sample_context(sample: Sample | None, dataset: str) -> dict[str, Any]:
    """Return what is shown of a sample; `dataset` is where its frames are."""
    gallery = make_gallery(sample, dataset) if sample is not None else None
    return {
        "sample": sample,
        "when": f"after step {sample.step:,}" if sample else "",
        "heat": pictures.heat_map(sample) if sample else None,
        "colours": pictures.COLOURS,
        "lowest": pictures.LOW,
        "gallery": gallery,
        "strip_frames": FRAMES,
        "directions": _directions(gallery),
        "plane": pictures.plane(sample) if sample else None,
    }


def comparison_context(runs: Sequence[Run]) -> dict[str, Any]:
    """Return what the template of several runs shows."""
    data = {(run.manifest.get("fingerprints") or {}).get("data") for run in runs}
    return {
        "runs": runs,
        "figures": tables.comparison_table(runs),
        "differences": tables.differences(runs),
        "charts": compared_curves(runs),
        "is_same_data": len(data) == 1,
    }


def render(template: str, context: dict[str, Any]) -> str:
    """Return a page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cut": _cut, "data_uri": _data_uri, "hue": _hue}
    script = (_TEMPLATES / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = {  # of this package: the one text that is not escaped
        "style": markupsafe.Markup((_TEMPLATES / "page.css").read_text()),
        "script": markupsafe.Markup(script),
        "script_hash": digest,
        "bad": (tables.FAILED, tables.UNVERIFIED, tables.UNKNOWN),
        "plot": charts,
        "track": grounding,
    }
    return environment.get_template(template).render(own | context)


@contextlib.contextmanager
def _drawn(workdirs: object) -> Iterator[None]:
    """Turn what values that no run writes lead to into the user's error."""
    try:
        yield
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise UserError(
            f"cannot draw {workdirs}: its files hold what no run writes ({error}); put copies back"
        ) from error


def _write(path: epath.Path, page: str) -> None:
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remote.write_bytes(path, page.encode("utf-8", errors="replace"))  # lone surrogates of names


@contextlib.contextmanager
def _writing(path: epath.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}; name another file") from None


def _recall_tiles(
    best: Scores | Evaluation | None,
    reference: Callable[[str], Scores | Evaluation | None],
) -> list[tuple[str, str, str]]:
    """Return the few figures that a reader looks for first: (figure, what it is, beside it).

    Args:
      best: of the checkpoint shown.
      reference: "chance" or "zero_shot" -> what they score, None where nothing says it.
    """
    tiles = []
    if best is not None:
        for name, title in (("recall@5", "Recall@5"), ("recall@1", "Recall@1")):
            value, interval = best.metrics.get(name), best.intervals.get(name)
            if value is not None:
                between = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "both ways"
                tiles.append((f"{value:.3f}", title, between))
    for row, title in (("zero_shot", "R@5, base alone"), ("chance", "R@5, chance")):
        found = reference(row)
        value = found.metrics.get("recall@5") if found else None
        if value is not None:
            tiles.append((f"{value:.3f}", title, "before training"))
    return tiles


def _progress_tiles(run: Run) -> list[tuple[str, str, str]]:
    """Return how far a run has come and how fast, likewise."""
    tiles = [
        (f"{run.last_step:,}", "steps", f"best at {run.best.step:,}" if run.best else ""),
    ]
    speeds = [row["train/pairs_per_second"] for row in run.rows if "train/pairs_per_second" in row]
    if speeds:
        middle = sorted(speeds)[len(speeds) // 2]
        tiles.append((f"{middle:,.0f}", "pairs a second", "median"))
    return tiles


def _counts(evaluations: Iterable[Scores | Evaluation]) -> tuple[float, float] | None:
    """Return how many clips and distinct texts were evaluated, None where nothing says it."""
    for each in evaluations:
        clips, texts = (each.metrics.get(name) for name in ("clips", "texts"))
        if clips and texts:
            return clips, texts
    return None


def _directions(gallery: Gallery | None) -> list[tuple[str, str, list]]:
    if gallery is None:
        return []
    return [
        (
            title,
            told,
            [(name, kind, [q for q in found if q.kind == name]) for name, kind in KINDS.items()],
        )
        for title, told, found in (
            ("Video → text", "A clip, and the texts nearest to it.", gallery.to_text),
            ("Text → video", "A text, and the clips nearest to it.", gallery.to_clip),
        )
    ]


def _told_apart(runs: list[Run]) -> list[Run]:
    """Return the runs, their whole path as name where two workdirs are called the same."""
    names = [run.name for run in runs]
    return [
        dataclasses.replace(run, name=str(run.workdir)) if names.count(run.name) > 1 else run
        for run in runs
    ]


def _cut(text: Any, most: int = _CUT) -> str:
    """Return a name as it is shown; what no page may hold (control characters) is left out."""
    text = "".join(char for char in str(text) if char.isprintable() or char == " ")
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _hue(number: int) -> str:
    """Return a colour for each text of the map: hues a golden angle apart, in three lightnesses."""
    if number < 0:
        return "var(--faint)"
    return (
        f"hsl({number * 137.508 % 360:.0f} {(70, 55, 85)[number % 3]}% {(52, 42, 62)[number % 3]}%)"
    )
