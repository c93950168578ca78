import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vtalign_jax as vt
from tests.interop.checkpoints import split_weights
from vtalign_jax.errors import UserError
from vtalign_jax.interop import base_files, tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    tiny.write_tiny_checkpoint(directory)
    return directory


@pytest.fixture
def checkpoint(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def test_sharded_files_hold_the_same_tensors(whole, checkpoint):
    split_weights(checkpoint)
    single, sharded = (base_files.stored_tensors(d) for d in (whole, checkpoint))
    assert sorted(single) == sorted(sharded)
    for key, tensor in single.items():
        np.testing.assert_array_equal(tensor.array(), sharded[key].array())


def test_a_base_in_a_bucket_is_the_one_on_a_disk(whole, bucket, cache):
    bucket.put_folder(whole, "bases/tiny")
    there = base_files.resolve_base(f"{bucket.url}/bases/tiny")
    assert there.parent == cache
    assert base_files.base_fingerprint(there) == base_files.base_fingerprint(whole)
    with pytest.raises(UserError, match=f"there is no folder {bucket.url}/none"):
        base_files.resolve_base(f"{bucket.url}/none")


def test_a_shard_that_the_index_names_but_is_not_there_is_named(checkpoint):
    split_weights(checkpoint)
    (checkpoint / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model-00002-of-00002\.safetensors"):
        vt.load_smolvlm(checkpoint)


def test_a_tensor_that_the_index_names_but_its_file_lacks_is_named(checkpoint):
    split_weights(checkpoint)
    index = json.loads((checkpoint / base_files.INDEX).read_text())
    index["weight_map"]["model.lost.weight"] = "model-00001-of-00002.safetensors"
    (checkpoint / base_files.INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model\.lost\.weight"):
        vt.load_smolvlm(checkpoint)


@pytest.mark.parametrize("kept", [3, 500, -4])
def test_a_file_cut_off_by_a_broken_download_is_refused(checkpoint, kept):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        vt.load_smolvlm(checkpoint)


def test_weights_in_another_format_only_are_refused(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(UserError, match="no safetensors file"):
        vt.load_smolvlm(checkpoint)


def test_integer_weights_are_refused(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.text_model.norm.weight"] = np.ones(64, np.int8)
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(UserError, match="stored as I8"):
        vt.load_smolvlm(checkpoint)


def test_a_folder_without_configuration_is_refused(checkpoint):
    (checkpoint / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        vt.load_smolvlm(checkpoint)


def test_a_broken_configuration_is_refused(checkpoint):
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*config\.json"):
        vt.load_smolvlm(checkpoint)


@pytest.mark.parametrize("base", ["/nowhere/at/all", "./nowhere", "smolvlm", "a/b/c"])
def test_a_path_that_does_not_exist_is_refused(base):
    with pytest.raises(UserError, match="no base model at"):
        vt.load_smolvlm(base)


def test_a_hub_id_that_cannot_be_downloaded_is_one_clear_error():
    with pytest.raises(UserError, match=r"cannot get base model 'nobody/nothing'.*directory"):
        vt.load_smolvlm("nobody/nothing")


def test_the_fingerprint_repeats_and_tells_weights_configurations_and_tokenizers_apart(
    whole, checkpoint
):
    first = base_files.base_fingerprint(whole)
    assert first == base_files.base_fingerprint(checkpoint)
    assert len(first) == 16
    seen = {first}
    for name in ("config.json", "tokenizer.json"):
        (checkpoint / name).write_text((checkpoint / name).read_text() + "\n")
        seen.add(base_files.base_fingerprint(checkpoint))
    tiny.write_tiny_checkpoint(checkpoint, seed=1)
    seen.add(base_files.base_fingerprint(checkpoint))
    assert len(seen) == 4


def test_a_link_out_of_a_base_is_not_handed_on(tmp_path):
    (tmp_path / "secret").write_text("x")
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    (base / "vocab.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"vocab\.json is a link that leads out"):
        base_files.copy_files(base, out, ["vocab.json"])
    assert list(out.iterdir()) == []


def test_the_links_of_hugging_faces_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "1").write_text("{}")
    (snapshot / "vocab.json").symlink_to("../../blobs/1")
    base_files.copy_files(snapshot, tmp_path, ["vocab.json"])
    assert (tmp_path / "vocab.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", 3, None])
def test_an_index_names_files_beside_it_alone(tmp_path, name):
    (tmp_path / base_files.INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="as a weight file, which is none beside it"):
        base_files.stored_tensors(tmp_path)
