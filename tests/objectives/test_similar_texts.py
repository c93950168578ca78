"""Similar texts are no negatives of each other, if a threshold says what similar is."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.identities import make_identity
from vtalign_jax import sharding
from vtalign_jax.config import MeshConfig, ObjectiveConfig, resolve, warnings
from vtalign_jax.objectives.info_nce import make_info_nce
from vtalign_jax.objectives.negatives import (
    CLASSES,
    class_weights,
    compares_texts,
    is_positive,
    pair_classes,
)
from vtalign_jax.training.signatures import signatures

COSINE = 0.8  # of the rows made by `two`


def two(recording=(0, 1), **fields):
    """Return two rows with unequal texts whose signatures have a cosine of `COSINE`."""
    signature = [[1.0, 0.0], [0.8, 0.6]]
    return make_identity(list(recording), signature=signature, **fields)


def class_of(identity, **objective) -> str:
    objective = ObjectiveConfig(**{"similar_text_threshold": 0.7, **objective})
    classes = np.asarray(pair_classes(identity, identity, objective))
    np.testing.assert_array_equal(classes, classes.T)
    return CLASSES[classes[0, 1]]


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.0, "cross_recording"), (0.7, "similar_text"), (0.9, "cross_recording")],
)
def test_the_threshold_says_which_cosine_is_similar(threshold, expected):
    assert class_of(two(), similar_text_threshold=threshold) == expected


def test_opposite_signatures_are_as_unlike_as_can_be():
    opposite = make_identity([0, 1], signature=[[1.0, 0.0], [-1.0, 0.0]])
    assert class_of(opposite, similar_text_threshold=0.01) == "cross_recording"


@pytest.mark.parametrize("preset", ["plan", "neighbours_soft"])
@pytest.mark.parametrize("policy", ["ignore", "multi_positive"])
def test_similar_texts_weigh_nothing_and_are_no_right_answers(preset, policy):
    objective = ObjectiveConfig(preset=preset, same_text=policy, similar_text_threshold=0.7)
    for identity in (two(), two((0, 0)), two((0, 0), order=[3, 4])):
        assert class_of(identity, preset=preset, same_text=policy) == "similar_text"
        assert not is_positive(identity, identity, objective)[0, 1]
    assert class_weights(objective)[CLASSES.index("similar_text")] == 0


def test_equal_texts_stay_what_they_are_among_similar_ones():
    assert class_of(two(text=[5, 5])) == "same_text"
    assert class_of(two(text=[5, 5]), same_text="multi_positive") == "same_text"


@pytest.mark.parametrize(
    "objective", [{"preset": "infonce"}, {"preset": "egonce"}, {"same_text": "negative"}]
)
def test_nothing_is_compared_where_it_would_change_nothing(objective):
    objective = {**objective, "similar_text_threshold": 0.7}
    assert not compares_texts(ObjectiveConfig(**objective))
    assert (
        "similar_text_threshold changes nothing" in warnings(resolve({"objective": objective}))[0]
    )
    assert class_of(two(), **objective) == "cross_recording"


def test_padding_is_similar_to_nothing():
    padded = make_identity([0, -1, -1], real=1, signature=np.zeros((3, 4)))
    classes = pair_classes(padded, padded, ObjectiveConfig(similar_text_threshold=0.1))
    assert {CLASSES[c] for c in np.ravel(classes)[1:]} == {"padding"}


def test_a_batch_without_signatures_is_not_taken_for_one_of_unlike_texts():
    with pytest.raises(ValueError, match="no signatures"):
        class_of(make_identity([0, 1]))


@pytest.fixture(scope="module")
def batch():
    """16 rows of which some are similar, 13 of them real."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 30))[np.arange(16) % 4]
    identity = make_identity(
        np.where(np.arange(16) < 13, np.arange(16) // 3, -1),
        signature=signatures(centres + 0.4 * rng.normal(size=(16, 30))),
        real=13,
    )
    z = rng.normal(size=(2, 16, 12))
    z = (z / np.linalg.norm(z, axis=-1, keepdims=True)).astype(np.float32)
    return z[0], z[1], np.float32(0.07), identity


def loss_and_gradients(batch, objective, devices=1, tile=2**20):
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
    loss = make_info_nce(objective, mesh, tile)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*jax.tree.map(jnp.asarray, batch))


def test_tiles_and_devices_find_the_same_similar_texts(batch):
    objective = ObjectiveConfig(similar_text_threshold=0.6)
    classes = np.asarray(pair_classes(batch[3], batch[3], objective))
    assert 10 < np.sum(classes == CLASSES.index("similar_text")) < 100
    value, gradients = loss_and_gradients(batch, objective)
    without, _ = loss_and_gradients(batch, ObjectiveConfig())
    assert float(value) < float(without) - 0.01
    for devices, tile in [(2, 20), (4, 9), (8, 2**20)]:
        found, others = loss_and_gradients(batch, objective, devices, tile)
        np.testing.assert_allclose(found, value, rtol=1e-6)
        for ours, theirs in zip(others, gradients, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max())


def test_no_signature_leaves_no_trace_in_the_compiled_loss(batch):
    def gathers_and_empty_arrays(threshold, size):
        identity = batch[3]._replace(signature=np.zeros((16, size), np.float32))
        mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:2])
        loss = make_info_nce(ObjectiveConfig(similar_text_threshold=threshold), mesh)
        arguments = jax.tree.map(jnp.asarray, (*batch[:3], identity))
        text = jax.jit(jax.grad(loss)).lower(*arguments).compile().as_text()
        return text.count(" all-gather("), re.findall(r"\w+\[(?:\d+,)*0\]", text)

    gathers, empty = gathers_and_empty_arrays(0.0, 0)
    assert empty == []
    assert gathers_and_empty_arrays(0.5, 7)[0] == gathers + 1
