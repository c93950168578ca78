"""A plan -> the finished dataset under its final name, or nothing under it."""

import contextlib
import dataclasses
import io
import itertools
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import tensorflow_datasets as tfds
from etils import epath

from data.dst_clips.dst_clips_dataset_builder import Builder
from data.dst_clips.render import render_all
from vtalign_jax import json_files, locks, remote
from vtalign_jax.dst.nodes import Skip
from vtalign_jax.dst.plan import Plan
from vtalign_jax.dst.records import SCHEMA, Job
from vtalign_jax.dst.rendered import keep_reusable, read_result
from vtalign_jax.errors import UserError
from vtalign_jax.processes import make_pool

NAME, VERSION = "dst_clips", "1.0.0"

_ROWS_A_BATCH = 1024
Result = tuple[int, list[Skip]]  # of a job: records written, pairs left out
_SCHEMA = SCHEMA.append(pa.field("num_frames", pa.int64()))


@dataclasses.dataclass(frozen=True)
class Machines:
    """Where the jobs are rendered.

    Attributes:
      workers: decoding processes on this machine; 1 for none but this.
      beam_runner: name of an Apache Beam runner that renders and writes instead, or "".
      beam_options: the pipeline's options, `name=value` each.
    """

    workers: int = 1
    beam_runner: str = ""
    beam_options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Listeners:
    """Whom `write_dataset` tells what.

    Attributes:
      progress: gets the records written and the pairs left out by each job.
      say: gets a line on what begins now.
      check_skips: gets all skips and the number of clips written; raises to refuse.
    """

    progress: Callable[[int, int], None] = lambda taken, skipped: None
    say: Callable[[str], None] = lambda line: None
    check_skips: Callable[[list[Skip], int], None] = lambda skips, taken: None


@dataclasses.dataclass(frozen=True)
class Written:
    """What `write_dataset` made.

    Attributes:
      path: the dataset's directory.
      tables: by split, the identity table of its records.
      skips: what was left out, the plan's own skips included.
      num_bytes: size of the records, by split.
    """

    path: epath.Path
    tables: dict[str, pa.Table]
    skips: list[Skip]
    num_bytes: dict[str, int]


def dataset_path(out: str) -> epath.Path:
    """Return the directory of the dataset below `--out`."""
    return epath.Path(out) / NAME / VERSION


def existing_fingerprint(out: str) -> str | None:
    """Return the fingerprint of the dataset below `--out`: "" if unknown, None without dataset."""
    path = dataset_path(out)
    if not path.exists() or (path / remote.UPLOADING).exists():
        return None
    try:
        found = json_files.read_object(path / "prepare.json", "replace it").get("fingerprint")
    except (OSError, UserError):
        return ""
    return found if isinstance(found, str) else ""


def write_dataset(plan: Plan, out: str, machines: Machines, listeners: Listeners) -> Written:
    """Render the plan and write the dataset; it gets its final name as the very last thing.

    What is rendered stays below `out` until then, so that the same call goes on from there.

    Args:
      plan: what to write.
      out: a TFDS data directory.
      machines: where to render.
      listeners: whom to tell.

    Raises:
      UserError: a split without clips, Beam is wanted and absent, another process writes there, or
        what `check_skips` raises.
    """
    with locks.hold(out, "--out"):
        return _write_dataset(plan, out, machines, listeners)


def clear_remains(out: str) -> None:
    """Remove what a command left that was killed just after the dataset had got its name.

    Raises:
      UserError: another process writes there.
    """
    if (staging := _staging(out)).exists():
        with locks.hold(out, "--out"):
            shutil.rmtree(staging)


def _staging(out: str) -> epath.Path:
    return epath.Path(out) / f".{NAME}.incomplete"


def _write_dataset(plan: Plan, out: str, machines: Machines, listeners: Listeners) -> Written:
    final, staging = dataset_path(out), _staging(out)
    rendered = staging / "rendered"
    rendered.mkdir(parents=True, exist_ok=True)
    if reused := keep_reusable(str(rendered), _jobs(plan)):
        listeners.say(f"{reused} of {len(_jobs(plan))} parts are rendered already")
    with _emptied(staging / "tfds") as data_dir:
        write = _write_on_beam if machines.beam_runner else _write_here
        builder, skips = write(plan, str(rendered), str(data_dir), machines, listeners)
        listeners.say("reading the records back")
        made = epath.Path(builder.data_path)
        tables = {split: _write_table(builder, split, made) for split in plan.jobs}
        num_bytes = {split: builder.info.splits[split].num_bytes for split in plan.jobs}
        content = json.dumps(_description(plan, tables, skips, num_bytes), indent=1)
        (made / "prepare.json").write_text(content + "\n")
        final.parent.mkdir(parents=True, exist_ok=True)
        replaced = staging / "replaced"
        if replaced.exists():  # by a run that was killed right afterwards
            replaced.rmtree()
        if final.exists():
            final.rename(replaced)
        made.rename(final)
    staging.rmtree()
    return Written(final, tables, skips, num_bytes)


def _jobs(plan: Plan) -> list[Job]:
    return list(itertools.chain.from_iterable(plan.jobs.values()))


def _write_here(
    plan: Plan, rendered: str, data_dir: str, machines: Machines, listeners: Listeners
) -> tuple[Builder, list[Skip]]:
    """Render every job with this machine's processes, then write the records in this one."""
    results = []
    with make_pool(machines.workers) as pool:
        for taken, left_out in render_all(_jobs(plan), rendered, pool):
            listeners.progress(taken, len(left_out))
            results.append((taken, left_out))
    skips = _settle(plan, results, listeners)
    listeners.say("writing the records")
    builder = Builder(plan=plan, folder=rendered, data_dir=data_dir)
    _download_and_prepare(builder, tfds.download.DownloadConfig())
    return builder, skips


def _write_on_beam(
    plan: Plan, rendered: str, data_dir: str, machines: Machines, listeners: Listeners
) -> tuple[Builder, list[Skip]]:
    """Render the jobs and write the records in one pipeline."""
    options = _pipeline_options(machines.beam_options)
    _check_runner(machines.beam_runner)
    config = tfds.download.DownloadConfig(beam_runner=machines.beam_runner, beam_options=options)
    listeners.say(f"rendering and writing on Apache Beam's {machines.beam_runner}")
    builder = Builder(plan=plan, folder=rendered, is_on_beam=True, data_dir=data_dir)
    try:
        _download_and_prepare(builder, config)
    except Exception:
        with contextlib.suppress(OSError):  # not all is rendered: it failed otherwise
            _settle(plan, _read_results(plan, rendered), listeners)  # a split is empty
        raise
    return builder, _settle(plan, _read_results(plan, rendered), listeners)


def _read_results(plan: Plan, folder: str) -> list[Result]:
    return [read_result(folder, job) for job in _jobs(plan)]


def _settle(plan: Plan, results: list[Result], listeners: Listeners) -> list[Skip]:
    """Return what is left out of the dataset, once every job is rendered.

    Args:
      plan: what is to be written.
      results: of its jobs, split after split.
      listeners: whom to ask.

    Raises:
      UserError: nothing is left of a split, or `check_skips` refuses.
    """
    skips, taken = list(plan.skips), dict.fromkeys(plan.jobs, 0)
    reasons: dict[str, str] = {}
    rendered = iter(results)
    for split, jobs in plan.jobs.items():
        for records, left_out in itertools.islice(rendered, len(jobs)):
            taken[split] += records
            skips += left_out
            if left_out:
                reasons[split] = left_out[-1].reason
    listeners.check_skips(skips, sum(taken.values()))
    for split, records in taken.items():
        if not records:
            raise UserError(
                f"no clip of split {split} has frames ({reasons[split]}); see skipped.jsonl"
            )
    return skips


@contextlib.contextmanager
def _emptied(folder: epath.Path) -> Iterator[epath.Path]:
    """Give a folder without the remains of a killed run, and remove it."""
    if folder.exists():
        folder.rmtree()
    try:
        yield folder
    finally:
        if folder.exists():
            folder.rmtree()


def _pipeline_options(options: tuple[str, ...]) -> Any:
    logging.disable(logging.WARNING)  # while Beam tells which of its clouds are not installed
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError(
            "--beam_runner needs Apache Beam, which is not installed: pip install -e '.[beam]'"
        ) from None
    finally:
        logging.disable(logging.NOTSET)
    return PipelineOptions(flags=[f"--{option}" for option in options])


def _check_runner(name: str) -> None:
    from apache_beam.runners import create_runner

    try:
        create_runner(name)
    except (ValueError, ImportError, AttributeError) as error:  # a short name, or a class's path
        raise UserError(f"no --beam_runner={name}: {error}") from None


def _download_and_prepare(builder: Builder, config: tfds.download.DownloadConfig) -> None:
    tfds.disable_progress_bar()
    config.try_download_gcs = False
    with contextlib.redirect_stdout(io.StringIO()):  # it speaks of downloads that never happen
        builder.download_and_prepare(download_config=config)


def _write_table(builder: Builder, split: str, directory: epath.Path) -> pa.Table:
    """Read every record of a split back and write all but its frames as `clips-<split>.arrow`."""
    # tfds.decode.PartialDecoding would do this, but imports TensorFlow.
    described = {n: feature for n, feature in builder.info.features.items() if n != "frames"}
    features = tfds.features.FeaturesDict(described)
    stored = builder.as_data_source(split).data_source
    batches, rows = [], []
    for position in range(len(stored)):
        rows.append(_row(features.deserialize_example_np(stored[position])))
        if len(rows) == _ROWS_A_BATCH or position == len(stored) - 1:
            batches.append(pa.RecordBatch.from_pylist(rows, _SCHEMA))
            rows = []
    table = pa.Table.from_batches(batches, _SCHEMA)
    path = directory / f"clips-{split}.arrow"
    with path.open("wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        writer.write_table(table)
    return table


def _row(record: dict[str, Any]) -> dict[str, Any]:
    row = {name: _plain(value) for name, value in record.items()}
    return row | {"num_frames": len(row["frame_times"])}


def _plain(value: Any) -> Any:
    """Return TFDS' bytes and NumPy values as Python's own."""
    if isinstance(value, bytes):
        return value.decode()
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _description(
    plan: Plan, tables: dict[str, pa.Table], skips: list[Skip], num_bytes: dict[str, int]
) -> dict[str, Any]:
    settings = plan.settings
    sources = {(job.source.fit, job.source.rotate) for jobs in plan.jobs.values() for job in jobs}
    return {
        "fingerprint": plan.fingerprint,
        "image_size": settings.image_size,
        "frames": settings.frames,
        "strategy": settings.strategy,
        "window_seconds": settings.window_seconds if settings.strategy != "span" else None,
        "pad_seconds": settings.pad_seconds if settings.strategy == "span" else None,
        "levels": settings.levels,
        "layout": settings.layout,
        "fit": sorted({fit for fit, _ in sources}),
        "rotate": sorted({rotate for _, rotate in sources}),
        "counts": {split: table.num_rows for split, table in tables.items()},
        "skipped_clips": sum(skip.clips for skip in skips),
        "num_bytes": sum(num_bytes.values()),
    }
