"""Writes the features of a split, file by file, from any number of processes.

Each process computes on its own devices and writes every n-th file; how clips are cut into files
does not depend on n. A file gets its name once it is whole, so that a killed command goes on.
"""

import concurrent.futures
import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from array_record.python import array_record_module
from jax.sharding import Mesh

from vtalign_jax import json_files, sharding
from vtalign_jax.config import Config
from vtalign_jax.errors import UserError
from vtalign_jax.feature_cache.keys import differences
from vtalign_jax.feature_cache.stored import (
    AGAIN,
    DTYPES,
    INDEX,
    KEY,
    Layout,
    read_json,
    shard_name,
)
from vtalign_jax.models.aligner import AlignerModel, attended
from vtalign_jax.pipeline.clip_cache import ClipCache
from vtalign_jax.pipeline.dataset import ClipSplit
from vtalign_jax.pipeline.order import PADDING
from vtalign_jax.pipeline.transforms import Row, RowMaker, Tokenizer
from vtalign_jax.processes import map_in_order

_THREADS = 8  # that read and decode ahead
Bind = Callable[[Mapping[str, jax.Array]], AlignerModel]
_OPTIONS = "group_size:1,uncompressed"  # of ArrayRecord: random access, and nothing to gain


class Target(NamedTuple):
    """What is to be written of a split.

    Attributes:
      split: the clips.
      folder: of the features.
      key: what they follow from.
      layout: how they are stored.
      shard_records: clips a file.
    """

    split: ClipSplit
    folder: Path
    key: dict[str, Any]
    layout: Layout
    shard_records: int

    @property
    def names(self) -> list[str]:
        """Names of the files."""
        count = -(-len(self.split) // self.shard_records)
        return [shard_name(number, count) for number in range(count)]

    def description(self) -> dict[str, Any]:
        """Return the values of `key.json`."""
        cut = {"shard_records": self.shard_records}
        return {"key": self.key, "layout": self.layout._asdict()} | cut


def begin(target: Target, *, overwrite: bool) -> None:
    """Make the folder of a split, or find there what an earlier command has begun.

    Raises:
      UserError: other features are there and not to be replaced, or the folder cannot be written.
    """
    folder, wanted = target.folder, target.description()
    found = read_json(folder / KEY)
    if found is None and folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is in the way and no feature cache; give another --out")
    if found is not None and found != wanted:
        json_files.require(found, {"key": dict}, folder / KEY, AGAIN)
        if not overwrite:
            differing = differences(found["key"], wanted["key"]) or ["--dtype or --shard_mb"]
            raise UserError(
                f"{folder} holds features made with another value of {', '.join(differing)}; "
                "--overwrite replaces them, or give another --out"
            )
        shutil.rmtree(folder)
        found = None
    if found is None:
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / KEY, wanted)


def finish(target: Target) -> None:
    """Write the index, once every process is through.

    Raises:
      UserError: a file is missing.
    """
    files = [target.folder / name for name in target.names]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(
            f"{target.folder} lacks {', '.join(missing[:3])}; is it the same folder on every host?"
        )
    sizes = {file.name: file.stat().st_size for file in files}
    _write_json(target.folder / INDEX, target.description() | {"file_bytes": sizes})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    written = path.with_name(path.name + ".new")
    written.write_text(json.dumps(values, indent=1) + "\n")
    written.replace(path)


class Machine(NamedTuple):
    """What computes features in this process.

    Attributes:
      bind: arrays by path -> model.
      leaves: the arrays, on the mesh.
      mesh: over this process's devices.
      tokenizer: the model's.
    """

    bind: Bind
    leaves: Mapping[str, jax.Array]
    mesh: Mesh
    tokenizer: Tokenizer


def write_shards(
    target: Target,
    machine: Machine,
    config: Config,
    process: tuple[int, int],
    *,
    train: bool,
    say: Callable[[str], None] = print,
) -> float:
    """Write this process's files of a split that are not there yet.

    Args:
      target: what to write.
      machine: what computes.
      config: of the run; as many clips are computed at once as `train.eval_batch` has frames.
      process: number of this process, and of how many.
      train: whether the split is trained on, see `make_key`.
      say: prints a line for each file.

    Returns:
      what storing takes of the values, at most in a batch: root mean square of the errors by that
      of the values; 0 if nothing was written.

    Raises:
      UserError: a clip cannot be read, or a file not be written.
    """
    records, names, worst = _Records(target, machine, config, train=train), target.names, 0.0
    for number in range(process[0], len(names), process[1]):
        file = target.folder / names[number]
        if file.exists():
            continue
        first = number * target.shard_records
        numbers = range(first, min(first + target.shard_records, len(target.split)))
        partial = file.with_name(f"{file.name}.partial")
        writer = _writing(file, array_record_module.ArrayRecordWriter, str(partial), _OPTIONS)
        for record in records.of(numbers):
            _writing(file, writer.write, record)
        _writing(file, writer.close)
        _writing(file, partial.rename, file)
        worst = max(worst, records.worst_error)
        say(f"{target.split.name}: {numbers.stop:,} of {len(target.split):,} clips, {file.name}")
    return worst


def _writing(file: Path, do: Callable, *arguments: Any) -> Any:
    """Do something to a file; what the file system refuses is the user's error."""
    try:
        return do(*arguments)
    except (OSError, RuntimeError) as error:  # the writer raises what its C++ library hands it
        raise UserError(f"cannot write {file} ({error}); make room, and run it again") from error


class _Records:
    """Computes records of a split.

    Attributes:
      worst_error: see `write_shards`.
    """

    def __init__(self, target: Target, machine: Machine, config: Config, *, train: bool) -> None:
        self._layout, self._machine = target.layout, machine
        self._is_by_clip = target.layout.depth == "decoder"
        clips, devices = config.train.eval_batch, machine.mesh.size
        self._most_frames = max(part.frames for part in target.split.parts)
        if not self._is_by_clip:  # with every frame that is stored, as training with jitter sees
            clips = max(1, clips * config.data.frames // self._most_frames)
            data = dataclasses.replace(config.data, jitter=True, frames=1)
            config, train = dataclasses.replace(config, data=data), True
        self._rows = -(-clips // devices) * devices
        split, no_cache = target.split, ClipCache(0)
        self._row_maker = RowMaker(split, machine.tokenizer, config, no_cache, train=train)
        self._encode = make_encode(machine.bind, target.layout)
        self.worst_error = 0.0

    def of(self, numbers: range) -> Iterator[bytes]:
        """Yield the records of some clips, in order; the next batch runs while one is read back."""
        held = None
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            read = map_in_order(self._read, numbers, pool)
            for first in range(0, len(numbers), self._rows):
                count = min(self._rows, len(numbers) - first)
                given, kept = self._stacked([next(read) for _ in range(count)])
                placed = sharding.to_devices(given, self._machine.mesh)
                running = self._encode(self._machine.leaves, placed), kept
                if held is not None:
                    yield from self._bytes(*held)
                held = running
        if held is not None:
            yield from self._bytes(*held)

    def _read(self, index: int) -> Row | list[np.ndarray]:
        if self._is_by_clip:
            return self._row_maker(0, index)
        return self._row_maker.clip(index).frames

    def _stacked(self, read: list) -> tuple[Any, list[np.ndarray]]:
        """Return the arrays of a batch, filled up, and which of its vectors each clip keeps."""
        missing = self._rows - len(read)
        if self._is_by_clip:
            rows = read + [self._row_maker(0, PADDING)] * missing
            given = Row(*(np.stack(arrays) for arrays in zip(*rows, strict=True)))
            masks = attended_on_host(given.clip_mask | given.caption_mask), given.text_mask
            return given, list(np.concatenate(masks, axis=1)[: len(read)])
        edge = self._machine.tokenizer.image_size
        frames = np.zeros((self._rows, self._most_frames, edge, edge, 3), np.uint8)
        for row, of_clip in zip(frames, read, strict=False):
            row[: len(of_clip)] = of_clip
        kept = [np.arange(self._most_frames) < len(of_clip) for of_clip in read]
        return frames.reshape(-1, *frames.shape[2:]), kept

    def _bytes(self, found: tuple, kept: list[np.ndarray]) -> Iterator[bytes]:
        values, scales, error = jax.device_get(found)
        if not np.isfinite(error):
            raise UserError("features are not finite; are the base's weights? try --dtype=float32")
        self.worst_error = max(self.worst_error, float(error))
        packed = self._layout.pack(values, scales)
        of_clips = packed.reshape(self._rows, -1, *packed.shape[-2 + self._is_by_clip :])
        for of_clip, is_kept in zip(of_clips, kept, strict=False):
            yield of_clip[is_kept].tobytes()


@functools.lru_cache(maxsize=1)
def make_encode(bind: Bind, layout: Layout) -> Callable[..., tuple]:
    """Return the jitted function from the model's arrays and its input to what is stored.

    Its input is frames, uint8[N, H, W, 3], or, of depth "decoder", a batch of `Row`s. It returns
    values [..., width] in the layout's dtype, the scales of int8 [...] or None, and the root mean
    square of the rounding by that of the values, float32[].
    """

    def by_frame(leaves: Mapping[str, jax.Array], frames: jax.Array) -> tuple:
        """Features of uint8[N, H, W, 3]: [N, vectors, width]."""
        found = bind(leaves).clip_prefix(None, None, frames[:, None], layout.depth)
        return _stored(found[:, 0], layout.dtype)

    def by_clip(leaves: Mapping[str, jax.Array], rows: Row) -> tuple:
        """Features of clips and texts: [B, S + T, D]."""
        model, token_mask = bind(leaves), attended(rows.clip_mask, rows.caption_mask)
        clips = model.clip_prefix(rows.clip_ids, token_mask, rows.frames, layout.depth)
        texts = model.text_prefix(rows.text_ids, rows.text_mask)
        return _stored(jnp.concatenate([clips, texts], axis=1), layout.dtype)

    return jax.jit(by_clip if layout.depth == "decoder" else by_frame)


def attended_on_host(mask: np.ndarray) -> np.ndarray:
    """Return bool[B, S]: all up to the last True of each row."""
    return np.flip(np.logical_or.accumulate(np.flip(mask, axis=1), axis=1), axis=1)


def _stored(x: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Return float[..., width] as it is stored, the scales of int8, and the error of storing."""
    x = x.astype(jnp.float32)
    if dtype == "int8":
        scales = jnp.max(jnp.abs(x), axis=-1) / 127.0
        values = jnp.round(x / jnp.maximum(scales, 1e-30)[..., None]).astype(jnp.int8)
        stored = values.astype(jnp.float32) * scales[..., None]
    else:
        values, scales = x.astype(DTYPES[dtype]), None
        stored = values.astype(jnp.float32)
    error = jnp.sqrt(jnp.sum(jnp.square(x - stored)) / jnp.sum(jnp.square(x)))
    return values, scales, error
