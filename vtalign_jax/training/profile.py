"""A profile of some training steps, for TensorBoard and xprof."""

import re
from collections.abc import Callable, Mapping

import jax

from vtalign_jax.errors import UserError


class Profile:
    """Traces the steps `first` to `last`, counted from 1 as in `metrics.jsonl`."""

    def __init__(self, steps: str, say: Callable[[str], None] = print) -> None:
        """Read what is to be traced; nothing is traced yet.

        Args:
          steps: "first:last", or "" for none.
          say: prints where the trace is.

        Raises:
          UserError: not two numbers in order.
        """
        self._folder, self._say = "", say
        self._first = self._last = 0
        self._is_running = self._is_done = False
        if not steps:
            return
        numbers = re.fullmatch(r"(\d+):(\d+)", steps)
        if numbers:
            self._first, self._last = map(int, numbers.groups())
        if not 1 <= self._first <= self._last:
            raise UserError(
                f"--profile_steps={steps} is no span of steps; first:last such as 10:15 is, "
                "counted from 1"
            )

    def before(self, step: int, folder: str) -> None:
        """Begin the trace if it begins with this step; a run resumed inside begins there.

        Args:
          step: about to be made.
          folder: where TensorBoard looks; the trace goes to plugins/profile below it.
        """
        if self._first <= step <= self._last and not self._is_running:
            self._folder = folder
            jax.profiler.start_trace(folder)
            self._is_running = True

    def after(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """End the trace if it ends with this step, whose results are waited for."""
        if self._is_running and step >= self._last:
            jax.block_until_ready(metrics)
            self._stop()

    def close(self) -> None:
        """End a trace whose last step never came, and say so if no step of it did."""
        if self._is_running:
            self._stop()
        elif self._first and not self._is_done:
            self._say(
                f"warning: --profile_steps={self._first}:{self._last} are none of the steps made"
            )

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._is_running, self._is_done = False, True
        self._say(
            f"profile of the steps up to {self._last} in {self._folder}/plugins/profile: "
            f"tensorboard --logdir={self._folder}"
        )
