"""How deep a configuration allows features to be cached, and what cached features follow from."""

import hashlib
import json
from typing import Any

from vtalign_jax import json_files, remote
from vtalign_jax.config import Config
from vtalign_jax.errors import UserError
from vtalign_jax.feature_cache.stored import AGAIN, INDEX, KEY, StoredFeatures, read_json
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.pipeline.dataset import ClipSplit

DEPTHS = ("tower", "connector", "decoder")
_VERSION = 1  # to be raised whenever the same frames and weights give other features

# What each part of a key is, in the words of an error.
_NAMES = {
    "version": "the version of this package's features",
    "depth": "--depth",
    "data": "the dataset of config.data.dir",
    "records": "the number of clips",
    "base": "the files of config.model.base",
    "image_size": "the model's image size",
    "compute_dtype": "config.model.compute_dtype",
    "frozen_dtype": "config.model.frozen_dtype",
    "frames": "config.data.frames",
    "text_blocks": "config.tune.text_blocks",
    "max_text_tokens": "config.data.max_text_tokens",
    "captions": "captions after the clips (config.objective.caption_weight above 0)",
    "parent_text": "the parent texts of config.data",
}


def deepest(config: Config, base: SmolVLMConfig) -> str:
    """Return the depth below which nothing is trained."""
    if config.tune.connector != "frozen":
        return "tower"
    return "connector" if config.tune.text_blocks >= base.text.num_hidden_layers else "decoder"


def check_depth(depth: str, config: Config, *, train: bool) -> None:
    """Refuse features of a depth at which they are not the same in every epoch.

    Args:
      depth: of the features.
      config: of the run.
      train: whether they are trained on, not only evaluated.

    Raises:
      UserError: names the field that does not go together with the depth.
    """
    tune, data = config.tune, config.data
    if depth != "tower" and tune.connector != "frozen":
        raise UserError(
            f"features after the {depth} are no fixed ones with config.tune.connector="
            f"{tune.connector}, which trains it; use --depth=tower, or "
            "config.tune.connector=frozen"
        )
    if depth != "decoder" or not train:
        return
    if data.jitter:
        raise UserError(
            "features inside the decoder are those of a whole clip, config.data.jitter=True shows "
            "other frames in every epoch; use --depth=connector, or config.data.jitter=False"
        )
    if 0.0 < data.parent_text_probability < 1.0:
        raise UserError(
            "features inside the decoder are those of one text, "
            f"config.data.parent_text_probability={data.parent_text_probability:g} shows others; "
            "use --depth=connector, or set it to 0 or 1"
        )


def make_key(
    config: Config,
    split: ClipSplit,
    base_fingerprint: str,
    image_size: int,
    depth: str,
    *,
    train: bool,
) -> dict[str, Any]:
    """Return everything that features follow from, as JSON values.

    Args:
      config: of the run.
      split: the records.
      base_fingerprint: of the base model's files. No adapter lies below any of the depths.
      image_size: pixels, of the model.
      depth: of the features.
      train: whether the split is trained on: with captions, and parent texts as in training.
    """
    model, data = config.model, config.data
    key = {
        "version": _VERSION,
        "depth": depth,
        "data": split.fingerprint,
        "records": len(split),
        "base": base_fingerprint,
        "image_size": image_size,
        "compute_dtype": model.compute_dtype,
        "frozen_dtype": model.frozen_dtype,
    }
    if depth != "decoder":
        return key
    has_parents = data.parent_text_probability > 0 if train else data.eval_parent_text
    return key | {
        "frames": data.frames,
        "text_blocks": config.tune.text_blocks,
        "max_text_tokens": data.max_text_tokens,
        "captions": train and config.objective.caption_weight > 0,
        "parent_text": data.parent_text if has_parents else "",
    }


def differences(found: dict[str, Any], needed: dict[str, Any]) -> list[str]:
    """Return in words what differs of two keys of one depth."""
    return [_NAMES.get(name, name) for name in needed if found.get(name) != needed[name]]


def attach(
    config: Config,
    base_fingerprint: str,
    image_size: int,
    *,
    train: ClipSplit | None = None,
    evaluate: ClipSplit | None = None,
) -> str:
    """Let splits be read from the cache of `config.data.feature_cache`, if there is to be one.

    Args:
      config: of the run.
      base_fingerprint: of the base model's files.
      image_size: pixels, of the model.
      train: the split that is trained on.
      evaluate: the split that is evaluated on.

    Returns:
      a fingerprint of what is read; "" without a cache.

    Raises:
      UserError: the cache is not there, incomplete, stale, or does not go with the configuration.
    """
    if not config.data.feature_cache:
        return ""
    found = []
    for split, is_train in ((train, True), (evaluate, False)):
        if split is not None:
            facts = base_fingerprint, image_size
            split.features = _open(config, split, *facts, train=is_train)
            found.append(split.features.fingerprint)
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def _open(
    config: Config, split: ClipSplit, base_fingerprint: str, image_size: int, *, train: bool
) -> StoredFeatures:
    path = config.data.feature_cache
    folder = remote.path(path) / split.name
    if (folder / INDEX).exists():
        folder = remote.fetch(folder)
    command = (
        f"run python launch/cache_features.py --config=... --out={path} with the overrides of this "
        "run, or read frames by config.data.feature_cache= (evaluate.py: --feature_cache=)"
    )
    index = read_json(folder / INDEX)
    if index is None:
        is_begun = (folder / KEY).exists()
        state = f"incomplete features in {folder}" if is_begun else f"no features in {folder}"
        raise UserError(f"{state}; {command}")
    json_files.require(index, {"key": dict, "key.depth": str}, folder / INDEX, AGAIN)
    depth = index["key"]["depth"]
    check_depth(depth, config, train=train)
    needed = make_key(config, split, base_fingerprint, image_size, depth, train=train)
    if not needed.get("captions", True):
        # They come after the clip, which is the same without.
        needed["captions"] = index["key"].get("captions")
    if differing := differences(index["key"], needed):
        raise UserError(
            f"stale features in {folder}, made with another value of {', '.join(differing)}; "
            f"{command} (--overwrite replaces them)"
        )
    return StoredFeatures(folder, index)
