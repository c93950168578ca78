"""What a workdir says of its run, read once for a page; what is not there is left empty.

A file that is there and cannot be read is no reason to show nothing: the others are drawn and the
page says which one is missing and why (`Run.faults`).
"""

import dataclasses
import math
from typing import Any

from etils import epath

from vtalign_jax import json_files, remote
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation import grounding_files
from vtalign_jax.evaluation.report import sample as samples
from vtalign_jax.interop.certificate import INPUTS
from vtalign_jax.training import manifest, mask_log, metrics
from vtalign_jax.training.checkpoint import METRIC

EVALUATIONS = "evaluations.jsonl"  # inside a workdir; every one with intervals and groups
EXPORTS = "exports"  # folder of a workdir
MOST_VIDEOS, MOST_EXPORTS = 8, 12  # shown
_ROWS = ("chance", "zero_shot", "val")
_RECALL = METRIC.removeprefix("val/")


@dataclasses.dataclass(frozen=True)
class Scores:
    """One row of the recall table.

    Attributes:
      step: steps done.
      row: "chance", "zero_shot" or "val".
      metrics: by name, without the row's.
      intervals: low and high of some of them.
      groups: "dataset", "level" or "recording" -> name -> its counts and recalls.
    """

    step: int
    row: str
    metrics: dict[str, float]
    intervals: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    groups: dict[str, dict[str, dict[str, float]]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir as it is now.

    Attributes:
      name: the workdir's own.
      workdir: where it is.
      config: section -> field -> value; training goes by its checkpoints, not by this file.
      manifest: see `training.manifest`.
      rows: of `metrics.jsonl`.
      evaluations: in the order they were made.
      confused: rows of `confused.jsonl`.
      sample: of the last evaluation, None if none was written.
      grounding: (name, what `launch/ground.py` wrote, its picture or None), the summary first.
      more_videos: how many older ones of them are left out.
      exports: (name, what its certificate holds).
      more_exports: likewise.
      faults: files that could not be read, and why.
    """

    name: str
    workdir: epath.Path
    config: dict[str, dict[str, Any]]
    manifest: dict[str, Any]
    rows: list[dict[str, Any]]
    evaluations: list[Scores]
    confused: list[dict[str, Any]]
    sample: samples.Sample | None
    grounding: list[tuple[str, dict[str, Any], bytes | None]]
    more_videos: int
    exports: list[tuple[str, dict[str, Any]]]
    more_exports: int
    faults: list[str]

    @property
    def last_step(self) -> int:
        """Steps done, as far as was logged."""
        return max((row["step"] for row in self.rows), default=0)

    def reference(self, row: str) -> Scores | None:
        """Return the row of chance or of the base alone."""
        return next((each for each in self.evaluations if each.row == row), None)

    @property
    def trained(self) -> list[Scores]:
        """The evaluations after training began, by step."""
        return [each for each in self.evaluations if each.row == "val" and each.step > 0]

    @property
    def best(self) -> Scores | None:
        """The evaluation whose checkpoint is kept as the best; the first of equals."""
        found = self.trained or [each for each in self.evaluations if each.row == "val"]
        return max(found, key=lambda each: finite(each.metrics.get(_RECALL)), default=None)


def finite(value: float | None) -> float:
    """Return a number that can be compared: minus infinity for what is none."""
    return -math.inf if value is None or math.isnan(value) else float(value)


def read_run(workdir: str | epath.Path) -> Run:
    """Return what a workdir holds.

    Raises:
      UserError: it is no workdir.
    """
    folder = epath.Path(workdir)
    if not remote.is_file(folder / manifest.CONFIG):
        raise manifest.no_workdir(folder / manifest.CONFIG)
    faults: list[str] = []

    def read(what: Any, path: epath.Path, otherwise: Any) -> Any:
        """Return `what(path)`; where there is no file, or it is damaged, something else."""
        try:
            return what(path) if remote.is_file(path) else otherwise
        except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            faults.append(f"{path.name}: {' '.join(str(error).split())}")
            return otherwise

    rows = read(metrics.read_rows, folder / metrics.FILE, [])
    evaluations = read(_stored_evaluations, folder / EVALUATIONS, [])
    grounding, more_videos = _read_grounding(folder / grounding_files.FOLDER, read)
    exports, more_exports = _read_exports(folder / EXPORTS, read)
    return Run(
        name=folder.name or str(folder),
        workdir=folder,
        config=read(_config, folder / manifest.CONFIG, {}),
        manifest=read(manifest.read_json, folder / manifest.MANIFEST, {}),
        rows=rows,
        evaluations=_with_logged(evaluations, rows),
        confused=read(metrics.read_rows, folder / mask_log.FILE, []),
        sample=read(lambda path: samples.read(path.parent), folder / samples.FILE, None),
        grounding=grounding,
        more_videos=more_videos,
        exports=exports,
        more_exports=more_exports,
        faults=faults,
    )


def _config(path: epath.Path) -> dict[str, dict[str, Any]]:
    config = manifest.read_json(path)
    json_files.require(config, dict.fromkeys(config, dict), path, "restore it")
    return config


def _stored_evaluations(path: epath.Path) -> list[Scores]:
    return [
        Scores(
            row["step"],
            str(row["row"]),
            dict(row["metrics"]),
            dict(row.get("intervals") or {}),
            dict(row.get("groups") or {}),
        )
        for row in metrics.read_rows(path)
        if row["row"] in _ROWS
    ]


def _with_logged(stored: list[Scores], rows: list[dict[str, Any]]) -> list[Scores]:
    """Return the evaluations with those that a run of before this file has in its metrics alone."""
    known = {(each.step, each.row) for each in stored}
    more = [each for each in _logged_evaluations(rows) if (each.step, each.row) not in known]
    return sorted(more + stored, key=lambda each: each.step)


def _logged_evaluations(rows: list[dict[str, Any]]) -> list[Scores]:
    """Return what runs of before intervals and groups wrote."""
    found = []
    for row in rows:
        for name in _ROWS:
            scores = {k[len(name) + 1 :]: v for k, v in row.items() if k.startswith(f"{name}/")}
            if _RECALL in scores:
                found.append(Scores(row["step"], name, scores))
    return found


def _read_grounding(folder: epath.Path, read: Any) -> tuple[list[tuple[str, dict, Any]], int]:
    """Return what is shown of a folder, and how many videos are left out."""
    summary, found = folder / f"{grounding_files.SUMMARY}.json", []
    files, more = _newest(folder, "*.json", MOST_VIDEOS, beside=summary.name)
    for path in [summary, *files]:
        value = read(_read_object, path, None)
        if value is not None:
            picture = None
            if value.get("picture"):  # else one that lies there is of an earlier search
                file = path.parent / f"{path.name.removesuffix('.json')}.png"
                picture = read(lambda x: x.read_bytes(), file, None)
            found.append((path.name, value, picture))
    return found, more


def _read_exports(folder: epath.Path, read: Any) -> tuple[list[tuple[str, dict]], int]:
    """Return what is shown of a folder, and how many exports are left out."""
    files, more = _newest(folder, f"*/{INPUTS}", MOST_EXPORTS)
    found = [(path.parent.name, read(_read_object, path, None)) for path in files]
    return [(name, value) for name, value in found if value is not None], more


def _newest(
    folder: epath.Path, pattern: str, most: int, beside: str = ""
) -> tuple[list[epath.Path], int]:
    """Return files of a folder by name, but the newest alone, and how many are left out.

    Args:
      folder: may be absent.
      pattern: of the files.
      most: of them.
      beside: name of a file that does not count.
    """
    if not folder.exists():
        return [], 0
    files = [path for path in folder.glob(pattern) if path.name != beside]
    files = sorted(files, key=lambda path: path.stat().mtime)
    return sorted(files[-most:], key=lambda path: path.parts), max(len(files) - most, 0)


def _read_object(path: epath.Path) -> dict[str, Any]:
    return json_files.read_object(path, "remove it")
