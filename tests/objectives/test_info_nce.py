"""Weighted InfoNCE against a float64 NumPy transcription of the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.identities import make_identity
from vtalign_jax.config import ObjectiveConfig
from vtalign_jax.objectives import negatives
from vtalign_jax.objectives.info_nce import global_info_nce, weighted_info_nce


def unit_rows(rng: np.random.Generator, rows: int, size: int = 12) -> np.ndarray:
    """Return float32[rows, size] of unit norm."""
    z = rng.normal(size=(rows, size))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def reference_loss(z_video, z_text, temperature, weights) -> float:
    """DESIGN section 6, term by term, in float64."""
    v, x, w = (np.asarray(a, np.float64) for a in (z_video, z_text, weights))
    s = v @ x.T / float(temperature)
    total = 0.0
    for i in range(len(s)):
        total += s[i, i] - np.log(sum(w[i, j] * np.exp(s[i, j]) for j in range(len(s))))
        total += s[i, i] - np.log(sum(w[j, i] * np.exp(s[j, i]) for j in range(len(s))))
    return -total / len(s)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_loss_equals_the_formula_in_float64(temperature):
    rng = np.random.default_rng(0)
    z_video, z_text = unit_rows(rng, 7), unit_rows(rng, 7)
    weights = rng.choice([0.0, 0.4, 1.0], size=(7, 7))
    np.fill_diagonal(weights, 1.0)
    ours = weighted_info_nce(z_video, z_text, jnp.float32(temperature), jnp.float32(weights))
    np.testing.assert_allclose(
        ours, reference_loss(z_video, z_text, temperature, weights), rtol=2e-6
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
            shifted.append(reference_loss(*moved, weights))
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


def test_global_loss_weights_rows_by_who_they_are():
    rng = np.random.default_rng(4)
    identity = make_identity(
        recording=[0, 0, 1, 2], uid=[0, 0, 1, 2], order=[0, 5, 0, 0], text=[0, 1, 2, 1]
    )
    z_video, z_text = unit_rows(rng, 4), unit_rows(rng, 4)
    objective = ObjectiveConfig(same_recording_weight=0.3)
    loss, metrics = global_info_nce(z_video, z_text, jnp.float32(0.07), identity, objective)
    weights = np.ones((4, 4))
    weights[0, 1] = weights[1, 0] = 0.3  # same recording
    weights[1, 3] = weights[3, 1] = 0.0  # the same text in another video
    np.testing.assert_allclose(loss, reference_loss(z_video, z_text, 0.07, weights), rtol=2e-6)
    np.testing.assert_allclose(metrics["pairs/cross_recording"], 8 / 12, rtol=1e-6)
    np.testing.assert_allclose(metrics["pairs/same_recording"], 2 / 12, rtol=1e-6)
    np.testing.assert_allclose(metrics["pairs/ignored"], 2 / 12, rtol=1e-6)
    np.testing.assert_allclose(metrics["effective_negatives"], (8 + 0.6) / 4, rtol=1e-6)


def test_padding_rows_change_neither_loss_nor_gradient():
    rng = np.random.default_rng(5)
    z_video, z_text = unit_rows(rng, 6), unit_rows(rng, 6)
    padded = make_identity(
        recording=[0, 1, 1, 2, -1, -1], order=[0, 0, 7, 0, 0, 0], text=[0, 1, 2, 3, 0, 0], real=4
    )
    real = jax.tree.map(lambda x: x[:4], padded)

    def loss(z, identity):
        return global_info_nce(*z, jnp.float32(0.07), identity, ObjectiveConfig())[0]

    value, gradient = jax.value_and_grad(loss)((z_video, z_text), padded)
    expected, expected_gradient = jax.value_and_grad(loss)((z_video[:4], z_text[:4]), real)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for ours, theirs in zip(gradient, expected_gradient, strict=True):
        np.testing.assert_allclose(ours[:4], theirs, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(ours[4:], 0.0)


def test_batch_of_padding_only_gives_zero():
    identity = make_identity(recording=[-1, -1], real=0)
    z = unit_rows(np.random.default_rng(6), 2)
    loss, _ = global_info_nce(z, z, jnp.float32(0.07), identity, ObjectiveConfig())
    assert float(loss) == 0.0


def test_classes_are_listed_once():
    assert len(set(negatives.CLASSES)) == len(negatives.class_weights(ObjectiveConfig()))
