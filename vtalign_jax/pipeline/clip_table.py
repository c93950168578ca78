"""The table of a split, checked before anything is made of it."""

import pyarrow as pa
import pyarrow.compute as pc
from etils import epath

from vtalign_jax.dst.mapped import holds_compressed
from vtalign_jax.dst.records import SCHEMA
from vtalign_jax.dst.tree import MAX_SECONDS
from vtalign_jax.errors import UserError

_FILE_MAGIC = b"ARROW1\0\0"  # before the stream
_MOST_SECONDS = 2 * MAX_SECONDS  # a window may reach beyond its node


def read_table(path: epath.Path) -> pa.Table:
    """Return the table of `clips-<split>.arrow`: every field of every record but the frames.

    Raises:
      UserError: it cannot be read, a column is missing or of another type, a value is missing, or
        a time is not finite or beyond all videos.
    """
    try:
        table = _read(path)
        table.validate(full=True)  # Arrow follows damaged offsets, and the process dies
        if problem := _problem(table):
            raise ValueError(problem)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read {path} ({error}); prepare the dataset again") from None
    return table


def _read(path: epath.Path) -> pa.Table:
    # Not mapped (it takes some 300 bytes a clip): if such a file is cut short meanwhile, the system
    # ends the process without a word.
    file = pa.BufferReader(path.read_bytes())
    file.seek(len(_FILE_MAGIC))
    if holds_compressed(file):
        raise ValueError("compressed record batches")
    file.seek(0)
    return pa.ipc.open_file(file).read_all()


def _problem(table: pa.Table) -> str:
    """Return what is wrong, "" for nothing."""
    for field in SCHEMA:
        name, found = field.name, table.schema.field(field.name).type
        if found != field.type:
            return f"column {name} is {found}, not {field.type}"
        column = table[name]
        values = pc.list_flatten(column) if pa.types.is_list(found) else column
        if column.null_count or values.null_count:
            return f"column {name} lacks values"
        # Compared, NaN is false.
        is_time = pa.types.is_floating(values.type)
        if is_time and not _all(pc.less_equal(pc.abs(values), _MOST_SECONDS)):
            return f"column {name} holds times that are none"
    lengths = pc.subtract(table["window_end"], table["window_start"])
    return "" if _all(pc.greater(lengths, 0.0)) else "a window ends before it starts"


def _all(values: pa.Array) -> bool:
    return pc.all(values, min_count=0).as_py()
