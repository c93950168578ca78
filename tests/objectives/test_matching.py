"""The matching loss: which negatives are drawn, and the loss given the draw."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.objectives.identities import make_identity
from tests.objectives.test_info_nce import unit_rows
from vtalign_jax import sharding
from vtalign_jax.config import MeshConfig, ObjectiveConfig
from vtalign_jax.models.aligner import MatchingHead
from vtalign_jax.objectives import negatives
from vtalign_jax.objectives.matching import make_draw, make_matching

ROWS, REAL, TEMPERATURE = 16, 13, np.float32(0.3)


def make_rows():
    """Return (z_video, z_text, identity): recordings of three, neighbours, twins and padding."""
    rng = np.random.default_rng(1)
    index = np.arange(ROWS)
    identity = make_identity(
        np.where(index < REAL, index // 3, -1),
        uid=index // 3,
        order=index,
        text=np.where(index == 7, 0, index),
        record=np.where(index < REAL, 50 + 3 * index, -1),
        real=REAL,
    )
    return unit_rows(rng, ROWS), unit_rows(rng, ROWS), identity


PLAN = ObjectiveConfig()


@functools.cache
def drawing(devices=1, fsdp=1, tile=2**20):
    """Return `draw(z_video, z_text, identity, seed)`, compiled once."""
    mesh = sharding.make_mesh(MeshConfig(fsdp=fsdp), jax.devices()[:devices])
    draw = jax.jit(make_draw(PLAN, mesh, tile))

    def of_seed(z_video, z_text, identity, seed, temperature=TEMPERATURE):
        drawn = draw(z_video, z_text, temperature, identity, jax.random.key(seed))
        return jax.tree.map(np.asarray, drawn)

    return of_seed


@functools.cache
def differentiated(devices=1, tile=2**20):
    """Return `f(head, z_video, z_text, temperature, identity, seed)`, compiled once.

    It gives ((loss, metrics), gradients to head leaves, embeddings and temperature).
    """
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
    matching = make_matching(PLAN, mesh, tile)
    graph = nnx.graphdef(make_head())

    def loss(leaves, *others):
        return matching(nnx.merge(graph, leaves), *others)

    function = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))

    def of_seed(head, z_video, z_text, temperature, identity, seed):
        found = function(
            nnx.state(head), z_video, z_text, temperature, identity, jax.random.key(seed)
        )
        return jax.tree.map(np.asarray, found)

    return of_seed


def make_head(size=12):
    head = MatchingHead(size, rngs=nnx.Rngs(0))
    head.fc2.bias[...] = jnp.array([0.3])
    return head


def probabilities(z_video, z_text, identity, objective):
    """Return float64[B, B]: the chance that text j is drawn for clip i."""
    classes = np.asarray(negatives.pair_classes(identity, identity, objective))
    weights = negatives.class_weights(objective).astype(np.float64)[classes]
    right = {negatives.CLASSES.index(name) for name in ("positive", "same_text")}
    weights[np.isin(classes, list(right))] = 0.0
    scores = z_video.astype(np.float64) @ z_text.T.astype(np.float64) / float(TEMPERATURE)
    allowed = weights * np.exp(scores)
    return allowed / np.maximum(allowed.sum(axis=1, keepdims=True), 1e-300)


@pytest.mark.parametrize("same_text", ["ignore", "multi_positive"])
def test_negatives_are_drawn_in_proportion_to_weight_and_likeness(same_text):
    objective, draws = ObjectiveConfig(same_text=same_text), 4000
    z_video, z_text, identity = make_rows()
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    draw = make_draw(objective, mesh)
    rows = jax.tree.map(jnp.asarray, identity)  # closed over
    keys = jax.random.split(jax.random.key(3), draws)
    drawn = jax.jit(
        lambda keys: jax.lax.map(lambda key: draw(z_video, z_text, TEMPERATURE, rows, key), keys)
    )(keys)
    expected = {
        "text": probabilities(z_video, z_text, identity, objective),
        "clip": probabilities(z_text, z_video, identity, objective),
    }
    for name, found in drawn._asdict().items():
        counts = np.stack([(np.asarray(found) == j).sum(axis=0) for j in range(ROWS)], axis=1)
        assert not counts[expected[name] == 0.0].any()  # own, neighbours, twins, padding
        assert (counts[:REAL].sum(axis=1) == draws).all()
        assert not counts[REAL:].any()
        possible = expected[name] > 0
        mean = draws * expected[name][possible]
        chi_square = ((counts[possible] - mean) ** 2 / mean).sum()
        freedom = possible.sum() - REAL
        assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)
    # That a clip draws a text makes it no likelier that the text draws the clip.
    text, clip = (np.asarray(found)[:, :REAL] for found in drawn)
    mutual = np.take_along_axis(clip, text, axis=1) == np.arange(REAL)
    chance = (expected["text"] * expected["clip"].T).sum() / REAL
    assert abs(mutual.mean() - chance) < 4 * np.sqrt(chance / mutual.size)


@pytest.mark.parametrize(
    ("devices", "fsdp", "tile"), [(1, 1, 7), (1, 1, 48), (2, 1, 20), (8, 1, 2**20), (8, 4, 4)]
)
def test_devices_and_tiles_change_no_draw(devices, fsdp, tile):
    rows = make_rows()
    for seed in range(9):
        expected = drawing()(*rows, seed)
        found = drawing(devices=devices, fsdp=fsdp, tile=tile)(*rows, seed)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_order_of_the_rows_changes_no_draw_and_another_key_does():
    z_video, z_text, identity = make_rows()
    order = np.random.default_rng(0).permutation(ROWS)
    place = np.argsort(order)
    first = drawing()(z_video, z_text, identity, 0)
    turned = drawing()(z_video[order], z_text[order], jax.tree.map(lambda x: x[order], identity), 0)
    for ours, theirs in zip(turned, first, strict=True):
        np.testing.assert_array_equal(ours, np.where(theirs < 0, -1, place[theirs])[order])
    other = drawing()(z_video, z_text, identity, 1)
    assert np.any(other.text != first.text)


def test_low_temperature_draws_the_most_alike_of_those_allowed():
    z_video, z_text, identity = make_rows()
    drawn = drawing()(z_video, z_text, identity, 0, np.float32(1e-4))
    allowed = probabilities(z_video, z_text, identity, PLAN) > 0
    scores = np.where(allowed, z_video @ z_text.T, -np.inf)
    np.testing.assert_array_equal(drawn.text[:REAL], scores.argmax(axis=1)[:REAL])
    np.testing.assert_array_equal(drawn.clip[:REAL], scores.T[:REAL].argmax(axis=1))


def reference(head, z_video, z_text, row_mask, drawn):
    """Return (loss, accuracies on pairs that match and that do not), all in float64."""
    erf = np.vectorize(math.erf)
    w1, b1, w2, b2 = (
        np.asarray(leaf[...], np.float64)
        for leaf in (head.fc1.kernel, head.fc1.bias, head.fc2.kernel, head.fc2.bias)
    )

    def logit(clip, text):
        hidden = np.sqrt(len(clip)) * np.concatenate([clip, text]) @ w1 + b1
        return float((0.5 * hidden * (1 + erf(hidden / np.sqrt(2)))) @ w2[:, 0] + b2[0])

    losses, right = [], {True: [], False: []}
    for i in np.flatnonzero(row_mask):
        pairs = [(i, i, True), (i, drawn.text[i], False), (drawn.clip[i], i, False)]
        for clip, text, is_match in pairs:
            if min(clip, text) < 0:
                continue
            s = logit(z_video[clip], z_text[text])
            losses.append(np.log1p(np.exp(-s if is_match else s)))
            right[is_match].append((s > 0) == is_match)
    return np.mean(losses), [np.mean(x) for x in right.values() if x]


KINDS = {
    "mixed": None,
    "no negatives": make_identity([0] * ROWS, text=[0] * ROWS, real=5),
    "one row has none": make_identity(
        [0] * 3 + [1] * 13,
        uid=range(ROWS),
        text=[0, 1, 2, *range(3, 16)],
        window=[[0, 4]] * 3 + [[100 * k, 100 * k + 4] for k in range(13)],
        real=3,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("devices", [1, 8])
def test_loss_gradients_and_accuracy_equal_the_formula_given_the_draw(kind, devices):
    z_video, z_text, identity = make_rows()
    identity = KINDS[kind] or identity
    head = make_head()
    drawn = drawing(devices)(z_video, z_text, identity, 5)
    found = differentiated(devices)(head, z_video, z_text, TEMPERATURE, identity, 5)
    (value, metrics), gradients = found
    exact = [np.asarray(z, np.float64) for z in (z_video, z_text)]
    expected, accuracies = reference(head, *exact, identity.row_mask, drawn)
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    np.testing.assert_allclose(metrics["loss_itm"], expected, rtol=2e-6)
    np.testing.assert_allclose(metrics["itm_balanced_accuracy"], np.mean(accuracies), rtol=1e-6)
    assert float(gradients[3]) == 0.0  # the draw is not differentiated
    rng = np.random.default_rng(0)
    for position in (0, 1):
        direction = rng.normal(size=exact[position].shape)
        shifted = []
        for sign in (1, -1):
            moved = list(exact)
            moved[position] = moved[position] + sign * 1e-5 * direction
            shifted.append(reference(head, *moved, identity.row_mask, drawn)[0])
        slope = (shifted[0] - shifted[1]) / 2e-5
        np.testing.assert_allclose(
            np.sum(gradients[1 + position] * direction), slope, rtol=1e-4, atol=1e-6
        )
    assert not any(np.any(g[~identity.row_mask]) for g in gradients[1:3])


def test_head_and_embedding_gradients_are_the_same_on_any_number_of_devices():
    arguments = (make_head(), *make_rows()[:2], TEMPERATURE, make_rows()[2], 2)
    expected = jax.tree.leaves(differentiated()(*arguments))
    for devices, tile in ((2, 9), (8, 2**20)):
        found = jax.tree.leaves(differentiated(devices, tile)(*arguments))
        for ours, theirs in zip(found, expected, strict=True):
            assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_a_batch_of_padding_gives_zero():
    z_video, z_text, _ = make_rows()
    identity = make_identity([-1] * ROWS, real=0)
    found = differentiated()(make_head(), z_video, z_text, TEMPERATURE, identity, 0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found))


def test_an_embedding_that_is_not_finite_makes_the_loss_so():
    z_video, z_text, identity = make_rows()
    z_video[2, 0] = np.nan
    found = differentiated()(make_head(), z_video, z_text, TEMPERATURE, identity, 0)
    assert np.isnan(found[0][0])


def test_no_array_of_all_pairs_exists():
    rows, tile = 4096, 2**14
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    draw = make_draw(PLAN, mesh, tile)
    z = jax.ShapeDtypeStruct((rows, 8), jnp.float32)
    identity = jax.tree.map(jnp.asarray, make_identity(np.arange(rows)))
    lowered = jax.jit(draw).lower(z, z, jnp.float32(1.0), identity, jax.random.key(0))
    used = lowered.compile().memory_analysis().temp_size_in_bytes
    assert used < rows * rows  # a byte a pair would be more


def test_the_head_alone_learns_which_held_out_pairs_match():
    rng = np.random.default_rng(0)
    size, rows = 12, 64

    def batch(seed):
        rng_pair = np.random.default_rng(seed)
        z = unit_rows(rng_pair, rows, size)
        noisy = z @ turn + 0.1 * unit_rows(rng_pair, rows, size)
        noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
        return z, noisy.astype(np.float32)

    turn = np.linalg.qr(rng.normal(size=(size, size)))[0].astype(np.float32)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    matching = make_matching(PLAN, mesh)
    identity = jax.tree.map(jnp.asarray, make_identity(range(rows)))
    graph, leaves = nnx.split(MatchingHead(size, rngs=nnx.Rngs(1)))
    optimizer = optax.adam(1e-2)

    def loss(leaves, z_video, z_text, key):
        head = nnx.merge(graph, leaves)
        return matching(head, z_video, z_text, jnp.float32(1.0), identity, key)

    @jax.jit
    def step(leaves, state, z_video, z_text, key):
        gradient, metrics = jax.grad(loss, has_aux=True)(leaves, z_video, z_text, key)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(leaves, updates), state, metrics

    state = optimizer.init(leaves)
    for number in range(300):
        leaves, state, _ = step(leaves, state, *batch(number), jax.random.key(number))
    _, metrics = jax.jit(loss)(leaves, *batch(10**6), jax.random.key(10**6))
    assert metrics["itm_balanced_accuracy"] > 0.8
