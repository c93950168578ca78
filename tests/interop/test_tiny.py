import jax
import numpy as np
import pytest

import vtalign_jax as vt
from vtalign_jax.interop import base_files, tiny
from vtalign_jax.interop.tokens import ClipTokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    tiny.write_tiny_checkpoint(directory)
    return directory


def test_the_same_seed_writes_the_same_bytes_and_another_seed_other_weights(checkpoint, tmp_path):
    tiny.write_tiny_checkpoint(tmp_path / "again")
    tiny.write_tiny_checkpoint(tmp_path / "other", seed=1)
    names = sorted(file.name for file in checkpoint.iterdir())
    assert names == sorted(file.name for file in (tmp_path / "again").iterdir())
    for name in names:
        first = (checkpoint / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == first
        same = (tmp_path / "other" / name).read_bytes() == first
        assert same == (name != "model.safetensors")


def test_a_clip_and_a_text_run_through_the_loaded_model(checkpoint):
    model, tokens = vt.load_smolvlm(checkpoint), ClipTokenizer(checkpoint)
    ids = tokens.encode_clip([0.5, 1.5], 4.0)[None]
    size = tokens.image_size
    frames = np.random.default_rng(0).uniform(-1, 1, (1, 2, size, size, 3)).astype(np.float32)
    logits = jax.jit(lambda model: model(ids, np.ones_like(ids), frames))(model)
    assert logits.shape == (1, ids.shape[1], model.config.text.vocab_size)
    assert np.isfinite(logits).all()


def test_tiny_is_written_once_to_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directory = base_files.resolve_base("tiny")
    assert directory.is_relative_to(tmp_path)
    before = (directory / "model.safetensors").stat().st_mtime_ns
    assert base_files.resolve_base("tiny") == directory
    assert (directory / "model.safetensors").stat().st_mtime_ns == before
    assert [entry.name for entry in directory.parent.iterdir()] == [directory.name]


@pytest.mark.parity
def test_transformers_opens_the_folder_without_missing_or_unexpected_keys(checkpoint):
    import transformers

    model, report = transformers.AutoModelForImageTextToText.from_pretrained(
        checkpoint, output_loading_info=True
    )
    assert type(model).__name__ == "SmolVLMForConditionalGeneration"
    assert not any(report.values()), report
    ours = vt.load_smolvlm(checkpoint).config
    assert model.config.text_config.rope_parameters["rope_theta"] == ours.text.rope_theta
    assert model.model.image_seq_len == ours.tokens_per_frame
