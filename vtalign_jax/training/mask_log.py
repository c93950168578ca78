"""What the weights did, for people: scalars, the names of the most confused pairs, one line."""

from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from vtalign_jax.array_types import Identity
from vtalign_jax.config import Config, ObjectiveConfig
from vtalign_jax.objectives import negatives
from vtalign_jax.objectives.mask_report import (
    PAIRED,
    MaskReport,
    make_mask_report,
    weighing_classes,
)
from vtalign_jax.pipeline.dataset import ClipSplit
from vtalign_jax.training.metrics import StepRows
from vtalign_jax.training.step import Embedded

FILE = "confused.jsonl"  # inside a workdir
_LEAST_SHARE = 0.5  # of a batch's other rows that are to count as negatives, each by its weight
_SAME_RECORDING = ("same_recording", "neighbour", "ancestor", "overlap")


class MaskLog:
    """Appends the most confused pairs to `confused.jsonl`, and says what the last report held.

    A row is `{"step", "pairs": [{"clip", "clip_text", "text", "text_clip", "class",
    "probability"}, ...]}`: `text`, the text of `text_clip`, was given this probability for `clip`,
    which `clip_text` describes. Resumed runs drop rows as `StepRows` does.
    """

    def __init__(
        self,
        workdir: str | epath.Path,
        restored_step: int | None,
        config: Config,
        split: ClipSplit,
        mesh: Mesh,
        *,
        is_primary: bool = True,
    ):
        """Open the file.

        Args:
          workdir: a folder of this machine, made if absent.
          restored_step: step of the checkpoint the run goes on from; None starts the file anew.
          config: of the run.
          split: whose records the batches hold.
          mesh: over whose devices the batches are split.
          is_primary: whether this process writes.

        Raises:
          UserError: the file holds a line that is not a JSON object with a step.
        """
        self._objective, self._split, self._last = config.objective, split, None
        self._batch_rows, self._is_warned = config.train.contrastive_batch, False
        self._report = make_mask_report(config.objective, mesh)
        self._rows: StepRows | None = None
        if is_primary:
            workdir = epath.Path(workdir)
            workdir.mkdir(parents=True, exist_ok=True)
            self._rows = StepRows(workdir / FILE, restored_step)

    def record(
        self, step: int, embedded: Embedded, temperature: jax.Array, identity: Identity
    ) -> dict[str, float]:
        """Look at the batch of a step on the devices, then `write` what was found.

        Args:
          step: steps done.
          embedded: of the batch.
          temperature: float32[].
          identity: of the batch.
        """
        report = self._report(*embedded, temperature, identity)
        return self.write(step, jax.device_get(report))

    def write(self, step: int, report: MaskReport) -> dict[str, float]:
        """Write the confused pairs of a step; return its scalars as `train/<name>`.

        Args:
          step: steps done.
          report: of NumPy arrays.
        """
        if self._rows is not None:
            self._rows.write(step, {"pairs": confused_pairs(report, self._split)})
        self._last = {name: float(value) for name, value in report.scalars.items()}
        return {f"train/{name}": value for name, value in self._last.items()}

    def line(self) -> str:
        """Return what the last report says in one line."""
        if not self._last:
            return "negatives: no step was logged yet; config.train.log_every_steps says how often"
        return summary_line(self._last, self._objective)

    def warnings(self) -> list[str]:
        """Return what to do if most rows of a batch are no negatives, as last reported; once.

        Padding rows do not count: a short last batch of an epoch is no fault of the settings.
        """
        if self._is_warned or not self._last:
            return []
        shares = {name: self._last[f"pairs/{name}"] for name in PAIRED}
        weights = negatives.class_weights(self._objective)
        weighing = weighing_classes(self._objective)
        worth = sum(weights[PAIRED.index(name)] * shares[name] for name in weighing)
        if worth >= _LEAST_SHARE or not any(shares.values()):  # none at all: a row stands alone
            return []
        self._is_warned = True
        return [
            f"warning: a row has {self._last['effective_negatives']:.1f} effective negatives, "
            f"{worth:.0%} of the batch's other rows; raise "
            f"config.train.contrastive_batch={self._batch_rows}, lower "
            f"config.data.grouped_fraction, or see in {FILE} which classes of pairs weigh 0"
        ]

    def close(self) -> None:
        if self._rows is not None:
            self._rows.close()


def confused_pairs(report: MaskReport, split: ClipSplit) -> list[dict[str, Any]]:
    """Return the pairs by name, most confused first; none that is not finite or weighs nothing."""
    named = []
    for clip, text, kind, probability in zip(
        report.clips, report.texts, report.classes, report.probability, strict=True
    ):
        if text < 0 or not np.isfinite(probability):
            continue
        clip_ids = [split.table["clip_id"][int(record)].as_py() for record in (clip, text)]
        named.append(
            {
                "clip": clip_ids[0],
                "clip_text": split.texts[clip],
                "text": split.texts[text],
                "text_clip": clip_ids[1],
                "class": negatives.CLASSES[kind],
                "probability": float(probability),
            }
        )
    return named


def summary_line(scalars: dict[str, float], objective: ObjectiveConfig) -> str:
    """Return shares of pairs by weight, effective negatives, and the same recording's share.

    Args:
      scalars: of a `MaskReport`.
      objective: of the run.
    """
    shares: dict[str, float] = {}
    weights = dict(zip(negatives.CLASSES, negatives.class_weights(objective), strict=True))
    for name in sorted(PAIRED, key=weights.get):
        is_right = name == "same_text" and weights[name] > 0  # multi_positive
        what = "are right answers" if is_right else f"weigh {weights[name]:.3g}"
        shares[what] = shares.get(what, 0.0) + scalars[f"pairs/{name}"]
    told = ", ".join(f"{share:.1%} {what}" for what, share in shares.items())
    gradient = sum(scalars.get(f"gradient/{name}", 0.0) for name in _SAME_RECORDING)
    return (
        f"negatives: of the pairs {told}; {scalars['effective_negatives']:.1f} effective a row; "
        f"{gradient:.1%} of the gradient from pairs of one recording"
    )
