"""TFDS builder of clip-text pairs: ArrayRecord written and read without TensorFlow."""

import collections
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vtalign_jax.dst.nodes import Skip
from vtalign_jax.dst.plan import Plan
from vtalign_jax.dst.records import Job, Rendered, render
from vtalign_jax.errors import UserError

Progress = Callable[[Job, Rendered], None]
Say = Callable[[str], None]

_JOBS_IN_FLIGHT = 3 * (os.cpu_count() or 1)  # slow jobs must not let the others wait


class Builder(tfds.core.GeneratorBasedBuilder):
    """Renders the jobs of a plan and stores their records.

    A record's frames are the valid ones only, in time order, as JPEG bytes of the plan's size.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        plan: Plan | None = None,
        pool: concurrent.futures.Executor | None = None,
        progress: Progress = lambda job, rendered: None,
        say: Say = lambda line: None,
        **kwargs: Any,
    ) -> None:
        """Make the builder.

        Args:
          plan: what to write; None if the dataset exists already.
          pool: where the jobs are rendered; None renders them in this process.
          progress: called after each job.
          say: called with what begins now.
          **kwargs: `data_dir` and whatever else TFDS takes.
        """
        self._plan, self._pool, self._progress, self._say = plan, pool, progress, say
        self.skips: list[Skip] = []
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        size = self._plan.settings.image_size if self._plan else None
        image = tfds.features.Image(shape=(size, size, 3), encoding_format="jpeg")
        text = tfds.features.Text
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "clip_id": text(),  # "<uid>/<node_id>"
                    "frames": tfds.features.Sequence(image),
                    "frame_times": tfds.features.Sequence(np.float64),  # seconds in the video
                    "window_start": np.float64,  # seconds, not clipped to the video
                    "window_end": np.float64,
                    "text": text(),
                    "parent_text": text(),  # "" if there is none
                    "level": text(),
                    "node_id": text(),
                    "uid": text(),
                    "recording_id": text(),
                    "dataset": text(),
                    "text_key": text(),
                    "order": np.int64,
                    "node_start": np.float64,  # seconds
                    "node_end": np.float64,
                    "ancestor_ids": tfds.features.Sequence(text()),  # root first
                    "video_duration": np.float64,  # seconds
                }
            )
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterable[tuple[str, dict]]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in self._plan.jobs}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        jobs = self._plan.jobs[split]
        written = 0
        for job, rendered in zip(jobs, render_all(jobs, self._pool), strict=True):
            self.skips += rendered.skips
            self._progress(job, rendered)
            for record in rendered.records:
                written += 1
                yield record["clip_id"], record
        if not written:
            why = collections.Counter(skip.reason for skip in self.skips).most_common(1)
            raise UserError(f"no clip of split {split} has frames ({why[0][0]}); see skipped.jsonl")
        self._say(f"writing the {written} records of {split}")


@contextlib.contextmanager
def make_pool(workers: int) -> Iterator[concurrent.futures.Executor | None]:
    """Give a process pool, or None for one worker, whose work is done in this process."""
    if workers <= 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")  # fork and threads do not mix
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def render_all(jobs: list[Job], pool: concurrent.futures.Executor | None) -> Iterator[Rendered]:
    """Yield the rendered jobs in order; a bounded number of them is held at any moment."""
    if pool is None:
        yield from map(render, jobs)
        return
    waiting = iter(jobs)
    first = itertools.islice(waiting, _JOBS_IN_FLIGHT)
    queue = collections.deque(pool.submit(render, job) for job in first)
    while queue:
        yield queue.popleft().result()
        queue.extend(pool.submit(render, job) for job in itertools.islice(waiting, 1))
