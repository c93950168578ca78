"""Batches for training and evaluation, read ahead by Grain.

Rows are read and decoded in parallel, in threads of this process or in worker processes, and
stacked into `Batch`es of NumPy arrays. What a step holds depends on its number alone (`order`), so
that a loader can start at any step.
"""

import functools
import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Sequence

import grain
import numpy as np
from absl import flags

from vtalign_jax.array_types import Batch, Identity
from vtalign_jax.config import Config
from vtalign_jax.errors import UserError
from vtalign_jax.feature_cache.stored import StoredFeatures
from vtalign_jax.pipeline.dataset import ClipSplit
from vtalign_jax.pipeline.mixture import epoch_counts
from vtalign_jax.pipeline.order import PADDING, BatchOrder, SequentialOrder
from vtalign_jax.pipeline.texts import evaluation_identity
from vtalign_jax.pipeline.transforms import Row, RowMaker, Tokenizer
from vtalign_jax.processes import end_with_parent

_CHUNK_ROWS = 8  # rows that a thread reads one after the other, at most
_GRACE_SECONDS = 60.0  # a worker told to terminate goes on this long for its parent
_THREADS = 4  # a process; they overlap reading, while decoding holds the interpreter's lock


def make_loader(
    split: ClipSplit,
    tokenizer: Tokenizer,
    config: Config,
    *,
    start_step: int,
    num_steps: int,
    process_index: int,
    process_count: int,
    train: bool,
    signature: np.ndarray | None = None,
) -> "Batches":
    """Return an iterator over this process's slice of consecutive batches.

    Args:
      split: the records.
      tokenizer: the model's.
      config: of the run.
      start_step: the first step to yield, counted from 0 over the whole run.
      num_steps: how many steps to yield.
      process_index: of this process; it takes rows [p * B / n, (p + 1) * B / n).
      process_count: how many processes share each batch.
      train: True: `train.contrastive_batch` pairs in the order of `BatchOrder`, with jitter and
        random parent texts as configured. False: `train.eval_batch` pairs in the order of the
        records, always the same frames and texts.
      signature: float32[N, G], of each record's text, to be put into the identity; None for none.

    Yields:
      (step, batch), the batch with static shapes. Its `close()` ends threads and workers early.

    Raises:
      UserError: at once if the batch cannot be split, or dataset, model and configuration do not
        fit together; while reading, if a record cannot be read or decoded.
    """
    data = config.data
    field = "contrastive_batch" if train else "eval_batch"
    batch = getattr(config.train, field)
    local = _local_rows(f"train.{field}", batch, process_count)
    order = train_order(split, config) if train else SequentialOrder(len(split), batch)
    workers = min(data.workers, local)
    cache = split.clip_cache if not workers else split.clip_cache.share(workers)
    row_maker = RowMaker(split, tokenizer, config, cache, train=train)
    chunks = _Chunks(order, start_step, num_steps, process_index * local, local, workers)
    rows = _read_rows(chunks, row_maker, data.prefetch_batches)
    identity = split.identity if train else evaluation_identity(split, data)
    if signature is not None:
        identity = identity._replace(signature=signature)
    return Batches(rows, identity, chunks, split.features)


def train_order(split: ClipSplit, config: Config) -> BatchOrder:
    """Return which records stand in which training batch.

    Raises:
      UserError: `data.weights` do not fit the datasets.
    """
    data = config.data
    taken = epoch_counts(split.sizes, data.weights)
    return BatchOrder(
        split.identity.recording,
        config.train.seed,
        split.fingerprint,
        config.train.contrastive_batch,
        data.grouped_fraction,
        data.group_size,
        list(zip(split.sizes.values(), taken, strict=True)),
    )


def make_eval_loader(
    split: ClipSplit,
    tokenizer: Tokenizer,
    config: Config,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> "Batches":
    """Return an iterator over all records in order, `train.eval_batch` a step, the last padded.

    Every process yields the same number of steps. Arguments and errors as for `make_loader`.
    """
    return make_loader(
        split,
        tokenizer,
        config,
        start_step=0,
        num_steps=SequentialOrder(len(split), config.train.eval_batch).steps_per_epoch,
        process_index=process_index,
        process_count=process_count,
        train=False,
    )


def _local_rows(field: str, batch: int, process_count: int) -> int:
    """Return the rows of one process."""
    if batch % process_count:
        below = batch - batch % process_count
        fitting = [size for size in (below, below + process_count) if size]
        raise UserError(
            f"config.{field} is {batch} and cannot be split evenly over {process_count} processes; "
            f"{' or '.join(map(str, fitting))} can"
        )
    return batch // process_count


class _Chunks:
    """The rows of this process, in order, a few at a time: (epoch, records). A Grain data source.

    Grain hands every element to a thread, which costs more than a small row. A step's rows are cut
    into equal chunks, as many for each worker, filled up with padding; worker w takes the chunks w,
    w + workers, ... of all steps. No workers: all chunks are read in this process.
    """

    def __init__(
        self,
        order: BatchOrder | SequentialOrder,
        start_step: int,
        num_steps: int,
        first_row: int,
        rows: int,
        workers: int,
    ) -> None:
        self._order = order
        self._first_row = first_row
        self.steps = range(start_step, start_step + num_steps)
        self.rows = rows
        self.workers = workers
        rows_a_worker = -(-rows // max(workers, 1))
        self.a_worker = -(-rows_a_worker // _CHUNK_ROWS)  # chunks of a step
        self.size = -(-rows_a_worker // self.a_worker)
        self._a_step = self.a_worker * max(workers, 1)

    def __len__(self) -> int:
        return len(self.steps) * self._a_step

    def __getitem__(self, index: int) -> tuple[int, list[int]]:
        position, chunk = divmod(index, self._a_step)
        step = self.steps[position]
        records = self.records(step)[chunk * self.size : (chunk + 1) * self.size].tolist()
        padding = [PADDING] * (self.size - len(records))
        return step // self._order.steps_per_epoch, records + padding

    def records(self, step: int) -> np.ndarray:
        """Return int32[rows], this process's records of a step."""
        return self._order.records(step)[self._first_row : self._first_row + self.rows]


def _read_rows(chunks: _Chunks, row_maker: RowMaker, prefetch_batches: int) -> grain.IterDataset:
    """Return a dataset of stacked `Row`s, one a step, read ahead."""
    workers = chunks.workers
    ahead = max(1, prefetch_batches - 1) if not workers else 1  # workers hold finished shares
    reading = grain.ReadOptions(
        num_threads=min(_THREADS, chunks.a_worker * ahead),
        prefetch_buffer_size=chunks.a_worker * ahead,
    )
    rows = grain.MapDataset.source(chunks).map(
        lambda chunk: [row_maker(chunk[0], index) for index in chunk[1]]
    )
    stacked = _stacked_in_shared_memory if workers else _stacked
    shares = rows.to_iter_dataset(reading).batch(chunks.a_worker, batch_fn=stacked)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain's workers read their flags; a notebook parses none
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(
            num_workers=workers, per_worker_buffer_size=max(1, prefetch_batches // 2)
        )
        shares = shares.mp_prefetch(options, worker_init_fn=_start_worker)
        interleaved = functools.partial(_interleaved, chunk_rows=chunks.size)
        shares = shares.batch(workers, batch_fn=interleaved)
    return grain.experimental.ThreadPrefetchIterDataset(shares, prefetch_buffer_size=3)


def _start_worker(worker: int, workers: int) -> None:
    """Leave signals to the parent, and end when it is killed, where Grain's workers would stay.

    Some schedulers send SIGTERM to the whole process group; the parent then still needs batches up
    to the step after which it saves, as it does after a Ctrl-C.
    """
    last_orders = threading.Timer(_GRACE_SECONDS, os._exit, (1,))
    last_orders.daemon = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: last_orders.is_alive() or last_orders.start())
    end_with_parent()


def _stacked(chunks: Sequence[list[Row]], make_array: Callable = np.empty) -> Row:
    """Return the rows of all chunks as arrays; no frame is copied before."""
    frames, *others = zip(*(row for chunk in chunks for row in chunk), strict=True)
    pixels = make_array((len(frames), len(frames[0]), *frames[0][0].shape), np.uint8)
    for row, of_row in zip(pixels, frames, strict=True):
        np.stack(of_row, out=row)
    stacked = [pixels]
    for arrays in others:
        whole = make_array((len(arrays), *arrays[0].shape), arrays[0].dtype)
        stacked.append(np.stack(arrays, out=whole))
    return Row(*stacked)


def _stacked_in_shared_memory(chunks: Sequence[list[Row]]) -> Row:
    """Stack the rows where the parent reads them; Grain would copy them there otherwise."""
    return _stacked(chunks, grain.multiprocessing.SharedMemoryArray)


def _interleaved(shares: Sequence[Row], chunk_rows: int) -> Row:
    """Return the rows of a step in order; chunk c comes from worker c modulo their number."""
    merged = []
    for arrays in zip(*shares, strict=True):
        chunks = [array.reshape(-1, chunk_rows, *array.shape[1:]) for array in arrays]
        rows = np.stack(chunks, axis=1)
        merged.append(rows.reshape(-1, *arrays[0].shape[1:]))
    return Row(*merged)


class Batches:
    """Iterator over (step, batch); threads and workers end with it, at `close()`, or at exit."""

    def __init__(
        self,
        rows: grain.IterDataset,
        identity: Identity,
        chunks: _Chunks,
        features: StoredFeatures | None,
    ) -> None:
        self._rows = [iter(rows)]
        self._identity = identity
        self._features = features
        self._chunks = chunks
        self._steps = iter(chunks.steps)
        # A finalizer, for it also runs at exit while Grain's modules still exist.
        self.close = weakref.finalize(self, _close, self._rows, chunks.workers > 0)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> tuple[int, Batch]:
        step = next(self._steps, None)
        if step is None or not self.close.alive:
            self.close()
            raise StopIteration
        row = Row(*(array[: self._chunks.rows] for array in self._next_rows()))
        identity = _taken(self._identity, self._chunks.records(step))
        if self._features is None:
            return step, Batch(*row, identity)
        features = self._features.of_batch(row.frames, row.clip_ids.shape[1])
        return step, Batch(*row._replace(frames=None), identity, features)

    def _next_rows(self) -> Row:
        try:
            return next(self._rows[0])
        except RuntimeError as error:  # Grain's, for want of a better one
            if "terminated unexpectedly" not in str(error):
                raise
            raise UserError(
                f"a process of config.data.workers was ended from outside "
                f"({_first_sentence(error)}), most likely for want of memory; run the same command "
                "again, with fewer of them"
            ) from error


def _first_sentence(error: Exception) -> str:
    return str(error).split(".")[0]


def _close(rows: list[grain.DatasetIterator], has_workers: bool) -> None:
    """Close and drop the iterator in `rows`; dropped at exit, it fails on modules already gone."""
    rows.pop().close()
    if has_workers:
        # Grain leaves shares that lie in shared memory in a reference cycle (the traceback of the
        # workers' StopIteration), and frees them in a thread; at exit, the rest counts as leaked.
        gc.collect()
        time.sleep(0.1)


def _taken(identity: Identity, records: np.ndarray) -> Identity:
    """Return the identity of the records; in padding rows -1, False or 0."""
    is_real = records != PADDING
    taken = []
    for values in identity:
        fill = -1 if values.dtype == np.int32 else 0
        shape = (-1,) + (1,) * (values.ndim - 1)
        taken.append(np.where(is_real.reshape(shape), values[records], values.dtype.type(fill)))
    return Identity(*taken)
