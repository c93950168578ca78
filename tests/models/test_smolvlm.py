import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import filled
from flax import nnx

from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.models.lora import AdapterConfig
from vtalign_jax.models.smolvlm import SmolVLM, pixel_shuffle

IMAGE = 40
CONFIG = SmolVLMConfig.from_hf(
    {
        "model_type": "smolvlm",
        "image_token_id": IMAGE,
        "scale_factor": 2,
        "vision_config": {
            "hidden_size": 12,
            "intermediate_size": 20,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        },
        "text_config": {
            "hidden_size": 24,
            "intermediate_size": 36,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 41,
        },
    }
)
Q = CONFIG.tokens_per_frame


@pytest.fixture(scope="module")
def model():
    adapters = AdapterConfig(text_blocks=1, rank=2, dropout=0.5)
    return filled(lambda: SmolVLM(CONFIG, adapters, rngs=nnx.Rngs(0)))


@jax.jit
def _features(model, frames, keys=None):
    return model.image_features(frames, keys)


def test_pixel_shuffle_gathers_each_square_of_patches():
    grid = np.arange(36 * 2.0).reshape(1, 36, 2)  # 6 x 6 patches of width 2
    shuffled = np.asarray(pixel_shuffle(grid, 3))
    assert shuffled.shape == (1, 4, 18)
    square = [grid[0, row * 6 + column] for row in (3, 4, 5) for column in (0, 1, 2)]
    np.testing.assert_array_equal(shuffled[0, 2], np.concatenate(square))


def test_image_tokens_take_the_features_in_order_and_surplus_ones_are_unused(model):
    ids = np.array([[1, *[IMAGE] * Q, 2, *[IMAGE] * Q, 3], [1, 2, *[IMAGE] * Q, *[0] * (Q + 1)]])
    features = jax.random.normal(jax.random.key(0), (2, 3, Q, 24))
    merged = model.merge_inputs(ids, features)
    words = model.text_model.embed_tokens(ids)
    np.testing.assert_array_equal(merged[0, 1 : 1 + Q], features[0, 0])
    np.testing.assert_array_equal(merged[0, 2 + Q : 2 + 2 * Q], features[0, 1])
    np.testing.assert_array_equal(merged[1, 2 : 2 + Q], features[1, 0])
    is_word = ids != IMAGE
    np.testing.assert_array_equal(merged[is_word], words[is_word])


def test_frames_are_encoded_each_on_its_own(model):
    frames = jax.random.normal(jax.random.key(0), (2, 2, 16, 16, 3))
    together = _features(model, frames)
    assert together.shape == (2, 2, Q, 24)
    alone = _features(model, frames[1:, 1:])
    np.testing.assert_allclose(together[1:, 1:], alone, rtol=0, atol=1e-5 * np.abs(alone).max())


def test_connector_dropout_is_drawn_by_row(model):
    frames = jnp.tile(jax.random.normal(jax.random.key(0), (1, 1, 16, 16, 3)), (2, 1, 1, 1, 1))
    keys = jax.random.split(jax.random.key(1), 2)
    first, second = _features(model, frames, keys)
    assert np.abs(first - second).max() > 1e-4
    again = _features(model, frames[1:], keys[1:])[0]
    np.testing.assert_allclose(second, again, rtol=0, atol=1e-5 * np.abs(again).max())


def test_tied_embeddings_make_the_logits():
    tied = SmolVLMConfig(**{**vars(CONFIG), "tie_word_embeddings": True})
    model = filled(lambda: SmolVLM(tied, rngs=nnx.Rngs(0)))
    hidden = jax.random.normal(jax.random.key(0), (1, 2, 24))
    expected = hidden @ model.text_model.embed_tokens.embedding[...].T
    np.testing.assert_allclose(model.logits(hidden), expected, rtol=1e-5)
    assert not any("lm_head" in path for path, _ in nnx.to_flat_state(nnx.state(model)))


def test_bfloat16_activations_end_in_float32_logits():
    kind = {"param_dtype": "bfloat16", "compute_dtype": "bfloat16"}
    model = filled(lambda: SmolVLM(CONFIG, rngs=nnx.Rngs(0), **kind))
    ids = np.array([[1, *[IMAGE] * Q, 2]])
    frames = jnp.zeros((1, 1, 16, 16, 3))
    hidden = jax.eval_shape(lambda: model.hidden_states(ids, np.ones_like(ids), frames))
    assert hidden.dtype == jnp.bfloat16
    logits = jax.jit(lambda model: model(ids, np.ones_like(ids), frames))(model)
    assert np.isfinite(logits).all()
    assert logits.dtype == jnp.float32
    assert logits.shape == (1, Q + 2, 41)
