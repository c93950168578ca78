"""Schema, defaults and validation of a run's configuration.

A run is a file in `configs/` whose `get_config()` returns `default_config()`, changed where it
differs. `resolve` turns the edited `ConfigDict` into the frozen dataclasses below; an unknown
field, a wrong type or a value out of range raises `UserError` naming the field.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from vtalign_jax.errors import UserError

if TYPE_CHECKING:
    import ml_collections


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The base model and the head on top of it."""

    base: str = "HuggingFaceTB/SmolVLM2-2.2B-Instruct"  # directory, hub id, or "tiny"
    embedding_dim: int = 1024
    pooling: str = "last"  # last | mean
    head: str = "shared"  # shared | per_modality
    compute_dtype: str = "bfloat16"  # bfloat16 | float32
    frozen_dtype: str = "bfloat16"  # storage of the frozen leaves
    temperature_init: float = 0.07
    remat: str = "auto"  # what the backward pass computes again: none | norms | mlp | full


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """What is adapted: the connector, and LoRA on the top text blocks."""

    connector: str = "lora"  # frozen | lora | full
    text_blocks: int = 8
    mlp: bool = False  # LoRA on gate, up and down projections too
    rank: int = 16
    alpha: float = 32.0
    rank_stabilized: bool = False  # adapters are scaled by alpha / sqrt(rank), not alpha / rank
    dropout: float = 0.05
    init: str = ""  # workdir, checkpoint, `peft` export or PEFT adapter to start from; "" for fresh


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which dataset is read and how a record becomes a row."""

    dir: str = "datasets/dst_clips"  # or several, comma-separated
    weights: str = ""  # share of each in an epoch, such as "0.7,0.3"; "" takes every clip
    train_split: str = "train"
    val_split: str = "val"
    frames: int = 8  # of a clip, evenly spread over its window; at most what prepare stored
    jitter: bool = False  # in training, a random stored frame of each of these parts of the window
    max_text_tokens: int = 64
    parent_text: str = "{parent}: {name}"
    parent_text_probability: float = 0.0  # in training
    eval_parent_text: bool = False  # in validation: every text with its parent's
    grouped_fraction: float = 0.25  # share of a batch in same-recording groups
    group_size: int = 4
    workers: int = 0  # Grain worker processes; 0 reads in threads of this process
    prefetch_batches: int = 4
    feature_cache: str = ""  # what cache_features.py wrote with --out; "" reads and decodes frames


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the negatives and of the losses (docs/plan.md)."""

    preset: str = "plan"  # plan | infonce | neighbours_soft | egonce
    same_text: str = "preset"  # preset | ignore | multi_positive | negative
    same_recording_weight: float = 0.4  # lambda; the plan's range is 0.3 to 0.5
    neighbour_radius: int = 1  # |order difference| up to which a node is a neighbour
    itm_weight: float = 0.0  # of the matching loss; 0 leaves it and its head out
    caption_weight: float = 0.0  # of the caption loss; 0 leaves it and its tokens out
    similar_text_threshold: float = 0.0  # cosine from which unequal texts are similar; 0: never


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay to zero."""

    learning_rate: float = 1e-4
    warmup_fraction: float = 0.03
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.999


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length, evaluation, early stop and checkpoints."""

    contrastive_batch: int = 32  # global pairs in one loss
    microbatch: int = 0  # pairs a device holds at once; 0: all of its share, in one jitted step
    keep_prefix: str = "auto"  # auto | device | host | never: the frozen part of a microbatch
    epochs: int = 15
    eval_every_epochs: int = 1
    eval_batch: int = 32
    min_epochs: int = 5  # no early stop before
    patience: int = 3  # evaluations without a better val/recall@5
    min_recall_gain: float = 0.0  # val/recall@5 must rise by more than this to count as better
    log_every_steps: int = 10
    save_every_steps: int = 500
    keep_best: int = 1
    keep_latest: int = 1
    max_nonfinite_steps: int = 10  # in a row, before the run stops
    seed: int = 0

    def is_streamed(self, devices: int) -> bool:
        """Return whether a step is made of microbatches, smaller than a device's share."""
        return self.rows_at_once(devices) < self.contrastive_batch // devices

    def rows_at_once(self, devices: int) -> int:
        """Return how many rows a device differentiates at once."""
        share = self.contrastive_batch // devices
        return min(self.microbatch, share) if self.microbatch > 0 else share


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 takes what is left."""

    data: int = -1
    fsdp: int = 1


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    model: ModelConfig = ModelConfig()
    tune: TuneConfig = TuneConfig()
    data: DataConfig = DataConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()


_CHOICES = {
    "model.pooling": ("last", "mean"),
    "model.head": ("shared", "per_modality"),
    "model.compute_dtype": ("bfloat16", "float32"),
    "model.frozen_dtype": ("bfloat16", "float32"),
    "model.remat": ("auto", "none", "norms", "mlp", "full"),
    "tune.connector": ("frozen", "lora", "full"),
    "train.keep_prefix": ("auto", "device", "host", "never"),
    "objective.preset": ("plan", "infonce", "neighbours_soft", "egonce"),
    "objective.same_text": ("preset", "ignore", "multi_positive", "negative"),
}

_SOFT_PRESETS = ("plan", "neighbours_soft")  # those that use same_recording_weight
_PLANNED_WEIGHT = (0.3, 0.5)  # its range in the pretraining plan

_INF = math.inf
_RANGES = {  # field: lowest and highest value allowed, both included
    "model.embedding_dim": (1, 2**16),
    "model.temperature_init": (0.01, 10.0),
    "tune.text_blocks": (0, 1000),
    "tune.rank": (1, 4096),
    "tune.alpha": (1e-6, 1e6),
    "tune.dropout": (0.0, 0.99),
    "data.frames": (1, 64),
    "data.max_text_tokens": (8, 4096),
    "data.parent_text_probability": (0.0, 1.0),
    "data.grouped_fraction": (0.0, 1.0),
    "data.group_size": (1, 4096),
    "data.workers": (0, 1024),
    "data.prefetch_batches": (1, 1024),
    "objective.same_recording_weight": (0.0, 1.0),
    "objective.neighbour_radius": (0, 10**6),
    "objective.itm_weight": (0.0, 1e6),
    "objective.caption_weight": (0.0, 1e6),
    "objective.similar_text_threshold": (0.0, 1.0),
    "optim.learning_rate": (0.0, 1e6),
    "optim.warmup_fraction": (0.0, 1.0),
    "optim.weight_decay": (0.0, 1e6),
    "optim.clip_norm": (1e-12, _INF),  # infinity: no clipping
    "optim.b1": (0.0, 0.9999999),
    "optim.b2": (0.0, 0.9999999),
    "train.contrastive_batch": (2, 2**24),  # a pair alone has no negative: nothing to learn
    "train.microbatch": (0, 2**24),
    "train.epochs": (1, 10**6),
    "train.eval_every_epochs": (1, 10**6),
    "train.eval_batch": (1, 2**20),
    "train.min_epochs": (0, 10**6),
    "train.patience": (1, 10**6),
    "train.min_recall_gain": (0.0, 1.0),
    "train.log_every_steps": (1, 10**9),
    "train.save_every_steps": (1, 10**9),
    "train.keep_best": (1, 10**6),
    "train.keep_latest": (1, 10**6),
    "train.max_nonfinite_steps": (1, 10**6),
    "train.seed": (0, 2**31 - 1),
    "mesh.data": (-1, 10**6),
    "mesh.fsdp": (-1, 10**6),
}


def default_config() -> "ml_collections.ConfigDict":
    """Return an editable, locked ConfigDict: the plan's settings, its two further losses at 0."""
    import ml_collections  # only what reads configuration files needs it

    return ml_collections.ConfigDict(dataclasses.asdict(Config()))


def to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as plain nested dictionaries, as written to `config.json`."""
    return dataclasses.asdict(config)


def resolve(values: Any) -> Config:
    """Return the validated configuration.

    Args:
      values: a ConfigDict or nested dict holding any subset of the fields.

    Raises:
      UserError: unknown field, wrong type, or value out of range; the message names the field.
    """
    values = values.to_dict() if hasattr(values, "to_dict") else values
    if not isinstance(values, dict):
        raise UserError(f"a configuration has sections, got {values!r}; return default_config()")
    sections = {f.name: f.default for f in dataclasses.fields(Config)}
    _refuse_unknown(values, sections, "")
    resolved = {}
    for name, default in sections.items():
        section = values.get(name, {})
        if not isinstance(section, dict):
            raise UserError(f"config.{name} is a section, got {section!r}; set its fields instead")
        fields = {f.name: f for f in dataclasses.fields(default)}
        _refuse_unknown(section, fields, f"{name}.")
        checked = {k: _checked(f"{name}.{k}", v, fields[k].type) for k, v in section.items()}
        resolved[name] = type(default)(**checked)
    return Config(**resolved)


def warnings(config: Config) -> list[str]:
    """Return what is allowed and most likely not meant, a line each."""
    objective, found = config.objective, []
    is_soft = objective.preset in _SOFT_PRESETS
    low, high = _PLANNED_WEIGHT
    weight = objective.same_recording_weight
    if is_soft and not low <= weight <= high:
        found.append(
            f"config.objective.same_recording_weight={weight:g} lies outside {low} to {high}, the "
            f"range that preset {objective.preset} is meant for"
        )
    if objective.similar_text_threshold and not (is_soft and objective.same_text != "negative"):
        found.append(
            f"config.objective.similar_text_threshold changes nothing with preset "
            f"{objective.preset} and same_text {objective.same_text}"
        )
    if config.tune.mlp and not config.tune.text_blocks:
        found.append("config.tune.mlp changes nothing without config.tune.text_blocks of 1 or more")
    return found + _microbatch_warnings(config.train)


def _microbatch_warnings(train: TrainConfig) -> list[str]:
    if train.microbatch >= train.contrastive_batch:
        return [
            f"config.train.microbatch={train.microbatch} changes nothing: a step has "
            f"config.train.contrastive_batch={train.contrastive_batch} pairs, all of them at once"
        ]
    if train.keep_prefix != TrainConfig.keep_prefix and not train.microbatch:
        return [
            f"config.train.keep_prefix={train.keep_prefix} changes nothing without "
            "config.train.microbatch of 1 or more"
        ]
    return []


def _refuse_unknown(given: dict, known: dict, prefix: str) -> None:
    for key in given:
        if key not in known:
            raise UserError(
                f"unknown config field config.{prefix}{key}; the fields are {', '.join(known)}"
            )


def _checked(name: str, value: Any, kind: type) -> Any:
    """Return `value` as `kind` if that loses nothing and it lies in its range."""
    exact_int = kind is float and isinstance(value, int) and not isinstance(value, bool)
    if exact_int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"config.{name} must be {kind.__name__}, got {value!r}")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise UserError(f"config.{name} must be one of {', '.join(_CHOICES[name])}, got {value!r}")
    if name in _RANGES:
        low, high = _RANGES[name]
        if not low <= value <= high:  # also refuses NaN
            raise UserError(f"config.{name} must lie in [{low}, {high}], got {value!r}")
    return value
