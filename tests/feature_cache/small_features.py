"""Features of a small dataset by a small model, written and read in one process."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np

from tests.pipeline.clip_fixtures import FakeTokenizer, make_clip, write_dataset
from tests.tiny_aligner import HF_CONFIG, IMAGE_TOKEN, TOKENS_PER_FRAME, make_aligner, make_config
from vtalign_jax import sharding
from vtalign_jax.config import Config, DataConfig, TrainConfig
from vtalign_jax.feature_cache import cost, keys, write
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.pipeline.dataset import ClipSplit, open_split

BASE = SmolVLMConfig.from_hf(HF_CONFIG)
EDGE = BASE.vision.image_size
FINGERPRINT = "b" * 16


class ImageTokenizer(FakeTokenizer):
    """Turns with image tokens, of the small model's vocabulary."""

    def __init__(self):
        super().__init__(EDGE)

    def encode_clip(self, frame_times, window_seconds):
        images = [IMAGE_TOKEN] * TOKENS_PER_FRAME
        shown = [token for t in frame_times for token in (10 + int(t), *images)]
        return np.array([5, *shown, 1], np.int32)

    def encode_text(self, text, max_tokens):
        shown = text if max_tokens is None else text[: max_tokens - 1]
        return np.array([*(6 + ord(c) % 60 for c in shown), 1], np.int32)

    def encode_caption(self, text, max_tokens):
        ids = self.encode_text(text, max_tokens - 1)
        return np.array([2, *ids], np.int32), np.arange(1 + len(ids)) > 0

    def max_clip_tokens(self, frames, window_seconds):
        return 2 + frames * (1 + TOKENS_PER_FRAME)


def make_small_splits(folder: pathlib.Path) -> pathlib.Path:
    """Write 15 clips to train on and 10 to validate; every third lacks its last stored frames."""

    def clips(names):
        made = []
        for recording in names:
            for n in range(5):
                clip = make_clip(recording, f"S{n}.{n}.a", 10.0 * n + 20, f"do {n} of {recording}")
                clip["parent_text"] = f"parent {n % 2}"
                if n % 3 == 2:
                    clip |= {name: clip[name][:2] for name in ("frames", "frame_times")}
                made.append(clip)
        return made

    splits = {"train": clips(["ra", "rb", "rc"]), "val": clips(["rd", "re"])}
    write_dataset(folder, splits)
    return folder


def make_run(dataset: pathlib.Path, cache: str = "", **sections) -> Config:
    """Return a configuration that shows 2 of the 4 stored frames."""
    data = {"dir": str(dataset), "frames": 2, "max_text_tokens": 12, "feature_cache": str(cache)}
    train = {"contrastive_batch": 8, "eval_batch": 8}
    sections["model"] = {"remat": "none"}
    sections["data"] = data | sections.get("data", {})
    sections["train"] = train | sections.get("train", {})
    return make_config(**sections)


def make_target(config: Config, folder: pathlib.Path, name: str, depth: str, dtype="float32"):
    """Return what is to be written of a split, three clips a file."""
    split = open_split(config.data.dir, name)
    is_trained = name == config.data.train_split
    key = keys.make_key(config, split, FINGERPRINT, EDGE, depth, train=is_trained)
    layout = cost.make_layout(depth, dtype, BASE)
    return write.Target(split, folder / name, key, layout, 3)


def make_machine(config: Config) -> write.Machine:
    """Return the small model on two devices."""
    bind, params, frozen, mesh = make_model(config)
    return write.Machine(bind, {**params, **frozen}, mesh, ImageTokenizer())


def make_model(config: Config) -> tuple:
    """Return (bind, params, frozen on two devices, mesh), the same for every cache and dataset."""
    return _make_model(dataclasses.replace(config, data=DataConfig(), train=TrainConfig()))


@functools.cache
def _make_model(config: Config) -> tuple:
    bind, params, frozen = make_aligner(config)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:2])
    return bind, params, jax.device_put(frozen, sharding.frozen_shardings(frozen, mesh)), mesh


def write_features(config: Config, folder: pathlib.Path, depth: str, dtype="float32") -> float:
    """Write both splits, as one process; return the error of storing."""
    machine, worst = make_machine(config), 0.0
    for name in ("train", "val"):
        target = make_target(config, folder, name, depth, dtype)
        write.begin(target, overwrite=False)
        is_trained = name == "train"
        error = write.write_shards(target, machine, config, (0, 1), train=is_trained)
        write.finish(target)
        worst = max(worst, error)
    return worst


def attached(config: Config) -> tuple[ClipSplit, ClipSplit]:
    """Return both splits, read from the cache that the configuration names, if any."""
    train, val = (open_split(config.data.dir, name) for name in ("train", "val"))
    keys.attach(config, FINGERPRINT, EDGE, train=train, evaluate=val)
    return train, val


def with_cache(config: Config, folder: pathlib.Path) -> Config:
    """Return the configuration with features instead of frames."""
    data = dataclasses.replace(config.data, feature_cache=str(folder))
    return dataclasses.replace(config, data=data)
