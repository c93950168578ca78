"""What a run draws while it trains: its report, and the picture and the row of TensorBoard.

A picture is no reason to lose a run: what cannot be drawn is said in one line, no more. Nor is it
one to wait: a thread of process 0 draws while the next steps run, so that the other processes are
not kept in their collectives, however slow the dataset's or the workdir's disk is.
"""

import concurrent.futures
from collections.abc import Callable

from vtalign_jax.config import Config, to_dict
from vtalign_jax.evaluation.report import page, pictures
from vtalign_jax.evaluation.report import sample as samples
from vtalign_jax.training.board import Board
from vtalign_jax.training.manifest import flat
from vtalign_jax.wording import typed_command

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
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "report")
        self._drawings: list[concurrent.futures.Future[list[str]]] = []

    def evaluated(
        self, step: int, make_sample: Callable[[int], samples.Sample] | None
    ) -> list[str]:
        """Begin to keep the evaluation's sample and to draw the report, and wait for neither.

        Args:
          step: steps done.
          make_sample: returns the sample of a step; None if nothing was embedded.

        Returns:
          Warnings of what was drawn before.
        """
        if self._board is None:
            return []
        for earlier in self._drawings:
            earlier.cancel()  # if it has not begun: this one shows more
        self._drawings.append(self._pool.submit(self._drawn, step, make_sample))
        return self._told()

    def close(self, step: int | None, best: float | None) -> list[str]:
        """Finish drawing and write the run's row of hyper-parameters; return warnings.

        Args:
          step: of the newest checkpoint, None if there is none.
          best: recall so far, None before the first evaluation; then there is no row.
        """
        self._pool.shutdown()
        told = self._told()
        if self._board is None or step is None or best is None:
            return told
        try:
            fields = flat(to_dict(self._config))
            self._board.hyper_parameters(step, fields, {_RESULT: best})
        except Exception as error:  # what was trained is saved already
            told.append(f"warning: TensorBoard has no row of this run ({_reason(error)})")
        return told

    def _drawn(self, step: int, make_sample: Callable[[int], samples.Sample] | None) -> list[str]:
        """Draw; return warnings."""
        try:
            if make_sample is not None:
                sample = make_sample(step)
                samples.write(self._workdir, sample)
                self._board.image(_IMAGE, step, pictures.similarity_image(sample))
            page.write_report(self._workdir)
        except Exception as error:  # whatever it is, it must not end the training
            return [
                f"warning: {page.FILE} could not be drawn ({_reason(error)}); training goes on, "
                f"and {typed_command('report', f'--workdir={self._workdir}')} tries again"
            ]
        return []

    def _told(self) -> list[str]:
        """Return the warnings of the drawings that have ended, once."""
        ended = [drawing for drawing in self._drawings if drawing.done()]
        self._drawings = [drawing for drawing in self._drawings if drawing not in ended]
        return [line for each in ended if not each.cancelled() for line in each.result()]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
