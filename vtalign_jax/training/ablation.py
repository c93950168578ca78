"""Runs that differ in one field and in their seeds, and what they reach side by side.

Nothing here starts a backend of JAX: a TPU belongs to one process, and that is the run's.
"""

import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vtalign_jax import config as config_lib
from vtalign_jax.config import Config
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.columns import CHOICES, heading
from vtalign_jax.feature_cache import keys as feature_cache
from vtalign_jax.interop.base_files import base_fingerprint, resolve_base
from vtalign_jax.interop.weights import read_config
from vtalign_jax.pipeline.dataset import ClipSplit, open_split
from vtalign_jax.pipeline.loader import train_order
from vtalign_jax.training import metrics
from vtalign_jax.training.checkpoint import METRIC
from vtalign_jax.training.manifest import Fingerprints
from vtalign_jax.training.session import find_standing, is_over
from vtalign_jax.training.soundness import Damaged

FIGURES = {  # metric: its heading
    **{name: heading(name) for name in ("recall@1", "recall@5")},
    **{name: f"choice {choice.heading}" for name, choice in CHOICES.items()},
    "recall@1_repeated": f"{heading('recall@1')} repeated",
}
REFERENCES = ("chance", "zero_shot")  # the first rows, as `metrics.jsonl` names them
_FIRST, _RUNS, _OTHER = 20, 5, 15  # characters
_BOOLEANS = {"true": True, "false": False}


class Run(NamedTuple):
    """One training.

    Attributes:
      value: of the varied field, as the command line has it.
      seed: `train.seed`.
      workdir: `<out>/<value>-<seed>`.
      config: with both set.
    """

    value: str
    seed: int
    workdir: str
    config: Config


class Reached(NamedTuple):
    """What a finished run reached.

    Attributes:
      step: of its best checkpoint by val/recall@5.
      figures: row ("chance", "zero_shot" or "val") -> metric -> value, None where it is no number.
    """

    step: int
    figures: dict[str, dict[str, float | None]]


class Spread(NamedTuple):
    """Of one figure over the runs that have it.

    Attributes:
      mean: over the runs.
      sd: the sample's standard deviation, None of a single run.
      low: the smallest.
      high: the largest.
      runs: how many.
    """

    mean: float
    sd: float | None
    low: float
    high: float
    runs: int


def parse_vary(text: str) -> tuple[str, list[str]]:
    """Return the field and its values from "section.field=value,value,..."."""
    field, equals, listed = text.partition("=")
    values = [value.strip() for value in listed.split(",")]
    if not equals or not all(values):
        raise UserError(
            f"--vary={text} is not a field with its values; write for instance "
            "--vary=objective.same_recording_weight=0.3,0.4,0.5"
        )
    return field.strip().removeprefix("config."), values


def make_runs(
    config: Config, field: str, values: Sequence[str], seeds: Sequence[int], out: str
) -> list[Run]:
    """Return the runs, all seeds of the first value first.

    Args:
      config: what all runs share.
      field: "section.name".
      values: of the field, as text.
      seeds: of training.
      out: folder of the workdirs.

    Raises:
      UserError: no such field, a value that it cannot have, one named twice, or none at all.
    """
    if field == "train.seed":
        raise UserError("--vary=train.seed=... is what --seeds is for; name the seeds there")
    for what, given in (("value", values), ("seed", seeds)):
        if not given:
            raise UserError(f"no {what} is named, so there is nothing to train; name one or more")
        if repeated := [one for one in given if list(given).count(one) > 1]:
            raise UserError(f"{what} {repeated[0]} is named twice; name it once")
    runs = []
    first: dict[Config, str] = {}
    for value in values:
        varied = _with_field(config, field, value)
        if (same := first.setdefault(varied, value)) != value:
            raise UserError(f"values {same} and {value} of {field} are the same; name one of them")
        for seed in seeds:
            seeded = _with_field(varied, "train.seed", str(seed))
            runs.append(Run(value, seed, f"{out}/{value.replace('/', '_')}-{seed}", seeded))
    return runs


def _with_field(config: Config, field: str, text: str) -> Config:
    section, _, name = field.partition(".")
    values = config_lib.to_dict(config)
    if name not in values.get(section, {}):
        raise UserError(f"--vary: config has no field {field}; vtalign_jax/config.py lists them")
    before = values[section][name]
    try:
        parsed = _BOOLEANS[text.lower()] if isinstance(before, bool) else type(before)(text)
    except (KeyError, ValueError) as error:
        kind = type(before).__name__
        raise UserError(f"config.{field} must be {kind}, --vary gives {text!r}") from error
    values[section][name] = parsed
    return config_lib.resolve(values)


@functools.cache
def _open(data_dir: str, split: str) -> ClipSplit:
    return open_split(data_dir, split)


@functools.cache
def _base_facts(base: str) -> tuple[str, int]:
    """Return fingerprint and image size of a base."""
    directory = resolve_base(base)
    return base_fingerprint(directory), read_config(directory).vision.image_size


def find_reached(run: Run) -> Reached | None:
    """Return what a run has reached; None if it is not over, by the rule of training itself.

    Nor is one whose newest checkpoint is damaged: training moves that away, or says what to do.

    Raises:
      UserError: the workdir holds another run, or its metrics are damaged.
    """
    config = run.config
    split = _open(config.data.dir, config.data.train_split)
    base, edge = _base_facts(config.model.base)
    validated = _open(config.data.dir, config.data.val_split)
    features = feature_cache.attach(config, base, edge, train=split, evaluate=validated)
    fingerprints = Fingerprints(base, split.fingerprint, features)
    try:
        standing = find_standing(run.workdir, config, fingerprints)
    except Damaged:
        return None
    epoch_steps = train_order(split, config).steps_per_epoch
    if standing is None or not is_over(standing, config.train, epoch_steps):
        return None
    step = standing.early.best_step
    path = f"{run.workdir}/{metrics.FILE}"
    wanted = {"val": step} | dict.fromkeys(REFERENCES, 0)
    found: dict[str, dict[str, float | None]] = {row: {} for row in wanted}
    for written in metrics.read_rows(path):
        for row, at in wanted.items():
            if written["step"] == at:
                prefixed = {name: f"{row}/{name}" for name in FIGURES}
                found[row] |= {k: written[name] for k, name in prefixed.items() if name in written}
    for row, figures in found.items():
        if absent := [name for name in FIGURES if name not in figures]:
            raise UserError(
                f"{path} has no {row}/{absent[0]} at step {wanted[row]}; it was written by another "
                "version: take a new --out"
            )
    return Reached(step, found)


def summarise(reached: Mapping[str, Sequence[Reached]]) -> dict[str, dict[str, Spread | None]]:
    """Return the rows of the table: chance, zero-shot, then the values of the field.

    Args:
      reached: value -> what its runs reached.

    Returns:
      Row -> metric -> spread over the row's runs, None where no run has a number. Chance and
      zero-shot are over all runs, and alike in all where the field has no part in them.
    """
    everything = [one for several in reached.values() for one in several]
    rows = {row: [one.figures[row] for one in everything] for row in REFERENCES}
    rows |= {value: [one.figures["val"] for one in several] for value, several in reached.items()}
    return {
        row: {name: _spread([one[name] for one in figures]) for name in FIGURES}
        for row, figures in rows.items()
    }


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    sd = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.fmean(known), sd, min(known), max(known), len(known))


def format_rows(field: str, rows: Mapping[str, Mapping[str, Spread | None]]) -> str:
    """Return the table: mean and standard deviation over the runs, below them the range."""
    head = f"{field:{_FIRST}}{'runs':>{_RUNS}}"
    head += "".join(f"{heading:>{_OTHER}}" for heading in FIGURES.values())
    lines = [head, "-" * len(head)]
    for row, figures in rows.items():
        runs = max((spread.runs for spread in figures.values() if spread), default=0)
        cells = [_cells(figures[name]) for name in FIGURES]
        lines.append(f"{row:{_FIRST}}{runs:{_RUNS}}" + "".join(f"{a:>{_OTHER}}" for a, _ in cells))
        lines.append(" " * (_FIRST + _RUNS) + "".join(f"{b:>{_OTHER}}" for _, b in cells))
    return "\n".join([*lines, "mean ± standard deviation over runs; below it, lowest..highest"])


def _cells(spread: Spread | None) -> tuple[str, str]:
    if spread is None:
        return "-", ""
    sd = "" if spread.sd is None else f" ±{spread.sd:.3f}"
    return f"{spread.mean:.3f}{sd}", f"{spread.low:.3f}..{spread.high:.3f}"


def best_run(runs: Sequence[Run], reached: Mapping[str, Sequence[Reached]]) -> Run:
    """Return the best run, by recall@5, of the value that is best on average."""

    def recalls(value: str) -> list[float]:
        return [one.figures["val"][METRIC.removeprefix("val/")] for one in reached[value]]

    value = max(reached, key=lambda value: statistics.fmean(recalls(value)))
    of_value = [run for run in runs if run.value == value]
    return max(zip(recalls(value), of_value, strict=True), key=lambda pair: pair[0])[1]


def to_json(
    runs: Sequence[Run],
    reached: Mapping[str, Sequence[Reached]],
    rows: Mapping[str, Mapping[str, Spread | None]],
) -> dict[str, Any]:
    """Return rows and runs as JSON values."""
    results = [one for several in reached.values() for one in several]
    return {
        "rows": {
            row: {name: spread and spread._asdict() for name, spread in figures.items()}
            for row, figures in rows.items()
        },
        "runs": [
            {"value": run.value, "seed": run.seed, "workdir": run.workdir, "best_step": one.step}
            | {"val": one.figures["val"], "config": dataclasses.asdict(run.config)}
            for run, one in zip(runs, results, strict=True)
        ],
    }
