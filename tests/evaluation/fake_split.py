"""A split that is a random batch of the small aligner, and its batches."""

from typing import NamedTuple

import jax
import numpy as np
import pyarrow as pa

from tests.tiny_aligner import make_batch
from vtalign_jax.array_types import Batch

CLIPS, BATCH = 21, 8


class StoredPart(NamedTuple):
    data_dir: str

    def __len__(self) -> int:
        return CLIPS


class FakeSplit:
    """Clips of a random batch."""

    name, fingerprint = "val", "f" * 64

    def __init__(self):
        self.batch = make_batch(CLIPS)
        self.identity = self.batch.identity
        self.parts = [StoredPart("datasets/small")]
        names = {
            "dataset": [""] * CLIPS,
            "level": [f"level {n}" for n in self.identity.level],
            "clip_id": [f"clip {n}" for n in range(CLIPS)],
            "recording_id": [f"recording {n}" for n in self.identity.recording],
        }
        self.table = pa.table(names)
        self.texts = [f"text {n}" for n in self.identity.text]

    def __len__(self):
        return CLIPS

    def padded(self, records) -> Batch:
        rows = jax.tree.map(lambda x: x[np.maximum(records, 0)], self.batch)
        identity = rows.identity._replace(record=records, row_mask=records >= 0)
        return rows._replace(identity=identity)


def padded_batches(split, tokenizer, config, **processes):
    for step, begin in enumerate(range(0, CLIPS, BATCH)):
        records = np.arange(begin, begin + BATCH, dtype=np.int32)
        yield step, split.padded(np.where(records < CLIPS, records, -1))
