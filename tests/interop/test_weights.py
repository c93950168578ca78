import json
import runpy
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

import vtalign_jax as vt
from tests.commands import ROOT
from tests.interop.checkpoints import split_weights
from vtalign_jax.errors import UserError
from vtalign_jax.interop import base_files, tiny, weights
from vtalign_jax.models import parameters
from vtalign_jax.models.lora import AdapterConfig
from vtalign_jax.models.smolvlm import SmolVLM

Q_PROJ = "model.text_model.layers.{}.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    tiny.write_tiny_checkpoint(directory)
    return directory


@pytest.fixture
def broken(checkpoint, tmp_path):
    """Return a copy of the checkpoint and a function that rewrites its tensors."""
    directory = tmp_path / "broken"
    shutil.copytree(checkpoint, directory)

    def rewrite(change):
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors")

    return directory, rewrite


def _abstract(directory, adapters=None, dtype="float32"):
    config = weights.read_config(directory)
    return parameters.abstract(
        lambda: SmolVLM(config, adapters, rngs=nnx.Rngs(0), param_dtype=dtype)
    )[1]


def test_stacked_blocks_hold_the_files_blocks_in_order_and_transposed(checkpoint):
    stored = load_file(checkpoint / "model.safetensors")
    adapters = AdapterConfig(text_blocks=1, rank=2)
    leaves = weights.load_into(_abstract(checkpoint, adapters), checkpoint)
    lower = leaves["text_model.layers.self_attn.q_proj.kernel"]
    upper = leaves["text_model.tuned_layers.self_attn.q_proj.kernel"]
    assert (len(lower), len(upper)) == (2, 1)
    for number, block in enumerate([*lower, *upper]):
        np.testing.assert_array_equal(block, stored[Q_PROJ.format(number)].T)
    patches = stored["model.vision_model.embeddings.patch_embedding.weight"]
    ours = leaves["vision_model.embeddings.patch_embedding.kernel"]
    np.testing.assert_array_equal(ours[1, 2, :, 3], patches[3, :, 1, 2])


def test_adapters_are_left_to_the_caller_and_all_other_leaves_are_filled(checkpoint):
    abstract = _abstract(checkpoint, AdapterConfig(text_blocks=2, rank=2, mlp=True))
    leaves = weights.load_into(abstract, checkpoint)
    left_out = {path for path in abstract if path not in leaves}
    assert left_out == {path for path in abstract if "lora_" in path}
    assert len(left_out) == 2 * (1 + 7)
    assert all(leaves[path].shape == abstract[path].shape for path in leaves)


def test_fresh_adapters_of_a_loaded_model_are_float32_and_do_nothing_yet(checkpoint):
    model = vt.load_smolvlm(checkpoint, "bfloat16", adapters=AdapterConfig(text_blocks=2, rank=2))
    layer = model.text_model.tuned_layers.self_attn.q_proj
    assert layer.kernel[...].dtype == jnp.bfloat16
    assert layer.lora_a[...].dtype == layer.lora_b[...].dtype == jnp.float32
    assert not np.any(layer.lora_b[...])
    assert len(np.unique(layer.lora_a[...])) > 100


def test_a_leaf_goes_to_its_sharding_and_keeps_its_values(checkpoint):
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    specs = {
        "text_model.layers.mlp.up_proj.kernel": PartitionSpec(None, "fsdp", None),
        "vision_model.encoder.layers.mlp.fc1.kernel": PartitionSpec(None, None, ("data", "fsdp")),
        "text_model.embed_tokens.embedding": PartitionSpec("fsdp", None),
        "text_model.norm.scale": PartitionSpec(),
    }

    def sharding_of(path):
        return NamedSharding(mesh, specs[path]) if path in specs else None

    abstract = _abstract(checkpoint)
    whole = weights.load_into(abstract, checkpoint)
    split = weights.load_into(abstract, checkpoint, sharding_of)
    for path, leaf in split.items():
        np.testing.assert_array_equal(leaf, whole[path])
        if path in specs:
            assert leaf.sharding == sharding_of(path)
    kernel = split["text_model.layers.mlp.up_proj.kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, 64 // 4, 176)


def test_storage_dtype_can_differ_by_path_and_rounds_to_nearest(checkpoint):
    proj = "connector.modality_projection.proj.kernel"
    leaves = weights.load_into(
        _abstract(checkpoint), checkpoint, dtype=lambda p: "float32" if p == proj else "bfloat16"
    )
    assert {path for path, leaf in leaves.items() if leaf.dtype == jnp.float32} == {proj}
    stored = load_file(checkpoint / "model.safetensors")["model.text_model.embed_tokens.weight"]
    expected = stored.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(leaves["text_model.embed_tokens.embedding"], expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files_are_read(broken, dtype):
    directory, rewrite = broken
    rewrite(lambda tensors: tensors.update({k: v.astype(dtype) for k, v in tensors.items()}))
    stored = load_file(directory / "model.safetensors")["model.text_model.norm.weight"]
    assert stored.dtype == dtype
    leaf = weights.load_into(_abstract(directory), directory)["text_model.norm.scale"]
    np.testing.assert_array_equal(leaf, stored.astype(np.float32))


@pytest.mark.parametrize("sharded", [False, True])
def test_every_misfit_is_named_in_one_error(broken, sharded):
    directory, rewrite = broken

    def change(tensors):
        for number in range(3):
            del tensors[Q_PROJ.format(number)]
        del tensors["model.vision_model.encoder.layers.1.mlp.fc1.bias"]
        tensors["model.text_model.layers.7.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
        tensors["model.extra.weight"] = np.zeros(2, np.float32)
        tensors["model.text_model.norm.weight"] = np.zeros(5, np.float32)
        fc2 = "model.vision_model.encoder.layers.0.mlp.fc2.weight"
        tensors[fc2] = np.ascontiguousarray(tensors[fc2].T)

    rewrite(change)
    if sharded:
        split_weights(directory)
    with pytest.raises(UserError) as error:
        vt.load_smolvlm(directory)
    message = str(error.value)
    assert str(directory) in message
    for part in (
        "missing: ",
        "model.text_model.layers.{0-2}.self_attn.q_proj.weight",
        "model.vision_model.encoder.layers.1.mlp.fc1.bias",
        "unexpected: ",
        "model.text_model.layers.7.mlp.up_proj.weight",
        "model.extra.weight",
        "model.text_model.norm.weight is (5,), config.json asks for (64,)",
        "fc2.weight is (112, 48), config.json asks for (48, 112)",
    ):
        assert part in message


def test_a_checkpoint_of_another_depth_is_refused(broken):
    directory, _ = broken
    config = json.loads((directory / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 2
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"unexpected: .*layers\.2\."):
        vt.load_smolvlm(directory)


def test_a_stored_head_is_loaded_though_the_configuration_says_tied(broken):
    directory, rewrite = broken
    head = np.random.default_rng(0).standard_normal((1024, 64)).astype(np.float32)
    rewrite(lambda tensors: tensors.update({"lm_head.weight": head}))
    assert json.loads((directory / "config.json").read_text())["tie_word_embeddings"]
    model = vt.load_smolvlm(directory)
    np.testing.assert_array_equal(model.lm_head.kernel[...], head.T)


def test_an_unknown_dtype_is_refused(checkpoint):
    with pytest.raises(UserError, match="dtype must be one of"):
        vt.load_smolvlm(checkpoint, dtype="int8")


def test_a_key_rule_that_matches_twice_is_an_error(checkpoint, monkeypatch):
    twice = (*weights.KEY_RULES, (r"text_model\.norm\.scale", (r"\1", None)))
    monkeypatch.setattr(weights, "KEY_RULES", twice)
    with pytest.raises(ValueError, match=r"text_model\.norm\.scale"):
        weights.hugging_face_sources(_abstract(checkpoint))


def test_stored_tensors_are_views_of_the_file(checkpoint):
    tensor = base_files.stored_tensors(checkpoint)["model.text_model.embed_tokens.weight"]
    assert isinstance(tensor.array(), np.memmap)
    assert not tensor.array().flags.writeable


def test_the_run_file_of_a_base_tunes_no_more_blocks_than_it_has():
    for blocks, name in ((3, "tiny"), (7, "tiny"), (8, "pretrain"), (24, "pretrain")):
        config = SimpleNamespace(text=SimpleNamespace(num_hidden_layers=blocks))
        assert weights.run_file(config) == f"configs/{name}.py"
    pretrain = runpy.run_path(str(ROOT / "configs" / "pretrain.py"))["get_config"]()
    assert pretrain.tune.text_blocks == 8
