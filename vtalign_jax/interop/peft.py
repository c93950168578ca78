"""The `peft` export: an adapter folder that PEFT loads, head and settings beside it; and back in.

Files: `adapter_model.safetensors` and `adapter_config.json` (PEFT's), `head.safetensors` (heads and
log temperature), `vtalign.json` (what an embedding needs beyond weights), the base's
tokenizer and processor files, `embed.py`, the certificate and the model card.

Source: PEFT's checkpoint format, https://huggingface.co/docs/peft/developer_guides/checkpoint.
"""

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vtalign_jax.config import TuneConfig
from vtalign_jax.errors import UserError
from vtalign_jax.interop.base_files import read_json, stored_tensors
from vtalign_jax.interop.model_card import SETTINGS
from vtalign_jax.interop.weights import hugging_face_sources

ADAPTER, ADAPTER_CONFIG, HEAD = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "head.safetensors",
)

FORMAT = 1  # of vtalign.json

_BASE = "base."  # where an AlignerModel holds its SmolVLM
_MATCHING = "matching_head."  # of training alone: no embedding goes through it
_PREFIX = "base_model.model."
_LEAVES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "kernel": "weight"}
_TOWER = "model.vision_model."
_EMBED = Path(__file__).with_name("torch_scripts") / "embed.py"
_COPIED = (  # of the base, where it has them
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)


def adapter_keys(
    paths: Iterable[str], shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, tuple[str, ...]]:
    """Return PEFT's keys of each trained leaf of the base, one a stacked block.

    Args:
      paths: the trainable leaves of an `AlignerModel`.
      shapes: `{path: shape and dtype}` of every leaf of it.
    """
    base = {p.removeprefix(_BASE): x for p, x in shapes.items() if p.startswith(_BASE)}
    sources = hugging_face_sources(base)
    keys = {}
    for path in paths:
        if not path.startswith(_BASE):
            continue
        module, leaf = path.removeprefix(_BASE).rsplit(".", 1)
        weights = sources[f"{module}.kernel"].keys
        keys[path] = tuple(
            _PREFIX + weight.removesuffix("weight") + _LEAVES[leaf] for weight in weights
        )
    return keys


def adapter_tensors(
    params: Mapping[str, np.ndarray], keys: Mapping[str, tuple[str, ...]]
) -> dict[str, np.ndarray]:
    """Return `{PEFT's key: float32[out, in]}` of the trained leaves of the base."""
    tensors = {}
    for path, names in keys.items():
        parts = params[path] if params[path].ndim == 3 else params[path][None]
        for name, part in zip(names, parts, strict=True):
            tensors[name] = np.ascontiguousarray(part.T, np.float32)
    return tensors


def adapter_leaves(
    tensors: Mapping[str, np.ndarray],
    keys: Mapping[str, tuple[str, ...]],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, np.ndarray]:
    """Return our leaves of PEFT's tensors: the inverse of `adapter_tensors`.

    Raises:
      UserError: keys are missing, unexpected or of another shape.
    """
    expected = {name for names in keys.values() for name in names}
    problems = [f"{name} is missing" for name in sorted(expected - set(tensors))]
    problems += [f"{name} is not expected" for name in sorted(set(tensors) - expected)]
    leaves = {}
    for path, names in keys.items():
        parts = [tensors[name].T for name in names if name in tensors]
        stacked = len(shapes[path].shape) == 3
        wanted = shapes[path].shape[1:] if stacked else shapes[path].shape
        wrong = [name for name, part in zip(names, parts, strict=False) if part.shape != wanted]
        problems += [f"{name} has another shape" for name in wrong]
        if not problems:
            leaves[path] = np.stack(parts) if stacked else parts[0]
    if problems:
        raise UserError(
            f"{ADAPTER} does not fit its settings and base model: {'; '.join(problems[:4])}; "
            "was a file replaced?"
        )
    return leaves


def adapter_config(keys: Iterable[str], tune: TuneConfig, base: str) -> dict[str, Any]:
    """Return `adapter_config.json`, with no key that PEFT 0.11.1 does not know.

    Args:
      keys: of the adapter's tensors.
      tune: rank, alpha, how they scale, and dropout.
      base: hub id or directory of the base model.
    """
    targets = {_module(key) for key in keys if ".lora_" in key}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "revision": None,
        "task_type": None,
        "inference_mode": True,
        "r": tune.rank,
        "lora_alpha": int(tune.alpha) if tune.alpha == int(tune.alpha) else tune.alpha,
        "lora_dropout": tune.dropout,
        "use_rslora": tune.rank_stabilized,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": target_pattern(targets),
        "modules_to_save": sorted({_module(key) for key in keys} - targets) or None,
    }


def target_pattern(modules: set[str]) -> str:
    """Return one anchored regular expression for exactly these module names.

    Suffixes such as `q_proj`, which PEFT also takes, would match the vision tower as well.
    """
    blocks: dict[str, set[int]] = {}
    for module in modules:
        number = re.search(r"(?<=\.layers\.)\d+(?=\.)", module)
        name = module[: number.start()] + "{}" + module[number.end() :] if number else module
        blocks.setdefault(name, set()).update([int(number[0])] if number else [])
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, numbers in sorted(blocks.items()):
        groups.setdefault(tuple(sorted(numbers)), []).append(re.escape(name))
    parts = []
    for numbers, names in groups.items():
        span = f"({'|'.join(map(str, numbers))})"
        parts += [name.replace(re.escape("{}"), span) for name in names]
    return f"^({'|'.join(parts)})$"


def head_tensors(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the heads with torch's names and layout, and the log temperature.

    The matching head stays behind.
    """
    return {
        path.replace(".kernel", ".weight"): np.array(value.T, np.float32, order="C")
        for path, value in params.items()
        if not path.startswith((_BASE, _MATCHING))
    }


def head_leaves(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return our leaves of `head.safetensors`: the inverse of `head_tensors`."""
    return {
        key.replace(".weight", ".kernel"): value.T if key.endswith(".weight") else value
        for key, value in tensors.items()
    }


def check(
    adapter: Mapping[str, np.ndarray], head: Mapping[str, np.ndarray], base_directory: Path
) -> None:
    """Refuse an adapter that would load as nothing, or not where it was trained.

    Raises:
      UserError: no LoRA, a LoRA B of zeros, values that are not finite, no head, or a key that
        belongs to no linear layer of the base or to its vision tower.
    """
    targets = {_module(key) for key in adapter if ".lora_" in key}
    if not targets:
        raise UserError(
            "this checkpoint has no LoRA, so there is no adapter to export; train with "
            "config.tune.text_blocks of 1 or more"
        )
    zero = sorted(
        key for key, x in adapter.items() if key.endswith("lora_B.weight") and not x.any()
    )
    if zero:
        raise UserError(
            f"LoRA B is zero in {len(zero)} of {len(targets)} layers ({zero[0]}): this is an "
            "untrained checkpoint; train longer, or name a later one with --checkpoint"
        )
    broken = sorted(k for k, x in {**adapter, **head}.items() if not np.isfinite(x).all())
    if broken:
        raise UserError(f"{broken[0]} is not finite; name an earlier checkpoint with --checkpoint")
    if not any(key.endswith("fc2.weight") for key in head):
        raise UserError("this checkpoint has no projection head; it cannot give embeddings")
    stored = stored_tensors(base_directory)
    matrices = {key.removesuffix(".weight") for key, x in stored.items() if len(x.shape) == 2}
    foreign = {_module(key) for key in adapter} - matrices
    pattern = target_pattern(targets)
    matched = {module for module in matrices if re.fullmatch(pattern, module)}
    tower = {module for module in matched if module.startswith(_TOWER)}
    wrong = sorted(foreign | tower | (matched ^ targets))
    if wrong:
        raise UserError(
            f"the adapter does not fit the linear layers of {base_directory}: "
            f"{', '.join(wrong[:4])}; give the base model it was trained on with --base"
        )


def write(
    folder: Path,
    adapter: Mapping[str, np.ndarray],
    head: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    base_directory: Path,
) -> None:
    """Write everything but certificate and model card.

    Args:
      folder: an empty folder.
      adapter: of `adapter_tensors`, checked.
      head: of `head_tensors`.
      settings: for `vtalign.json`; holds `base` and the run's `config`.
      base_directory: where tokenizer and processor files are copied from.
    """
    tune = TuneConfig(**settings["config"]["tune"])
    # PEFT and transformers look at the metadata's format before they read.
    save_file(dict(adapter), folder / ADAPTER, metadata={"format": "pt"})
    save_file(dict(head), folder / HEAD, metadata={"format": "pt"})
    configuration = adapter_config(adapter, tune, settings["base"])
    (folder / ADAPTER_CONFIG).write_text(json.dumps(configuration, indent=2))
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1))
    for name in _COPIED:
        if (base_directory / name).is_file():
            shutil.copyfile(base_directory / name, folder / name)
    shutil.copyfile(_EMBED, folder / "embed.py")


def read(
    folder: Path,
    paths: Iterable[str],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, np.ndarray]:
    """Return the trained leaves `{path: float32}` of an export.

    Args:
      folder: the export.
      paths: the trainable leaves of an `AlignerModel`.
      shapes: `{path: shape and dtype}` of every leaf of it.

    Raises:
      UserError: a file is missing or damaged, or its keys do not fit.
    """
    for name in (ADAPTER, HEAD):
        if not (folder / name).is_file():
            raise UserError(f"the export {folder} has no {name}; copy the whole folder")
    paths = list(paths)
    keys = adapter_keys(paths, shapes)
    leaves = adapter_leaves(read_tensors(folder / ADAPTER), keys, shapes)
    leaves |= head_leaves(read_tensors(folder / HEAD))
    leaves.pop("position_ids", None)  # embed.py's, follow from the base
    wrong = sorted(set(paths) ^ set(leaves))
    wrong += [p for p in paths if p in leaves and leaves[p].shape != shapes[p].shape]
    if wrong:
        raise UserError(f"{folder} does not fit its {SETTINGS}: {', '.join(wrong[:4])}")
    return {path: np.array(leaves[path], np.float32, order="C") for path in paths}


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """Return the tensors of an export's file.

    Raises:
      UserError: it is damaged.
    """
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"cannot read {file} ({error}); copy the export again") from error


def read_settings(folder: Path) -> dict[str, Any]:
    """Return `vtalign.json`.

    Raises:
      UserError: it is damaged, or of a later version of this package.
    """
    settings = read_json(folder, SETTINGS)
    if settings.get("format") != FORMAT:
        raise UserError(
            f"{folder / SETTINGS} has format {settings.get('format')!r}, this version reads "
            f"{FORMAT}; update vtalign_jax"
        )
    return settings


def _module(key: str) -> str:
    return re.sub(r"(\.lora_[AB])?\.weight$", "", key.removeprefix(_PREFIX))
