"""GradCache: the loss and gradients of the direct step, whatever the microbatch and the devices."""

import re

import jax
import numpy as np
import optax
import pytest

from tests.tiny_aligner import make_aligner, make_batch, make_config, relative_error
from vtalign_jax import sharding
from vtalign_jax.config import MeshConfig
from vtalign_jax.training.grad_cache import StreamedStep
from vtalign_jax.training.state import init_state
from vtalign_jax.training.step import make_train_step

OPTIMIZER = optax.sgd(1.0)  # the update is the gradient


def make_parts(devices: int, **sections):
    """Return (config, bind, frozen on the devices, a fresh state, mesh)."""
    config = make_config(**sections)
    bind, params, frozen = make_aligner(config)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
    frozen = jax.device_put(frozen, sharding.frozen_shardings(frozen, mesh))
    return config, bind, frozen, init_state(params, OPTIMIZER, 0, mesh), mesh


def direct(batch, **sections):
    """Return (loss, gradient) of the direct step on one device."""
    config, bind, frozen, state, mesh = make_parts(1, **sections)
    before = jax.device_get(state.params)
    step = make_train_step(bind, OPTIMIZER, lambda step: 1.0, config, mesh)
    state, metrics, *_ = step(state, frozen, sharding.to_devices(batch, mesh))
    return float(metrics["loss"]), _gradient(before, state)


def streamed(batch, devices, microbatch, keep, steps=1, **sections):
    """Return (loss, gradient, step) of a streamed step, or of the last of several."""
    train = {"microbatch": microbatch, "keep_prefix": keep}
    config, bind, frozen, state, mesh = make_parts(devices, train=train, **sections)
    step = StreamedStep(bind, OPTIMIZER, lambda step: 1.0, config, mesh, say=lambda line: None)
    for _ in range(steps):
        before = jax.device_get(state.params)
        state, metrics, *_ = step(state, frozen, batch)
    return float(metrics["loss"]), _gradient(before, state), step


def _gradient(before, state):
    after = jax.device_get(state.params)
    return {path: before[path] - value for path, value in after.items()}


@pytest.fixture(scope="module")
def batch():
    return make_batch(16, real=13)


@pytest.fixture(scope="module")
def expected(batch):
    return direct(batch)


def _check(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    for path, value in expected[1].items():
        assert np.any(value), f"no gradient reaches {path}"
        assert relative_error(found[1][path], value) < 1e-5, path


@pytest.mark.parametrize(
    ("devices", "microbatch", "keep"),
    [
        (1, 1, "device"),
        (1, 3, "never"),
        (1, 8, "host"),
        (2, 3, "host"),
        (4, 3, "never"),
        (8, 1, "device"),
    ],
)
def test_loss_and_gradients_equal_the_direct_step_with_dropout(
    batch, expected, devices, microbatch, keep
):
    _check(streamed(batch, devices, microbatch, keep), expected)


@pytest.mark.parametrize("keep", ["device", "never"])
def test_a_frozen_connector_keeps_what_enters_the_tuned_blocks(batch, keep):
    tune = {"connector": "frozen", "text_blocks": 1, "dropout": 0.1, "rank": 3}
    _check(streamed(batch, 2, 4, keep, tune=tune), direct(batch, tune=tune))


def test_a_connector_tuned_in_full_and_a_head_a_modality(batch):
    sections = {"tune": {"connector": "full"}, "model": {"head": "per_modality"}}
    _check(streamed(batch, 2, 4, "device", **sections), direct(batch, **sections))


ALL_LOSSES = {
    "objective": {"itm_weight": 0.5, "caption_weight": 0.2},
    "data": {"max_text_tokens": 8},
}


@pytest.mark.parametrize(
    ("devices", "microbatch", "connector"), [(1, 3, "lora"), (4, 3, "lora"), (2, 4, "frozen")]
)
def test_matching_and_captions_join_with_exact_gradients(devices, microbatch, connector):
    batch = make_batch(16, real=13, has_captions=True)
    sections = ALL_LOSSES | {"tune": {"connector": connector}}
    _check(streamed(batch, devices, microbatch, "device", **sections), direct(batch, **sections))


def test_the_losses_are_weighted_as_configured():
    batch = make_batch(16, real=13, has_captions=True)
    config, bind, frozen, state, mesh = make_parts(8, **ALL_LOSSES)
    step = make_train_step(bind, OPTIMIZER, lambda step: 1.0, config, mesh)
    _, metrics, *_ = step(state, frozen, sharding.to_devices(batch, mesh))
    itc, itm, caption = (float(metrics[f"loss_{name}"]) for name in ("itc", "itm", "caption"))
    assert min(itc, itm, caption) > 0
    assert float(metrics["loss"]) == pytest.approx(itc + 0.5 * itm + 0.2 * caption, rel=1e-6)


def test_four_functions_are_traced_once_each_over_several_steps(batch):
    *_, step = streamed(batch, 2, 3, "device", steps=3)
    assert [function._cache_size() for function in step.functions] == [1, 1, 1, 1]


def test_no_reduction_over_devices_happens_inside_the_loop(batch):
    *_, step = streamed(batch, 4, 2, "device")
    calls = {}
    for name in ("embed", "accumulate"):
        function = getattr(step.functions, name)
        calls[name] = []
        step.functions = step.functions._replace(**{name: _recording(function, calls[name])})
    _, _, frozen, state, _ = make_parts(4, train={"microbatch": 2})
    step(state, frozen, batch)
    for name, (function, arguments) in ((name, made[0]) for name, made in calls.items()):
        text = function.lower(*arguments).compile().as_text()
        assert not re.search(r"all-reduce|reduce-scatter|all-gather|all-to-all", text), name


def _recording(function, made):
    """Return the function, keeping the shapes of each call's arguments."""

    def call(*arguments):
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arguments
        )
        made.append((function, shapes))
        return function(*arguments)

    return call


def test_embeddings_come_back_with_the_identity_of_their_rows(batch):
    config, bind, frozen, state, mesh = make_parts(2, train={"microbatch": 3})
    params = jax.device_get(state.params)
    step = StreamedStep(bind, OPTIMIZER, lambda step: 1.0, config, mesh, say=lambda line: None)
    _, _, embedded, identity = step(state, frozen, batch)
    whole = make_train_step(bind, OPTIMIZER, lambda step: 1.0, config, mesh)
    state = init_state(params, OPTIMIZER, 0, mesh)
    _, _, direct, own = whole(state, frozen, sharding.to_devices(batch, mesh))
    of_record = {int(r): z for r, z in zip(own.record, direct.z_video, strict=True) if r >= 0}
    real = np.asarray(identity.row_mask)
    assert sorted(np.asarray(identity.record)[real].tolist()) == sorted(of_record)
    for record, z in zip(identity.record[real], embedded.z_video[real], strict=True):
        assert relative_error(z, of_record[int(record)]) < 1e-5


def test_the_place_of_what_is_kept_follows_the_free_memory_and_is_said(batch, monkeypatch):
    said = []
    for free, place in [((10**9, 10**9), "device"), ((0, 10**9), "host"), ((0, 0), "never")]:
        monkeypatch.setattr(
            "vtalign_jax.training.grad_cache._free_bytes", lambda device, free=free: free
        )
        config, bind, frozen, state, mesh = make_parts(1, train={"microbatch": 8})
        step = StreamedStep(bind, OPTIMIZER, lambda step: 1.0, config, mesh, said.append)
        step._compile(state, frozen, list(step._parts(batch)))
        assert step.keep == place
    assert [line.split(" is ")[1] for line in said] == [
        "kept on the devices",
        "kept on the host",
        "computed twice",
    ]
    assert said[0].startswith("2 microbatches a step")
