"""When a run ends before its last epoch: no better `val/recall@5` for a number of evaluations.

How much better is `train.min_recall_gain`; which checkpoint is the best does not depend on it.
"""

import dataclasses
from typing import Any, Self


@dataclasses.dataclass(frozen=True)
class EarlyStop:
    """What the evaluations so far have shown; it travels in a checkpoint's `extra`.

    Attributes:
      best: highest val/recall@5 so far, None before the first evaluation.
      best_step: the first step that reached it.
      counted: val/recall@5 of the last improvement that counted: small ones add up from there.
      waited: evaluations since then.
      last: val/recall@5 of the newest evaluation.
    """

    best: float | None = None
    best_step: int | None = None
    counted: float | None = None
    waited: int = 0
    last: float | None = None

    def updated(self, recall: float, step: int, min_gain: float = 0.0) -> Self:
        """Return the state after an evaluation.

        Any strictly higher recall is the best; only one more than `min_gain` above `counted` starts
        the count of evaluations again.
        """
        best, best_step = self.best, self.best_step
        if best is None or recall > best:
            best, best_step = recall, step
        counted, waited = self.counted, self.waited + 1
        if counted is None or recall > counted + min_gain:
            counted, waited = recall, 0
        return dataclasses.replace(
            self, best=best, best_step=best_step, counted=counted, waited=waited, last=recall
        )

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
