"""Where training starts from if not from a fresh draw: `config.tune.init`.

A workdir, a checkpoint or a `peft` export gives adapters, heads and temperature. A PEFT adapter
that was made elsewhere gives its adapters, if they are those that the configuration places; head
and temperature start fresh.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vtalign_jax import remote
from vtalign_jax.config import Config, TuneConfig, to_dict
from vtalign_jax.errors import UserError
from vtalign_jax.interop import embedding_files, peft
from vtalign_jax.interop.base_files import read_json
from vtalign_jax.interop.forms import SETTINGS
from vtalign_jax.models.parameters import Parameters
from vtalign_jax.training.assemble import Assembly
from vtalign_jax.training.trained import load_trained

# What the leaves' shapes and meaning follow from. Dropout may change, and so may the losses.
_AGREE = (
    "model.embedding_dim",
    "model.head",
    "model.pooling",
    "tune.connector",
    "tune.text_blocks",
    "tune.mlp",
    "tune.rank",
    "tune.alpha",
    "tune.rank_stabilized",
)
# Of adapter_config.json: the values that make plain LoRA. Each may be absent, as in PEFT 0.11.1.
_PLAIN = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None,),
}
_NAMED = 3  # layers named in an error


class Initial(NamedTuple):
    """What training starts from.

    Attributes:
      params: `{path: float32}`; a trainable leaf that is not among them starts fresh.
      facts: for the manifest.
    """

    params: dict[str, np.ndarray]
    facts: dict[str, Any]


FRESH = Initial({}, {})


def read_initial(config: Config, assembly: Assembly, say: Callable[[str], None]) -> Initial:
    """Return the leaves that `config.tune.init` names, checked against the configuration.

    Args:
      config: of the run.
      assembly: of it.
      say: prints what was read, and what starts fresh all the same.

    Raises:
      UserError: nothing of the kind is there, it was trained on another base model, or it does not
        fit the configuration; the message names the fields.
    """
    if not config.tune.init:
        return FRESH
    path = remote.path(config.tune.init)
    is_foreign = (path / peft.ADAPTER_CONFIG).exists() and not (path / SETTINGS).exists()
    if is_foreign:
        adapter = remote.fetch(path)
        params, source = _read_foreign(adapter, config.tune, assembly), f"PEFT adapter {path}"
        known = {"base": read_json(adapter, peft.ADAPTER_CONFIG).get("base_model_name_or_path")}
    else:
        trained = load_trained(path, config.model.base)
        _check_agreement(trained.config, config, trained.source)
        params, source = trained.params, trained.source
        known = {"step": trained.facts["step"], "fingerprints": trained.facts["fingerprints"]}
    params = {path: value for path, value in params.items() if path in assembly.trainable}
    fresh = sorted(assembly.trainable.keys() - params.keys())
    heads = sorted({name.split(".")[0] for name in fresh})
    if is_foreign:
        say(f"{source} was made for {known['base']!r}; it is taken to be this base model")
    say(f"starting from {source}" + (f"; {', '.join(heads)} start fresh" if heads else ""))
    facts = {"path": str(remote.absolute(path)), "source": source, "sha256": _digest(params)}
    return Initial(params, {"started_from": facts | known | {"fresh": heads}})


def place(initial: Initial, params: Parameters) -> Parameters:
    """Return the trainable leaves, those of `initial` in the places of the drawn ones.

    With `FRESH` it is `params` itself.
    """
    given = initial.params
    if not given:
        return params
    return {
        path: jax.device_put(given[path], value.sharding) if path in given else value
        for path, value in params.items()
    }


def _check_agreement(theirs: Config, ours: Config, source: str) -> None:
    before, now = to_dict(theirs), to_dict(ours)
    differing = []
    for name in _AGREE:
        section, field = name.split(".")
        if before[section][field] != now[section][field]:
            differing.append(
                f"config.{name} was {before[section][field]!r} and is {now[section][field]!r}"
            )
    if differing:
        raise UserError(
            f"config.tune.init: {source} does not fit this run: {'; '.join(differing)}; give the "
            "values it was trained with, or leave config.tune.init out"
        )


def _read_foreign(path: Path, tune: TuneConfig, assembly: Assembly) -> dict[str, np.ndarray]:
    """Return the adapters of a PEFT folder that this package did not write."""
    settings = read_json(path, peft.ADAPTER_CONFIG)
    problems = [
        f"{name} is {settings[name]!r}, only plain LoRA is read"
        for name, allowed in _PLAIN.items()
        if name in settings and settings[name] not in allowed
    ]
    for name, field in (("r", "rank"), ("lora_alpha", "alpha"), ("use_rslora", "rank_stabilized")):
        theirs, ours = settings.get(name, False), getattr(tune, field)
        if theirs != ours:
            problems.append(f"{name} is {theirs!r}, config.tune.{field} is {ours!r}")
    if not (path / peft.ADAPTER).is_file():
        problems.append(f"it has no {peft.ADAPTER}; save it as safetensors")
    if problems:
        raise UserError(f"config.tune.init: {path} does not fit this run: {'; '.join(problems)}")
    shapes = assembly.trainable | assembly.frozen
    keys = peft.adapter_keys(assembly.trainable, shapes)
    tensors = embedding_files.read_tensors(path / peft.ADAPTER)
    expected = {name for names in keys.values() for name in names}
    if different := sorted(expected ^ tensors.keys()):
        listed = [
            f"{name} is {'missing' if name in expected else 'not expected'}"
            for name in different[:_NAMED]
        ]
        more = f" and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
        raise UserError(
            f"config.tune.init: {path} does not sit where this run places adapters: "
            f"{'; '.join(listed)}{more}; set config.tune.connector, text_blocks and mlp as it was "
            "trained, on all of q, k, v and o"
        )
    leaves = peft.adapter_leaves(tensors, keys, shapes)
    taken = {path: np.array(value, np.float32, order="C") for path, value in leaves.items()}
    embedding_files.check_finite(taken, f"config.tune.init: {path}: ", "take another adapter")
    return taken


def _digest(params: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for path, value in sorted(params.items()):
        digest.update(path.encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:16]
