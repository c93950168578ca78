"""A plan -> the finished dataset under its final name, or nothing under it."""

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import tensorflow_datasets as tfds
from etils import epath

from data.dst_clips.dst_clips_dataset_builder import Builder, Progress, Say, make_pool
from vtalign_jax.dst.nodes import Skip
from vtalign_jax.dst.plan import Plan

NAME, VERSION = "dst_clips", "1.0.0"
STRATEGY = "center"

_ROWS_A_BATCH = 1024
_STRINGS, _DOUBLES = pa.list_(pa.string()), pa.list_(pa.float64())
_SCHEMA = pa.schema(
    [
        *[(name, pa.string()) for name in ("clip_id", "text", "parent_text", "level", "node_id")],
        *[(name, pa.string()) for name in ("uid", "recording_id", "dataset", "text_key")],
        *[(name, pa.float64()) for name in ("window_start", "window_end")],
        *[(name, pa.float64()) for name in ("node_start", "node_end", "video_duration")],
        ("order", pa.int64()),
        ("num_frames", pa.int64()),
        ("frame_times", _DOUBLES),
        ("ancestor_ids", _STRINGS),
    ]
)


@dataclasses.dataclass(frozen=True)
class Written:
    """What `write_dataset` made.

    Attributes:
      path: the dataset's directory.
      tables: by split, the identity table of its records.
      skips: what was left out, the plan's own skips included.
      num_bytes: size of the records.
    """

    path: epath.Path
    tables: dict[str, pa.Table]
    skips: list[Skip]
    num_bytes: int


def dataset_path(out: str) -> epath.Path:
    """Return the directory of the dataset below `--out`."""
    return epath.Path(out) / NAME / VERSION


def existing_fingerprint(out: str) -> str | None:
    """Return the fingerprint of the dataset below `--out`: "" if unknown, None without dataset."""
    path = dataset_path(out)
    if not path.exists():
        return None
    try:
        return json.loads((path / "prepare.json").read_text()).get("fingerprint", "")
    except (OSError, ValueError):
        return ""


def write_dataset(
    plan: Plan,
    out: str,
    workers: int,
    progress: Progress,
    say: Say,
    check_skips: Callable[[list[Skip], int], None],
) -> Written:
    """Render the plan and write the dataset; it gets its final name as the very last thing.

    Args:
      plan: what to write.
      out: a TFDS data directory.
      workers: processes that decode.
      progress: called after each job.
      say: called with what begins now.
      check_skips: called with all skips and the number of clips written; raises to refuse.

    Raises:
      UserError: a split without clips, or whatever `check_skips` raises.
    """
    final = dataset_path(out)
    with _staging(epath.Path(out)) as staging:
        with make_pool(workers) as pool:
            builder = Builder(
                plan=plan, pool=pool, progress=progress, say=say, data_dir=str(staging)
            )
            _download_and_prepare(builder)
        say("reading the records back")
        made = epath.Path(builder.data_path)
        tables = {split: _write_table(builder, split, made) for split in plan.jobs}
        skips = plan.skips + builder.skips
        check_skips(skips, sum(table.num_rows for table in tables.values()))
        num_bytes = sum(info.num_bytes for info in builder.info.splits.values())
        content = json.dumps(_description(plan, tables, skips, num_bytes), indent=1)
        (made / "prepare.json").write_text(content + "\n")
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            final.rmtree()
        made.rename(final)
    return Written(final, tables, skips, num_bytes)


@contextlib.contextmanager
def _staging(out: epath.Path) -> Iterator[epath.Path]:
    """Give a directory beside the final one, and remove it and its remains of a killed run."""
    staging = out / f".{NAME}.incomplete"
    if staging.exists():
        staging.rmtree()
    try:
        yield staging
    finally:
        if staging.exists():
            staging.rmtree()


def _download_and_prepare(builder: Builder) -> None:
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False)
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
    plan: Plan, tables: dict[str, pa.Table], skips: list[Skip], num_bytes: int
) -> dict[str, Any]:
    settings = plan.settings
    sources = {(job.source.fit, job.source.rotate) for jobs in plan.jobs.values() for job in jobs}
    return {
        "fingerprint": plan.fingerprint,
        "image_size": settings.image_size,
        "frames": settings.frames,
        "window_seconds": settings.window_seconds,
        "strategy": STRATEGY,
        "levels": settings.levels,
        "layout": settings.layout,
        "fit": sorted({fit for fit, _ in sources}),
        "rotate": sorted({rotate for _, rotate in sources}),
        "counts": {split: table.num_rows for split, table in tables.items()},
        "skipped_clips": sum(skip.clips for skip in skips),
        "num_bytes": num_bytes,
    }
