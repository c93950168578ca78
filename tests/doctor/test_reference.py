"""The references are right themselves, by means that are not theirs."""

import numpy as np
import pytest
from PIL import Image

from vtalign_jax.doctor import reference, slow_rule
from vtalign_jax.doctor.recordings import draw, make_nodes


@pytest.mark.parametrize("shape", [(90, 160), (160, 91), (50, 50), (20, 33)])
def test_lanczos_is_pillows_within_a_level(shape):
    picture = draw(1, shape[1], shape[0])
    theirs = np.asarray(picture.resize((48, 40), Image.Resampling.LANCZOS), np.int32)
    ours = reference.lanczos(np.asarray(picture), 40, 48)
    assert np.abs(ours - theirs).max() <= 1
    other = np.asarray(picture.resize((48, 40), Image.Resampling.BICUBIC), np.int32)
    assert np.abs(ours - other).max() > 5


def test_the_gradient_of_the_loss_is_that_of_finite_differences():
    rng = np.random.default_rng(0)
    z = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 6, 5))]
    weights = rng.choice([0.0, 0.4, 1.0], size=(6, 6))
    np.fill_diagonal(weights, 1.0)
    arguments = [*z, 0.1]
    for place, gradient in enumerate(reference.info_nce_gradient(*arguments, weights)):
        direction = rng.normal(size=np.shape(gradient))
        moved = []
        for sign in (1, -1):
            there = list(arguments)
            there[place] = there[place] + sign * 1e-6 * direction
            moved.append(reference.info_nce(*there, weights))
        expected = (moved[0] - moved[1]) / 2e-6
        np.testing.assert_allclose(np.sum(gradient * direction), expected, rtol=1e-6)


def test_the_annotated_nodes_meet_every_relation_alone_where_it_decides():
    nodes = make_nodes(112, recordings=4)
    assert len(nodes) == len({(node.uid, node.node_id) for node in nodes}) == 112
    met = {slow_rule.relations(a, b) for a in nodes for b in nodes}
    for decisive in ("neighbours", "ancestors", "overlapping windows", None):
        assert {"same recording"} | ({decisive} - {None}) in met, decisive
    assert {frozenset({"equal text"}), frozenset({"itself"}), frozenset()} <= met


@pytest.mark.parametrize("count", [14, 22, 700])
def test_of_fewer_nodes_each_has_those_above_it(count):
    nodes = make_nodes(count, recordings=1 + count // 8)
    known = {(node.uid, node.node_id) for node in nodes}
    assert len(nodes) == len(known) == count
    for uid, node_id in known:
        above = node_id.rpartition(".")[0]
        assert not above or (uid, above) in known
