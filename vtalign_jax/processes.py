"""Work spread over processes of this machine."""

import collections
import concurrent.futures.process
import contextlib
import itertools
import math
import multiprocessing
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from vtalign_jax.errors import UserError

_ITEMS_IN_FLIGHT = 3 * (os.cpu_count() or 1)  # slow items must not let the others wait

_Item, _Result = TypeVar("_Item"), TypeVar("_Result")


def end_with_parent() -> None:
    """Make this process end when the one that started it does, however that ends.

    Pools stop their workers when the parent exits in order; killed, it would leave them behind.
    """

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def host_gib() -> float:
    """Return the memory that this process and those it started hold, in GiB.

    Resident pages; what two of them share counts twice. NaN where the system has no /proc.
    """
    started = [process.pid for process in multiprocessing.active_children()]
    statements = [pathlib.Path(f"/proc/{pid}/statm") for pid in [os.getpid(), *started]]
    pages = 0
    for statement in statements:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a child that has ended
            pages += int(statement.read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30 if pages else math.nan


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


def map_in_order(
    work: Callable[[_Item], _Result],
    items: Iterable[_Item],
    pool: concurrent.futures.Executor | None,
) -> Iterator[_Result]:
    """Yield the result of `work` for each item, in order; a bounded number is under way.

    Raises:
      UserError: the operating system ended a worker, most likely for want of memory.
    """
    if pool is None:
        yield from map(work, items)
        return
    waiting = iter(items)
    queue = collections.deque(
        pool.submit(work, item) for item in itertools.islice(waiting, _ITEMS_IN_FLIGHT)
    )
    try:
        while queue:
            yield queue.popleft().result()
            queue.extend(pool.submit(work, item) for item in itertools.islice(waiting, 1))
    except concurrent.futures.process.BrokenProcessPool:
        raise UserError(
            "a worker process was ended from outside, most likely for want of memory; run the same "
            "command again, with fewer --workers where it has that flag"
        ) from None
