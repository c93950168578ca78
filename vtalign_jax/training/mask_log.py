"""What the weights did, for people: scalars, the names of the most confused pairs, one line."""

from typing import Any

import numpy as np
from etils import epath

from vtalign_jax.config import ObjectiveConfig
from vtalign_jax.objectives import negatives
from vtalign_jax.objectives.mask_report import PAIRED, MaskReport
from vtalign_jax.pipeline.dataset import ClipSplit
from vtalign_jax.training.metrics import StepRows

FILE = "confused.jsonl"  # inside a workdir
_LEAST_SHARE = 0.5  # of a batch's other rows that are to count as negatives
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
        objective: ObjectiveConfig,
        split: ClipSplit,
        *,
        is_primary: bool = True,
    ):
        """Open the file.

        Args:
          workdir: made if absent.
          restored_step: step of the checkpoint the run goes on from; None starts the file anew.
          objective: of the run.
          split: whose records the batches hold.
          is_primary: whether this process writes.

        Raises:
          UserError: the file holds a line that is not a JSON object with a step.
        """
        self._objective, self._split, self._last = objective, split, None
        self._rows: StepRows | None = None
        if is_primary:
            workdir = epath.Path(workdir)
            workdir.mkdir(parents=True, exist_ok=True)
            self._rows = StepRows(workdir / FILE, restored_step)

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

    def warning(self, rows: int) -> str:
        """Return what to do if most rows of a batch are no negatives, as last reported; or "".

        Args:
          rows: of a global batch.
        """
        effective = self._last["effective_negatives"] if self._last else float(rows)
        if effective >= _LEAST_SHARE * (rows - 1):
            return ""
        return (
            f"warning: a row has {effective:.1f} effective negatives among {rows - 1} others; "
            "raise config.train.contrastive_batch, lower config.data.grouped_fraction, or see in "
            f"{FILE} which classes of pairs weigh 0"
        )

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
