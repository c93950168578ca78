"""What a run draws while it trains: its report, and the picture and the row of TensorBoard.

A picture is no reason to lose a run: what cannot be drawn is said in one line, no more.
"""

from collections.abc import Callable

from vtalign_jax.config import Config, to_dict
from vtalign_jax.evaluation.report import page, pictures
from vtalign_jax.evaluation.report import sample as samples
from vtalign_jax.training.board import Board
from vtalign_jax.training.manifest import flat

_IMAGE, _RESULT = "val/similarity", "best/recall@5"


class RunReport:
    """Draws what there is to see; process 0 has a board, the others draw nothing."""

    def __init__(self, workdir: str, board: Board | None, config: Config):
        """Draw nothing yet.

        Args:
          workdir: of the run; its files are up to date whenever something is drawn.
          board: TensorBoard's files, None in the processes that do not write.
          config: of the run.
        """
        self._workdir, self._board, self._config = workdir, board, config

    def evaluated(
        self, step: int, make_sample: Callable[[int], samples.Sample] | None
    ) -> list[str]:
        """Keep the evaluation's sample and draw the report; return warnings.

        Args:
          step: steps done.
          make_sample: returns the sample of a step; None if nothing was embedded.
        """
        if self._board is None:
            return []
        try:
            if make_sample is not None:
                sample = make_sample(step)
                samples.write(self._workdir, sample)
                self._board.image(_IMAGE, step, pictures.similarity_image(sample))
            page.write_report(self._workdir)
        except Exception as error:  # whatever it is, it must not end the training
            told = " ".join(str(error).split()) or type(error).__name__
            return [
                f"warning: {page.FILE} could not be drawn ({told}); training goes on, and "
                f"python launch/report.py --workdir={self._workdir} tries again"
            ]
        return []

    def close(self, step: int | None, best: float | None) -> None:
        """Write the run's row of hyper-parameters with the best recall so far, if there is one."""
        if self._board is not None and step is not None and best is not None:
            fields = flat(to_dict(self._config))
            self._board.hyper_parameters(step, fields, {_RESULT: best})
