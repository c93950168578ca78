"""What an evaluation found, as `evaluations.jsonl` and `metrics.jsonl` have it."""

import dataclasses
import math
from typing import Any, Self

from vtalign_jax.evaluation.columns import GROUPS

Intervals = dict[str, tuple[float, float]]  # metric -> (low, high)
Groups = dict[str, dict[str, dict[str, float]]]  # kind -> name -> counts and recalls

_SHOWN = "recall@5"  # of a group, and with its interval


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One row of the table.

    Attributes:
      metrics: by name; NaN for what is no number.
      intervals: (low, high) of some of them.
      groups: kind -> name -> counts and recalls.
    """

    metrics: dict[str, float]
    intervals: Intervals = dataclasses.field(default_factory=dict)
    groups: Groups = dataclasses.field(default_factory=dict)

    def scalars(self) -> dict[str, float]:
        """Return the metrics with the interval of recall@5 and that recall of each group."""
        found = dict(self.metrics)
        if _SHOWN in self.intervals:
            low, high = self.intervals[_SHOWN]
            found |= {f"{_SHOWN}_low": low, f"{_SHOWN}_high": high}
        for kind, group in GROUPS.items():
            for name, recalls in {} if group.is_many else self.groups.get(kind, {}).items():
                found[f"{kind}/{name}/{_SHOWN}"] = recalls[_SHOWN]
        return found

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, None for what is no number."""
        metrics = {name: x if math.isfinite(x) else None for name, x in self.metrics.items()}
        intervals = {name: list(ends) for name, ends in self.intervals.items()}
        return {"metrics": metrics, "intervals": intervals, "groups": self.groups}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return what `to_json` gave; more keys do no harm."""
        metrics = {name: math.nan if x is None else x for name, x in values["metrics"].items()}
        intervals = {name: tuple(ends) for name, ends in values["intervals"].items()}
        return cls(metrics, intervals, values["groups"])
