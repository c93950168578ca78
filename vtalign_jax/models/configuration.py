"""The numbers of a SmolVLM, read from a Hugging Face `config.json`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from vtalign_jax.errors import UserError

# A config.json may leave out what equals the defaults of transformers' own classes.
_VISION_DEFAULTS = {  # SmolVLMVisionConfig and Idefics3VisionConfig
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_TEXT_DEFAULTS = {  # LlamaConfig
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,  # as many as num_attention_heads
    "head_dim": None,  # hidden_size / num_attention_heads
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
}
_TOP_DEFAULTS = {  # SmolVLMConfig and Idefics3Config
    "image_token_id": 128257,
    "scale_factor": 2,
    "tie_word_embeddings": False,
}
_SECTIONS = {"vision_config": _VISION_DEFAULTS, "text_config": _TEXT_DEFAULTS}
_MODEL_TYPES = ("smolvlm", "idefics3")
_MOST_WIDTH = 2**17  # of a layer; ten times a 70B model's
_MOST = {"vocab_size": 2**22, "num_hidden_layers": 1000, "image_size": 4096, "patch_size": 4096}
_MOST_FLOAT = 1e12  # of rope_theta; others are far below

# (section, field, the values this package computes); anything else would be computed wrongly.
_SUPPORTED = (
    ("vision_config", "hidden_act", ("gelu_pytorch_tanh",)),
    ("vision_config", "num_channels", (3,)),
    ("text_config", "model_type", ("llama",)),
    ("text_config", "hidden_act", ("silu",)),
    ("text_config", "qk_layer_norms", (False,)),
    ("text_config", "use_resampler", (False,)),
    ("text_config", "pretraining_tp", (1,)),
)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The SigLIP tower; sizes in pixels are those of one square side."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    layer_norm_eps: float = 1e-6

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of a frame."""
        return self.image_size // self.patch_size

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The Llama decoder."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    attention_bias: bool = False
    mlp_bias: bool = False


@dataclasses.dataclass(frozen=True)
class SmolVLMConfig:
    """A whole SmolVLM: `SmolVLMForConditionalGeneration` or `Idefics3ForConditionalGeneration`."""

    vision: VisionConfig
    text: TextConfig
    image_token_id: int
    scale_factor: int
    tie_word_embeddings: bool
    model_type: str = "smolvlm"

    @property
    def tokens_per_frame(self) -> int:
        """Image tokens that one frame takes in the sequence (`Q`)."""
        return (self.vision.patches_per_side // self.scale_factor) ** 2

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "SmolVLMConfig":
        """Return the configuration held by a `config.json`.

        Both forms of the rotary base are read: `text_config.rope_theta` (transformers 4) and
        `text_config.rope_parameters.rope_theta` (transformers 5). `tie_word_embeddings` holds if
        either level says so, since transformers 4 reads the text's and 5 the outer one.

        Args:
          values: the parsed file.

        Raises:
          UserError: another architecture, or a feature this package does not compute.
        """
        model_type = values.get("model_type")
        if model_type not in _MODEL_TYPES:
            raise UserError(
                f"config.json has model_type {model_type!r}; only {' and '.join(_MODEL_TYPES)} "
                "checkpoints are supported, choose a SmolVLM"
            )
        _refuse_other_kinds(values)
        _refuse_unsupported(values)
        top = {name: values.get(name, default) for name, default in _TOP_DEFAULTS.items()}
        text_values = values.get("text_config") or {"rms_norm_eps": 1e-5}
        tied = bool(top["tie_word_embeddings"] or text_values.get("tie_word_embeddings", False))
        config = cls(
            vision=_vision(values.get("vision_config") or {}),
            text=_text(text_values),
            image_token_id=top["image_token_id"],
            scale_factor=top["scale_factor"],
            tie_word_embeddings=tied,
            model_type=model_type,
        )
        _refuse_sizes(config)
        _refuse_uneven(config)
        return config


def _refuse_other_kinds(values: Mapping[str, Any]) -> None:
    """Refuse sections and fields that hold another kind of value than their defaults do."""
    for section in (*_SECTIONS, "text_config.rope_parameters", "text_config.rope_scaling"):
        outer, _, inner = section.partition(".")
        found = values.get(outer) or {}
        found = (found.get(inner) or {}) if inner and isinstance(found, Mapping) else found
        if not isinstance(found, Mapping):
            raise UserError(f"config.json: {section} is no object; download it again")
    for section, defaults in (("", _TOP_DEFAULTS), *_SECTIONS.items()):
        fields = (values.get(section) or {}) if section else values
        for name, default in defaults.items():
            if (value := fields.get(name)) is None:
                if name in fields and default is not None:
                    raise _wrong(section, name, value)
                continue
            kind = int if default is None else type(default)
            is_right = type(value) is kind or (kind is float and type(value) is int)
            if not is_right or (kind is float and not math.isfinite(value)):
                raise _wrong(section, name, value)


def _wrong(section: str, name: str, value: Any) -> UserError:
    field = f"{section}.{name}" if section else name
    return UserError(f"config.json has {field} = {value!r:.80}; use a SmolVLM's own config.json")


def _refuse_sizes(config: SmolVLMConfig) -> None:
    """Refuse sizes that no SmolVLM has, before anything of that size is made."""
    for section, numbers in (("vision_config", config.vision), ("text_config", config.text)):
        for field in dataclasses.fields(numbers):
            value = getattr(numbers, field.name)
            most = _MOST.get(field.name, _MOST_WIDTH)
            if type(value) is int and not 1 <= value <= most:
                raise _wrong(section, field.name, value)
            if type(value) is float and not 0 < value <= _MOST_FLOAT:
                raise _wrong(section, field.name, value)
    if not 0 <= config.image_token_id < 2**31:
        raise _wrong("", "image_token_id", config.image_token_id)
    if not 1 <= config.scale_factor <= config.vision.patches_per_side:
        raise _wrong("", "scale_factor", config.scale_factor)


def _refuse_unsupported(values: Mapping[str, Any]) -> None:
    for section, field, allowed in _SUPPORTED:
        value = (values.get(section) or {}).get(field, allowed[0])
        if value not in allowed:
            raise UserError(
                f"config.json has {section}.{field} = {value!r}, supported is {allowed[0]!r}; "
                "choose a SmolVLM checkpoint"
            )


def _refuse_uneven(config: SmolVLMConfig) -> None:
    """Refuse sizes that do not divide: they would fail deep inside a traced function."""
    vision, text = config.vision, config.text
    for what, whole, part in (
        (
            "vision hidden_size by num_attention_heads",
            vision.hidden_size,
            vision.num_attention_heads,
        ),
        ("patches per side by scale_factor", vision.patches_per_side, config.scale_factor),
        (
            "text num_attention_heads by num_key_value_heads",
            text.num_attention_heads,
            text.num_key_value_heads,
        ),
    ):
        if whole % part:
            raise UserError(
                f"config.json is inconsistent: {what} does not divide ({whole} / {part})"
            )


def _vision(values: Mapping[str, Any]) -> VisionConfig:
    values = {**_VISION_DEFAULTS, **values}
    return VisionConfig(**{f.name: values[f.name] for f in dataclasses.fields(VisionConfig)})


def _text(values: Mapping[str, Any]) -> TextConfig:
    values = {**_TEXT_DEFAULTS, **values}
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise UserError(
            f"config.json has text_config rope type {rope_type!r}, supported is 'default'; "
            "choose a SmolVLM checkpoint"
        )
    heads = values["num_attention_heads"]
    values["rope_theta"] = _number(rope.get("rope_theta", values["rope_theta"]))
    values["num_key_value_heads"] = values["num_key_value_heads"] or heads
    values["head_dim"] = values["head_dim"] or values["hidden_size"] // heads
    return TextConfig(**{f.name: values[f.name] for f in dataclasses.fields(TextConfig)})


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _MOST_FLOAT:
        raise _wrong("text_config", "rope_theta", value)
    return float(value)
