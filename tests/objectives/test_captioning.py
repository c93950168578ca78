"""The caption loss: its value, its gradient, what counts, and how much memory it takes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from tests.tiny_aligner import make_aligner, make_batch, make_config, relative_error
from vtalign_jax import sharding
from vtalign_jax.config import MeshConfig
from vtalign_jax.models.aligner import Captions
from vtalign_jax.objectives.captioning import caption_nll, count_tokens

ROWS, LENGTH, WIDTH, VOCABULARY = 5, 7, 6, 11


def make_captions(seed=0):
    rng = np.random.default_rng(seed)
    captions = Captions(
        rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32),
        rng.integers(0, VOCABULARY, (ROWS, LENGTH)).astype(np.int32),
        np.arange(LENGTH) < np.array([7, 0, 3, 1, 4])[:, None],
    )
    return captions, rng.normal(size=(WIDTH, VOCABULARY)).astype(np.float32)


def reference(hidden, kernel, captions, row_mask):
    """Return the sum in float64."""
    scores = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64)
    total = 0.0
    for row, place in zip(*np.nonzero(captions.mask & row_mask[:, None]), strict=True):
        of_place = scores[row, place]
        total += np.log(np.exp(of_place).sum()) - of_place[captions.tokens[row, place]]
    return total


@pytest.mark.parametrize("tile", [1, ROWS * VOCABULARY * 2, 2**25])
def test_sum_and_gradients_equal_float64_whatever_the_tile(tile):
    captions, kernel = make_captions()
    row_mask = np.array([True, True, True, False, True])

    def total(hidden, kernel):
        given = captions._replace(hidden=hidden)
        return caption_nll(lambda x: x @ kernel, given, row_mask, tile)

    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(captions.hidden, kernel)
    exact = [np.asarray(x, np.float64) for x in (captions.hidden, kernel)]
    np.testing.assert_allclose(value, reference(*exact, captions, row_mask), rtol=1e-6)
    rng = np.random.default_rng(1)
    for position, gradient in enumerate(gradients):
        direction = rng.normal(size=exact[position].shape)
        shifted = []
        for sign in (1, -1):
            moved = list(exact)
            moved[position] = moved[position] + sign * 1e-5 * direction
            shifted.append(reference(*moved, captions, row_mask))
        slope = (shifted[0] - shifted[1]) / 2e-5
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-4)
    assert not np.any(gradients[0][~(captions.mask & row_mask[:, None])])


def test_tokens_of_real_rows_are_counted():
    captions, _ = make_captions()
    assert float(count_tokens(captions.mask, np.ones(ROWS, bool))) == 15.0
    assert float(count_tokens(captions.mask, np.arange(ROWS) != 0)) == 8.0
    assert float(count_tokens(captions.mask, np.zeros(ROWS, bool))) == 0.0


def test_rows_without_captions_give_zero_and_no_gradient():
    captions, kernel = make_captions()
    empty = captions._replace(mask=np.zeros_like(captions.mask))

    def total(hidden):
        given = empty._replace(hidden=hidden)
        return caption_nll(lambda x: x @ kernel, given, np.ones(ROWS, bool))

    value, gradient = jax.value_and_grad(total)(captions.hidden)
    assert float(value) == 0.0
    assert not np.any(gradient)


def test_logits_of_all_positions_are_never_there_together():
    rows, length, width, vocabulary = 16, 32, 8, 4096

    def total(hidden, tokens, mask, kernel):
        captions = Captions(hidden, tokens, mask)
        return caption_nll(lambda x: x @ kernel, captions, jnp.ones(rows, bool), 2**16)

    shapes = [
        jax.ShapeDtypeStruct((rows, length, width), jnp.float32),
        jax.ShapeDtypeStruct((rows, length), jnp.int32),
        jax.ShapeDtypeStruct((rows, length), bool),
        jax.ShapeDtypeStruct((width, vocabulary), jnp.float32),
    ]
    compiled = jax.jit(jax.value_and_grad(total)).lower(*shapes).compile()
    whole = 4 * rows * length * vocabulary
    assert compiled.memory_analysis().temp_size_in_bytes < whole / 4


def test_logits_are_float32_under_bfloat16_compute():
    captions, kernel = make_captions()
    low = captions._replace(hidden=jnp.asarray(captions.hidden, jnp.bfloat16))
    kernel = jnp.asarray(kernel, jnp.bfloat16)

    def logits(x):
        return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)

    def total(hidden):
        return caption_nll(logits, low._replace(hidden=hidden), np.ones(ROWS, bool))

    value, gradient = jax.value_and_grad(total)(low.hidden)
    expected = reference(np.float32(low.hidden), np.float32(kernel), captions, np.ones(ROWS, bool))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert gradient.dtype == jnp.bfloat16


@functools.cache
def differentiated(devices):
    """Return `f(batch) -> (loss, gradient)` of the caption loss alone on so many devices."""
    bind, params, frozen = make_aligner(make_config())
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])

    def loss(params, frozen, batch):
        model, real = bind(params | frozen), batch.identity.row_mask
        _, captions = model.captioned_clips(
            batch.clip_ids, batch.clip_mask, batch.caption_mask, batch.frames, 7
        )
        total = caption_nll(model.base.logits, captions, real, tile=72 * len(real) * 3)
        return total / count_tokens(batch.caption_mask, real)

    function = jax.jit(jax.value_and_grad(loss))
    base = jax.device_put(frozen, sharding.frozen_shardings(frozen, mesh))
    tuned = jax.device_put(params, NamedSharding(mesh, sharding.WHOLE))
    return lambda batch: jax.device_get(function(tuned, base, sharding.to_devices(batch, mesh)))


def test_devices_and_padding_rows_change_neither_loss_nor_gradient():
    batch = make_batch(16, real=8, has_captions=True)
    expected = differentiated(1)(batch)
    assert np.any(expected[1]["base.text_model.tuned_layers.self_attn.q_proj.lora_a"])
    only_real = differentiated(1)(jax.tree.map(lambda x: x[:8], batch))
    for found in (differentiated(8)(batch), only_real):
        assert found[0] == pytest.approx(expected[0], rel=1e-5)
        for path, value in expected[1].items():
            assert relative_error(found[1][path], value) < 1e-5, path


def make_coloured(seed, rows=16):
    """Return clips of four colours, and captions of two tokens that say which, and an end."""
    rng, kind = np.random.default_rng(seed), np.arange(rows) % 4
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]])
    batch = make_batch(rows)
    noise = 30.0 * rng.normal(size=batch.frames.shape)
    pixels = np.clip(colours[kind][:, None, None, None] + noise, 0, 255)
    start = batch.clip_ids.shape[1]
    caption = np.stack([np.full(rows, 4), 10 + kind, 20 + kind, np.full(rows, 5)], axis=1)
    ids = np.concatenate([np.repeat(batch.clip_ids[:1], rows, axis=0), caption], axis=1)
    place = np.arange(ids.shape[1])
    return batch._replace(
        frames=pixels.astype(np.uint8),
        clip_ids=ids.astype(np.int32),
        clip_mask=np.broadcast_to(place < start, ids.shape),
        caption_mask=np.broadcast_to(place > start, ids.shape),
    )


def test_the_caption_loss_alone_learns_to_say_what_a_clip_it_never_saw_shows():
    bind, params, frozen = make_aligner(make_config(tune={"dropout": 0.0}))
    scale = {path: 24.0 if "lm_head" in path else 8.0 for path in frozen if "kernel" in path}
    frozen = {path: value * scale.get(path, 1.0) for path, value in frozen.items()}
    optimizer = optax.adam(1e-2)

    def loss(params, batch):
        model, real = bind(params | frozen), batch.identity.row_mask
        _, captions = model.captioned_clips(
            batch.clip_ids, batch.clip_mask, batch.caption_mask, batch.frames, 4
        )
        tokens = count_tokens(batch.caption_mask, real)
        return caption_nll(model.base.logits, captions, real) / tokens

    @jax.jit
    def step(params, state, batch):
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    for seed in range(120):
        params, state, _ = step(params, state, make_coloured(seed))
    _, _, held_out = step(params, state, make_coloured(10**6))
    unigram_entropy = (np.log(3) + 2 * np.log(12)) / 3  # the end, and eight words as often
    blind = np.log(4) / 3  # knows every word but not the clip
    assert held_out < 0.5 * blind < unigram_entropy
