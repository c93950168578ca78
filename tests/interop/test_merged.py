"""The `merged` form: what is written, what transformers makes of it, and back in."""

import json
import re
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import vtalign_jax as vt
from tests.interop.checkpoints import make_config, write_base, write_checkpoint
from tests.old_libraries import load_merged
from vtalign_jax import export
from vtalign_jax.config import MeshConfig
from vtalign_jax.errors import UserError
from vtalign_jax.interop import certificate, merged, peft
from vtalign_jax.interop.base_files import INDEX, stored_tensors
from vtalign_jax.models.aligner import normalise
from vtalign_jax.sharding import make_mesh
from vtalign_jax.training import assemble
from vtalign_jax.training.trained import load_trained

CONNECTOR = "model.connector.modality_projection.proj.weight"
TEXTS = ["attach wheel"]


@pytest.fixture(autouse=True, scope="module")
def quick_certificates():
    """One clip and one text, which compile little, and no PyTorch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificate, "missing_packages", lambda needs: ["torch"])
        patch.setattr(certificate, "_SIZES", certificate._SIZES[:1])
        patch.setattr(certificate, "_TEXTS", certificate._TEXTS[:1])
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base in shards, a checkpoint with the connector in full, and its export."""
    folder = tmp_path_factory.mktemp("merged")
    base = write_base(folder / "base", "idefics3", shards=True)
    (base / "README.md").write_text("the base's own")
    (base / "more").mkdir()
    (base / "more" / "notes.txt").write_bytes(b"\r\nany \xff bytes")
    (base / "model.onnx").write_bytes(b"weights of the base")
    tune = {"connector": "full", "mlp": True, "rank_stabilized": True}
    model = {"head": "per_modality", "compute_dtype": "float32", "frozen_dtype": "float32"}
    config = make_config(base, tune=tune, model=model)
    workdir, said = write_checkpoint(folder / "run", config), []
    export.export(workdir, folder / "out", "merged", say=said.append)
    return base, workdir, folder / "out", said


def test_all_but_the_merged_weights_is_the_base_s_byte_for_byte(made):
    base, workdir, out, said = made
    changed = set(_changed(base, out))
    targets = {peft.module_of(key) + ".weight" for key in _adapter(workdir)}
    assert changed == targets
    assert len(changed) == 1 + 2 * 7  # connector; 7 projections of 2 blocks
    files = {str(p.relative_to(base)) for p in base.rglob("*") if p.is_file()}
    shards = {name for name in files if name.endswith(".safetensors")}
    assert len(shards) == 2
    for name in files - shards - {"README.md", "model.onnx"}:
        assert (out / name).read_bytes() == (base / name).read_bytes()
    for name in shards:  # names, order, dtypes, metadata and alignment
        ours, theirs = ((folder / name).read_bytes() for folder in (out, base))
        start = 8 + int.from_bytes(theirs[:8], "little")
        assert len(ours) == len(theirs)
        assert ours[:start] == theirs[:start]
    assert not (out / "model.onnx").exists()
    assert "not copied, the base's programs and weights in other formats: model.onnx" in said
    assert "the base's own" not in (out / "README.md").read_text()
    assert not (out / "adapter_config.json").exists()


def test_a_merged_weight_is_the_base_s_and_the_scaled_update(made):
    base, workdir, out, _ = made
    adapter, before, after = _adapter(workdir), stored_tensors(base), stored_tensors(out)
    key = "model.text_model.layers.2.mlp.down_proj.weight"
    prefix = "base_model.model." + key.removesuffix("weight")
    a, b = (adapter[f"{prefix}lora_{x}.weight"].astype(np.float64) for x in "AB")
    expected = before[key].array() + 7.5 / 3**0.5 * (b @ a)  # rank-stabilised
    np.testing.assert_allclose(after[key].array(), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(
        after[CONNECTOR].array(), adapter["base_model.model." + CONNECTOR]
    )


@pytest.mark.parity
def test_every_class_loads_it_and_its_connector_gives_what_ours_does(made):
    import torch

    _, workdir, out, _ = made
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    pixels = torch.tensor(frames).permute(0, 3, 1, 2) / 127.5 - 1
    found = load_merged.load(str(out), pixels, torch.ones(1, 64, 48))
    assert found["is_named_class"]
    assert found["is_equal"]
    lost = found["lost"]
    assert lost["generation"] == {"missing": [], "unexpected": []}
    extra = ["extra_head.bias", "extra_head.weight"]
    assert lost["subclass"] == {"missing": extra, "unexpected": []}
    assert lost["AutoModel"] == {"missing": [], "unexpected": ["lm_head.weight"]}
    assert found["classes"][0] == "Idefics3Model"
    assert found["classes"][2] == "SmolVLMProcessor"
    trained = load_trained(workdir)
    _, frozen = assemble.load(trained.assembly, make_mesh(MeshConfig(1, 1), jax.devices()[:1]))
    model = trained.assembly.bind({**frozen, **trained.params}).base
    ours = np.asarray(model.image_features(normalise(frames[None])))[0]
    theirs = np.array(found["features"])
    assert np.abs(theirs - ours.reshape(theirs.shape)).max() < 1e-5 * np.abs(theirs).max()


def test_it_comes_back_as_a_whole_model_and_its_embeddings_stay(made, tmp_path):
    _, workdir, out, _ = made
    trained = load_trained(out)
    assert trained.is_merged
    assert set(trained.params) == {p for p in load_trained(workdir).params if "base." not in p}
    z = [vt.Aligner.load(path, dtype="float32").encode_texts(TEXTS) for path in (workdir, out)]
    np.testing.assert_allclose(z[1], z[0], atol=1e-5)
    (tmp_path / "again").mkdir()
    export.write(tmp_path / "again", trained, "merged")
    assert list(_changed(out, tmp_path / "again")) == []
    with pytest.raises(UserError, match="name the run instead"):
        export.export(out, tmp_path / "adapter", "peft", say=lambda line: None)
    with pytest.raises(UserError, match="leave --base out"):
        load_trained(out, str(out))


def test_a_folder_whose_weights_were_replaced_is_refused(made, tmp_path):
    base, _, out, _ = made
    copy = shutil.copytree(out, tmp_path / "copy")
    for name in set(json.loads((base / INDEX).read_text())["weight_map"].values()):
        shutil.copyfile(base / name, copy / name)
    with pytest.raises(UserError, match="are not those that were exported"):
        load_trained(copy)


def test_a_base_in_bfloat16_is_merged_in_float32_and_says_what_rounding_costs(tmp_path):
    base = write_base(tmp_path / "base", "smolvlm", dtype="bfloat16")
    workdir, said = write_checkpoint(tmp_path / "run", make_config(base)), []
    export.export(workdir, tmp_path / "out", "merged", say=said.append)
    tensors = stored_tensors(tmp_path / "out")
    assert {x.dtype for x in tensors.values()} == {ml_dtypes.bfloat16}
    parts = export.make_parts(load_trained(workdir), "merged")
    for key, _, exact in merged.merged_tensors(base, parts.adapter, parts.scale):
        assert exact.dtype == np.float32
        np.testing.assert_array_equal(tensors[key].array(), exact.astype(ml_dtypes.bfloat16))
    inputs = json.loads((tmp_path / "out" / certificate.INPUTS).read_text())
    rounding = inputs["rounding"]
    assert rounding["dtypes"] == ["bfloat16"]
    assert 1e-4 < rounding["error"] < 0.05
    assert rounding["is_allowed"]
    assert rounding["allowed_video"] <= rounding["cosine_video"] < 1.0 - 1e-9
    assert any(line.startswith("merged weights are rounded to bfloat16") for line in said)
    assert "rounding loses" in (tmp_path / "out" / "README.md").read_text()
    # What PyTorch is compared with is what the rounded weights give.
    stored = load_file(tmp_path / "out" / certificate.TENSORS)
    aligner = vt.Aligner.load(tmp_path / "out", dtype="float32")
    np.testing.assert_allclose(aligner.encode_texts(inputs["texts"]), stored["z_text"], atol=1e-6)


def test_rounding_that_costs_more_than_computing_in_bfloat16_is_not_allowed():
    exact = {name: np.eye(2, 4, dtype=np.float32) for name in ("z_video", "z_text")}
    worse = {name: _turned(x, 0.05) for name, x in exact.items()}
    better = {name: _turned(x, 0.03) for name, x in exact.items()}
    for rounded, computed, is_allowed in ((worse, better, False), (better, worse, True)):
        found = certificate.describe_rounding(("bfloat16",), 0.1, exact, rounded, computed)
        assert found["is_allowed"] is is_allowed
        assert ("--format=peft instead" in certificate.say_rounding(found)) is not is_allowed


def test_an_update_that_vanishes_in_the_base_s_dtype_is_refused(tmp_path):
    base = write_base(tmp_path / "base", "smolvlm", dtype="bfloat16")
    workdir = write_checkpoint(tmp_path / "run", make_config(base), lora_b=1e-9)
    with pytest.raises(UserError, match=r"too small for bfloat16.*the base's own"):
        export.export(workdir, tmp_path / "out", "merged", say=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_a_base_that_transformers_would_not_load_is_refused(tmp_path):
    base = write_base(tmp_path / "base", "smolvlm")
    (base / "model.safetensors").rename(base / "weights.safetensors")
    workdir = write_checkpoint(tmp_path / "run", make_config(base))
    with pytest.raises(UserError, match=r"weights\.safetensors: transformers loads"):
        export.export(workdir, tmp_path / "out", "merged", say=lambda line: None)


def test_an_update_of_no_tensor_or_of_another_size_is_refused(made):
    base, workdir, _, _ = made
    adapter = _adapter(workdir)
    key = next(key for key in adapter if key.endswith("down_proj.lora_B.weight"))
    other = adapter | {key: adapter[key][:-1]}
    with pytest.raises(UserError, match="the adapter's is"):
        list(merged.merged_tensors(base, other, 1.0))
    stray = {re.sub(r"layers\.\d", "layers.9", k): x for k, x in adapter.items()}
    with pytest.raises(UserError, match="which the adapter changes"):
        list(merged.merged_tensors(base, stray, 1.0))


def test_weights_that_overflow_the_base_s_dtype_are_refused(tmp_path):
    base = write_base(tmp_path / "base", "smolvlm", dtype="float16")
    workdir = write_checkpoint(tmp_path / "run", make_config(base), lora_b=1e6)
    with pytest.raises(UserError, match="not finite in float16"):
        export.export(workdir, tmp_path / "out", "merged", say=lambda line: None)


def _adapter(workdir):
    return export.make_parts(load_trained(workdir), "merged").adapter


def _changed(one, other):
    before, after = stored_tensors(one), stored_tensors(other)
    assert list(before) == list(after)
    return [k for k in before if not np.array_equal(before[k].array(), after[k].array())]


def _turned(x, angle):
    """Return unit rows at an angle to those of `x`."""
    return (np.cos(angle) * x + np.sin(angle) * np.roll(x, 2, axis=1)).astype(np.float32)
