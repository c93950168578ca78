"""When a run ends before its last epoch: no better `val/recall@5` for a number of evaluations."""

import dataclasses
from typing import Any, Self


@dataclasses.dataclass(frozen=True)
class EarlyStop:
    """What the evaluations so far have shown; it travels in a checkpoint's `extra`.

    Attributes:
      best: highest val/recall@5 so far, None before the first evaluation.
      best_step: the first step that reached it.
      waited: evaluations since, without a higher one.
      last: val/recall@5 of the newest evaluation.
    """

    best: float | None = None
    best_step: int | None = None
    waited: int = 0
    last: float | None = None

    def updated(self, recall: float, step: int) -> Self:
        """Return the state after an evaluation; only a strictly higher recall is better."""
        if self.best is None or recall > self.best:
            return dataclasses.replace(self, best=recall, best_step=step, waited=0, last=recall)
        return dataclasses.replace(self, waited=self.waited + 1, last=recall)

    def is_over(self, epoch: int, *, min_epochs: int, patience: int) -> bool:
        """Return whether to stop after `epoch` whole epochs.

        Evaluations before `min_epochs` count towards `patience`; they only cannot stop the run.
        """
        return epoch >= min_epochs and self.waited >= patience

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(**values)
