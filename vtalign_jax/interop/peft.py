"""The `peft` form: an adapter that PEFT loads, with the base's tokenizer; and back in.

Files: `adapter_model.safetensors` and `adapter_config.json` (PEFT's), the base's tokenizer and
processor files.

Source: PEFT's checkpoint format, https://huggingface.co/docs/peft/developer_guides/checkpoint.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from vtalign_jax.config import TuneConfig
from vtalign_jax.errors import UserError
from vtalign_jax.interop.base_files import TOKENIZER_FILES, copy_files, stored_tensors
from vtalign_jax.interop.embedding_files import (
    BASE,
    Parts,
    check_finite,
    fitting_leaves,
    read_head,
    read_tensors,
)
from vtalign_jax.interop.weights import hugging_face_sources

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"

_PREFIX = "base_model.model."
_LEAVES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "kernel": "weight"}
_TOWER = "model.vision_model."
_COPIED = (  # of the base, where it has them
    *TOKENIZER_FILES,
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
    base = {p.removeprefix(BASE): x for p, x in shapes.items() if p.startswith(BASE)}
    sources = hugging_face_sources(base)
    keys = {}
    for path in paths:
        if not path.startswith(BASE):
            continue
        module, leaf = path.removeprefix(BASE).rsplit(".", 1)
        weights = sources[f"{module}.kernel"].keys
        keys[path] = tuple(
            _PREFIX + weight.removesuffix("weight") + _LEAVES[leaf] for weight in weights
        )
    return keys


def adapter_tensors(
    params: Mapping[str, np.ndarray], keys: Mapping[str, tuple[str, ...]]
) -> dict[str, np.ndarray]:
    """Return `{PEFT's key: float32[out, in]}` of the trained leaves of the base.

    Raises:
      UserError: two leaves have one key.
    """
    claimed = [name for names in keys.values() for name in names]
    if len(set(claimed)) < len(claimed):
        twice = next(name for name in claimed if claimed.count(name) > 1)
        raise UserError(f"{twice} is matched by two trained leaves; only one could be loaded")
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
    targets = {module_of(key) for key in keys if ".lora_" in key}
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
        "modules_to_save": sorted({module_of(key) for key in keys} - targets) or None,
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


def check(adapter: Mapping[str, np.ndarray], base_directory: Path) -> None:
    """Refuse an adapter that would load as nothing, or not where it was trained.

    Raises:
      UserError: a LoRA B of zeros, values that are not finite, or a key that belongs to no
        linear layer of the base, to its vision tower, or to a layer that another key changes too.
    """
    targets = {module_of(key) for key in adapter if ".lora_" in key}
    replaced = [module_of(key) for key in adapter if ".lora_" not in key]
    zero = sorted(
        key for key, x in adapter.items() if key.endswith("lora_B.weight") and not x.any()
    )
    if zero:
        raise UserError(
            f"LoRA B is zero in {len(zero)} of {len(targets)} layers ({zero[0]}): this is an "
            "untrained checkpoint; train longer, or name a later one with --checkpoint"
        )
    check_finite(adapter)
    if twice := sorted(targets.intersection(replaced)):
        raise UserError(f"{twice[0]} is both adapted and replaced; only one of them can be loaded")
    stored = stored_tensors(base_directory)
    matrices = {key.removesuffix(".weight") for key, x in stored.items() if len(x.shape) == 2}
    foreign = {module_of(key) for key in adapter} - matrices
    pattern = target_pattern(targets)
    matched = {module for module in matrices if re.fullmatch(pattern, module)}
    tower = {module for module in {*matched, *replaced} if module.startswith(_TOWER)}
    if tower:
        raise UserError(
            f"the adapter would be placed in the vision tower, which is not trained: "
            f"{', '.join(sorted(tower)[:4])}"
        )
    wrong = sorted(foreign | (matched ^ targets))
    if wrong:
        raise UserError(
            f"the adapter does not fit the linear layers of {base_directory}: "
            f"{', '.join(wrong[:4])}; give the base model it was trained on with --base"
        )


def write(folder: Path, parts: Parts) -> None:
    """Write the adapter and the base's tokenizer and processor files.

    Raises:
      UserError: there is no adapter.
    """
    if not any(".lora_" in key for key in parts.adapter):
        raise UserError(
            "this checkpoint has no LoRA, so there is no adapter to export; train with "
            "config.tune.text_blocks of 1 or more, or export with --format=merged or "
            "--format=sentence-transformers (of a merged export, name the run instead)"
        )
    # PEFT and transformers look at the metadata's format before they read.
    save_file(parts.adapter, folder / ADAPTER, metadata={"format": "pt"})
    configuration = adapter_config(parts.adapter, parts.tune, parts.settings["base"])
    (folder / ADAPTER_CONFIG).write_text(json.dumps(configuration, indent=2))
    copy_files(parts.directory, folder, _COPIED)


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
    wanted = {path: shapes[path] for path in paths}
    keys = adapter_keys(wanted, shapes)
    tensors = read_tensors(folder / ADAPTER)
    leaves = adapter_leaves(tensors, keys, shapes) | read_head(folder)
    return fitting_leaves(folder, leaves, wanted)


def module_of(key: str) -> str:
    """Return the base's module that a key of the adapter belongs to."""
    return re.sub(r"(\.lora_[AB])?\.weight$", "", key.removeprefix(_PREFIX))
