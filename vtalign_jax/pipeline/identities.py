"""The table of a split -> who each record is, strings as dense integers."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vtalign_jax.array_types import MAX_ANCESTORS, Identity
from vtalign_jax.errors import UserError


def make_identity(table: pa.Table, where: str) -> Identity:
    """Return who each row of the table is: NumPy arrays of N rows.

    Over several datasets: equal recording ids are one recording. Equal uids are one video, and
    equal node ids in it one node, only within a recording.

    Args:
      table: of one split, or those of several datasets one after the other.
      where: named in the error.

    Raises:
      UserError: a tree deeper than `MAX_ANCESTORS` allows.
    """
    count = table.num_rows
    recordings = _column(table, "recording_id")
    uids = _joined(recordings, _column(table, "uid"))
    ancestor_ids = _column(table, "ancestor_ids")
    owner = pc.list_parent_indices(ancestor_ids)
    above = pc.list_flatten(ancestor_ids).cast(pa.large_string())
    # A node id such as S1.1 says something only together with its video.
    of_records = _joined(uids, _column(table, "node_id"))
    nodes = dense(pa.concat_arrays([of_records, _joined(uids.take(owner), above)]))
    owner = owner.to_numpy()
    first = np.searchsorted(owner, np.arange(count))
    rank = np.arange(len(owner)) - first[owner]
    if rank.size and rank.max() >= MAX_ANCESTORS:
        clip_id = table["clip_id"][int(owner[rank.argmax()])].as_py()
        raise UserError(
            f"clip {clip_id} in {where} lies more than {MAX_ANCESTORS} levels below its root; "
            f"a DST has step, substep and action"
        )
    ancestors = np.full((count, MAX_ANCESTORS), -1, np.int32)
    ancestors[owner, rank] = nodes[count:]
    return Identity(
        row_mask=np.ones(count, bool),
        record=np.arange(count, dtype=np.int32),
        recording=dense(recordings),
        uid=dense(uids),
        level=dense(_column(table, "level")),
        order=_column(table, "order").to_numpy().astype(np.int32),
        node=nodes[:count],
        ancestors=ancestors,
        text=dense(_column(table, "text_key")),
        window=_interval(table, "window_start", "window_end"),
        span=_interval(table, "node_start", "node_end"),
        signature=np.zeros((count, 0), np.float32),
    )


def dense(values: pa.Array) -> np.ndarray:
    """Return int32[N], equal values as equal integers, numbered as they first appear."""
    return pc.dictionary_encode(values).indices.to_numpy().astype(np.int32)


def _column(table: pa.Table, name: str) -> pa.Array:
    column = table[name].combine_chunks()
    return column.cast(pa.large_string()) if pa.types.is_string(column.type) else column


def _joined(first: pa.Array, second: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(first, second, pa.scalar("\n", pa.large_string()))


def _interval(table: pa.Table, start: str, end: str) -> np.ndarray:
    """Return float32[N, 2], seconds."""
    return np.stack([table[start].to_numpy(), table[end].to_numpy()], axis=1).astype(np.float32)
