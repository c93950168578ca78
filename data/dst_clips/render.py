"""Jobs -> rendered files, by a pool of processes on this machine."""

import collections
import concurrent.futures
import contextlib
import functools
import itertools
import multiprocessing
import os
from collections.abc import Iterator

from vtalign_jax.dst.nodes import Skip
from vtalign_jax.dst.records import Job
from vtalign_jax.dst.rendered import render_into
from vtalign_jax.errors import UserError
from vtalign_jax.processes import end_with_parent

_JOBS_IN_FLIGHT = 3 * (os.cpu_count() or 1)  # slow jobs must not let the others wait


@contextlib.contextmanager
def make_pool(workers: int) -> Iterator[concurrent.futures.Executor | None]:
    """Give a process pool, or None for one worker, whose work is done in this process."""
    if workers <= 1:
        yield None
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),  # fork and threads do not mix
        initializer=end_with_parent,
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def render_all(
    jobs: list[Job], folder: str, pool: concurrent.futures.Executor | None
) -> Iterator[tuple[int, list[Skip]]]:
    """Yield the result of `render_into` for each job, in order.

    Raises:
      UserError: the operating system ended a worker, most likely for want of memory.
    """
    work = functools.partial(render_into, folder)
    if pool is None:
        yield from map(work, jobs)
        return
    waiting = iter(jobs)
    queue = collections.deque(
        pool.submit(work, job) for job in itertools.islice(waiting, _JOBS_IN_FLIGHT)
    )
    try:
        while queue:
            yield queue.popleft().result()
            queue.extend(pool.submit(work, job) for job in itertools.islice(waiting, 1))
    except concurrent.futures.process.BrokenProcessPool:
        raise UserError(
            "a decoding process was ended from outside, most likely for want of memory; run the "
            "same command again with fewer --workers: what is rendered is kept"
        ) from None
