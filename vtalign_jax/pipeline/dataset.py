"""A split of a prepared dataset: records at random access, and the table of who each clip is.

`launch/prepare.py --out=DIR` writes `DIR/dst_clips/<version>/`: a TFDS dataset in ArrayRecord,
beside it `clips-<split>.arrow` (Arrow IPC file; row i holds the fields of record i, frames left
out) and `prepare.json` (settings and fingerprint). Nothing here needs TensorFlow. Opening reads the
table only; frames stay on disk until their row is asked for.
"""

import bisect
import functools
import json
import threading
from typing import NamedTuple

import grain
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from vtalign_jax.array_types import MAX_ANCESTORS, Identity
from vtalign_jax.errors import UserError

_NAME = "dst_clips"
_SETTINGS = (
    "fingerprint",
    "image_size",
    "frames",
    "window_seconds",
)  # what is read of prepare.json
_CACHE_BYTES = 512 * 2**20  # decoded frames kept in memory, a split


class Record(NamedTuple):
    """One clip and its text, as stored.

    Attributes:
      clip_id: `<uid>/<node_id>`.
      frames: encoded JPEG files, in time order, only frames that exist.
      frame_times: seconds from the start of the video, one a frame.
      window_start: seconds; negative where the window begins before the video does.
      text: the node's name.
      parent_text: the parent's name, "" where there is none.
    """

    clip_id: str
    frames: list[bytes]
    frame_times: list[float]
    window_start: float
    text: str
    parent_text: str


class DecodedClip(NamedTuple):
    """One clip and its text, ready for a row.

    Attributes:
      frames: uint8[F, H, W, 3], real frames first, zeros after them.
      num_frames: how many are real.
      seconds: whole seconds since the window's start, one a real frame.
      text: the node's name.
      parent_text: the parent's name, "" where there is none.
    """

    frames: np.ndarray
    num_frames: int
    seconds: tuple[int, ...]
    text: str
    parent_text: str


class ClipCache:
    """Decoded clips of a split, kept until `limit_bytes` of frames are full.

    A small dataset is decoded once a run instead of once an epoch; of a large one the first clips
    to come stay. Safe to share between reading threads. A pickled copy starts empty.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._clips: dict[tuple[int, int], DecodedClip] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return ClipCache, (self._limit_bytes,)

    def share(self, workers: int) -> "ClipCache":
        """Return an empty cache for one of `workers` processes."""
        return ClipCache(self._limit_bytes // workers)

    def get(self, index: int, edge: int) -> DecodedClip | None:
        """Return a record's clip with frames of `edge` pixels, if it was kept."""
        return self._clips.get((index, edge))

    def offer(self, index: int, edge: int, clip: DecodedClip) -> None:
        """Keep the clip if there is room; its frames become read-only."""
        with self._lock:
            fits = self._bytes + clip.frames.nbytes <= self._limit_bytes
            if fits and (index, edge) not in self._clips:
                clip.frames.flags.writeable = False
                self._clips[index, edge] = clip
                self._bytes += clip.frames.nbytes


class ClipSplit:
    """One split; see `open_split`. Picklable: files are opened again on the other side.

    Attributes:
      name: the split's name.
      fingerprint: of the whole dataset (annotations and settings).
      image_size: pixels, edge of the stored square frames.
      frames: most frames a record holds.
      window_seconds: length of the window that the frames of a clip come from.
      clip_cache: shared by all loaders of this split.
    """

    def __init__(self, directory: epath.Path, name: str, settings: dict, shards: list) -> None:
        self.name = name
        self.fingerprint: str = settings["fingerprint"]
        self.image_size: int = settings["image_size"]
        self.frames: int = settings["frames"]
        self.window_seconds: float = settings["window_seconds"]
        self.clip_cache = ClipCache(_CACHE_BYTES)
        self._table_path = directory / f"clips-{name}.arrow"
        self._files = [str(shard.filename) for shard in shards]
        self._ends = np.cumsum([shard.take for shard in shards]).tolist()
        self._source = grain.sources.ArrayRecordDataSource(shards)

    def __getstate__(self) -> dict:
        mapped = ("table", "identity", "texts")  # of this process; workers read records alone
        return {key: value for key, value in self.__dict__.items() if key not in mapped}

    def __len__(self) -> int:
        return self._ends[-1]

    @functools.cached_property
    def table(self) -> pa.Table:
        """Every field of every record but the frames; row i is record i."""
        return _read_table(self._table_path)

    @functools.cached_property
    def identity(self) -> Identity:
        """Who each record is: NumPy arrays of N rows."""
        return _identity(self.table, self._table_path)

    @functools.cached_property
    def texts(self) -> list[str]:
        """The text of each record."""
        return self.table["text"].to_pylist()

    def record(self, index: int) -> Record:
        """Return one record.

        Raises:
          UserError: the file that holds it cannot be read there.
        """
        try:
            example = tf_example_pb2.Example.FromString(self._source[index])
            field = example.features.feature
            return Record(
                clip_id=field["clip_id"].bytes_list.value[0].decode(),
                frames=list(field["frames"].bytes_list.value),
                frame_times=list(field["frame_times"].float_list.value),
                window_start=field["window_start"].float_list.value[0],
                text=field["text"].bytes_list.value[0].decode(),
                parent_text=field["parent_text"].bytes_list.value[0].decode(),
            )
        except Exception as error:  # readers raise what their C++ library hands them
            raise UserError(
                f"cannot read clip {self.table['clip_id'][index].as_py()} from {self.file(index)} "
                f"({error}); prepare the dataset again"
            ) from error

    def file(self, index: int) -> str:
        """Return the path of the ArrayRecord file that holds a record."""
        return self._files[bisect.bisect_right(self._ends, index)]


def open_split(data_dir: str, split: str) -> ClipSplit:
    """Open a split of a dataset that `launch/prepare.py --out=data_dir` wrote.

    Args:
      data_dir: what `--out` named; a local path or `gs://`.
      split: `train`, `val` or `test`.

    Raises:
      UserError: no dataset there, an unfinished or damaged one, or no such split in it.
    """
    directory = _version_directory(epath.Path(data_dir))
    for required in ("prepare.json", "dataset_info.json"):
        if not (directory / required).exists():
            raise _unfinished(data_dir, required)
    try:
        settings = dict(json.loads((directory / "prepare.json").read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"cannot read {directory / 'prepare.json'} ({error}); prepare the dataset again"
        ) from error
    if absent := [key for key in _SETTINGS if key not in settings]:
        raise _unfinished(data_dir, f"{', '.join(absent)} in prepare.json")
    splits = tfds.builder_from_directory(directory).info.splits
    if split not in splits or not splits[split].num_examples:
        filled = [name for name in splits if splits[name].num_examples]
        raise UserError(f"no clips of split {split!r} in {data_dir}; it has {', '.join(filled)}")
    shards = splits[split].file_instructions
    for path in [directory / f"clips-{split}.arrow", *(epath.Path(s.filename) for s in shards)]:
        if not path.exists():
            raise _unfinished(data_dir, path.name)
    opened = ClipSplit(directory, split, settings, shards)
    if opened.table.num_rows != len(opened):
        raise UserError(
            f"clips-{split}.arrow in {directory} has {opened.table.num_rows} rows for "
            f"{len(opened)} records; prepare the dataset again"
        )
    return opened


def _version_directory(data_dir: epath.Path) -> epath.Path:
    """Return `data_dir/dst_clips/<newest version>`."""
    root = data_dir / _NAME
    paths = [path for path in root.iterdir() if _version(path)] if root.exists() else []
    if not paths:
        raise UserError(
            f"no dataset in {data_dir}; make one with: python launch/prepare.py --annotations=... "
            f"--videos=... --out={data_dir}"
        )
    return max(paths, key=_version)


def _version(path: epath.Path) -> tuple[int, ...]:
    parts = path.name.split(".")
    return tuple(map(int, parts)) if len(parts) == 3 and all(map(str.isdecimal, parts)) else ()


def _unfinished(data_dir: str, missing: str) -> UserError:
    return UserError(
        f"the dataset in {data_dir} is incomplete, {missing} is missing; run "
        f"python launch/prepare.py --out={data_dir} ... again"
    )


def _read_table(path: epath.Path) -> pa.Table:
    is_local = "://" not in str(path)
    source = pa.memory_map(str(path)) if is_local else pa.BufferReader(path.read_bytes())
    try:
        return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid as error:
        raise UserError(f"cannot read {path} ({error}); prepare the dataset again") from error


def _identity(table: pa.Table, path: epath.Path) -> Identity:
    """Return who each row of the table is, strings as dense integers."""
    count = table.num_rows
    uids = _column(table, "uid")
    ancestor_ids = _column(table, "ancestor_ids")
    owner = pc.list_parent_indices(ancestor_ids)
    above = pc.list_flatten(ancestor_ids).cast(pa.large_string())
    newline = pa.scalar("\n", pa.large_string())
    # A node id such as S1.1 says something only together with its video.
    nodes = _dense(
        pa.concat_arrays(
            [
                pc.binary_join_element_wise(uids, _column(table, "node_id"), newline),
                pc.binary_join_element_wise(uids.take(owner), above, newline),
            ]
        )
    )
    owner = owner.to_numpy()
    first = np.searchsorted(owner, np.arange(count))
    rank = np.arange(len(owner)) - first[owner]
    if rank.size and rank.max() >= MAX_ANCESTORS:
        clip_id = table["clip_id"][int(owner[rank.argmax()])].as_py()
        raise UserError(
            f"clip {clip_id} in {path} lies more than {MAX_ANCESTORS} levels below its root; "
            f"a DST has step, substep and action"
        )
    ancestors = np.full((count, MAX_ANCESTORS), -1, np.int32)
    ancestors[owner, rank] = nodes[count:]
    return Identity(
        row_mask=np.ones(count, bool),
        record=np.arange(count, dtype=np.int32),
        recording=_dense(_column(table, "recording_id")),
        uid=_dense(uids),
        level=_dense(_column(table, "level")),
        order=_column(table, "order").to_numpy().astype(np.int32),
        node=nodes[:count],
        ancestors=ancestors,
        text=_dense(_column(table, "text_key")),
        window=_interval(table, "window_start", "window_end"),
        span=_interval(table, "node_start", "node_end"),
    )


def _column(table: pa.Table, name: str) -> pa.Array:
    column = table[name].combine_chunks()
    return column.cast(pa.large_string()) if pa.types.is_string(column.type) else column


def _dense(values: pa.Array) -> np.ndarray:
    """Return int32[N], equal values as equal integers, numbered as they first appear."""
    return pc.dictionary_encode(values).indices.to_numpy().astype(np.int32)


def _interval(table: pa.Table, start: str, end: str) -> np.ndarray:
    """Return float32[N, 2], seconds."""
    return np.stack([table[start].to_numpy(), table[end].to_numpy()], axis=1).astype(np.float32)
