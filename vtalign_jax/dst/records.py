"""Pairs and a frame source -> records, as the TFDS builder stores them."""

import dataclasses
import hashlib
import json
from typing import Any

import pyarrow as pa

from vtalign_jax.dst.faults import FrameError, FrameFault
from vtalign_jax.dst.finder import Source
from vtalign_jax.dst.frames import FrameSource, open_source
from vtalign_jax.dst.images import encode_jpeg
from vtalign_jax.dst.nodes import Skip
from vtalign_jax.dst.pairs import Pair
from vtalign_jax.dst.tree import SLACK_SECONDS

PAIRS_A_JOB = 64  # bounds the memory of a worker, however long the video

_FORMAT = 3  # to be raised whenever the same job gives other records

SCHEMA = pa.schema(  # of a record, its frames apart
    [
        *[(name, pa.string()) for name in ("clip_id", "text", "parent_text", "level", "node_id")],
        *[(name, pa.string()) for name in ("uid", "recording_id", "dataset", "text_key")],
        *[(name, pa.float64()) for name in ("window_start", "window_end")],
        *[(name, pa.float64()) for name in ("node_start", "node_end", "video_duration")],
        ("order", pa.int64()),
        ("frame_times", pa.list_(pa.float64())),
        ("ancestor_ids", pa.list_(pa.string())),
    ]
)


@dataclasses.dataclass(frozen=True)
class Job:
    """Some pairs of one video, neighbours in time: the unit of work of a worker process.

    Attributes:
      pairs: by time, at most `PAIRS_A_JOB`.
      source: where the frames lie.
      image_size: pixels, the edge of the stored square.
    """

    pairs: tuple[Pair, ...]
    source: Source
    image_size: int

    def key(self) -> str:
        """Return 32 hex digits over all that decides the records: not where files lie, but what."""
        source = dataclasses.asdict(self.source)
        source |= {"path": "", "video_path": bool(self.source.video_path)}
        pairs = [[v for name, v in vars(p).items() if name != "where"] for p in self.pairs]
        content = json.dumps([_FORMAT, self.image_size, source, pairs], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


@dataclasses.dataclass(frozen=True)
class Rendered:
    """What became of a job: records as the TFDS builder takes them, and the pairs left out."""

    records: list[dict[str, Any]]
    skips: list[Skip]


def make_jobs(pairs: list[Pair], source: Source, image_size: int) -> list[Job]:
    """Cut the pairs of one video (by time) into jobs."""
    pieces = [pairs[n : n + PAIRS_A_JOB] for n in range(0, len(pairs), PAIRS_A_JOB)]
    return [Job(tuple(piece), source, image_size) for piece in pieces]


def render(job: Job) -> Rendered:
    """Read the frames of a job in one forward pass and return its records.

    Frames outside the video are dropped and the rest keep their own times; a pair without any
    frame, or with a damaged one, is left out with a reason.
    """
    try:
        source = open_source(job.source)
    except FrameError as error:
        skips = [_skip(pair, error.reason, error.detail) for pair in job.pairs]
        return Rendered([], skips)
    try:
        duration = source.duration
        jpegs = _read_jpegs(source, job)
    finally:
        source.close()
    rendered = Rendered([], [])
    for pair in job.pairs:
        found = [(time, jpegs[time]) for time in pair.times if time in jpegs]
        fault = next((image for _, image in found if isinstance(image, FrameFault)), None)
        if fault:
            rendered.skips.append(_skip(pair, fault.reason, fault.detail))
        elif not found or pair.node_start > duration + SLACK_SECONDS:
            detail = f"{pair.node_start:.2f} to {pair.node_end:.2f} s of {duration:.2f} s"
            rendered.skips.append(_skip(pair, "span outside the video", detail))
        else:
            rendered.records.append(_record(pair, found, duration))
    return rendered


def _skip(pair: Pair, reason: str, detail: str) -> Skip:
    return Skip(pair.uid, pair.node_id, reason, detail, where=pair.where)


def _read_jpegs(source: FrameSource, job: Job) -> dict[float, bytes | FrameFault]:
    """Return the encoded picture of each wanted time; equal pictures are encoded once."""
    times = {time for pair in job.pairs for time in pair.times}
    jpegs: dict[float, bytes | FrameFault] = {}
    last, encoded = None, None
    for time, picture in source.frames_at(sorted(times)):
        if isinstance(picture, FrameFault):
            jpegs[time] = picture
            continue
        if picture is not last:
            last, encoded = picture, _encode(picture, time, job)
        jpegs[time] = encoded
    return jpegs


def _encode(picture: Any, time: float, job: Job) -> bytes | FrameFault:
    try:
        return encode_jpeg(picture, job.image_size, job.source.fit, job.source.rotate)
    except ValueError as error:
        return FrameFault("damaged picture", f"{job.source.name} at {time:.2f} s: {error}")


def _record(pair: Pair, found: list[tuple[float, bytes]], duration: float) -> dict[str, Any]:
    fields = {field.name: getattr(pair, field.name) for field in dataclasses.fields(pair)}
    del fields["times"], fields["where"]
    fields["ancestor_ids"] = list(pair.ancestor_ids)
    return fields | {
        "frames": [image for _, image in found],
        "frame_times": [time for time, _ in found],
        "video_duration": duration,
    }
