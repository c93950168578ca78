"""Classes of pairs against the rule as DESIGN section 6 words it."""

import numpy as np
import pytest

from tests.objectives.identities import make_identity
from vtalign_jax.config import ObjectiveConfig
from vtalign_jax.objectives.negatives import CLASSES, class_weights, pair_classes


def class_of(identity, row: int = 0, column: int = 1, radius: int = 1) -> str:
    """Return the name of one pair's class, after checking that the classes are symmetric."""
    classes = np.asarray(pair_classes(identity, identity, radius))
    np.testing.assert_array_equal(classes, classes.T)
    return CLASSES[classes[row, column]]


def test_strangers_are_full_negatives():
    assert class_of(make_identity([0, 1])) == "cross_recording"


def test_distant_nodes_of_one_recording_are_soft_negatives():
    assert class_of(make_identity([0, 0])) == "same_recording"


@pytest.mark.parametrize(("distance", "expected"), [(1, "ignored"), (2, "same_recording")])
def test_neighbours_in_order_are_ignored(distance, expected):
    assert class_of(make_identity([0, 0], order=[3, 3 + distance])) == expected


def test_radius_zero_keeps_neighbours():
    assert class_of(make_identity([0, 0], order=[3, 4]), radius=0) == "same_recording"


def test_order_counts_only_within_one_uid_and_level():
    other_camera = make_identity([0, 0], uid=[0, 1], order=[3, 3])
    other_level = make_identity([0, 0], level=[1, 2], order=[3, 3])
    assert class_of(other_camera) == "same_recording"
    assert class_of(other_level) == "same_recording"


@pytest.mark.parametrize(
    ("windows", "expected"),
    [([[0, 4], [3.9, 7.9]], "ignored"), ([[0, 4], [4, 8]], "same_recording")],
)
def test_intersecting_windows_of_one_recording_are_ignored(windows, expected):
    assert class_of(make_identity([0, 0], uid=[0, 1], window=windows)) == expected


def test_windows_of_different_recordings_have_nothing_to_do_with_each_other():
    assert class_of(make_identity([0, 1], window=[[0, 4], [0, 4]])) == "cross_recording"


def test_equal_texts_are_ignored_in_any_recording():
    assert class_of(make_identity([0, 1], text=[5, 5])) == "ignored"


def test_ancestors_are_ignored_both_ways():
    tree = make_identity([0, 0], level=[0, 2], node=[7, 9], ancestors=[[-1] * 3, [8, 7, -1]])
    assert class_of(tree) == "ignored"
    siblings = make_identity([0, 0], node=[7, 9], ancestors=[[8, -1, -1], [8, -1, -1]])
    assert class_of(siblings) == "same_recording"


def test_padding_is_no_negative_even_of_itself():
    identity = make_identity([0, -1, -1], real=1, text=[0, 0, 0])
    classes = np.asarray(pair_classes(identity, identity, 1))
    assert CLASSES[classes[0, 0]] == "positive"
    assert all(CLASSES[c] == "padding" for c in classes.ravel()[1:])


def test_weights_follow_the_classes():
    identity = make_identity([0, 0, 1, -1], order=[0, 9, 0, 0], text=[0, 1, 0, 9], real=3)
    objective = ObjectiveConfig(same_recording_weight=0.4)
    weights = class_weights(objective)[pair_classes(identity, identity, 1)]
    expected = [[1, 0.4, 0, 0], [0.4, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(weights, np.float32(expected))
