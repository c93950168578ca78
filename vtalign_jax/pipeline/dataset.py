"""A split of one or several prepared datasets: records at random access, and who each clip is.

`launch/prepare.py --out=DIR` writes `DIR/dst_clips/<version>/`: a TFDS dataset in ArrayRecord,
beside it `clips-<split>.arrow` (Arrow IPC file; row i holds the fields of record i, frames left
out) and `prepare.json` (settings and fingerprint). Nothing here needs TensorFlow. Opening reads the
tables only; frames stay on disk until their row is asked for.
"""

import bisect
import functools
import hashlib
import itertools
from typing import NamedTuple

import grain
import numpy as np
import pyarrow as pa
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from vtalign_jax import json_files, remote
from vtalign_jax.array_types import Identity
from vtalign_jax.dst.images import FITS, ROTATIONS
from vtalign_jax.errors import UserError
from vtalign_jax.feature_cache.stored import StoredFeatures
from vtalign_jax.pipeline.clip_cache import ClipCache
from vtalign_jax.pipeline.clip_table import read_table
from vtalign_jax.pipeline.identities import make_identity
from vtalign_jax.pipeline.sampling import window_lengths
from vtalign_jax.pipeline.shards import INFO, Shard, read_splits

_NAME = "dst_clips"
_SETTINGS = {"fingerprint": str, "image_size": int, "frames": int}  # read of prepare.json
_MOST_PIXELS, _MOST_FRAMES = 2**14, 2**16
_AGAIN = "prepare the dataset again"
_CACHE_BYTES = 512 * 2**20  # decoded frames kept in memory, a split


class Record(NamedTuple):
    """One clip and its text, as stored.

    Attributes:
      clip_id: `<uid>/<node_id>`.
      frames: encoded JPEG files, in time order, only frames that exist.
      frame_times: seconds from the start of the video, one a frame.
      window_start: seconds; negative where the window begins before the video does.
      window_end: seconds; may lie past the end of the video.
      text: the node's name.
      parent_text: the parent's name, "" where there is none.
    """

    clip_id: str
    frames: list[bytes]
    frame_times: list[float]
    window_start: float
    window_end: float
    text: str
    parent_text: str


class StoredSplit:
    """One split of one dataset. Picklable: files are opened again on the other side.

    Attributes:
      data_dir: as given, for messages.
      image_size: pixels, edge of the stored square frames.
      frames: how many were looked for in each window; a record holds those that exist.
      squares: (fit, rotate) by which pictures may have been made square.
    """

    def __init__(
        self, data_dir: str, settings: dict, table_path: epath.Path, shards: list[Shard]
    ) -> None:
        self.data_dir = data_dir
        self.image_size: int = settings["image_size"]
        self.frames: int = settings["frames"]
        ways = settings["fit"], settings["rotate"]
        self.squares: set[tuple[str, int]] = set(itertools.product(*ways))
        self._table_path = table_path
        self._files = [str(shard.filename) for shard in shards]
        self._ends = np.cumsum([shard.take for shard in shards]).tolist()
        self._source = grain.sources.ArrayRecordDataSource(shards)

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "table"}

    def __len__(self) -> int:
        return self._ends[-1]

    @functools.cached_property
    def table(self) -> pa.Table:
        """Every field of every record but the frames; row i is record i."""
        return read_table(self._table_path)

    def record(self, index: int) -> Record:
        """Return one record; see `ClipSplit.record`."""
        try:
            example = tf_example_pb2.Example.FromString(self._source[index])
            field = example.features.feature
            return Record(
                clip_id=field["clip_id"].bytes_list.value[0].decode(),
                frames=list(field["frames"].bytes_list.value),
                frame_times=list(field["frame_times"].float_list.value),
                window_start=field["window_start"].float_list.value[0],
                window_end=field["window_end"].float_list.value[0],
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


class ClipSplit:
    """One split over all datasets of a run, their records one after the other; see `open_split`.

    Attributes:
      name: the split's name.
      fingerprint: of all datasets named, whole; one's own, or a hash over several, in order.
      sizes: dataset -> how many of its records, in the order given; 0 if it lacks the split.
      parts: the datasets that have it, in the same order.
      clip_cache: shared by all loaders of this split.
      features: read instead of frames, see `feature_cache.keys.attach`; None for frames.
    """

    def __init__(
        self, name: str, fingerprints: list[str], datasets: dict[str, StoredSplit | None]
    ) -> None:
        self.name = name
        self.fingerprint = fingerprints[0]
        if len(fingerprints) > 1:
            self.fingerprint = hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()
        self.sizes = {data_dir: len(part) if part else 0 for data_dir, part in datasets.items()}
        self.parts = [part for part in datasets.values() if part]
        self.clip_cache = ClipCache(_CACHE_BYTES)
        self.features: StoredFeatures | None = None
        self._ends = np.cumsum([len(part) for part in self.parts]).tolist()

    def __getstate__(self) -> dict:
        mapped = ("table", "identity", "texts")  # of this process; workers read records alone
        return {key: value for key, value in self.__dict__.items() if key not in mapped}

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def image_size(self) -> int:
        """Pixels, edge of the smallest stored frames."""
        return min(part.image_size for part in self.parts)

    @property
    def frames(self) -> int:
        """The most frames that a clip of every dataset can show."""
        return min(part.frames for part in self.parts)

    @property
    def square(self) -> tuple[str, int] | None:
        """(fit, rotate) by which every picture was made square; None where they differ."""
        ways = set().union(*(part.squares for part in self.parts))
        return ways.pop() if len(ways) == 1 else None

    @functools.cached_property
    def table(self) -> pa.Table:
        """Every field of every record but the frames; row i is record i."""
        return pa.concat_tables([part.table for part in self.parts], promote_options="default")

    @functools.cached_property
    def identity(self) -> Identity:
        """Who each record is: NumPy arrays of N rows."""
        return make_identity(self.table, ",".join(part.data_dir for part in self.parts))

    @functools.cached_property
    def texts(self) -> list[str]:
        """The text of each record."""
        return self.table["text"].to_pylist()

    @functools.cached_property
    def window_seconds(self) -> float:
        """Length of a typical window: the median over the records."""
        lengths = self._window_lengths()
        return float(np.sort(lengths)[len(lengths) // 2])

    @functools.cached_property
    def longest_window_seconds(self) -> float:
        """Length of the longest window."""
        return float(self._window_lengths().max())

    def _window_lengths(self) -> np.ndarray:
        """float64[N], seconds."""
        return window_lengths(*(self.table[f"window_{end}"].to_numpy() for end in ("start", "end")))

    def part_of(self, index: int) -> tuple[StoredSplit, int]:
        """Return the dataset that holds a record, and the record's index in it."""
        place = bisect.bisect_right(self._ends, index)
        return self.parts[place], index - (self._ends[place - 1] if place else 0)

    def record(self, index: int) -> Record:
        """Return one record.

        Raises:
          UserError: the file that holds it cannot be read there.
        """
        part, within = self.part_of(index)
        return part.record(within)

    def file(self, index: int) -> str:
        """Return the path of the ArrayRecord file that holds a record."""
        part, within = self.part_of(index)
        return part.file(within)


def open_split(data_dir: str, split: str) -> ClipSplit:
    """Open a split of datasets that `launch/prepare.py --out=DIR` wrote.

    Args:
      data_dir: what `--out` named, here or in a bucket, `gs://` (it is copied here); or several of
        them, comma-separated. Of several, those that have the split are taken.
      split: `train`, `val` or `test`.

    Raises:
      UserError: no dataset there, an unfinished or damaged one, one named twice, or none that has
        the split.
    """
    names = [name.strip() for name in data_dir.split(",") if name.strip()]
    if not names:
        raise UserError("no dataset is named; give what prepare.py wrote with --out")
    known: dict[str, str] = {}
    datasets, directories = {}, {}
    for name in names:
        directory = directories[name] = _complete_directory(name)
        settings = _read_settings(name, directory)
        fingerprint = settings["fingerprint"]
        if fingerprint in known:
            raise UserError(
                f"{known[fingerprint]} and {name} are the same dataset and every clip would come "
                f"twice; name it once, and set its share by config.data.weights"
            )
        known[fingerprint] = name
        datasets[name] = _open_stored(name, directory, settings, split)
    opened = ClipSplit(split, list(known), datasets)
    if not opened.parts:
        filled = "; ".join(
            f"{name} has {', '.join(_filled_splits(path))}" for name, path in directories.items()
        )
        raise UserError(
            f"no clips of split {split!r} in {data_dir}: {filled}; name a dataset that has it too, "
            "separated by a comma"
        )
    return opened


def check_leakage(train: ClipSplit, val: ClipSplit) -> None:
    """Refuse to validate on recordings that are trained on; `prepare` sees one dataset alone.

    Raises:
      UserError: a recording stands in both, in two datasets.
    """
    if train.name == val.name:
        return  # asked for
    owner = _owners(val)
    for recording, data_dir in _owners(train).items():
        if recording in owner:
            raise UserError(
                f"recording {recording} is trained on in {data_dir} and validated on in "
                f"{owner[recording]}; prepare both in one command (--annotations takes a list), or "
                f"leave one of them out of config.data.dir"
            )


def _owners(split: ClipSplit) -> dict[str, str]:
    """Return a dataset that holds each recording."""
    return {
        recording: part.data_dir
        for part in split.parts
        for recording in part.table["recording_id"].unique().to_pylist()
    }


def _open_stored(
    data_dir: str, directory: epath.Path, settings: dict, split: str
) -> StoredSplit | None:
    """Open a split of one dataset; None if the dataset has no clips of it."""
    shards = read_splits(directory, _NAME).get(split)
    if shards is None:
        return None
    table_path = directory / f"clips-{split}.arrow"
    for path in [table_path, *(epath.Path(shard.filename) for shard in shards)]:
        if not remote.is_file(path):
            raise _unfinished(data_dir, path.name)
    opened = StoredSplit(data_dir, settings, table_path, shards)
    if opened.table.num_rows != len(opened):
        raise UserError(
            f"{table_path.name} in {directory} has {opened.table.num_rows} rows for "
            f"{len(opened)} records; prepare the dataset again"
        )
    return opened


def _filled_splits(directory: epath.Path) -> list[str]:
    return list(read_splits(directory, _NAME))


def _complete_directory(data_dir: str) -> epath.Path:
    """Return a dataset's folder, of a bucket the copy on this machine; see `remote.fetch`."""
    directory = _version_directory(remote.path(data_dir))
    for required in ("prepare.json", INFO):
        if not remote.is_file(directory / required):
            raise _unfinished(data_dir, required)
    return epath.Path(remote.fetch(directory))


def _read_settings(data_dir: str, directory: epath.Path) -> dict:
    """Return what `prepare` says of a dataset."""
    file = directory / "prepare.json"
    settings = json_files.read_object(file, _AGAIN)
    if absent := [key for key in _SETTINGS if key not in settings]:
        raise _unfinished(data_dir, f"{', '.join(absent)} in prepare.json")
    json_files.require(settings, _SETTINGS, file, _AGAIN)
    edge, frames = settings["image_size"], settings["frames"]
    ways = {"fit": (["square"], FITS), "rotate": ([0], ROTATIONS)}
    found = {name: settings.setdefault(name, usual) for name, (usual, _) in ways.items()}
    for name, is_right in (
        ("image_size", 1 <= edge <= _MOST_PIXELS),
        ("frames", 1 <= frames <= _MOST_FRAMES),
        *(
            (name, isinstance(found[name], list) and all(way in known for way in found[name]))
            for name, (_, known) in ways.items()
        ),
    ):
        if not is_right:
            raise UserError(f"{file}: {name} is {settings[name]!r:.80}; {_AGAIN}")
    return settings


def _version_directory(data_dir: epath.Path) -> epath.Path:
    """Return `data_dir/dst_clips/<newest version>`."""
    root = data_dir / _NAME
    paths = [path for path in root.iterdir() if _version(path)] if root.exists() else []
    if not paths:
        for outer in (data_dir.parent, data_dir.parent.parent):  # what prepare says that it wrote
            if (outer / _NAME).exists():
                raise UserError(f"{data_dir} is inside of a dataset; give {outer} instead")
        raise UserError(
            f"no dataset in {remote.absolute(data_dir)}; name the folder of one, or make it with: "
            f"python launch/prepare.py --annotations=... --videos=... --out={data_dir}"
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
