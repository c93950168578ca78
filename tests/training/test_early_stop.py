import json

from vtalign_jax.training.early_stop import EarlyStop

PLAN = {"min_epochs": 5, "patience": 3}


def _last_epoch(recalls: list[float], min_gain: float = 0.0, **settings) -> int:
    """Epochs run when each epoch ends with one of these evaluations."""
    state = EarlyStop()
    for epoch, recall in enumerate(recalls, start=1):
        state = state.updated(recall, step=epoch * 100, min_gain=min_gain)
        if state.is_over(epoch, **settings):
            return epoch
    return len(recalls)


def test_no_stop_before_min_epochs():
    assert _last_epoch([0.5, 0.4, 0.4, 0.4, 0.4, 0.4], **PLAN) == 5


def test_stops_after_patience_evaluations_without_a_higher_recall():
    assert _last_epoch([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.5, 0.6, 0.7], **PLAN) == 9


def test_a_higher_recall_starts_the_count_again():
    assert _last_epoch([0.5, 0.4, 0.4, 0.4, 0.51, 0.4, 0.4, 0.52, 0.4, 0.4, 0.4], **PLAN) == 11


def test_equal_recall_is_no_improvement_and_the_first_stays_best():
    state = EarlyStop().updated(0.5, step=1).updated(0.5, step=2)
    assert (state.best_step, state.waited, state.last) == (1, 1, 0.5)


def test_an_improvement_within_the_margin_starts_no_count_again_and_is_the_best_all_the_same():
    recalls = [0.5, 0.51, 0.52, 0.515, 0.7]
    assert _last_epoch(recalls, min_gain=0.125, min_epochs=1, patience=3) == 4
    assert _last_epoch(recalls, min_gain=0.0, min_epochs=1, patience=3) == 5
    state = EarlyStop()
    for step, recall in enumerate(recalls[:4]):
        state = state.updated(recall, step, min_gain=0.125)
    assert (state.best, state.best_step, state.waited, state.counted) == (0.52, 2, 3, 0.5)


def test_small_improvements_add_up_until_they_count():
    state = EarlyStop()
    waited = []
    for step, recall in enumerate([0.5, 0.5625, 0.625, 0.6875, 0.625]):
        state = state.updated(recall, step, min_gain=0.125)
        waited.append(state.waited)
    assert waited == [0, 1, 2, 0, 1]  # 0.625 is the margin itself, and not beyond it
    assert (state.best_step, state.counted) == (3, 0.6875)


def test_state_survives_json_with_the_best_remembered():
    state = EarlyStop().updated(0.75, step=40).updated(0.25, step=80)
    again = EarlyStop.from_json(json.loads(json.dumps(state.to_json())))
    assert again == state
    assert again.updated(0.5, step=120).best == 0.75
    assert EarlyStop.from_json(EarlyStop().to_json()) == EarlyStop()
