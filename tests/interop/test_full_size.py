"""The public models, never allocated: every table covers every leaf."""

import json
import pathlib
import re

import pytest
from flax import nnx

from vtalign_jax import sharding
from vtalign_jax.config import resolve
from vtalign_jax.interop import weights
from vtalign_jax.models import parameters
from vtalign_jax.models.aligner import AlignerModel
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.models.lora import AdapterConfig
from vtalign_jax.models.smolvlm import SmolVLM
from vtalign_jax.training import trainable

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
NAMES = {  # and the parameters that their pages on the hub say
    "smolvlm2_2b_instruct": 2_246_784_880,
    "smolvlm_instruct": 2_246_272_880,
    "smolvlm2_500m_video_instruct": 507_482_304,
    "smolvlm2_256m_video_instruct": 256_484_928,
    "smolvlm_500m_instruct": 507_482_304,
    "smolvlm_256m_instruct": 256_484_928,
}
HF_CLASSES = {
    "smolvlm": ("SmolVLMConfig", "SmolVLMForConditionalGeneration"),
    "idefics3": ("Idefics3Config", "Idefics3ForConditionalGeneration"),
}


def _config(name):
    return SmolVLMConfig.from_hf(json.loads((FIXTURES / f"{name}.json").read_text()))


def _abstract(name, adapters=None):
    config = _config(name)
    _, abstract = parameters.abstract(lambda: SmolVLM(config, adapters, rngs=nnx.Rngs(0)))
    return config, abstract


@pytest.mark.parametrize("name", NAMES)
def test_the_model_has_the_published_number_of_parameters(name):
    config, abstract = _abstract(name)
    assert sum(leaf.size for leaf in abstract.values()) == NAMES[name]
    sizes = config.tokens_per_frame, config.vision.patches_per_side
    assert sizes == ((81, 27) if config.text.hidden_size == 2048 else (64, 32))


@pytest.mark.parametrize("text_blocks", [0, 8, 24])
def test_every_key_rule_matches_and_every_leaf_matches_one(text_blocks):
    _, abstract = _abstract("smolvlm2_2b_instruct", AdapterConfig(text_blocks=text_blocks))
    paths = [path for path in abstract if "lora_" not in path]
    matched = parameters.match(weights.KEY_RULES, paths)
    assert sorted(matched) == sorted(paths)


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_our_keys_and_shapes_are_exactly_those_of_transformers(name):
    import torch
    import transformers

    values = json.loads((FIXTURES / f"{name}.json").read_text())
    config_class, model_class = (
        getattr(transformers, class_name) for class_name in HF_CLASSES[values["model_type"]]
    )
    with torch.device("meta"):
        theirs = model_class(config_class(**values))
    expected = {key: tuple(tensor.shape) for key, tensor in theirs.state_dict().items()}
    config, abstract = _abstract(name, AdapterConfig())
    ours = {}
    for path, source in weights.hugging_face_sources(abstract).items():
        shape = weights.source_shape(source, abstract[path].shape)
        for key in source.keys:
            assert key not in ours
            ours[key] = shape
    assert ours == expected
    blocks = {int(n[1]) for key in ours if (n := re.search(r"text_model\.layers\.(\d+)\.", key))}
    assert blocks == set(range(config.text.num_hidden_layers))


@pytest.mark.parametrize(
    ("name", "connector", "head"),
    [(name, "lora", "shared") for name in NAMES]
    + [("smolvlm2_2b_instruct", connector, "per_modality") for connector in ("frozen", "full")],
)
def test_sharding_and_partition_tables_cover_every_leaf_of_the_aligner(name, connector, head):
    config = resolve(
        {"model": {"head": head}, "tune": {"connector": connector}, "mesh": {"fsdp": 8}}
    )
    base = _config(name)
    adapters = trainable.adapter_config(config.tune)
    _, abstract = parameters.abstract(
        lambda: AlignerModel(config.model, base, adapters, rngs=nnx.Rngs(0))
    )
    trained, frozen = trainable.split(abstract, config.model, config.tune)
    assert sorted([*trained, *frozen]) == sorted(abstract)
    assert not trained.keys() & frozen.keys()
    shardings = sharding.frozen_shardings(frozen, sharding.make_mesh(config.mesh))
    assert shardings.keys() == frozen.keys()
    cut = sum(
        leaf.size for path, leaf in frozen.items() if any(shardings[path].spec)
    ) / trainable.count(frozen)
    assert cut > 0.999
