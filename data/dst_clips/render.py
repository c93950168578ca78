"""Jobs -> rendered files, by a pool of processes on this machine."""

import concurrent.futures
import functools
from collections.abc import Iterator

from vtalign_jax.dst.nodes import Skip
from vtalign_jax.dst.records import Job
from vtalign_jax.dst.rendered import render_into
from vtalign_jax.processes import map_in_order


def render_all(
    jobs: list[Job], folder: str, pool: concurrent.futures.Executor | None
) -> Iterator[tuple[int, list[Skip]]]:
    """Yield the result of `render_into` for each job, in order; see `map_in_order`."""
    return map_in_order(functools.partial(render_into, folder), jobs, pool)
