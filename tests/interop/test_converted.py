import json
import shutil

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tests.commands import one_error_line, run
from tests.interop.checkpoints import make_config, write_checkpoint
from vtalign_jax import sharding
from vtalign_jax.config import MeshConfig
from vtalign_jax.errors import UserError
from vtalign_jax.interop import base_files, converted, weights
from vtalign_jax.interop.tiny import write_tiny_checkpoint
from vtalign_jax.interop.tokens import ClipTokenizer
from vtalign_jax.models import parameters
from vtalign_jax.models.lora import AdapterConfig
from vtalign_jax.models.smolvlm import SmolVLM
from vtalign_jax.training.trained import load_trained


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return an untied base in float16 and what the command made of it."""
    root = tmp_path_factory.mktemp("bases")
    base, out = root / "base", root / "converted"
    base.mkdir()
    write_tiny_checkpoint(base)
    tensors = {
        key: x.astype(np.float16) for key, x in load_file(base / "model.safetensors").items()
    }
    tensors["lm_head.weight"] = tensors["model.text_model.embed_tokens.weight"][::-1].copy()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    said = run("launch/convert.py", f"--base={base}", f"--out={out}")
    assert f"--config=configs/tiny.py --config.model.base={out}" in said.splitlines()[-1]
    return base, out


@pytest.fixture
def copy(folders, tmp_path):
    return shutil.copytree(folders[1], tmp_path / "copy")


def _load(directory, text_blocks, mesh):
    config = weights.read_config(directory)
    adapters = AdapterConfig(text_blocks=text_blocks, rank=2)

    def make():
        return SmolVLM(config, adapters, rngs=nnx.Rngs(0), param_dtype="bfloat16")

    _, abstract = parameters.abstract(make)
    base = {f"base.{path}": leaf for path, leaf in abstract.items() if "lora_" not in path}
    places = sharding.frozen_shardings(base, sharding.make_mesh(MeshConfig(*mesh)))
    proj = "connector.modality_projection.proj.kernel"  # trained whole, in float32
    return weights.load_into(
        abstract,
        directory,
        lambda path: places[f"base.{path}"],
        lambda path: "float32" if path == proj else "bfloat16",
    )


@pytest.mark.parametrize(("text_blocks", "mesh"), [(0, (8, 1)), (1, (1, 8)), (3, (2, 4))])
def test_leaves_equal_those_of_the_base_bit_for_bit_however_they_are_split(
    folders, text_blocks, mesh
):
    direct, again = (_load(directory, text_blocks, mesh) for directory in folders)
    assert direct.keys() == again.keys()
    assert "lm_head.kernel" in direct
    for path, leaf in direct.items():
        assert (again[path].dtype, again[path].sharding) == (leaf.dtype, leaf.sharding)
        np.testing.assert_array_equal(again[path], leaf)


def test_a_small_slice_of_a_large_array_is_read_from_its_own_chunks(folders):
    name = "text_model.layers.2.mlp.up_proj.kernel"
    array = converted.stored_arrays(folders[1])[name]
    stored = load_file(folders[0] / "model.safetensors")
    expected = stored["model.text_model.layers.2.mlp.up_proj.weight"].T
    assert (array.dtype, array.shape) == (np.float16, expected.shape)
    np.testing.assert_array_equal(array.array()[3:5, :], expected[3:5])


def test_it_stands_for_the_base_everywhere(folders):
    base, out = folders
    assert base_files.base_fingerprint(out) == base_files.base_fingerprint(base)
    assert weights.read_config(out) == weights.read_config(base)
    assert base_files.resolve_base(str(out)) == out
    texts = [ClipTokenizer(directory).encode_text("turn it", 32) for directory in folders]
    np.testing.assert_array_equal(*texts)
    kept = {file.name for file in base.iterdir()} - {"model.safetensors"}
    assert {file.name for file in out.iterdir()} == kept | {"weights", "vtalign_base.json"}
    assert all((out / name).read_bytes() == (base / name).read_bytes() for name in kept)


def test_a_checkpoint_trained_on_one_is_accepted_on_the_other_and_exports_name_the_base(
    folders, tmp_path
):
    base, out = folders
    workdir = write_checkpoint(tmp_path, make_config(out))
    for name in folders:
        assert load_trained(workdir, str(name)).config.model.base == str(name)
    exported = load_trained(workdir, needs_hugging_face=True)
    assert exported.config.model.base == str(base)
    assert exported.assembly.directory == base


def test_an_export_whose_base_was_deleted_after_conversion_asks_for_it(copy):
    facts = json.loads((copy / "vtalign_base.json").read_text())
    (copy / "vtalign_base.json").write_text(json.dumps(facts | {"base": "/nowhere/base"}))
    with pytest.raises(UserError, match=r"converted from /nowhere/base.*--base"):
        converted.original(str(copy))
    (copy / "vtalign_base.json").write_text(json.dumps(facts | {"base": "a/hub-id"}))
    assert converted.original(str(copy)) == "a/hub-id"
    assert converted.original("some/other-hub-id") == "some/other-hub-id"


def test_in_a_bucket_it_names_what_it_was_made_of(copy, bucket, cache):
    facts = json.loads((copy / "vtalign_base.json").read_text()) | {"base": "a/hub-id"}
    (copy / "vtalign_base.json").write_text(json.dumps(facts))
    bucket.put_folder(copy, "base")
    assert converted.original(f"{bucket.url}/base") == "a/hub-id"
    assert converted.original(f"{bucket.url}/other") == f"{bucket.url}/other"


def test_weight_files_are_not_looked_for_in_it(folders):
    with pytest.raises(UserError, match=r"launch/convert\.py.*--base"):
        base_files.stored_tensors(folders[1])


def test_another_file_put_beside_the_weights_is_named(copy):
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is not the file"):
        base_files.base_fingerprint(copy)


def test_a_later_format_is_refused(copy):
    (copy / "vtalign_base.json").write_text('{"format": 2}')
    with pytest.raises(UserError, match="has format 2, this version reads 1"):
        base_files.base_fingerprint(copy)


def test_weights_that_were_not_copied_are_said_to_be_missing(copy):
    shutil.rmtree(copy / "weights")
    with pytest.raises(UserError, match="damaged or not whole"):
        _load(copy, 0, (8, 1))


def test_weights_that_were_cut_off_are_an_error(copy):
    data = [file for file in (copy / "weights").rglob("*") if file.parent.name == "d"]
    for file in data:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="damaged or not whole"):
        _load(copy, 0, (8, 1))


def test_arrays_that_the_model_has_no_place_for_are_listed(copy):
    facts = json.loads((copy / "vtalign_base.json").read_text())
    facts["arrays"]["text_model.layers.7.mlp.up_proj.kernel"] = ["float16", [3, 3]]
    (copy / "vtalign_base.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"unexpected: text_model\.layers\.7\."):
        _load(copy, 0, (8, 1))


def test_converting_a_converted_base_is_refused_and_leaves_nothing(folders, tmp_path):
    flags = f"--base={folders[1]}", f"--out={tmp_path}/new"
    said = one_error_line(run("launch/convert.py", *flags, code=2))
    assert "is converted already" in said
    assert not (tmp_path / "new").exists()
