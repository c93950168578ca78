"""Identity arrays for tests: every field that is not given makes the rows strangers."""

import numpy as np

from vtalign_jax.array_types import MAX_ANCESTORS, Identity


def make_identity(recording, *, real: int | None = None, **fields) -> Identity:
    """Return an `Identity` whose rows share nothing but what is given.

    Args:
      recording: recording of each row.
      real: number of rows that are not padding (default: all).
      **fields: any other field of `Identity`.
    """
    rows = len(recording)
    index = np.arange(rows)
    real = rows if real is None else real
    windows = np.stack([100.0 * index, 100.0 * index + 4.0], axis=1)
    defaults = {
        "row_mask": index < real,
        "record": np.where(index < real, index, -1),
        "uid": np.asarray(recording),
        "level": np.zeros(rows),
        "order": 10 * index,
        "node": index,
        "ancestors": np.full((rows, MAX_ANCESTORS), -1),
        "text": index,
        "window": windows,
        "span": windows,
        "signature": np.zeros((rows, 0)),
    }
    merged = defaults | fields | {"recording": recording}
    dtypes = {"row_mask": bool} | dict.fromkeys(("window", "span", "signature"), np.float32)
    return Identity(**{k: np.asarray(v, dtypes.get(k, np.int32)) for k, v in merged.items()})
