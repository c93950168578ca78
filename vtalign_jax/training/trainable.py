"""Which parameters are trained: one ordered table, every leaf matched exactly once."""

import re
from collections.abc import Mapping

import jax

from vtalign_jax.config import ModelConfig, TuneConfig
from vtalign_jax.models import parameters
from vtalign_jax.models.lora import AdapterConfig

TRAINABLE, FROZEN = "trainable", "frozen"


def adapter_config(tune: TuneConfig) -> AdapterConfig:
    """Return where LoRA is placed for these tuning choices."""
    return AdapterConfig(
        text_blocks=tune.text_blocks,
        rank=tune.rank,
        alpha=tune.alpha,
        dropout=tune.dropout,
        connector=tune.connector == "lora",
        mlp=tune.mlp,
        rank_stabilized=tune.rank_stabilized,
    )


def partition_rules(
    model: ModelConfig, tune: TuneConfig, *, has_lm_head: bool, has_matching_head: bool
) -> list[tuple[str, str]]:
    """Return the partition table: (pattern over whole paths, trainable or frozen)."""
    heads = "head" if model.head == "shared" else "(video|text)_head"
    connector = r"base\.connector\.modality_projection\.proj\."
    rules = [
        (rf"{heads}\.fc[12]\.(kernel|bias)", TRAINABLE),
        (r"log_temperature", TRAINABLE),
        (connector + "kernel", TRAINABLE if tune.connector == "full" else FROZEN),
        (r"base\.vision_model\..*", FROZEN),
        (r"base\.text_model\.(?!.*\.lora_[ab]$).*", FROZEN),
    ]
    if tune.connector == "lora":
        rules.append((connector + r"lora_[ab]", TRAINABLE))
    if tune.text_blocks:
        rules.append((r"base\.text_model\.tuned_layers\..*\.lora_[ab]", TRAINABLE))
    if has_lm_head:
        rules.append((r"base\.lm_head\..*", FROZEN))
    if has_matching_head:
        rules.append((r"matching_head\.fc[12]\.(kernel|bias)", TRAINABLE))
    return rules


def split(
    values: Mapping[str, object], model: ModelConfig, tune: TuneConfig
) -> tuple[dict[str, object], dict[str, object]]:
    """Return (trainable, frozen) of `{path: value}` by the partition table.

    Raises:
      ValueError: a path without exactly one rule, or a rule without a path.
    """
    optional = {"has_lm_head": "base.lm_head.", "has_matching_head": "matching_head."}
    present = {
        name: any(path.startswith(start) for path in values) for name, start in optional.items()
    }
    kinds = parameters.match(partition_rules(model, tune, **present), list(values))
    trainable = {path: value for path, value in values.items() if kinds[path] == TRAINABLE}
    frozen = {path: value for path, value in values.items() if kinds[path] == FROZEN}
    return trainable, frozen


def is_decayed(path: str) -> bool:
    """Return whether weight decay applies: matrices only, not norms, biases or the temperature."""
    return re.search(r"(\.kernel|\.lora_[ab])$", path) is not None


def count(values: Mapping[str, jax.Array | jax.ShapeDtypeStruct]) -> int:
    """Return the number of scalar parameters."""
    return sum(value.size for value in values.values())
