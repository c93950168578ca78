import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vtalign_jax.models.lora import AdapterConfig, Build, Linear, carries_adapter, fold_rows

ADAPTERS = AdapterConfig(text_blocks=2, rank=3, alpha=12.0, dropout=0.25, mlp=True)
PATH = "text_model.tuned_layers.self_attn.q_proj"


def _layer(adapters=ADAPTERS, dtype=jnp.float32, bias=False):
    build = Build(nnx.Rngs(0), dtype, dtype, adapters)
    layer = Linear(PATH, (5, 7), build, bias=bias)
    if adapters is not None:
        layer.lora_b[...] = jax.random.normal(jax.random.key(1), (3, 7))
    return layer


@pytest.mark.parametrize(
    ("path", "adapters", "expected"),
    [
        (PATH, AdapterConfig(), True),
        (PATH, None, False),
        ("text_model.layers.self_attn.q_proj", AdapterConfig(), False),
        ("text_model.tuned_layers.self_attn.o_proj", AdapterConfig(connector=False), True),
        ("text_model.tuned_layers.mlp.down_proj", AdapterConfig(), False),
        ("text_model.tuned_layers.mlp.down_proj", AdapterConfig(mlp=True), True),
        ("connector.modality_projection.proj", AdapterConfig(), True),
        ("connector.modality_projection.proj", AdapterConfig(connector=False), False),
        ("vision_model.encoder.layers.self_attn.q_proj", AdapterConfig(mlp=True), False),
        ("lm_head", AdapterConfig(mlp=True), False),
    ],
)
def test_the_rules_place_adapters(path, adapters, expected):
    assert carries_adapter(path, adapters) == expected


def test_the_adapter_adds_alpha_over_rank_times_its_two_products():
    layer = _layer(bias=True)
    layer.bias[...] = jnp.arange(7.0)
    x = np.random.default_rng(0).standard_normal((2, 4, 5))
    kernel, a, b = (
        np.asarray(p[...], np.float64) for p in (layer.kernel, layer.lora_a, layer.lora_b)
    )
    expected = x @ kernel + np.arange(7) + 12.0 / 3 * (x @ a @ b)
    np.testing.assert_allclose(layer(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_rank_stabilized_adapter_is_scaled_by_alpha_over_the_root_of_the_rank():
    stabilized = dataclasses.replace(ADAPTERS, rank_stabilized=True)
    assert (ADAPTERS.scale, stabilized.scale) == (4.0, pytest.approx(12.0 / 3**0.5))
    layer, other = _layer(stabilized), _layer()
    x = np.random.default_rng(0).standard_normal((2, 4, 5))
    base = x @ np.asarray(layer.kernel[...], np.float64)
    np.testing.assert_allclose(layer(x) - base, 3**0.5 * (other(x) - base), rtol=0, atol=1e-4)


def test_a_new_adapter_changes_nothing():
    build = Build(nnx.Rngs(0), jnp.float32, jnp.float32, ADAPTERS)
    layer, x = Linear(PATH, (5, 7), build), jnp.ones((1, 2, 5))
    np.testing.assert_array_equal(layer(x), x @ layer.kernel[...])
    assert np.abs(layer.lora_a[...]).max() <= 5**-0.5
    assert np.asarray(layer.lora_a[...]).std() > 0.1


def test_adapters_are_float32_whatever_the_model_is():
    layer = _layer(dtype=jnp.bfloat16)
    assert layer.kernel[...].dtype == jnp.bfloat16
    assert layer.lora_a[...].dtype == layer.lora_b[...].dtype == jnp.float32
    assert layer(jnp.ones((1, 2, 5))).dtype == jnp.bfloat16


def _kept(layer, x, keys):
    """Return which inputs reached the adapter, by making it and the kernel read them out."""
    layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
    layer.lora_a[...] = jnp.eye(5)
    layer.lora_b[...] = jnp.eye(5)
    return np.asarray(jax.jit(lambda layer, x, keys: layer(x, keys))(layer, x, keys))


def test_dropout_zeroes_its_share_scales_the_rest_and_differs_between_rows():
    adapters = AdapterConfig(rank=5, alpha=5.0, dropout=0.25)
    layer = Linear(PATH, (5, 5), Build(nnx.Rngs(0), jnp.float32, jnp.float32, adapters))
    keys = jax.random.split(jax.random.key(0), 2)
    out = _kept(layer, jnp.ones((2, 400, 5)), keys)
    assert set(np.unique(out.round(4))) == {0.0, np.float32(4 / 3).round(4)}
    assert abs((out == 0).mean() - 0.25) < 0.03
    assert not np.array_equal(out[0], out[1])
    without = _kept(layer, jnp.ones((2, 400, 5)), None)
    np.testing.assert_array_equal(without, np.ones_like(without))


def test_a_rows_dropout_does_not_depend_on_the_rows_around_it_or_on_padding():
    adapters = AdapterConfig(rank=5, alpha=5.0, dropout=0.5)
    layer = Linear(PATH, (5, 5), Build(nnx.Rngs(0), jnp.float32, jnp.float32, adapters))
    keys = fold_rows(jax.random.split(jax.random.key(3), 3), 7)
    together = _kept(layer, jnp.ones((3, 8, 5)), keys)
    alone = _kept(layer, jnp.ones((1, 6, 5)), keys[1:2])
    np.testing.assert_array_equal(together[1:2, :6], alone)


def test_fold_rows_gives_every_row_and_number_its_own_key():
    keys = jax.random.split(jax.random.key(0), 3)
    folded = [jax.random.key_data(fold_rows(keys, number)) for number in (0, 1)]
    assert len({tuple(row) for rows in folded for row in np.asarray(rows)}) == 6
    assert fold_rows(None, 1) is None
