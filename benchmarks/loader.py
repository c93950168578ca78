"""How many clips a second the loader delivers on one core, beside PyTorch's DataLoader."""

import contextlib
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.recording import write_recording
from data.dst_clips.write import Listeners, Machines, write_dataset
from vtalign_jax.config import resolve
from vtalign_jax.dst.plan import make_plan
from vtalign_jax.interop.tiny import write_tiny_checkpoint
from vtalign_jax.interop.tokens import ClipTokenizer
from vtalign_jax.pipeline.clip_cache import ClipCache
from vtalign_jax.pipeline.dataset import ClipSplit, open_split
from vtalign_jax.pipeline.loader import make_loader
from vtalign_jax.pipeline.transforms import decode_frame

_MINUTES = 10  # of the synthetic recording: 200 clips
_BATCH, _CLIPS = 16, 480


def measure(dataset: str, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield one row: clips a second on one core, each way, and our best against PyTorch's best.

    Every way reads records of the same files at random, decodes the same JPEGs with Pillow and
    makes the same tokens; nothing comes from a cache. Without PyTorch its ways are left out, and
    the row says so.

    Args:
      dataset: what `prepare` wrote; "" for a synthetic one of 200 clips of 8 frames.
      repeats: counted runs of each way, taking turns.
    """
    with tempfile.TemporaryDirectory() as folder, _on_one_core():
        split, tokenizer = _open(dataset, pathlib.Path(folder))
        ways: dict[str, Callable[[], Iterator[int]]] = {
            "threads": lambda: _batches(split, tokenizer, workers=0),
            "worker": lambda: _batches(split, tokenizer, workers=1),
        }
        with contextlib.suppress(ImportError):
            ways |= _torch_ways(split, tokenizer)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                rates[name].append(_clips_a_second(way()))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ours = max(medians["threads"], medians["worker"])
    peers = [rate for name, rate in medians.items() if name.startswith("torch")]
    yield {
        "part": "input",
        "clips": len(split),
        "frames": split.frames,
        "image_size": split.image_size,
        "clips_a_second_a_core": {name: round(rate, 1) for name, rate in medians.items()},
        "ratio_to_torch": round(ours / max(peers), 2) if peers else "torch is not installed",
    }


def _clips_a_second(batches: Iterator[int]) -> float:
    """Return the rate after the first batch, before which workers start.

    Args:
      batches: gives the number of clips in each batch as it is delivered, padding not counted.
    """
    next(batches)
    began = time.perf_counter()
    return sum(batches) / (time.perf_counter() - began)


@contextlib.contextmanager
def _on_one_core() -> Iterator[None]:
    """Bind this process, and every one it starts, to one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _open(dataset: str, folder: pathlib.Path) -> tuple[ClipSplit, ClipTokenizer]:
    if not dataset:
        dataset = str(folder / "dataset")
        plan = make_plan(write_recording(folder, _MINUTES))
        write_dataset(plan, dataset, Machines(), Listeners())
    split = open_split(dataset, "train")
    split.clip_cache = ClipCache(0)
    write_tiny_checkpoint(folder / "base")
    tokenizer = ClipTokenizer(folder / "base")
    tokenizer.image_size = split.image_size  # the tiny model's tokens, full-size pictures
    return split, tokenizer


def _batches(split: ClipSplit, tokenizer: ClipTokenizer, workers: int) -> Iterator[int]:
    """Yield the clips of each batch of our loader."""
    config = resolve(
        {
            "data": {"frames": split.frames, "workers": workers},
            "train": {"contrastive_batch": _BATCH},
        }
    )
    batches = make_loader(
        split,
        tokenizer,
        config,
        start_step=0,
        num_steps=_CLIPS // _BATCH,
        process_index=0,
        process_count=1,
        train=True,
    )
    yield from (int(batch.identity.row_mask.sum()) for _, batch in batches)
    batches.close()


def _torch_ways(
    split: ClipSplit, tokenizer: ClipTokenizer
) -> dict[str, Callable[[], Iterator[int]]]:
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)  # more would wait for one another on the one core

    rows = _TorchRows(split, tokenizer)

    def batches(workers: int) -> Iterator[int]:
        sampler = np.random.default_rng(0).integers(len(split), size=_CLIPS).tolist()
        loader = DataLoader(
            rows,
            batch_size=_BATCH,
            sampler=sampler,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,  # fork and threads do not mix
        )
        yield from (len(batch["frames"]) for batch in loader)

    return {"torch": lambda: batches(0), "torch_worker": lambda: batches(1)}


class _TorchRows:
    """The same rows as a map-style dataset of PyTorch."""

    def __init__(self, split: ClipSplit, tokenizer: ClipTokenizer) -> None:
        self._split, self._tokenizer = split, tokenizer

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        split = self._split
        record = split.record(index)
        edge = split.image_size
        frames = np.zeros((split.frames, edge, edge, 3), np.uint8)
        for row, encoded in zip(frames, record.frames, strict=False):
            row[...] = decode_frame(encoded, edge, edge)
        window = [time - record.window_start for time in record.frame_times]
        clip = self._tokenizer.encode_clip(window, record.window_end - record.window_start)
        text = self._tokenizer.encode_text(record.text)
        most = self._tokenizer.max_clip_tokens(split.frames, split.longest_window_seconds)
        return {
            "frames": frames,
            "clip_ids": np.pad(clip, (0, most - len(clip))),
            "text_ids": np.pad(text, (0, 64 - len(text))),
        }
