"""The whole model against transformers in float32, read through our own loader."""

import json

import hf_models
import jax
import numpy as np
import pytest
from hf_models import IMAGE_TOKEN, PUBLIC, VOCABULARY

import vtalign_jax as vt
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.models.lora import AdapterConfig

pytestmark = pytest.mark.parity

NEW_ROPE = {"smolvlm2_2b_instruct", "smolvlm_256m_instruct"}  # as transformers 5 writes it
SHARDED = {"smolvlm_instruct", "smolvlm2_500m_video_instruct"}
WORDS = 9
SEVERAL = {
    "several-frames-left-padded": ((2, 1), "left"),
    "several-frames-right-padded": ((2, 1), "right"),
}
FEWER = {"text": ((0, 0), "right"), "one-frame": ((1, 1), "left")}
TWO = ("smolvlm2_2b_instruct", "smolvlm_256m_instruct")  # of either architecture and grouping
CASES = [(name, case) for name in PUBLIC for case in [*SEVERAL, *(FEWER if name in TWO else ())]]


@pytest.fixture(scope="module", params=PUBLIC)
def base(request, tmp_path_factory):
    name = request.param
    directory = tmp_path_factory.mktemp(name)
    theirs = hf_models.save_random_model(
        directory,
        hf_models.shaped_after(name),
        old_rope=name not in NEW_ROPE,
        shards=name in SHARDED,
    )
    assert (directory / "model.safetensors.index.json").exists() == (name in SHARDED)
    text = json.loads((directory / "config.json").read_text())["text_config"]
    assert ("rope_parameters" in text) == (name in NEW_ROPE)
    return theirs, vt.load_smolvlm(directory), directory


def test_the_shapes_keep_what_is_the_models_own():
    shapes = {name: SmolVLMConfig.from_hf(hf_models.shaped_after(name)) for name in PUBLIC}
    real = {name: SmolVLMConfig.from_hf(hf_models.public_config(name)) for name in PUBLIC}
    heads = {(s.text.num_attention_heads, s.text.num_key_value_heads) for s in shapes.values()}
    assert heads == {(32, 32), (15, 5), (9, 3)}
    assert {(s.vision.patch_size, s.scale_factor) for s in shapes.values()} == {(14, 3), (16, 4)}
    for name, shape in shapes.items():
        ours, theirs = (
            [
                c.vision.num_hidden_layers / c.text.num_hidden_layers,
                c.vision.intermediate_size / c.vision.hidden_size,
                c.text.intermediate_size / c.text.hidden_size,
                c.vision.hidden_size / c.text.hidden_size,
                c.text.rope_theta,
                c.text.rms_norm_eps,
                c.tie_word_embeddings,
                c.model_type,
            ]
            for c in (shape, real[name])
        )
        assert ours == theirs


def _row(rng, frames, tokens_per_frame):
    """Return the ids of one row: words, and `frames` frames among them."""
    words = rng.integers(1, IMAGE_TOKEN, 5 + 2 * frames).tolist()
    ids = words[:3]
    for frame in range(frames):
        ids += [IMAGE_TOKEN] * tokens_per_frame + words[3 + 2 * frame : 5 + 2 * frame]
    return ids + words[3 + 2 * frames :]


def _batch(config, frames_per_row, padding="right"):
    """Return ids, mask and frames of rows with these numbers of frames."""
    rng = np.random.default_rng(0)
    length = max(frames_per_row) * config.tokens_per_frame + WORDS
    ids = np.zeros((len(frames_per_row), length), np.int64)
    mask = np.zeros_like(ids)
    for i, frames in enumerate(frames_per_row):
        row = _row(rng, frames, config.tokens_per_frame)
        place = slice(0, len(row)) if padding == "right" else slice(length - len(row), None)
        ids[i, place], mask[i, place] = row, 1
    edge = config.vision.image_size
    shape = (len(ids), max(frames_per_row), edge, edge, 3)
    pixels = rng.standard_normal(shape).astype(np.float32)
    for i, frames in enumerate(frames_per_row):
        pixels[i, frames:] = 0.0  # transformers takes an all-zero frame for padding
    return ids, mask, pixels if max(frames_per_row) else None


def _difference(ours, theirs, valid=...):
    ours, theirs = np.asarray(ours)[valid], np.asarray(theirs)[valid]
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@jax.jit
def _every_layer(model, ids, mask, pixels):
    features = None
    vision = vision_norm = ()
    if pixels is not None:
        flat = pixels.reshape(-1, *pixels.shape[2:])
        vision, vision_norm = model.vision_model.every_layer(flat), model.vision_model(flat)
        features = model.image_features(pixels)
    merged = model.merge_inputs(ids, features)
    text = model.text_model.every_layer(merged, mask)
    return vision, text, vision_norm, model.text_model(merged, mask), model(ids, mask, pixels)


@pytest.mark.parametrize(("base", "case"), CASES, indirect=["base"])
def test_every_layer_and_the_logits_equal_transformers(base, case):
    theirs, ours, _ = base
    frames_per_row, padding = (SEVERAL | FEWER)[case]
    ids, mask, pixels = _batch(ours.config, frames_per_row, padding)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if pixels is not None:
        inputs["pixel_values"] = pixels.transpose(0, 1, 4, 2, 3)
    expected = hf_models.layer_outputs(theirs, **inputs)
    if pixels is not None:
        rng = np.random.default_rng(1)  # frames that no token mentions may hold anything
        for i, frames in enumerate(frames_per_row):
            pixels[i, frames:] = rng.standard_normal(pixels[i, frames:].shape)
    vision, text, vision_norm, text_norm, logits = _every_layer(ours, ids, mask, pixels)

    valid = mask.astype(bool)
    assert len(text) == 1 + len(expected["text"])
    for layer, reference in zip(text[1:], expected["text"], strict=True):
        assert _difference(layer, reference, valid) < 1e-5
    assert _difference(text_norm, expected["norms"][-1], valid) < 1e-5
    assert _difference(logits, expected["logits"][0], valid) < 1e-4
    if pixels is not None:
        real = np.concatenate([np.arange(pixels.shape[1]) < n for n in frames_per_row])
        assert len(vision) == 1 + len(expected["vision"])
        for layer, reference in zip(vision[1:], expected["vision"], strict=True):
            assert _difference(np.asarray(layer)[real], reference) < 1e-5
        assert _difference(np.asarray(vision_norm)[real], expected["norms"][0]) < 1e-5


@pytest.mark.parametrize("base", TWO, indirect=True)
def test_a_model_with_fresh_adapters_still_computes_the_base(base):
    theirs, ours, directory = base
    ids, mask, _ = _batch(ours.config, (0, 0))
    adapted = vt.load_smolvlm(directory, adapters=AdapterConfig(text_blocks=3, rank=2, mlp=True))
    expected = hf_models.layer_outputs(theirs, input_ids=ids, attention_mask=mask)["logits"][0]
    assert _difference(adapted(ids, mask), expected, mask.astype(bool)) < 1e-4


@pytest.mark.parametrize("name", ["smolvlm2_256m_video_instruct", "smolvlm_instruct"])
def test_tied_embeddings_give_the_same_logits(name, tmp_path):
    values = hf_models.shaped_after(name) | {"tie_word_embeddings": True}
    values["text_config"]["tie_word_embeddings"] = True
    theirs = hf_models.save_random_model(tmp_path, values, old_rope=True, shards=False)
    ours = vt.load_smolvlm(tmp_path)
    assert ours.lm_head is None
    ids, mask, _ = _batch(ours.config, (0, 0))
    expected = hf_models.layer_outputs(theirs, input_ids=ids, attention_mask=mask)["logits"][0]
    assert expected.shape[-1] == VOCABULARY
    assert _difference(ours(ids, mask), expected, mask.astype(bool)) < 1e-4
