"""What the weights did to a batch, against a float64 NumPy reckoning pair by pair."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.identities import make_identity
from tests.objectives.test_info_nce import KINDS, unit_rows
from vtalign_jax import sharding
from vtalign_jax.config import MeshConfig, ObjectiveConfig
from vtalign_jax.objectives import negatives
from vtalign_jax.objectives.mask_report import PAIRED, make_mask_report, weighing_classes

TEMPERATURE = np.float32(0.1)


def reference(z_video, z_text, identity, objective):
    """Return (scalars, probability[i, j] of wrong text j for clip i), by the definitions."""
    real = np.flatnonzero(identity.row_mask)
    both = np.ix_(real, real)
    classes = np.asarray(negatives.pair_classes(identity, identity, objective))[both]
    right = np.asarray(negatives.is_positive(identity, identity, objective))[both]
    w = negatives.class_weights(objective).astype(np.float64)[classes]
    v, x = (np.asarray(z, np.float64)[real] for z in (z_video, z_text))
    e = np.exp(v @ x.T / float(TEMPERATURE))
    taken = np.where(right, 0.0, w * e)
    off_diagonal = ~np.eye(len(real), dtype=bool)
    names = [negatives.CLASSES[c] for c in range(len(PAIRED))]
    at_least_one = max(off_diagonal.sum(), 1)
    scalars = {
        f"pairs/{name}": np.sum(off_diagonal & (classes == n)) / at_least_one
        for n, name in enumerate(names)
    }
    scalars["effective_negatives"] = np.where(right, 0.0, w).sum() / max(len(real), 1)

    losses, squares = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    p = {}
    for axis in (1, 0):  # each clip over the texts, each text over the clips
        answers = np.where(right, e, 0.0).sum(axis=axis, keepdims=True)
        wrong = taken.sum(axis=axis, keepdims=True)
        p[axis] = taken / (answers + wrong)
        loss = np.log((answers + wrong) / answers)
        share = loss * taken / np.where(wrong == 0, 1.0, wrong)
        for n, name in enumerate(names):
            losses[name] += share[classes == n].sum()
    for n, name in enumerate(names):
        slope = np.where(classes == n, p[0] + p[1], 0.0)
        squares[name] = np.sum((slope @ x) ** 2) + np.sum((slope.T @ v) ** 2)
    norms = {name: np.sqrt(value) for name, value in squares.items()}
    for name in weighing_classes(objective):
        scalars[f"loss/{name}"] = losses[name] / (sum(losses.values()) or 1.0)
        scalars[f"gradient/{name}"] = norms[name] / (sum(norms.values()) or 1.0)
    return scalars, p[1]


@functools.cache
def compiled(objective, devices=1, tile=2**20):
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
    report = make_mask_report(objective, mesh, tile)
    return lambda *z, identity: jax.device_get(
        report(*z, TEMPERATURE, jax.tree.map(jnp.asarray, identity))
    )


@pytest.mark.parametrize("policy", ["ignore", "multi_positive", "negative"])
@pytest.mark.parametrize("preset", negatives.PRESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_report_equals_the_reference_for_every_preset_and_policy(kind, preset, policy):
    objective = ObjectiveConfig(preset=preset, same_text=policy, same_recording_weight=0.3)
    identity = make_identity(**KINDS[kind])
    rng = np.random.default_rng(3)
    z = unit_rows(rng, 8), unit_rows(rng, 8)
    found = compiled(objective)(*z, identity=identity)
    expected, probability = reference(*z, identity, objective)
    assert found.scalars.keys() == expected.keys()
    for name, value in expected.items():
        assert found.scalars[name] == pytest.approx(value, rel=2e-5, abs=1e-7), name
    highest = np.sort(probability.max(axis=1))[::-1]
    np.testing.assert_allclose(found.probability[: len(highest)], highest, rtol=2e-5, atol=1e-7)
    np.testing.assert_array_equal(found.probability[len(highest) :], 0.0)
    for clip, text, value in zip(found.clips, found.texts, found.probability, strict=True):
        if value > 0:
            assert value == pytest.approx(probability[clip, text], rel=2e-5)
        else:
            assert text == -1


BATCH = make_identity(
    np.where(np.arange(16) < 13, np.arange(16) // 4, -1),
    uid=np.arange(16) // 3,
    order=np.arange(16),
    text=np.arange(16) % 6,
    node=np.arange(16),
    ancestors=[[3, -1, -1] if n == 1 else [-1] * 3 for n in range(16)],
    real=13,
)


@pytest.mark.parametrize("preset", ["plan", "egonce"])
@pytest.mark.parametrize(
    ("devices", "tile"),
    [
        (1, 7),
        (4, 9),
        *(pytest.param(*row, marks=pytest.mark.slow) for row in [(2, 20), (8, 2**20)]),
    ],
)
def test_tiles_and_devices_change_nothing(devices, tile, preset):
    objective = ObjectiveConfig(preset=preset)
    rng = np.random.default_rng(4)
    z = unit_rows(rng, 16), unit_rows(rng, 16)
    found = compiled(objective, devices, tile)(*z, identity=BATCH)
    expected = compiled(objective)(*z, identity=BATCH)
    np.testing.assert_array_equal(found.clips, expected.clips)
    np.testing.assert_array_equal(found.texts, expected.texts)
    np.testing.assert_array_equal(found.classes, expected.classes)
    np.testing.assert_allclose(found.probability, expected.probability, rtol=2e-5)
    for name, value in expected.scalars.items():
        assert found.scalars[name] == pytest.approx(value, rel=2e-5, abs=1e-7), name


def test_gradient_through_a_class_is_what_the_loss_loses_without_it():
    """Two clips of one recording, two of others: by finite differences of the loss itself."""
    objective = ObjectiveConfig(same_recording_weight=0.4)
    identity = make_identity([0, 0, 1, 2])
    rng = np.random.default_rng(5)
    z = unit_rows(rng, 4), unit_rows(rng, 4)
    same = np.zeros((4, 4), bool)
    same[0, 1] = same[1, 0] = True
    s = z[0].astype(np.float64) @ z[1].T.astype(np.float64) / float(TEMPERATURE)
    w = np.where(same, 0.4, 1.0)

    def loss(scores):
        weighted = w * np.exp(scores)
        rows = np.log(weighted.sum(1)) + np.log(weighted.sum(0)) - 2 * np.diag(scores)
        return rows.sum()

    norms = {}
    other = ~same & ~np.eye(4, dtype=bool)
    for name, pairs in (("same_recording", same), ("cross_recording", other)):
        slope = np.zeros((4, 4))
        for i, j in np.argwhere(pairs):
            step = np.zeros((4, 4))
            step[i, j] = 1e-6
            slope[i, j] = (loss(s + step) - loss(s - step)) / 2e-6
        parts = slope @ z[1], slope.T @ z[0]
        norms[name] = np.sqrt(sum(np.sum(part**2) for part in parts))
    found = compiled(objective)(*z, identity=identity).scalars
    for name, norm in norms.items():
        assert found[f"gradient/{name}"] == pytest.approx(norm / sum(norms.values()), rel=1e-4)


def test_shares_sum_to_one_and_only_classes_that_weigh_something_have_one():
    rng = np.random.default_rng(6)
    z = unit_rows(rng, 16), unit_rows(rng, 16)
    for preset, expected in {
        "plan": ("cross_recording", "same_recording"),
        "neighbours_soft": ("cross_recording", "same_recording", "neighbour"),
        "egonce": tuple(name for name in PAIRED if name != "same_text"),
    }.items():
        objective = ObjectiveConfig(preset=preset)
        assert weighing_classes(objective) == expected
        found = compiled(objective)(*z, identity=BATCH).scalars
        for what in ("loss", "gradient"):
            shares = [found[f"{what}/{name}"] for name in expected]
            assert sum(shares) == pytest.approx(1.0, abs=1e-6)
        assert sum(found[f"pairs/{name}"] for name in PAIRED) == pytest.approx(1.0, abs=1e-6)
    assert weighing_classes(ObjectiveConfig(same_recording_weight=0.0)) == ("cross_recording",)


def test_the_most_confused_pairs_come_first_and_name_their_class():
    z_video = np.eye(12, dtype=np.float32)
    z_text = np.eye(12, dtype=np.float32)
    z_text[7] = 0.9 * z_video[2] + 0.6 * z_video[7]  # text 7 looks like clip 2
    z_text[4] = 0.8 * z_video[3] + 0.6 * z_video[4]  # text 4 looks like clip 3 of its recording
    identity = make_identity([0, 1, 2, 3, 3, *range(5, 12)])
    found = compiled(ObjectiveConfig())(z_video, z_text, identity=identity)
    assert (found.clips[0], found.texts[0]) == (2, 7)
    assert (found.clips[1], found.texts[1]) == (3, 4)
    kinds = [negatives.CLASSES[kind] for kind in found.classes[:2]]
    assert kinds == ["cross_recording", "same_recording"]
    assert np.all(np.diff(found.probability) <= 0)


def test_a_nearly_solved_batch_still_has_shares():
    """Losses of 1e-17: a difference of two float32 logarithms would be 0."""
    z = np.eye(8, dtype=np.float32)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    identity = jax.tree.map(jnp.asarray, make_identity([0, 0, *range(1, 7)]))
    report = make_mask_report(ObjectiveConfig(), mesh)(z, z, np.float32(0.025), identity)
    # 2 of the 56 pairs weigh 0.4 and all have the same score.
    assert float(report.scalars["loss/same_recording"]) == pytest.approx(0.8 / 54.8, rel=1e-4)


def test_no_array_of_all_pairs_exists():
    rows, tile = 4096, 2**16
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    z = jax.ShapeDtypeStruct((rows, 8), jnp.float32)
    identity = jax.tree.map(jnp.asarray, make_identity(np.arange(rows)))
    report = make_mask_report(ObjectiveConfig(preset="infonce"), mesh, tile)
    lowered = report.lower(z, z, jax.ShapeDtypeStruct((), jnp.float32), identity)
    used = lowered.compile().memory_analysis().temp_size_in_bytes
    assert used < rows * rows  # a byte a pair would be more
