"""What the frames of a video are like: how long, at which rate, and which clips they cannot give.

Only the start of a file is decoded, and the clips that seem to lie outside of it.
"""

import dataclasses
from collections.abc import Iterator

from vtalign_jax.dst.faults import EPSILON, FrameError
from vtalign_jax.dst.finder import Source
from vtalign_jax.dst.findings import Finding
from vtalign_jax.dst.frames import open_source
from vtalign_jax.dst.nodes import Skip, Video
from vtalign_jax.dst.pairs import Pair
from vtalign_jax.dst.records import Job, render
from vtalign_jax.dst.tree import SLACK_SECONDS
from vtalign_jax.dst.video import VideoFile, frame_rate

END_SLACK_SECONDS = 0.5  # annotators round up; half a second is one frame of 2 a second
MAX_DRIFT_SECONDS = 0.5  # between two frame rates, at the end of the annotation
ROWS_SLACK_SECONDS = 1.0  # two rows of Arrow frames


@dataclasses.dataclass(frozen=True)
class Probe:
    """What a file says about itself.

    Attributes:
      duration: seconds, None if the file is unreadable.
      fps: frame rate of the video file, the one beside Arrow frames included; 0.0 without one.
      video_duration: Arrow frames only: seconds of the video beside them, 0.0 without one.
      skips: clips that `prepare` would leave out, as far as this can tell without decoding all.
    """

    duration: float | None
    fps: float = 0.0
    video_duration: float = 0.0
    skips: tuple[Skip, ...] = ()


def probe(jobs: list[Job]) -> Probe:
    """Return what the frames are like that all these jobs share."""
    source = jobs[0].source
    try:
        frames = open_source(source)
        try:
            duration = frames.duration
            is_cut = isinstance(frames, VideoFile) and frames.lacks_its_end()
        finally:
            frames.close()
    except FrameError:
        return Probe(None, skips=tuple(skip for job in jobs for skip in decode(job)))
    skips: list[Skip] = []
    for job in jobs:
        doubtful = [p for p in job.pairs if is_cut or _seems_outside(p, duration, source.kind)]
        if doubtful:
            skips += decode(dataclasses.replace(job, pairs=tuple(doubtful)))
    return Probe(duration, *_video_beside(source), tuple(skips))


def decode(job: Job) -> list[Skip]:
    """Return the clips of a job that `prepare` would leave out."""
    return render(job).skips


def check_frames(video: Video, source: Source, found: Probe) -> Iterator[Finding]:
    """Yield what looks wrong between a video's annotation and its frames."""
    if found.duration is None:
        return
    yield from _past_the_end(video, source, found)
    end = max(node.end for node in video.nodes)
    if video.source_fps and found.fps:
        drift = end * abs(1 - video.source_fps / found.fps)
        if drift > MAX_DRIFT_SECONDS:
            detail = (
                f"annotated {video.source_fps:g}, {source.video_path or source.path} has "
                f"{found.fps:g} frames a second: {drift:.1f} s apart at {end:.1f} s"
            )
            yield Finding("warning", "frame rate drift", video.uid, "", detail)
    apart = abs(found.duration - found.video_duration)
    if found.video_duration and apart > ROWS_SLACK_SECONDS:
        detail = (
            f"rows of {source.path} last {found.duration:.1f} s at {found.fps:g} frames a second, "
            f"{source.video_path} {found.video_duration:.1f} s"
        )
        yield Finding("warning", "Arrow rows unlike the video", video.uid, "", detail)


def _past_the_end(video: Video, source: Source, found: Probe) -> Iterator[Finding]:
    """Yield the nodes past the end; not those whose children are, nor what is left out anyway."""
    rate = f", of {found.fps or source.source_fps:g} frames a second"
    rate = "" if source.kind == "video" else rate
    explained = {skip.node_id for skip in found.skips}
    for node in sorted(video.nodes, key=lambda node: -len(node.ancestor_ids)):
        is_past = (
            node.end > found.duration + END_SLACK_SECONDS
            or node.start > found.duration + SLACK_SECONDS
        )
        if not is_past:
            continue
        if node.node_id not in explained:
            times = f"{node.start:.2f} to {node.end:.2f} s of {found.duration:.2f} s"
            detail = f"{times} ({source.name}{rate})"
            check = "annotation past the end of the video"
            yield Finding("warning", check, video.uid, node.node_id, detail, node.where)
        explained.update(node.ancestor_ids)


def _video_beside(source: Source) -> tuple[float, float]:
    """Return frame rate of the video file, and for Arrow frames its seconds; 0.0 without one."""
    path = source.path if source.kind == "video" else source.video_path
    if not path:
        return 0.0, 0.0
    try:
        fps = frame_rate(path)
        if source.kind == "video":
            return fps, 0.0
        video = VideoFile(path)
    except FrameError:  # prepare can do without
        return 0.0, 0.0
    try:
        return fps, video.duration
    finally:
        video.close()


def _seems_outside(pair: Pair, duration: float, kind: str) -> bool:
    """Return whether a pair may lack frames: decoding it decides.

    A window that the end of a video cuts is normal. Where frames are stored one by one it costs
    little to look, and rows that a damaged file lost show that way.
    """
    inside = [0 <= time < duration - EPSILON for time in pair.times]
    outside = not any(inside) if kind == "video" else not all(inside)
    return outside or pair.node_start > duration + SLACK_SECONDS
