"""The table of checks, and what goes through it."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vtalign_jax.doctor import loss_checks, model_checks, processor_checks
from vtalign_jax.doctor.figures import Finding
from vtalign_jax.doctor.subject import Subject

# Quick ones first; what several of them need is computed by the first that does.
CHECKS: dict[str, Callable[[Subject], Finding]] = {
    "collectives": loss_checks.collectives,
    "resize": processor_checks.resize,
    "pixels": processor_checks.pixels,
    "prompt": processor_checks.prompt,
    "weights": loss_checks.weights,
    "loss": loss_checks.loss,
    "heads": loss_checks.heads,
    "padding_tokens": model_checks.padding_tokens,
    "batch_mates": model_checks.batch_mates,
    "padding_rows": model_checks.padding_rows,
    "devices": model_checks.devices,
    "microbatches": model_checks.microbatches,
    "features": model_checks.features,
    "scans": model_checks.scans,
    "scans_bfloat16": model_checks.scans_bfloat16,
}


@dataclasses.dataclass(frozen=True)
class Checked:
    """One line of the table.

    Attributes:
      name: of the check.
      finding: what it found.
      seconds: it took, with all it compiled.
    """

    name: str
    finding: Finding
    seconds: float

    @property
    def line(self) -> str:
        """The line as text."""
        found = self.finding
        start = f"{'pass' if found.passed else 'FAIL'}  {self.name:<15}"
        if found.figure is None:
            return f"{start} {found.where}"
        where = f" ({found.where})" if found.where else ""
        return f"{start} {found.figure:>8.2g} (limit {found.limit:g})  {found.compared}{where}"

    def as_json(self) -> dict[str, Any]:
        """Return the fields; a figure that JSON has no number for is null."""
        found = self.finding
        is_number = found.figure is not None and math.isfinite(found.figure)
        return {
            "name": self.name,
            "compared": found.compared,
            "figure": found.figure if is_number else None,
            "limit": found.limit,
            "where": found.where,
            "passed": found.passed,
            "seconds": round(self.seconds, 1),
        }


def examine(subject: Subject, names: Iterable[str] = tuple(CHECKS)) -> Iterator[Checked]:
    """Yield what each check finds; one that raises has failed, and the others still run."""
    for name in names:
        began = time.perf_counter()
        try:
            finding = CHECKS[name](subject)
        except Exception as error:  # whatever a device or a library comes up with
            lines = f"{type(error).__name__}: {error}".splitlines()
            finding = Finding("nothing: it raised", None, None, lines[0])
        yield Checked(name, finding, time.perf_counter() - began)
