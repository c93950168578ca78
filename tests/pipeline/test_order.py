import pickle

import numpy as np
import pytest

from vtalign_jax.pipeline.order import (
    PADDING,
    BatchOrder,
    SequentialOrder,
    steps_per_epoch,
)

RECORDING = np.random.default_rng(0).integers(0, 23, 333)  # about 14 clips each


def make_order(recording=RECORDING, seed=0, fingerprint="f", batch=32, fraction=0.25, size=4):
    return BatchOrder(recording, seed, fingerprint, batch, fraction, size)


def epoch(order, number=0):
    steps = order.steps_per_epoch
    return np.stack([order.records(number * steps + step) for step in range(steps)])


def shared(records, recording=RECORDING):
    """Return the share of real rows whose recording has another row in the batch."""
    of_row = recording[records[records != PADDING]]
    return np.mean(np.bincount(of_row)[of_row] > 1)


@pytest.mark.parametrize(
    ("records", "batch", "steps"), [(1, 8, 1), (8, 8, 1), (9, 8, 2), (40, 8, 5)]
)
def test_an_epoch_is_the_ceiling_of_records_over_batch(records, batch, steps):
    assert steps_per_epoch(records, batch) == steps
    assert make_order(np.zeros(records, int), batch=batch).steps_per_epoch == steps


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("batch", [1, 2, 7, 32, 333, 500])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_every_record_comes_exactly_once_an_epoch_and_padding_stands_last(fraction, batch, size):
    order = make_order(batch=batch, fraction=fraction, size=size)
    for number in (0, 3):
        flat = epoch(order, number).ravel()
        assert flat.dtype == np.int32
        np.testing.assert_array_equal(np.sort(flat[: len(RECORDING)]), np.arange(len(RECORDING)))
        assert (flat[len(RECORDING) :] == PADDING).all()
        assert len(flat) == order.steps_per_epoch * batch


def test_a_batch_is_a_pure_function_of_its_arguments():
    order = make_order()
    forwards = [order.records(step) for step in range(40)]  # over three epochs
    order = make_order()
    backwards = [order.records(step) for step in reversed(range(40))][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    for step in (0, 10, 11, 39):
        alone = BatchOrder(RECORDING, 0, "f", 32, 0.25, 4).records(step)
        np.testing.assert_array_equal(alone, forwards[step])
    copy = pickle.loads(pickle.dumps(order))
    np.testing.assert_array_equal(copy.records(17), forwards[17])


def test_the_order_is_fixed_across_versions_of_numpy_and_machines():
    records = BatchOrder(np.arange(20) // 5, 7, "fingerprint", 8, 0.5, 3).records(1)
    np.testing.assert_array_equal(records, [6, 7, 8, 19, 16, 17, 13, 18])


@pytest.mark.parametrize("change", [{"seed": 1}, {"fingerprint": "g"}, {"batch": 31}], ids=str)
def test_seed_dataset_and_batch_size_each_change_the_order(change):
    one, other = make_order().records(0), make_order(**change).records(0)
    assert set(one) != set(other)


def test_epochs_differ():
    order = make_order()
    assert set(order.records(0)) != set(order.records(order.steps_per_epoch))


def test_groups_fill_a_quarter_of_every_batch_where_singles_alone_share_little():
    recording = np.repeat(np.arange(2000), 4)
    grouped = epoch(make_order(recording, batch=64))
    alone = epoch(make_order(recording, batch=64, fraction=0.0))
    assert min(shared(records, recording) for records in grouped) >= 0.25
    assert max(shared(records, recording) for records in grouped) <= 0.5
    assert np.mean([shared(records, recording) for records in alone]) < 0.15


def test_a_group_is_of_one_recording_and_no_larger_than_the_group_size():
    recording = np.repeat(np.arange(500), 9)
    for records in epoch(make_order(recording, batch=40, fraction=0.4, size=4))[:-1]:
        np.testing.assert_array_equal(recording[records[:16:4]], recording[records[3:16:4]])
        counts = np.bincount(recording[records[:16]])
        assert set(counts[counts > 0]) <= {4, 8}  # 8: two groups of the same recording


def test_small_recordings_give_small_groups_and_singles_follow_when_they_run_out():
    recording = np.concatenate([np.repeat(np.arange(10), 3), np.arange(10, 310)])
    of_step = [shared(records, recording) for records in epoch(make_order(recording, batch=32))]
    assert of_step[:3] == pytest.approx([9 / 32] * 3)  # three groups of three reach eight rows
    assert of_step[4:] == [0.0] * (len(of_step) - 4)


def test_a_share_smaller_than_a_group_takes_a_pair():
    recording = np.repeat(np.arange(100), 4)
    for records in epoch(make_order(recording, batch=8)):
        assert recording[records[0]] == recording[records[1]]
        assert len(set(recording[records[:4]])) >= 2


def test_a_batch_of_groups_alone_is_never_overfull():
    for records in epoch(make_order(batch=10, fraction=1.0, size=4)):
        assert len(records) == 10


def test_a_million_records_need_one_permutation_an_epoch(monkeypatch):
    recording = np.random.default_rng(0).integers(0, 20_000, 1_000_000)
    order = make_order(recording, batch=4096)
    arranged, calls = order._arranged, []
    monkeypatch.setattr(order, "_arranged", lambda number: calls.append(number) or arranged(number))
    for step in range(order.steps_per_epoch):
        order.records(step)
    assert calls == [0]


def test_evaluation_goes_through_the_records_in_order():
    order = SequentialOrder(10, 4)
    assert order.steps_per_epoch == 3
    rows = np.stack([order.records(step) for step in range(3)])
    np.testing.assert_array_equal(rows.ravel()[:10], np.arange(10))
    np.testing.assert_array_equal(rows.ravel()[10:], [PADDING, PADDING])


def mixed(taken=(40, 60), fraction=0.25):
    """An order over datasets of 133 and 200 records, of which an epoch takes some."""
    datasets = list(zip((133, 200), taken, strict=True))
    return BatchOrder(RECORDING, 0, "f", 32, fraction, 4, datasets)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_an_epoch_of_mixed_datasets_takes_the_share_of_each_and_no_record_twice(fraction):
    order = mixed(fraction=fraction)
    assert (order.epoch_records, order.steps_per_epoch) == (100, 4)
    for number in range(3):
        flat = epoch(order, number).ravel()
        assert (flat[100:] == PADDING).all()
        taken = flat[:100]
        assert len(set(taken.tolist())) == 100
        assert (taken < 133).sum() == 40


def test_every_epoch_draws_its_share_of_a_dataset_anew():
    seen = [set(epoch(mixed(), number).ravel().tolist()) for number in range(12)]
    assert len(set(map(frozenset, seen))) == 12
    assert len(set.union(*seen)) > 300  # of 333


def test_taking_all_of_every_dataset_changes_nothing_and_a_share_of_0_leaves_one_out():
    np.testing.assert_array_equal(epoch(mixed((133, 200))), epoch(make_order()))
    flat = epoch(mixed((0, 200))).ravel()
    assert flat[flat != PADDING].min() >= 133


def test_groups_of_mixed_datasets_fill_a_quarter_of_every_batch_too():
    recording = np.repeat(np.arange(2000), 4)
    order = BatchOrder(recording, 0, "f", 64, 0.25, 4, [(6000, 3000), (2000, 2000)])
    assert min(shared(records, recording) for records in epoch(order)[:-1]) >= 0.25
