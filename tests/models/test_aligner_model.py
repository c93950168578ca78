"""Clips and captions in one pass: the same embedding, and states where the captions are said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_aligner import IMAGE_TOKEN, make_aligner, make_batch, make_config, relative_error
from vtalign_jax.models.aligner import attended, caption_states, pool

MOST = 7  # tokens of a caption


def make_model(pooling):
    bind, params, frozen = make_aligner(make_config(model={"pooling": pooling}))
    return bind(params | frozen)


@pytest.fixture(scope="module")
def model():
    return make_model("last")


@pytest.fixture(scope="module")
def batch():
    return make_batch(4, has_captions=True)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_clips_of_a_joint_pass_equal_those_of_a_pass_without_captions(pooling, batch):
    model = make_model(pooling)
    clips = batch.clip_mask[0].sum()
    plain = make_batch(4)
    np.testing.assert_array_equal(plain.clip_ids, batch.clip_ids[:, :clips])
    alone = model.pooled_clips(plain.clip_ids, plain.clip_mask, plain.frames)
    joint, _ = model.captioned_clips(
        batch.clip_ids, batch.clip_mask, batch.caption_mask, batch.frames, MOST
    )
    assert relative_error(joint, alone) < 1e-5


def test_the_logits_of_a_joint_pass_equal_those_of_a_pass_for_captions_alone(model, batch):
    """The other pass has one row, only its own tokens, and goes through `SmolVLM.__call__`."""
    _, captions = model.captioned_clips(
        batch.clip_ids, batch.clip_mask, batch.caption_mask, batch.frames, MOST
    )
    logits = model.base.logits(captions.hidden)
    frames = jnp.float32(batch.frames) / 127.5 - 1
    for row in (0, 1):
        places = np.flatnonzero(batch.caption_mask[row])
        end = places[-1] + 1
        assert captions.mask[row].tolist() == [True] * len(places) + [False] * (MOST - len(places))
        predicted = captions.tokens[row, : len(places)]
        np.testing.assert_array_equal(predicted, batch.clip_ids[row, places])
        ids = batch.clip_ids[row : row + 1, :end]
        alone = model.base(ids, np.ones_like(ids), frames[row : row + 1])[0, places - 1]
        assert relative_error(logits[row, : len(places)], alone) < 1e-5


def test_no_gradient_flows_from_a_clips_embedding_to_its_caption(model, batch):
    clips = int(batch.clip_mask[0].sum())
    token_mask = attended(batch.clip_mask, batch.caption_mask)
    tokens = model.base.text_model.embed_tokens(batch.clip_ids)

    def embedded(tokens):
        hidden = model.base.text_model(tokens, token_mask)
        return jnp.sum(pool(hidden, batch.clip_mask, "mean") ** 3)

    gradient = jax.grad(embedded)(tokens)
    assert np.all(np.any(gradient[:, :clips], axis=(0, 2)))
    assert not np.any(gradient[:, clips:])

    changed = batch.clip_ids.copy()
    changed[:, clips:] = 9
    pooled = [
        model.captioned_clips(ids, batch.clip_mask, batch.caption_mask, batch.frames, MOST)[0]
        for ids in (batch.clip_ids, changed)
    ]
    np.testing.assert_array_equal(*pooled)


@pytest.mark.parametrize("depth", ["tower", "connector", "decoder"])
def test_a_kept_prefix_gives_the_same_clips_and_captions(model, batch, depth):
    ids, masks = batch.clip_ids, (batch.clip_mask, batch.caption_mask)
    expected = model.captioned_clips(ids, *masks, batch.frames, MOST)
    prefix = model.clip_prefix(ids, attended(*masks), batch.frames, depth)
    found = model.captioned_clips(ids, *masks, None, MOST, prefix=prefix, depth=depth)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(ours, theirs) < 1e-6


def test_attention_sees_all_up_to_the_last_token_of_the_caption():
    clip = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]], bool)
    caption = np.array([[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]], bool)
    seen = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]], bool)
    np.testing.assert_array_equal(attended(clip, caption), seen)


def test_states_before_each_token_are_taken_to_the_very_end_of_the_row_and_no_further():
    ids = np.arange(12).reshape(2, 6)
    hidden = np.arange(12.0).reshape(2, 6, 1)
    mask = np.array([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]], bool)
    found = caption_states(hidden, ids, mask, 4)
    assert found.mask.tolist() == [[True, True, False, False], [False] * 4]
    assert found.tokens[0, :2].tolist() == [4, 5]
    assert found.hidden[0, :2, 0].tolist() == [3.0, 4.0]


def test_image_tokens_are_as_many_as_features_and_never_predicted(model, batch):
    features = jax.eval_shape(model.base.image_features, jnp.float32(batch.frames))
    is_image = batch.clip_ids == IMAGE_TOKEN
    assert (is_image.sum(axis=1) == features.shape[1] * features.shape[2]).all()
    assert not (is_image & batch.caption_mask).any()
