"""Classes of pairs against the rule as the plan words it."""

import numpy as np
import pytest

from tests.objectives.identities import make_identity
from vtalign_jax.config import ObjectiveConfig
from vtalign_jax.objectives.negatives import (
    CLASSES,
    PRESETS,
    class_weights,
    is_positive,
    log_weights,
    pair_classes,
    same_text_policy,
)


def class_of(identity, row: int = 0, column: int = 1, **objective) -> str:
    """Return the name of one pair's class, after checking that the classes are symmetric."""
    classes = np.asarray(pair_classes(identity, identity, ObjectiveConfig(**objective)))
    np.testing.assert_array_equal(classes, classes.T)
    return CLASSES[classes[row, column]]


def test_strangers_are_full_negatives():
    assert class_of(make_identity([0, 1])) == "cross_recording"


def test_distant_nodes_of_one_recording_are_soft_negatives():
    assert class_of(make_identity([0, 0])) == "same_recording"


@pytest.mark.parametrize(("distance", "expected"), [(1, "neighbour"), (2, "same_recording")])
def test_neighbours_in_order_are_told_from_the_rest(distance, expected):
    assert class_of(make_identity([0, 0], order=[3, 3 + distance])) == expected


def test_radius_zero_keeps_neighbours():
    assert class_of(make_identity([0, 0], order=[3, 4]), neighbour_radius=0) == "same_recording"


def test_order_counts_only_within_one_uid_and_level():
    other_camera = make_identity([0, 0], uid=[0, 1], order=[3, 3])
    other_level = make_identity([0, 0], level=[1, 2], order=[3, 3])
    assert class_of(other_camera) == "same_recording"
    assert class_of(other_level) == "same_recording"


@pytest.mark.parametrize(
    ("windows", "expected"),
    [([[0, 4], [3.9, 7.9]], "overlap"), ([[0, 4], [4, 8]], "same_recording")],
)
def test_intersecting_windows_of_one_recording_overlap(windows, expected):
    assert class_of(make_identity([0, 0], uid=[0, 1], window=windows)) == expected


def test_windows_of_different_recordings_have_nothing_to_do_with_each_other():
    assert class_of(make_identity([0, 1], window=[[0, 4], [0, 4]])) == "cross_recording"


def test_equal_texts_are_told_in_any_recording_unless_they_are_plain_negatives():
    twins = make_identity([0, 1], text=[5, 5])
    assert class_of(twins) == "same_text"
    assert class_of(twins, same_text="multi_positive") == "same_text"
    assert class_of(twins, same_text="negative") == "cross_recording"
    assert class_of(twins, preset="infonce") == "cross_recording"


def test_ancestors_are_found_both_ways():
    tree = make_identity([0, 0], level=[0, 2], node=[7, 9], ancestors=[[-1] * 3, [8, 7, -1]])
    assert class_of(tree) == "ancestor"
    siblings = make_identity([0, 0], node=[7, 9], ancestors=[[8, -1, -1], [8, -1, -1]])
    assert class_of(siblings) == "same_recording"


def test_padding_is_no_negative_even_of_itself():
    identity = make_identity([0, -1, -1], real=1, text=[0, 0, 0])
    classes = np.asarray(pair_classes(identity, identity, ObjectiveConfig()))
    assert CLASSES[classes[0, 0]] == "positive"
    assert all(CLASSES[c] == "padding" for c in classes.ravel()[1:])


def test_of_several_classes_zero_beats_lambda_and_lambda_beats_one():
    def weight(identity, **objective):
        objective = ObjectiveConfig(**objective)
        found = np.exp(log_weights(identity, identity, objective))
        np.testing.assert_array_equal(found, found.T)
        return float(found[0, 1])

    overlapping = {"order": [3, 4], "window": [[0, 4], [3, 7]]}
    assert weight(make_identity([0, 0], **overlapping)) == 0
    assert weight(make_identity([0, 0], **overlapping), preset="neighbours_soft") == 0
    apart = make_identity([0, 0], order=[3, 4])
    assert weight(apart) == 0
    assert weight(apart, preset="neighbours_soft") == pytest.approx(0.4)
    assert weight(make_identity([0, 0])) == pytest.approx(0.4)
    assert weight(make_identity([0, 0]), same_recording_weight=0.0) == 0
    twins = make_identity([0, 0], text=[5, 5])
    assert weight(twins) == 0
    assert weight(twins, same_text="negative") == pytest.approx(0.4)
    assert weight(twins, same_text="multi_positive") == 1
    assert weight(twins, preset="infonce") == weight(twins, preset="egonce") == 1
    assert weight(make_identity([0, 0], text=[5, 5], **overlapping), same_text="negative") == 0


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("policy", ["preset", "ignore", "multi_positive", "negative"])
def test_right_answers_are_the_pair_itself_and_equal_texts_if_asked_for(preset, policy):
    objective = ObjectiveConfig(preset=preset, same_text=policy)
    identity = make_identity([0, 1, 0, -1], text=[5, 5, 6, 5], real=3)
    expected = np.diag([True, True, True, False])
    if same_text_policy(objective) == "multi_positive":
        expected[0, 1] = expected[1, 0] = True
    np.testing.assert_array_equal(is_positive(identity, identity, objective), expected)
    weights = np.exp(log_weights(identity, identity, objective))
    np.testing.assert_array_equal(weights[expected], 1.0)
    np.testing.assert_array_equal(weights[3], 0.0)


def test_presets_have_the_policies_of_the_plan():
    policies = {name: same_text_policy(ObjectiveConfig(preset=name)) for name in PRESETS}
    assert policies == {
        "plan": "ignore",
        "neighbours_soft": "ignore",
        "infonce": "negative",
        "egonce": "multi_positive",
    }


def test_weights_follow_the_classes():
    identity = make_identity([0, 0, 1, -1], order=[0, 9, 0, 0], text=[0, 1, 0, 9], real=3)
    objective = ObjectiveConfig(same_recording_weight=0.4)
    weights = class_weights(objective)[pair_classes(identity, identity, objective)]
    expected = [[1, 0.4, 0, 0], [0.4, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(weights, np.float32(expected))
    np.testing.assert_allclose(np.exp(log_weights(identity, identity, objective)), weights)
