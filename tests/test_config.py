"""The configuration: defaults of the plan, and one clear line for each mistake."""

import dataclasses

import pytest

from vtalign_jax.config import Config, default_config, resolve, to_dict
from vtalign_jax.errors import UserError


def test_defaults_survive_the_round_trip():
    assert resolve(default_config()) == Config()
    assert resolve(to_dict(Config())) == Config()


def test_defaults_are_the_plans():
    config = Config()
    assert config.model.base == "HuggingFaceTB/SmolVLM2-2.2B-Instruct"
    assert (config.train.contrastive_batch, config.data.frames, config.train.epochs) == (32, 8, 15)
    assert (config.optim.learning_rate, config.optim.weight_decay) == (1e-4, 1e-4)
    assert (config.optim.clip_norm, config.optim.warmup_fraction) == (1.0, 0.03)
    assert (config.train.min_epochs, config.train.patience) == (5, 3)
    assert (config.model.embedding_dim, config.model.temperature_init) == (1024, 0.07)
    assert (config.tune.connector, config.tune.text_blocks, config.tune.rank) == ("lora", 8, 16)


@pytest.mark.parametrize(
    ("section", "field", "value", "told"),
    [
        ("optim", "learning_rat", 1e-3, "unknown config field config.optim.learning_rat"),
        ("optim", "learning_rate", "fast", "config.optim.learning_rate must be float"),
        ("optim", "learning_rate", float("nan"), "config.optim.learning_rate must lie in"),
        ("objective", "same_recording_weight", 1.5, "must lie in [0.0, 1.0]"),
        ("tune", "connector", "both", "must be one of frozen, lora, full"),
        ("train", "epochs", True, "config.train.epochs must be int"),
        ("train", "epochs", 2.5, "config.train.epochs must be int"),
        ("tune", "mlp", 1, "config.tune.mlp must be bool"),
    ],
)
def test_a_wrong_value_is_named(section, field, value, told):
    with pytest.raises(UserError, match=told.replace("[", r"\[").replace("]", r"\]")):
        resolve({section: {field: value}})


def test_an_unknown_section_is_named():
    with pytest.raises(UserError, match=r"unknown config field config\.trian"):
        resolve({"trian": {}})
    with pytest.raises(UserError, match=r"config\.train is a section"):
        resolve({"train": 3})


def test_a_whole_number_is_a_float_where_one_is_asked_for():
    assert resolve({"tune": {"alpha": 8}}).tune.alpha == 8.0


def test_a_resolved_config_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.epochs = 3
