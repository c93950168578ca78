import dataclasses

import pytest

from vtalign_jax.errors import UserError
from vtalign_jax.models import configuration
from vtalign_jax.models.configuration import SmolVLMConfig

TEXT = {"hidden_size": 64, "num_attention_heads": 8, "vocab_size": 90}
VISION = {"hidden_size": 48, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}


def _values(**changes):
    values = {"model_type": "smolvlm", "text_config": TEXT, "vision_config": VISION}
    return {**values, **changes}


def test_omitted_fields_take_the_defaults_of_the_hugging_face_classes():
    config = SmolVLMConfig.from_hf(_values())
    assert (config.vision.intermediate_size, config.vision.num_hidden_layers) == (3072, 12)
    assert (config.text.num_hidden_layers, config.text.rope_theta) == (32, 10000.0)
    assert (config.text.num_key_value_heads, config.text.head_dim) == (8, 8)
    assert (config.scale_factor, config.image_token_id) == (2, 128257)
    assert not config.tie_word_embeddings


@pytest.mark.parity
@pytest.mark.parametrize("model_type", ["smolvlm", "idefics3"])
def test_the_default_tables_are_those_of_transformers(model_type):
    import transformers

    classes = {
        "smolvlm": (transformers.SmolVLMConfig, transformers.SmolVLMVisionConfig),
        "idefics3": (transformers.Idefics3Config, transformers.Idefics3VisionConfig),
    }
    top, vision = (made() for made in classes[model_type])
    for name, default in configuration._TOP_DEFAULTS.items():
        assert getattr(top, name) == default
    for name, default in configuration._VISION_DEFAULTS.items():
        assert getattr(vision, name) == default
    theirs = transformers.LlamaConfig(hidden_size=96, num_attention_heads=6)
    ours = SmolVLMConfig.from_hf(
        {
            "model_type": model_type,
            "vision_config": VISION,
            "text_config": {"hidden_size": 96, "num_attention_heads": 6},
        }
    ).text
    for field in dataclasses.fields(ours):
        if field.name != "rope_theta":
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 130000},
        {"rope_parameters": {"rope_theta": 130000.0, "rope_type": "default"}},
        {"rope_theta": 130000, "rope_scaling": None},
    ],
)
def test_both_forms_of_the_rotary_base_are_read(rope):
    config = SmolVLMConfig.from_hf(_values(text_config={**TEXT, **rope}))
    assert config.text.rope_theta == 130000.0


def test_either_level_can_tie_the_embeddings():
    assert SmolVLMConfig.from_hf(_values(tie_word_embeddings=True)).tie_word_embeddings
    text = {**TEXT, "tie_word_embeddings": True}
    assert SmolVLMConfig.from_hf(_values(text_config=text)).tie_word_embeddings


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "llava"}, "llava"),
        ({"text_config": {**TEXT, "hidden_act": "gelu"}}, r"text_config\.hidden_act"),
        ({"text_config": {**TEXT, "model_type": "qwen2"}}, r"text_config\.model_type"),
        ({"text_config": {**TEXT, "qk_layer_norms": True}}, "qk_layer_norms"),
        ({"text_config": {**TEXT, "use_resampler": True}}, "use_resampler"),
        ({"vision_config": {**VISION, "hidden_act": "gelu"}}, r"vision_config\.hidden_act"),
        ({"text_config": {**TEXT, "rope_scaling": {"rope_type": "llama3"}}}, "llama3"),
        ({"text_config": {**TEXT, "num_key_value_heads": 3}}, "num_key_value_heads"),
        ({"scale_factor": 3}, "scale_factor"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_by_name(changes, named):
    with pytest.raises(UserError, match=named):
        SmolVLMConfig.from_hf(_values(**changes))
