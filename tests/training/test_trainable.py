"""The partition table: what is trained, and that nothing is left to chance."""

import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from tests.tiny_aligner import make_aligner, make_config
from vtalign_jax.config import Config
from vtalign_jax.models import parameters
from vtalign_jax.models.aligner import AlignerModel
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.training import trainable

FIXTURE = pathlib.Path(__file__).parents[1] / "interop/fixtures/smolvlm2_2b_instruct.json"


@pytest.mark.parametrize(
    ("has_matching_head", "expected"), [(False, 8_590_337), (True, 10_689_538)]
)
def test_the_plans_run_trains_10_7_million_of_the_2_2b_models_parameters(
    has_matching_head, expected
):
    config, base = Config(), SmolVLMConfig.from_hf(json.loads(FIXTURE.read_text()))
    adapters = trainable.adapter_config(config.tune)
    _, abstract = parameters.abstract(
        lambda: AlignerModel(
            config.model, base, adapters, rngs=nnx.Rngs(0), has_matching_head=has_matching_head
        )
    )
    trained, frozen = trainable.split(abstract, config.model, config.tune)
    lora = 8 * 4 * 16 * (2048 + 2048) + 16 * (1152 * 9 + 2048)
    head = 2048 * 2048 + 2048 + 2048 * 1024 + 1024
    matching = has_matching_head * (2 * 1024 * 1024 + 1024 + 1024 + 1)
    assert trainable.count(trained) == lora + head + matching + 1 == expected
    assert trainable.count(frozen) == 2_246_784_880
    assert all(leaf.dtype == np.float32 for leaf in trained.values())
    assert all(leaf.dtype == jax.numpy.bfloat16 for leaf in frozen.values())


@pytest.mark.parametrize("connector", ["frozen", "lora", "full"])
@pytest.mark.parametrize("text_blocks", [0, 2, 3])
@pytest.mark.parametrize("head", ["shared", "per_modality"])
def test_every_tuning_choice_partitions(connector, text_blocks, head):
    tune = {"connector": connector, "text_blocks": text_blocks}
    _, trained, frozen = make_aligner(make_config(tune=tune, model={"head": head}))
    kernel = "base.connector.modality_projection.proj.kernel"
    assert (kernel in trained) == (connector == "full")
    assert any("connector" in p and "lora" in p for p in trained) == (connector == "lora")
    assert any("tuned_layers" in p for p in trained) == (text_blocks > 0)
    assert not any("vision_model" in path for path in trained)
    assert not any("lora" in path or "head.fc" in path for path in frozen)


def test_a_matching_head_is_trained_where_its_loss_has_weight_and_exists_nowhere_else():
    without, with_head = (
        make_aligner(make_config(objective={"itm_weight": weight})) for weight in (0.0, 0.5)
    )
    added = with_head[1].keys() - without[1].keys()
    kinds = ("fc1.kernel", "fc1.bias", "fc2.kernel", "fc2.bias")
    leaves = {f"matching_head.{kind}" for kind in kinds}
    assert added == leaves
    assert with_head[2].keys() == without[2].keys()
    assert with_head[1]["matching_head.fc1.kernel"].shape == (40, 20)
    assert with_head[1]["matching_head.fc2.kernel"].shape == (20, 1)
    assert {path for path in leaves if trainable.is_decayed(path)} == {
        "matching_head.fc1.kernel",
        "matching_head.fc2.kernel",
    }
    for path, value in without[1].items():  # the draw of the others does not move
        np.testing.assert_array_equal(value, with_head[1][path])


def test_a_leaf_without_a_rule_and_a_rule_without_a_leaf_are_errors():
    config = make_config()
    _, trained, frozen = make_aligner(config)
    values = trained | frozen
    with pytest.raises(ValueError, match="stray is matched by no rule"):
        trainable.split(values | {"stray": np.zeros(1)}, config.model, config.tune)
    del values["log_temperature"]
    with pytest.raises(ValueError, match="'log_temperature' matches nothing"):
        trainable.split(values, config.model, config.tune)


def test_a_leaf_with_two_rules_is_an_error():
    with pytest.raises(ValueError, match="a is matched by"):
        parameters.match([("a", 1), ("a|b", 2)], ["a", "b"])
