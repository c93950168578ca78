"""How fast `prepare` renders, beside a loop that opens, seeks and decodes for each clip."""

import dataclasses
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import av
from PIL import Image

from benchmarks.memory import status_kib
from benchmarks.recording import write_recording
from data.dst_clips.render import render_all
from vtalign_jax.dst.images import encode_jpeg
from vtalign_jax.dst.plan import Plan, Settings, make_plan
from vtalign_jax.dst.records import Job, render
from vtalign_jax.processes import make_pool


def measure(annotations: str, videos: str, workers: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield rows: rendering against the loop, then the memory of a worker.

    Args:
      annotations: of the recordings; "" for a synthetic video of 10 minutes with 200 nodes.
      videos: their folder.
      workers: processes of `prepare`; 0 for one a core.
      repeats: counted runs of each, taking turns.
    """
    with tempfile.TemporaryDirectory() as folder:
        lengths = {"": (1, 10)}.get(annotations, ())
        settings = [write_recording(pathlib.Path(folder), minutes) for minutes in lengths]
        for counted in settings[1:] or [Settings(annotations, videos)]:
            yield _against_loop(make_plan(counted), workers or os.cpu_count() or 1, repeats)
        for minutes, counted in zip(lengths, settings, strict=True):
            yield {
                "part": "prepare",
                "minutes_of_video": minutes,
                "worker_peak_mib": _peak_mib(counted),
            }


def _against_loop(plan: Plan, workers: int, repeats: int) -> dict[str, Any]:
    jobs = list(itertools.chain.from_iterable(plan.jobs.values()))
    _check_same_frames(jobs)
    ways: dict[str, Callable[[], None]] = {
        "loop": lambda: _drain(map(render_clip_by_clip, jobs)),
        "one_process": lambda: _render(jobs, 1),
        "prepare": lambda: _render(jobs, workers),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "part": "prepare",
        "clips": plan.num_clips,
        "videos": len({job.source.path for job in jobs}),
        "workers": workers,
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "ratio_to_loop": round(medians["loop"] / medians["prepare"], 2),
        "ratio_to_loop_one_process": round(medians["loop"] / medians["one_process"], 2),
    }


def _render(jobs: list[Job], workers: int) -> None:
    with tempfile.TemporaryDirectory() as folder, make_pool(workers) as pool:
        _drain(render_all(jobs, folder, pool))


def _drain(results: Iterator[Any]) -> None:
    for _ in results:
        pass


def render_clip_by_clip(job: Job) -> list[list[bytes]]:
    """Return the JPEG frames of each pair, opening and seeking anew for each, as most loaders do.

    The frame of a time is the one shown then, so that the pictures equal those of `render`.
    """
    return [_frames_of_clip(job, pair.times) for pair in job.pairs]


def _frames_of_clip(job: Job, times: tuple[float, ...]) -> list[bytes]:
    with av.open(job.source.path) as container:
        stream = container.streams.video[0]
        first = stream.start_time or 0
        wanted = [first + (time + 1e-6) / stream.time_base for time in times if time >= 0]
        container.seek(int(wanted[0]), stream=stream)
        found: list[Image.Image] = []
        shown = None
        for frame in container.decode(stream):
            while shown is not None and wanted and wanted[0] < frame.pts:
                found.append(shown.to_image())
                wanted.pop(0)
            shown = frame
            if not wanted:
                break
        end = shown.pts + shown.duration
        found += [shown.to_image() for time in wanted if time < end]
    source = job.source
    return [encode_jpeg(picture, job.image_size, source.fit, source.rotate) for picture in found]


def _check_same_frames(jobs: list[Job]) -> None:
    """Fail unless both ways give the same bytes: otherwise nothing is compared."""
    for job in jobs:
        rendered = [record["frames"] for record in render(job).records]
        if rendered != [frames for frames in render_clip_by_clip(job) if frames]:
            raise AssertionError(f"the loop and prepare give other frames of {job.source.path}")


def _peak_mib(settings: Settings) -> int:
    """Return the largest resident set of a process that renders these videos alone."""
    code = (
        "import json, sys; from benchmarks import prepare; "
        "prepare.render_alone(json.loads(sys.argv[1]))"
    )
    given = json.dumps(dataclasses.asdict(settings))
    done = subprocess.run(
        [sys.executable, "-c", code, given], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def render_alone(settings: dict[str, Any]) -> None:
    """Render a plan job by job as a worker does, and print the peak memory of it in MiB."""
    for job in itertools.chain.from_iterable(make_plan(Settings(**settings)).jobs.values()):
        render(job)
    print(status_kib("VmHWM") // 1024)
