"""TFDS builder of clip-text pairs: ArrayRecord written and read without TensorFlow.

The same builder runs in one process, over jobs that a pool has rendered, and as an Apache Beam
pipeline whose workers render them. Both give the same records in the same order.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vtalign_jax.dst.plan import Plan
from vtalign_jax.dst.records import Job
from vtalign_jax.dst.rendered import read_records, render_into


class Builder(tfds.core.GeneratorBasedBuilder):
    """Stores the records of a plan.

    A record's frames are the valid ones only, in time order, as JPEG bytes of the plan's size.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        plan: Plan | None = None,
        folder: str = "",
        is_on_beam: bool = False,
        **kwargs: Any,
    ) -> None:
        """Make the builder.

        Args:
          plan: what to write; None if the dataset exists already.
          folder: where the rendered jobs are, or with Beam will be; see `dst.rendered`.
          is_on_beam: render in a Beam pipeline; TFDS runs it on `DownloadConfig.beam_runner`.
          **kwargs: `data_dir` and whatever else TFDS takes.
        """
        self._plan, self._folder, self._is_on_beam = plan, folder, is_on_beam
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

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        generate = self._pipeline if self._is_on_beam else self._generate_examples
        return {split: generate(jobs) for split, jobs in self._plan.jobs.items()}

    def _generate_examples(self, jobs: Iterable[Job]) -> Iterator[tuple[str, dict[str, Any]]]:
        for job in jobs:
            yield from _examples(job, self._folder)

    def _pipeline(self, jobs: list[Job]) -> Any:
        """Return a PTransform; neither the builder nor the plan travels with it."""
        beam = tfds.core.lazy_imports.apache_beam
        spread = beam.Create(jobs, reshuffle=False) | beam.Reshuffle()
        return spread | beam.FlatMap(_rendered_examples, folder=self._folder)


def _rendered_examples(job: Job, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    render_into(folder, job)
    yield from _examples(job, folder)


def _examples(job: Job, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for record in read_records(folder, job):
        yield record["clip_id"], record
