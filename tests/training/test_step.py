"""The training step: the same numbers on any mesh, and only what should change changes."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from tests.objectives.identities import make_identity
from tests.tiny_aligner import make_aligner, make_batch, make_config, relative_error
from vtalign_jax import sharding
from vtalign_jax.config import MeshConfig
from vtalign_jax.models.aligner import MIN_TEMPERATURE
from vtalign_jax.training import optim
from vtalign_jax.training.feed import Feed, compiling
from vtalign_jax.training.state import init_state
from vtalign_jax.training.step import make_loss, make_train_step, row_keys


@pytest.fixture(scope="module")
def config():
    return make_config()


@pytest.fixture(scope="module")
def aligner(config):
    return make_aligner(config)


@pytest.fixture(scope="module")
def loss_and_gradient(config, aligner):
    """Return a function: (batch, devices, fsdp) -> (loss, {path: gradient}); compiled once each."""
    bind, params, frozen = aligner

    @functools.cache
    def compiled(devices: int, fsdp: int):
        mesh = sharding.make_mesh(MeshConfig(fsdp=fsdp), jax.devices()[:devices])
        function = jax.value_and_grad(make_loss(bind, config, mesh), has_aux=True)
        return mesh, jax.jit(function)

    def compute(batch, devices: int, fsdp: int = 1):
        mesh, function = compiled(devices, fsdp)
        base = jax.device_put(frozen, sharding.frozen_shardings(frozen, mesh))
        tuned = jax.device_put(params, NamedSharding(mesh, sharding.WHOLE))
        seed = jax.random.key_data(jax.random.key(7))
        (loss, _), gradient = function(tuned, base, sharding.to_devices(batch, mesh), seed, 3)
        return float(loss), jax.device_get(gradient)

    return compute


@pytest.fixture(scope="module")
def on_one_device(loss_and_gradient):
    return loss_and_gradient(make_batch(16, real=13), 1)


@pytest.mark.parametrize(
    ("devices", "fsdp"), [(2, 1), pytest.param(8, 1, marks=pytest.mark.slow), (8, 4)]
)
def test_loss_and_every_gradient_leaf_equal_those_of_one_device(
    loss_and_gradient, on_one_device, devices, fsdp
):
    loss, gradient = loss_and_gradient(make_batch(16, real=13), devices, fsdp)
    expected_loss, expected = on_one_device
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradient.keys() == expected.keys()
    for path, value in gradient.items():
        assert np.any(expected[path]), f"no gradient reaches {path}"
        assert relative_error(value, expected[path]) < 1e-5, path


def test_all_losses_together_equal_those_of_one_device():
    config = make_config(
        objective={"itm_weight": 0.5, "caption_weight": 0.2}, data={"max_text_tokens": 8}
    )
    bind, params, frozen = make_aligner(config)
    batch = make_batch(16, real=13, has_captions=True)
    found = []
    for devices in (1, 8):
        mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
        function = jax.jit(jax.value_and_grad(make_loss(bind, config, mesh), has_aux=True))
        base = jax.device_put(frozen, sharding.frozen_shardings(frozen, mesh))
        tuned = jax.device_put(params, NamedSharding(mesh, sharding.WHOLE))
        seed = jax.random.key_data(jax.random.key(7))
        (loss, _), gradient = function(tuned, base, sharding.to_devices(batch, mesh), seed, 3)
        found.append((float(loss), jax.device_get(gradient)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    for path, value in found[1][1].items():
        assert np.any(value), f"no gradient reaches {path}"
        assert relative_error(value, found[0][1][path]) < 1e-5, path


def test_padding_rows_change_no_gradient(loss_and_gradient):
    padded = make_batch(16, real=8)
    real = jax.tree.map(lambda x: x[:8], padded)
    loss, gradient = loss_and_gradient(padded, 2)  # all that the second device has is padding
    expected_loss, expected = loss_and_gradient(real, 2)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for path, value in gradient.items():
        assert relative_error(value, expected[path]) < 1e-5, path


def test_dropout_keys_depend_on_step_and_record_alone():
    seed = jax.random.key_data(jax.random.key(0))
    record = np.array([4, 9, 2, 7], np.int32)
    identity = make_identity(range(4), record=record)
    turned = make_identity(range(4), record=record[::-1])
    some, same, later = (
        [np.asarray(jax.random.key_data(k)) for k in row_keys(seed, step, rows)]
        for step, rows in ((5, identity), (5, turned), (6, identity))
    )
    for ours, theirs in zip(some, same, strict=True):
        np.testing.assert_array_equal(ours, theirs[::-1])
    everything = np.concatenate([*some, *later])
    assert len(np.unique(everything, axis=0)) == len(everything)


@pytest.fixture(scope="module")
def compiled_step(config, aligner):
    """Return (step, optimizer, mesh, frozen) on all devices."""
    bind, _, frozen = aligner
    mesh = sharding.make_mesh(config.mesh)
    optimizer = optim.make_optimizer(config.optim, 50)
    rate = optim.learning_rate(config.optim, 50)
    step = make_train_step(bind, optimizer, rate, config, mesh)
    frozen = jax.device_put(frozen, sharding.frozen_shardings(frozen, mesh))
    return step, optimizer, mesh, frozen


@pytest.fixture
def run(aligner, compiled_step):
    """Return (step, a fresh state, frozen, put)."""
    step, optimizer, mesh, frozen = compiled_step
    state = init_state(aligner[1], optimizer, seed=0, mesh=mesh)
    return step, state, frozen, lambda batch: sharding.to_devices(batch, mesh)


def test_steps_reduce_the_loss_trace_once_and_leave_frozen_leaves_alone(run):
    step, state, frozen, put = run
    feed = Feed(((number, make_batch(16)) for number in range(30)), put)
    before = jax.tree.map(np.array, frozen)
    losses, events = [], []
    with compiling(step, state, frozen, feed.first):
        pass
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: events.append(name))
    for _, batch in feed:
        state, metrics, *_ = step(state, frozen, batch)
        feed.fetch(metrics)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    jax.monitoring.clear_event_listeners()
    assert step._cache_size() == 1
    assert not [name for name in events if name.startswith("/jax/core/compile")]  # nor compiled
    assert int(state.step) == 30
    for path, value in frozen.items():
        assert np.asarray(value).tobytes() == before[path].tobytes(), path


def test_an_update_that_is_not_finite_is_left_out_and_counted(run, config):
    step, state, frozen, put = run
    batch = put(make_batch(16))
    state, *_ = step(state, frozen, batch)  # past the step of learning rate zero
    poisoned = dict(frozen)
    poisoned["base.text_model.norm.scale"] = frozen["base.text_model.norm.scale"] * np.nan
    before = jax.device_get((state.params, state.opt_state))
    for count in (1, 2):
        state, metrics, *_ = step(state, poisoned, batch)
        assert not np.isfinite(metrics["loss"])
        assert (int(metrics["skipped"]), int(state.skipped_in_a_row)) == (count, count)
    after = jax.device_get((state.params, state.opt_state))
    jax.tree.map(np.testing.assert_array_equal, after, before)
    state, metrics, *_ = step(state, frozen, batch)
    assert (int(metrics["skipped"]), int(state.skipped_in_a_row)) == (2, 0)
    assert int(metrics["longest_skipped"]) == 2
    rate = optim.learning_rate(config.optim, 50)
    assert float(metrics["learning_rate"]) == pytest.approx(float(rate(1)))  # one update before
    assert np.any(state.params["head.fc1.bias"] != before[0]["head.fc1.bias"])


def test_temperature_stays_above_its_bound_and_can_return(run, aligner):
    step, state, frozen, put = run
    low = state.params["log_temperature"] * 0 + np.float32(np.log(MIN_TEMPERATURE) - 3.0)
    state = state._replace(params=state.params | {"log_temperature": low})
    state, metrics, *_ = step(state, frozen, put(make_batch(16)))
    assert float(metrics["temperature"]) == pytest.approx(MIN_TEMPERATURE)

    def temperature(log_temperature):
        leaves = state.params | {"log_temperature": log_temperature}
        return aligner[0](leaves | frozen).temperature()

    tau, slope = jax.value_and_grad(temperature)(state.params["log_temperature"])
    assert float(tau) == pytest.approx(MIN_TEMPERATURE, rel=1e-4)
    assert float(slope) == pytest.approx(float(tau))  # all of the gradient, not half or none of it


def test_bfloat16_stays_finite_at_the_temperatures_bound_and_far_above_it():
    model = {"compute_dtype": "bfloat16", "frozen_dtype": "bfloat16"}
    losses = {"itm_weight": 0.5, "caption_weight": 0.2}
    config = make_config(model=model, objective=losses, data={"max_text_tokens": 8})
    bind, params, frozen = make_aligner(config)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:2])
    optimizer = optim.make_optimizer(config.optim, 50)
    step = make_train_step(bind, optimizer, optim.learning_rate(config.optim, 50), config, mesh)
    frozen = jax.device_put(frozen, sharding.frozen_shardings(frozen, mesh))
    batch = sharding.to_devices(make_batch(8, has_captions=True), mesh)
    for temperature in (MIN_TEMPERATURE, 10.0):
        start = params | {"log_temperature": jax.numpy.log(jax.numpy.float32(temperature))}
        state = init_state(start, optimizer, seed=0, mesh=mesh)
        for _ in range(20):
            state, metrics, *_ = step(state, frozen, batch)
            assert all(np.isfinite(value) for value in jax.tree.leaves(jax.device_get(metrics)))
        assert int(state.skipped) == 0
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.device_get(state.params).values())


def test_a_batch_that_does_not_divide_names_sizes_that_would():
    mesh = sharding.make_mesh(MeshConfig())
    with pytest.raises(sharding.UserError, match="use 8 or 16"):
        sharding.check_batch("train.contrastive_batch", 12, mesh)
    sharding.check_batch("train.contrastive_batch", 16, mesh)


def test_a_mesh_that_does_not_fit_the_devices_is_an_error():
    with pytest.raises(sharding.UserError, match="does not make the 8 devices"):
        sharding.make_mesh(MeshConfig(data=3, fsdp=2))
