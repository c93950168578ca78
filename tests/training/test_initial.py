"""Where a run starts from: a checkpoint, an export, an adapter made elsewhere; what is refused."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.interop.checkpoints import export_unverified, make_config, write_base, write_checkpoint
from vtalign_jax.config import MeshConfig
from vtalign_jax.errors import UserError
from vtalign_jax.interop import peft
from vtalign_jax.interop.forms import MERGED, SETTINGS
from vtalign_jax.sharding import make_mesh
from vtalign_jax.training.assemble import assemble, load
from vtalign_jax.training.initial import FRESH, place, read_initial
from vtalign_jax.training.trained import load_trained


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"), "smolvlm")


@pytest.fixture(scope="module")
def workdir(base, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run"), make_config(base))


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    return export_unverified(workdir, tmp_path_factory.mktemp("exports") / "out")


@pytest.fixture
def foreign(exported, tmp_path):
    """The adapter alone, as PEFT itself saves it."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    for name in (peft.ADAPTER, peft.ADAPTER_CONFIG):
        shutil.copyfile(exported / name, folder / name)
    return folder


def start(base, init, **sections):
    """Return the assembly, what it starts from, and the lines said."""
    config = make_config(
        base, **sections | {"tune": sections.get("tune", {}) | {"init": str(init)}}
    )
    assembly, said = assemble(config), []
    return assembly, read_initial(config, assembly, said.append), said


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("kind", ["workdir", "checkpoint", "export"])
def test_the_leaves_are_those_of_the_source_bit_by_bit(base, workdir, exported, kind):
    path = {"workdir": workdir, "checkpoint": workdir / "checkpoints" / "7", "export": exported}
    assembly, initial, said = start(base, path[kind])
    expected = load_trained(workdir).params
    assert initial.params.keys() == assembly.trainable.keys() == expected.keys()
    jax.tree.map(np.testing.assert_array_equal, initial.params, expected)
    mesh = make_mesh(MeshConfig())
    drawn, _ = load(assembly, mesh)
    placed = place(initial, drawn)
    for path, value in placed.items():
        np.testing.assert_array_equal(value, expected[path])
        assert value.sharding == drawn[path].sharding
    assert said == [f"starting from {load_trained(path_of(initial)).source}"]


def path_of(initial):
    return initial.facts["started_from"]["path"]


def test_without_a_source_the_drawn_leaves_are_taken(base):
    _, initial, said = start(base, "")
    drawn = {"head.fc1.kernel": jax.numpy.ones(3)}
    assert (initial, said) == (FRESH, [])
    assert place(initial, drawn) is drawn


def test_the_manifest_can_tell_what_was_started_from(base, workdir, exported):
    facts = start(base, exported)[1].facts["started_from"]
    assert facts["path"] == str(exported)
    assert facts["step"] == 7
    assert facts["fingerprints"] == load_trained(workdir).facts["fingerprints"]
    assert facts["fresh"] == []
    assert facts["sha256"] == start(base, workdir)[1].facts["started_from"]["sha256"]


def test_a_matching_head_that_the_source_lacks_starts_fresh_and_one_too_many_stays_behind(
    base, workdir, exported, tmp_path
):
    _, initial, said = start(base, exported, objective={"itm_weight": 0.5})
    assert not any(path.startswith("matching_head") for path in initial.params)
    assert initial.facts["started_from"]["fresh"] == ["matching_head"]
    assert said[-1].endswith("; matching_head start fresh")
    config = make_config(base, objective={"itm_weight": 0.5})
    write_checkpoint(tmp_path / "matching", config)
    assembly, initial, _ = start(base, tmp_path / "matching")
    assert initial.params.keys() == assembly.trainable.keys()


def test_a_source_of_another_form_is_one_error_that_names_every_field(base, exported):
    tune = {"rank": 5, "alpha": 8.0, "text_blocks": 1, "connector": "full", "rank_stabilized": True}
    with pytest.raises(UserError) as error:
        start(base, exported, tune=tune, model={"head": "per_modality", "pooling": "mean"})
    for told in (
        "config.tune.rank was 3 and is 5",
        "config.tune.alpha was 7.5 and is 8.0",
        "config.tune.text_blocks was 2 and is 1",
        "config.tune.connector was 'lora' and is 'full'",
        "config.tune.rank_stabilized was False and is True",
        "config.model.head was 'shared' and is 'per_modality'",
        "config.model.pooling was 'last' and is 'mean'",
    ):
        assert told in str(error.value)
    start(base, exported, tune={"dropout": 0.3})  # changes neither shapes nor what they mean


def test_a_source_on_another_base_and_none_at_all_are_refused(base, exported, tmp_path):
    other = write_base(tmp_path / "other", "idefics3")
    with pytest.raises(UserError, match=r"another base model .*--config\.model\.base"):
        start(other, exported)
    change(shutil.copytree(exported, tmp_path / "merged") / SETTINGS, form=MERGED, weights="0" * 64)
    with pytest.raises(UserError, match=r"holds its own weights; .* as --config\.model\.base"):
        start(base, tmp_path / "merged")
    with pytest.raises(UserError, match="no such checkpoint or workdir"):
        start(base, tmp_path / "nothing")


def test_a_peft_adapter_without_our_head_gives_its_adapters(base, workdir, foreign):
    tensors = load_file(foreign / peft.ADAPTER)
    _, initial, said = start(base, foreign)
    expected = load_trained(workdir).params
    assert {path for path in expected if path not in initial.params} == {
        "log_temperature",
        *(f"head.{layer}.{leaf}" for layer in ("fc1", "fc2") for leaf in ("kernel", "bias")),
    }
    for path, value in initial.params.items():
        np.testing.assert_array_equal(value, expected[path])
    assert "is taken to be this base model" in said[0]
    assert said[1] == f"starting from PEFT adapter {foreign}; head, log_temperature start fresh"
    assert initial.facts["started_from"]["base"] == str(base)
    halves = {key: value.astype(ml_dtypes.bfloat16) for key, value in tensors.items()}
    save_file(halves, foreign / peft.ADAPTER)
    for path, value in start(base, foreign)[1].params.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, expected[path], rtol=2**-8)


@pytest.mark.parametrize(
    ("settings", "tune", "told"),
    [
        ({"r": 8}, {}, "r is 8, config.tune.rank is 3"),
        ({}, {"alpha": 3.0}, "lora_alpha is 7.5, config.tune.alpha is 3.0"),
        ({"use_rslora": True}, {}, "use_rslora is True, config.tune.rank_stabilized is False"),
        ({"use_dora": True}, {}, "use_dora is True, only plain LoRA"),
        ({"rank_pattern": {"q_proj": 2}}, {}, "rank_pattern is"),
        ({"bias": "all"}, {}, "bias is 'all'"),
        ({"peft_type": "IA3"}, {}, "peft_type is 'IA3'"),
        ({}, {"text_blocks": 3}, "layers.0.self_attn.k_proj.lora_A.weight is missing; .*tune"),
        ({}, {"connector": "frozen"}, r"proj.lora_A.weight is not expected; .*tune\.connector"),
    ],
)
def test_a_peft_adapter_of_another_form_is_refused(base, foreign, settings, tune, told):
    change(foreign / peft.ADAPTER_CONFIG, **settings)
    with pytest.raises(UserError, match=told):
        start(base, foreign, tune=tune)


def test_a_peft_adapter_as_a_pickle_is_refused(base, foreign):
    (foreign / peft.ADAPTER).rename(foreign / "adapter_model.bin")
    with pytest.raises(UserError, match="save it as safetensors"):
        start(base, foreign)
