"""The configuration: defaults of the plan, and one clear line for each mistake."""

import dataclasses
import importlib.util
import pathlib

import pytest

from vtalign_jax.config import Config, default_config, resolve, to_dict, warnings
from vtalign_jax.errors import UserError
from vtalign_jax.objectives import negatives


def test_defaults_survive_the_round_trip():
    assert resolve(default_config()) == Config()
    assert resolve(to_dict(Config())) == Config()


CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


def load(path: pathlib.Path) -> Config:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return resolve(module.get_config())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path):
    load(path)


def test_pretrain_is_the_plan_and_so_are_the_defaults():
    config = next(load(path) for path in CONFIGS if path.stem == "pretrain")
    losses = dataclasses.replace(Config().objective, itm_weight=0.5, caption_weight=0.2)
    assert config == dataclasses.replace(Config(), objective=losses)
    assert config.model.base == "HuggingFaceTB/SmolVLM2-2.2B-Instruct"
    assert (config.model.compute_dtype, config.model.frozen_dtype) == ("bfloat16", "bfloat16")
    assert (config.model.embedding_dim, config.model.temperature_init) == (1024, 0.07)
    assert (config.model.head, config.model.pooling) == ("shared", "last")
    assert (config.tune.connector, config.tune.text_blocks) == ("lora", 8)
    assert (config.tune.rank, config.tune.alpha, config.tune.dropout) == (16, 32.0, 0.05)
    assert (config.data.frames, config.data.grouped_fraction) == (8, 0.25)
    assert config.data.parent_text_probability == 0.0
    assert config.objective.same_recording_weight == 0.4
    assert (config.optim.learning_rate, config.optim.weight_decay) == (1e-4, 1e-4)
    assert (config.optim.clip_norm, config.optim.warmup_fraction) == (1.0, 0.03)
    assert (config.train.contrastive_batch, config.train.epochs) == (32, 15)
    assert (config.train.min_epochs, config.train.patience) == (5, 3)
    assert config.train.eval_every_epochs == 1


@pytest.mark.parametrize(
    ("section", "field", "value", "told"),
    [
        ("optim", "learning_rat", 1e-3, "unknown config field config.optim.learning_rat"),
        ("optim", "learning_rate", "fast", "config.optim.learning_rate must be float"),
        ("optim", "learning_rate", float("nan"), "config.optim.learning_rate must lie in"),
        ("optim", "learning_rate", float("inf"), "config.optim.learning_rate must lie in"),
        ("optim", "weight_decay", float("inf"), "config.optim.weight_decay must lie in"),
        ("tune", "alpha", float("inf"), "config.tune.alpha must lie in"),
        ("train", "contrastive_batch", 1, "config.train.contrastive_batch must lie in [2, "),
        ("objective", "same_recording_weight", 1.5, "must lie in [0.0, 1.0]"),
        ("tune", "connector", "both", "must be one of frozen, lora, full"),
        ("train", "epochs", True, "config.train.epochs must be int"),
        ("train", "epochs", 2.5, "config.train.epochs must be int"),
        ("train", "min_recall_gain", -0.01, "config.train.min_recall_gain must lie in"),
        ("tune", "mlp", 1, "config.tune.mlp must be bool"),
    ],
)
def test_a_wrong_value_is_named(section, field, value, told):
    with pytest.raises(UserError, match=told.replace("[", r"\[").replace("]", r"\]")):
        resolve({section: {field: value}})


@pytest.mark.parametrize("weight", [0.0, 0.29, 0.51, 1.0])
@pytest.mark.parametrize("preset", negatives.PRESETS)
def test_a_lambda_outside_the_plans_range_is_warned_of_where_it_counts(preset, weight):
    told = warnings(resolve({"objective": {"preset": preset, "same_recording_weight": weight}}))
    uses_it = None in negatives.PRESETS[preset][0]
    assert len(told) == uses_it
    if uses_it:
        assert f"config.objective.same_recording_weight={weight:g} lies outside" in told[0]


def test_the_plans_range_of_lambda_is_not_warned_of():
    for weight in (0.3, 0.4, 0.5):
        assert warnings(resolve({"objective": {"same_recording_weight": weight}})) == []


def test_adapters_on_the_mlp_of_no_block_are_warned_of():
    tune = {"mlp": True, "text_blocks": 0}
    (told,) = warnings(resolve({"tune": tune}))
    assert "config.tune.mlp changes nothing" in told
    assert warnings(resolve({"tune": tune | {"text_blocks": 1}})) == []


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ({"contrastive_batch": 32, "microbatch": 32}, "config.train.microbatch=32 changes nothing"),
        ({"keep_prefix": "host"}, "config.train.keep_prefix=host changes nothing"),
    ],
)
def test_settings_of_a_streamed_step_are_warned_of_where_none_is_streamed(train, told):
    (line,) = warnings(resolve({"train": train}))
    assert told in line


def test_settings_of_a_step_that_is_streamed_are_not_warned_of():
    train = {"contrastive_batch": 32, "microbatch": 31, "keep_prefix": "host"}
    assert warnings(resolve({"train": train})) == []


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


def test_what_is_no_configuration_is_refused():
    with pytest.raises(UserError, match="a configuration has sections, got 3"):
        resolve(3)
