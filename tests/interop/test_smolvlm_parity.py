"""The whole model against transformers in float32, read through our own loader."""

import hf_models
import jax
import numpy as np
import pytest
from hf_models import IMAGE_SIZE, IMAGE_TOKEN, TOKENS_PER_FRAME, VOCABULARY

import vtalign_jax as vt
from vtalign_jax.models.lora import AdapterConfig

pytestmark = pytest.mark.parity

BASES = {
    "smolvlm": {"tied": False, "old_rope": False, "shards": False},
    "idefics3": {"tied": True, "old_rope": True, "shards": True},
}
LENGTH = 2 * TOKENS_PER_FRAME + 9


@pytest.fixture(scope="module", params=BASES)
def base(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    theirs = hf_models.save_random_model(directory, request.param, **BASES[request.param])
    assert (directory / "model.safetensors.index.json").exists() == BASES[request.param]["shards"]
    return theirs, vt.load_smolvlm(directory), directory


def _row(rng, frames):
    """Return the ids of one row: words, and `frames` frames among them."""
    words = rng.integers(1, IMAGE_TOKEN, 5 + 2 * frames).tolist()
    ids = words[:3]
    for frame in range(frames):
        ids += [IMAGE_TOKEN] * TOKENS_PER_FRAME + words[3 + 2 * frame : 5 + 2 * frame]
    return ids + words[3 + 2 * frames :]


def _batch(frames_per_row, padding="right"):
    """Return ids, mask and frames of rows with these numbers of frames."""
    rng = np.random.default_rng(0)
    ids = np.zeros((len(frames_per_row), LENGTH), np.int64)
    mask = np.zeros_like(ids)
    for i, frames in enumerate(frames_per_row):
        row = _row(rng, frames)
        place = slice(0, len(row)) if padding == "right" else slice(LENGTH - len(row), None)
        ids[i, place], mask[i, place] = row, 1
    shape = (len(ids), max(frames_per_row), IMAGE_SIZE, IMAGE_SIZE, 3)
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


@pytest.mark.parametrize(
    ("frames_per_row", "padding"),
    [((0, 0), "right"), ((1, 1), "left"), ((2, 1), "left"), ((2, 1), "right")],
    ids=["text", "one-frame", "several-frames-left-padded", "several-frames-right-padded"],
)
def test_every_layer_and_the_logits_equal_transformers(base, frames_per_row, padding):
    theirs, ours, _ = base
    ids, mask, pixels = _batch(frames_per_row, padding)
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


def test_a_model_with_fresh_adapters_still_computes_the_base(base):
    theirs, _, directory = base
    ids, mask, _ = _batch((0, 0))
    adapted = vt.load_smolvlm(directory, adapters=AdapterConfig(text_blocks=3, rank=2, mlp=True))
    expected = hf_models.layer_outputs(theirs, input_ids=ids, attention_mask=mask)["logits"][0]
    assert _difference(adapted(ids, mask), expected, mask.astype(bool)) < 1e-4


@pytest.mark.parametrize("architecture", ["smolvlm", "idefics3"])
def test_the_other_way_of_tying_the_embeddings_gives_the_same_logits(architecture, tmp_path):
    tied = not BASES[architecture]["tied"]
    theirs = hf_models.save_random_model(
        tmp_path, architecture, tied=tied, old_rope=True, shards=False
    )
    ours = vt.load_smolvlm(tmp_path)
    assert (ours.lm_head is None) == tied
    ids, mask, _ = _batch((0, 0))
    expected = hf_models.layer_outputs(theirs, input_ids=ids, attention_mask=mask)["logits"][0]
    assert expected.shape[-1] == VOCABULARY
    assert _difference(ours(ids, mask), expected, mask.astype(bool)) < 1e-4
