"""Rendered jobs as files, from which a killed `prepare` goes on, on one machine or on a cluster.

A job's file is an Arrow IPC file named after `Job.key`: a record batch a record, and the pairs left
out in the schema's metadata. It appears under its name when it is complete.
"""

import dataclasses
import json
import os
import socket
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
from etils import epath

from vtalign_jax.dst.mapped import open_mapped
from vtalign_jax.dst.nodes import Skip
from vtalign_jax.dst.records import SCHEMA, Job, Rendered, render

_FILE_SCHEMA = SCHEMA.append(pa.field("frames", pa.list_(pa.binary())))
_SUFFIX = ".arrow"
_SKIPS = b"skips"  # in the metadata


def render_into(folder: str, job: Job) -> tuple[int, list[Skip]]:
    """Render a job into its file, unless the file is there.

    Args:
      folder: exists; every worker reaches it.
      job: what to render.

    Returns:
      How many records the file holds, and the pairs left out.
    """
    path = _path(folder, job)
    if not path.exists():
        _write(render(job), path)
    return read_result(folder, job)


def read_result(folder: str, job: Job) -> tuple[int, list[Skip]]:
    """Return what `render_into` returned for a job.

    Raises:
      OSError: it is not rendered.
    """
    with _open(_path(folder, job)) as reader:
        return reader.num_record_batches, _skips(reader)


def read_records(folder: str, job: Job) -> Iterator[dict[str, Any]]:
    """Yield the records of a rendered job, one in memory at a time."""
    with _open(_path(folder, job)) as reader:
        for number in range(reader.num_record_batches):
            yield from reader.get_batch(number).to_pylist()


def keep_reusable(folder: str, jobs: Iterable[Job]) -> int:
    """Remove from a folder what does not serve the jobs, and return how many are done.

    A job that left pairs out is done again: whatever was wrong may have been mended.
    """
    wanted = {f"{job.key()}{_SUFFIX}" for job in jobs}
    reused = 0
    for path in epath.Path(folder).iterdir():
        if path.name in wanted and _is_whole(path):
            reused += 1
        else:
            path.unlink()
    return reused


def _is_whole(path: epath.Path) -> bool:
    try:
        with _open(path) as reader:
            return not _skips(reader)
    except (pa.ArrowException, OSError):
        return False


def _path(folder: str, job: Job) -> epath.Path:
    return epath.Path(folder) / f"{job.key()}{_SUFFIX}"


def _write(rendered: Rendered, path: epath.Path) -> None:
    skips = json.dumps([dataclasses.asdict(skip) for skip in rendered.skips])
    schema = _FILE_SCHEMA.with_metadata({_SKIPS: skips.encode()})
    partial = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    with partial.open("wb") as file, pa.ipc.new_file(file, schema) as writer:
        for record in rendered.records:
            writer.write_batch(pa.RecordBatch.from_pylist([record], schema))
    partial.replace(path)


def _open(path: epath.Path) -> pa.ipc.RecordBatchFileReader:
    return pa.ipc.open_file(open_mapped(path))


def _skips(reader: pa.ipc.RecordBatchFileReader) -> list[Skip]:
    return [Skip(**fields) for fields in json.loads(reader.schema.metadata[_SKIPS])]
