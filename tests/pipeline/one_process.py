"""One process of several that share each batch: prints a digest of its slice of each step.

python -m tests.pipeline.one_process DATA_DIRS PROCESS COUNT START STEPS
"""

import hashlib
import sys

import jax
import numpy as np

from tests.pipeline.clip_fixtures import FakeTokenizer
from vtalign_jax.config import resolve
from vtalign_jax.pipeline.dataset import open_split
from vtalign_jax.pipeline.loader import make_loader

BATCH = 16


def load(split, *, process=0, count=1, start=0, steps=200, workers=0):
    """Return the loader of one process; everything that is drawn at random is on."""
    data = {
        "weights": "3,2",
        "frames": 2,
        "jitter": True,
        "parent_text_probability": 0.5,
        "max_text_tokens": 24,
        "workers": workers,
    }
    config = resolve({"data": data, "train": {"contrastive_batch": BATCH, "seed": 3}})
    return make_loader(
        split,
        FakeTokenizer(),
        config,
        start_step=start,
        num_steps=steps,
        process_index=process,
        process_count=count,
        train=True,
    )


def digest(batch):
    """Return a digest over every field of a batch."""
    hashed = hashlib.sha256()
    for values in jax.tree.leaves(batch):
        hashed.update(f"{values.dtype}{values.shape}".encode())
        hashed.update(np.ascontiguousarray(values).tobytes())
    return hashed.hexdigest()


if __name__ == "__main__":
    process, count, start, steps = map(int, sys.argv[2:])
    split = open_split(sys.argv[1], "train")
    loader = load(split, process=process, count=count, start=start, steps=steps)
    for step, batch in loader:
        print(step, digest(batch))
