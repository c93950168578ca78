"""Which records stand in which batch: a pure function of seed, step, dataset and batch size.

Every process computes the same global order and slices it, so neither a restart nor another number
of processes changes a batch. An epoch is `ceil(N / B)` steps, no record comes twice in it, and only
its last batch is padded. Where datasets are mixed by weights, N counts what an epoch takes of them.
"""

import hashlib
import threading
from collections.abc import Sequence

import numpy as np

PADDING = -1  # the record of a row that only fills up a batch


def steps_per_epoch(records: int, batch: int) -> int:
    """Return the steps in which every record is seen once: ceil(records / batch)."""
    return -(-records // batch)


class SequentialOrder:
    """The batches of an evaluation: the records in order, the last batch padded."""

    def __init__(self, records: int, batch: int) -> None:
        self._records = records
        self._batch = batch

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self._records, self._batch)

    def records(self, step: int) -> np.ndarray:
        """Return int32[batch], the records of `step`, -1 in padding rows."""
        first = step % self.steps_per_epoch * self._batch
        rows = np.arange(first, first + self._batch, dtype=np.int32)
        return np.where(rows < self._records, rows, np.int32(PADDING))


class BatchOrder:
    """The batches of a training run.

    A batch starts with its groups: up to `group_size` clips of one recording, whole groups until
    `grouped_fraction` of the rows is filled, so that soft negatives exist (docs/plan.md). The
    other rows are singles, as are all rows once an epoch's groups have run out.

    Attributes:
      epoch_records: N.
    """

    def __init__(
        self,
        recording: np.ndarray,
        seed: int,
        fingerprint: str,
        contrastive_batch: int,
        grouped_fraction: float,
        group_size: int,
        datasets: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Prepare; an epoch is arranged when its first batch is asked for.

        Args:
          recording: int[records], the recording of each.
          seed: of the run.
          fingerprint: of the dataset.
          contrastive_batch: B.
          grouped_fraction: share of a batch in groups.
          group_size: most clips of a group.
          datasets: (records, how many of them an epoch takes), in the order of the records; an
            epoch draws them anew. None: all records.
        """
        self.epoch_records = sum(taken for _, taken in datasets) or len(recording)
        self._datasets = datasets
        self._recording = np.ascontiguousarray(recording, np.int32)
        self._key = f"{seed}/{fingerprint}/{contrastive_batch}"
        self._batch = contrastive_batch
        self._grouped_fraction = grouped_fraction
        self._group_size = group_size
        self._epochs: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_epochs": {}, "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.epoch_records, self._batch)

    def records(self, step: int) -> np.ndarray:
        """Return int32[B], the records of the global batch of `step`, -1 in padding rows."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        with self._lock:  # reading threads ask for the same epoch at once
            if epoch not in self._epochs:
                self._epochs.pop(epoch - 2, None)  # prefetching spans two epochs, not three
                self._epochs[epoch] = self._arranged(epoch)
            return self._epochs[epoch][step_in_epoch]

    def _arranged(self, epoch: int) -> np.ndarray:
        """Return int32[steps, B], one epoch."""
        count, steps = self.epoch_records, self.steps_per_epoch
        capacity = np.full(steps, self._batch)
        capacity[-1] = count - (steps - 1) * self._batch
        quota = np.rint(self._grouped_fraction * capacity).astype(int)
        # Where the share is smaller than a group, the group shrinks with it, down to a pair.
        size = min(self._group_size, max(int(quota[0]), 2))
        permutation = _permutation(f"{self._key}/{epoch}/records", len(self._recording))
        shuffled = _drawn(permutation, self._datasets)
        groups, lengths = _groups(self._recording, shuffled, size)
        by_turn = _permutation(f"{self._key}/{epoch}/groups", len(lengths))
        grouped, step_of_grouped = _fill(groups, lengths, by_turn, quota, capacity)

        is_single = np.ones(len(self._recording), bool)
        is_single[grouped] = False
        singles = shuffled[is_single[shuffled]]
        free = capacity - np.bincount(step_of_grouped, minlength=steps)
        records = np.concatenate([grouped, singles])
        step_of = np.concatenate([step_of_grouped, np.repeat(np.arange(steps), free)])
        arranged = np.full(steps * self._batch, PADDING, np.int32)
        arranged[:count] = records[np.argsort(step_of, kind="stable")]
        return arranged.reshape(steps, self._batch)


def _permutation(key: str, count: int) -> np.ndarray:
    """Return a permutation of `count` that depends on `key` alone.

    Philox's stream is fixed by its specification; `Generator.permutation` may change with NumPy
    (NEP 19), and with it the batches of a resumed run.
    """
    digest = hashlib.sha256(key.encode()).digest()
    bits = np.random.Philox(key=np.frombuffer(digest[:16], "<u8"))
    return np.argsort(bits.random_raw(count), kind="stable")


def _drawn(shuffled: np.ndarray, datasets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the shuffled records without those of a dataset that are too many for an epoch."""
    is_taken, first = np.ones(len(shuffled), bool), 0
    for records, taken in datasets:
        places = np.flatnonzero((shuffled >= first) & (shuffled < first + records))
        is_taken[places[taken:]] = False
        first += records
    return shuffled[is_taken]


def _groups(
    recording: np.ndarray, shuffled: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cut each recording's shuffled records into groups of up to `size`, at least 2.

    Returns:
      int[R], the records that are in a group, group after group, and int[G], the groups' lengths.
    """
    by_recording = shuffled[np.argsort(recording[shuffled], kind="stable")]
    sorted_recording = recording[by_recording]
    position = np.arange(len(by_recording))
    is_first = np.diff(sorted_recording, prepend=sorted_recording[:1] - 1) != 0
    first = np.maximum.accumulate(np.where(is_first, position, 0))
    starts = np.flatnonzero((position - first) % size == 0)
    lengths = np.diff(starts, append=len(by_recording))
    in_group = np.repeat(lengths > 1, lengths)
    return by_recording[in_group], lengths[lengths > 1]


def _fill(
    groups: np.ndarray,
    lengths: np.ndarray,
    by_turn: np.ndarray,
    quota: np.ndarray,
    capacity: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Deal whole groups to the steps until each has its quota of rows, or none is left.

    Returns:
      int[R], records dealt out, and int[R], the step of each. A group that would not fit into its
      step is cut; what is cut off becomes singles.
    """
    starts = np.cumsum(lengths) - lengths
    lengths, starts = lengths[by_turn], starts[by_turn]
    ends = np.cumsum(lengths)
    taken = np.zeros(len(quota) + 1, int)  # groups dealt before each step
    rows = 0
    for step, wanted in enumerate(quota.tolist()):
        reached = np.searchsorted(ends, rows + wanted) + 1 if wanted else taken[step]
        taken[step + 1] = min(reached, len(ends))
        rows = int(ends[taken[step + 1] - 1]) if taken[step + 1] else 0
    lengths, starts, ends = (values[: taken[-1]] for values in (lengths, starts, ends))
    step_of_group = np.repeat(np.arange(len(quota)), np.diff(taken))
    step_of = np.repeat(step_of_group, lengths)
    within_group = np.arange(len(step_of)) - np.repeat(ends - lengths, lengths)
    records = groups[np.repeat(starts, lengths) + within_group]
    first_row = np.concatenate([[0], ends])[taken[:-1]]
    fits = np.arange(len(step_of)) - first_row[step_of] < capacity[step_of]
    return records[fits], step_of[fits]
