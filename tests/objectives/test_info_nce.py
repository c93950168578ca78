"""Weighted InfoNCE against a float64 NumPy transcription of the formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.identities import make_identity
from vtalign_jax import sharding
from vtalign_jax.config import MeshConfig, ObjectiveConfig
from vtalign_jax.doctor import reference
from vtalign_jax.objectives import negatives
from vtalign_jax.objectives.info_nce import make_info_nce, weighted_info_nce


def unit_rows(rng: np.random.Generator, rows: int, size: int = 12) -> np.ndarray:
    """Return float32[rows, size] of unit norm."""
    z = rng.normal(size=(rows, size))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_loss_equals_the_formula_in_float64(temperature):
    rng = np.random.default_rng(0)
    z_video, z_text = unit_rows(rng, 7), unit_rows(rng, 7)
    weights = rng.choice([0.0, 0.4, 1.0], size=(7, 7))
    np.fill_diagonal(weights, 1.0)
    ours = weighted_info_nce(z_video, z_text, jnp.float32(temperature), jnp.float32(weights))
    np.testing.assert_allclose(
        ours, reference.info_nce(z_video, z_text, temperature, weights), rtol=2e-6
    )


def test_directions_use_the_weight_of_their_own_pair():
    rng = np.random.default_rng(1)
    z_video, z_text = unit_rows(rng, 3), unit_rows(rng, 3)
    weights = np.eye(3)
    weights[0, 1] = 1.0  # text 1 is a negative of clip 0, clip 1 is none of text 0's
    ours = weighted_info_nce(z_video, z_text, jnp.float32(0.2), jnp.float32(weights))
    s = z_video.astype(np.float64) @ z_text.T.astype(np.float64) / 0.2
    expected = (np.log(np.exp(s[0, 0]) + np.exp(s[0, 1])) - s[0, 0]) + (
        np.log(np.exp(s[1, 1]) + np.exp(s[0, 1])) - s[1, 1]
    )
    np.testing.assert_allclose(ours, expected / 3, rtol=1e-5)


def test_gradients_equal_finite_differences_in_float64():
    rng = np.random.default_rng(2)
    z_video, z_text = unit_rows(rng, 5), unit_rows(rng, 5)
    weights = rng.choice([0.0, 0.4, 1.0], size=(5, 5))
    np.fill_diagonal(weights, 1.0)
    arguments = [z_video, z_text, np.float32(0.1)]
    gradients = jax.grad(weighted_info_nce, argnums=(0, 1, 2))(*arguments, jnp.float32(weights))
    for position, gradient in enumerate(gradients):
        direction = rng.normal(size=np.shape(arguments[position]))
        shifted = []
        for sign in (1, -1):
            moved = [np.asarray(a, np.float64) for a in arguments]
            moved[position] = moved[position] + sign * 1e-6 * direction
            shifted.append(reference.info_nce(*moved, weights))
        expected = (shifted[0] - shifted[1]) / 2e-6
        np.testing.assert_allclose(np.sum(gradient * direction), expected, rtol=1e-4)


def test_all_masked_rows_give_zero_loss_and_finite_gradients():
    rng = np.random.default_rng(3)
    z_video, z_text = unit_rows(rng, 4), unit_rows(rng, 4)
    value, gradient = jax.value_and_grad(weighted_info_nce)(
        z_video, z_text, jnp.float32(0.07), jnp.eye(4)
    )
    assert abs(float(value)) < 1e-5
    assert np.all(np.isfinite(gradient))


def test_low_temperature_does_not_underflow():
    z = np.eye(2, dtype=np.float32)
    swapped = z[::-1].copy()  # positives orthogonal, negatives identical: s = 0 against 100
    value = weighted_info_nce(z, swapped, jnp.float32(0.01), jnp.ones((2, 2)))
    np.testing.assert_allclose(value, 200.0, rtol=1e-5)


KINDS = {
    "mixed": {
        "recording": [0, 0, 0, 1, 1, 2, 3, -1],
        "uid": [0, 0, 1, 2, 2, 3, 4, -1],
        "order": [0, 1, 0, 0, 5, 0, 0, 0],
        "text": [0, 1, 2, 1, 3, 0, 4, 0],
        "real": 7,
    },
    "one recording": {"recording": [0] * 8, "order": [0, 1, 2, 5, 6, 9, 12, 20]},
    "twins": {"recording": range(8), "text": [0, 0, 0, 0, 1, 1, 2, 3]},
    "all masked": {"recording": range(8), "text": [0] * 8},
    "batch of one": {"recording": [0, -1, -1, -1, -1, -1, -1, -1], "real": 1},
}


@pytest.mark.parametrize("policy", ["preset", "ignore", "multi_positive", "negative"])
@pytest.mark.parametrize("preset", negatives.PRESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_equal_the_reference_for_every_preset_and_policy(kind, preset, policy):
    objective = ObjectiveConfig(preset=preset, same_text=policy, same_recording_weight=0.3)
    identity = make_identity(**KINDS[kind])
    rng = np.random.default_rng(7)
    arguments = [unit_rows(rng, 8), unit_rows(rng, 8), np.float32(0.1)]
    value, gradients = _value_and_gradients(objective, devices=1)(*arguments, identity)

    real = np.flatnonzero(identity.row_mask)
    weights = np.exp(np.asarray(negatives.log_weights(identity, identity, objective), np.float64))
    weights = weights[np.ix_(real, real)]
    right = np.asarray(negatives.is_positive(identity, identity, objective))[np.ix_(real, real)]

    def exact_loss(v, x, temperature):
        return reference.info_nce(v[real], x[real], temperature, weights, right)

    exact = [np.asarray(a, np.float64) for a in arguments]
    np.testing.assert_allclose(value, exact_loss(*exact), rtol=1e-5, atol=1e-6)
    for position, gradient in enumerate(gradients):
        direction = rng.normal(size=np.shape(arguments[position]))
        shifted = []
        for sign in (1, -1):
            moved = list(exact)
            moved[position] = moved[position] + sign * 1e-6 * direction
            shifted.append(exact_loss(*moved))
        expected = (shifted[0] - shifted[1]) / 2e-6
        np.testing.assert_allclose(np.sum(gradient * direction), expected, rtol=1e-5, atol=1e-6)


@functools.cache
def _value_and_gradients(objective, devices, tile=2**20, kept=2**20):
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
    loss = make_info_nce(objective, mesh, tile, kept)
    function = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    return lambda *arguments: function(*arguments[:3], jax.tree.map(jnp.asarray, arguments[3]))


@pytest.mark.parametrize("same_text", ["ignore", "multi_positive"])
@pytest.mark.parametrize(
    ("devices", "tile", "kept"),
    [(1, 7, 50), (1, 40, 0), (2, 20, 50), (4, 9, 50), (8, 2**20, 0)],
)
def test_tiles_kept_or_not_and_devices_change_neither_loss_nor_gradient(
    devices, tile, kept, same_text
):
    objective = ObjectiveConfig(same_text=same_text)
    rng = np.random.default_rng(8)
    identity = make_identity(
        np.where(np.arange(16) < 13, np.arange(16) // 3, -1),
        uid=np.arange(16) // 3,
        order=np.arange(16),
        text=np.arange(16) % 6,
        real=13,
    )
    arguments = [unit_rows(rng, 16), unit_rows(rng, 16), np.float32(0.07), identity]
    expected = _value_and_gradients(objective, devices=1)(*arguments)
    found = _value_and_gradients(objective, devices, tile, kept)(*arguments)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        scale = float(np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * scale)


def test_no_array_of_all_pairs_exists_forward_or_backward():
    rows = 2**16
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    loss = make_info_nce(ObjectiveConfig(), mesh)
    z = jax.ShapeDtypeStruct((rows, 8), jnp.float32)
    identity = jax.tree.map(jnp.asarray, make_identity(np.arange(rows)))
    lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(
        z, z, jax.ShapeDtypeStruct((), jnp.float32), identity
    )
    used = lowered.compile().memory_analysis().temp_size_in_bytes
    assert used < 2**30  # a byte a pair would be four times as much


@pytest.mark.parametrize("same_text", ["ignore", "multi_positive"])
def test_rows_without_negatives_lose_exactly_nothing(same_text):
    """Scores near 100, where one rounding more would be 1e-5."""
    rng = np.random.default_rng(9)
    z_video = unit_rows(rng, 24)
    z_text = z_video + 0.1 * unit_rows(rng, 24)
    # Neighbours of radius 30 in one video: no pair weighs anything.
    identity = make_identity([0] * 24, order=range(24))
    objective = ObjectiveConfig(same_text=same_text, neighbour_radius=30)
    value, gradients = _value_and_gradients(objective, 1, tile=100)(
        z_video, z_text, np.float32(0.01), identity
    )
    assert float(value) == 0.0
    assert not any(np.any(gradient) for gradient in gradients)


def test_padding_rows_get_no_gradient_and_a_batch_of_padding_gives_zero():
    rng = np.random.default_rng(5)
    z = unit_rows(rng, 6), unit_rows(rng, 6)
    padded = make_identity([0, 1, 1, 2, -1, -1], order=[0, 0, 7, 0, 0, 0], real=4)
    _, gradients = _value_and_gradients(ObjectiveConfig(), 1)(*z, np.float32(0.07), padded)
    for gradient in gradients[:2]:
        np.testing.assert_array_equal(gradient[4:], 0.0)
        assert np.all(np.any(gradient[:4], axis=1))
    empty = make_identity([-1] * 6, real=0)
    value, gradients = _value_and_gradients(ObjectiveConfig(), 1)(*z, np.float32(0.07), empty)
    assert float(value) == 0.0
    assert all(not np.any(gradient) for gradient in gradients)


def test_an_embedding_that_is_not_finite_makes_the_loss_so():
    z = unit_rows(np.random.default_rng(6), 4)
    broken = z.copy()
    broken[2, 0] = np.nan
    identity = make_identity(range(4))
    value, _ = _value_and_gradients(ObjectiveConfig(), 1)(broken, z, np.float32(0.07), identity)
    assert np.isnan(value)


def test_classes_are_listed_once():
    assert len(set(negatives.CLASSES)) == len(negatives.class_weights(ObjectiveConfig()))
