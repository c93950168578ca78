"""What a check finds: figures that are to be small, never a verdict of its own."""

import dataclasses
import math
from collections.abc import Mapping

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
      compared: what was held against what.
      figure: how far they are apart; None if the check raised.
      limit: the largest figure that passes; None if the check raised.
      where: what is farthest apart, or why there is no figure.
    """

    compared: str
    figure: float | None
    limit: float | None
    where: str = ""

    @property
    def passed(self) -> bool:
        """Whether the figure is a number within its limit."""
        return self.figure is not None and self.figure <= self.limit  # NaN is not


def relative_error(ours: jax.Array, theirs: jax.Array) -> float:
    """Return max|a - b| / max|b|; of empty arrays 0, of other shapes infinity."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        return math.inf
    if not ours.size:
        return 0.0
    return float(np.max(np.abs(ours - theirs)) / max(np.max(np.abs(theirs)), 1e-30))


def relative_distance(ours: jax.Array, theirs: jax.Array) -> float:
    """Return |a - b| / |b| in the Euclidean norm, which single roundings hardly move."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-30))


def worst(figures: Mapping[str, float]) -> tuple[float, str]:
    """Return the largest figure and its name; NaN is larger than any number."""
    name = max(figures, key=lambda name: math.inf if math.isnan(figures[name]) else figures[name])
    return figures[name], name
