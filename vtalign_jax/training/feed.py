"""What is made ready while something else runs: a step's batch, and its program."""

import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from vtalign_jax.array_types import Batch


class Feed:
    """Iterator over (step, batch), the batch as `put` returned it.

    The loop calls `fetch` once a step, as soon as the step is under way:

        for step, batch in feed:
            state, metrics = train_step(state, batch)
            lost = feed.fetch(metrics)

    What the loop does before the next step (logging, evaluating) then overlaps with the transfer.
    """

    def __init__(self, batches: Iterator[tuple[int, Batch]], put: Callable[[Batch], Any]) -> None:
        """Wait for the first batch.

        Args:
          batches: of the loader.
          put: begins a batch's transfer to the devices, without waiting for its end.
        """
        self._batches, self._put = batches, put
        self._next = self._load()

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> tuple[int, Any]:
        if self._next is None:
            raise StopIteration
        current, self._next = self._next, None
        return current

    @property
    def first(self) -> Any:
        """The batch that comes next, already put."""
        return self._next[1]

    def fetch(self, running: Mapping[str, jax.Array]) -> float:
        """Wait for the next batch and begin its transfer.

        Args:
          running: results of the step that the devices compute.

        Returns:
          Seconds for which the devices stood still for the batch, at most; 0 while they compute.
        """
        began = time.perf_counter()
        self._next = self._load()
        waited = time.perf_counter() - began
        return waited if all(value.is_ready() for value in running.values()) else 0.0

    def _load(self) -> tuple[int, Any] | None:
        step, batch = next(self._batches, (None, None))
        return None if step is None else (step, self._put(batch))


@contextlib.contextmanager
def compiling(step: Callable, *arguments: Any) -> Iterator[None]:
    """Compile a jitted function for these arguments while the body runs.

    Its first call then neither traces nor compiles again.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        compiled = thread.submit(lambda: step.lower(*arguments).compile())
        yield
        compiled.result()
