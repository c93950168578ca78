"""GradCache: the loss and gradients of the direct step, whatever the microbatch and the devices."""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.tiny_aligner import make_aligner, make_batch, make_config, relative_error
from tests.training.test_zero_weights import equations
from vtalign_jax import sharding
from vtalign_jax.training.grad_cache import StreamedStep
from vtalign_jax.training.state import init_state
from vtalign_jax.training.step import make_train_step

OPTIMIZER = optax.sgd(1.0)  # the update is the gradient


def make_parts(devices: int, **sections):
    """Return (config, bind, frozen on the devices, a fresh state, mesh)."""
    config = make_config(**sections)
    bind, params, frozen = make_aligner(config)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
    frozen = jax.device_put(frozen, sharding.frozen_shardings(frozen, mesh))
    return config, bind, frozen, init_state(params, OPTIMIZER, 0, mesh), mesh


class Found(NamedTuple):
    metrics: dict
    gradient: dict
    z_video: dict  # by record


def direct(*batches, **sections):
    """Return what the direct step finds on one device of each batch; of one, not in a list."""
    config, bind, frozen, state, mesh = make_parts(1, **sections)
    before = jax.device_get(state.params)
    step = make_train_step(bind, OPTIMIZER, lambda step: 1.0, config, mesh)
    found = []
    for batch in batches:
        state = init_state(before, OPTIMIZER, 0, mesh)
        found.append(_found(before, *step(state, frozen, sharding.to_devices(batch, mesh))))
    return found if len(found) > 1 else found[0]


def streamed(batch, devices, microbatch, keep, **sections):
    """Return what a streamed step finds."""
    step, frozen, state = make_step(devices, microbatch, keep, **sections)
    before = jax.device_get(state.params)
    return _found(before, *step(state, frozen, batch))


def make_step(devices, microbatch, keep, **sections):
    """Return (step, frozen, state)."""
    train = {"microbatch": microbatch, "keep_prefix": keep}
    config, bind, frozen, state, mesh = make_parts(devices, train=train, **sections)
    step = StreamedStep(bind, OPTIMIZER, lambda step: 1.0, config, mesh, say=lambda line: None)
    return step, frozen, state


def _found(before, state, metrics, embedded, identity):
    rows = zip(np.asarray(identity.record), np.asarray(embedded.z_video), strict=True)
    of_record = {int(record): z for record, z in rows if record >= 0}
    return Found(jax.device_get(metrics), _gradient(before, state), of_record)


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
    assert found.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=1e-5)
    assert found.gradient.keys() == expected.gradient.keys()
    for path, value in expected.gradient.items():
        assert np.any(value), f"no gradient reaches {path}"
        assert relative_error(found.gradient[path], value) < 1e-5, path
    assert found.z_video.keys() == expected.z_video.keys()  # each row with its own identity
    for record, z in expected.z_video.items():
        assert relative_error(found.z_video[record], z) < 1e-5


@pytest.mark.parametrize(
    ("devices", "microbatch", "keep", "fsdp"),
    [
        (2, 3, "host", 1),
        (8, 1, "device", 4),
        pytest.param(1, 3, "never", 1, marks=pytest.mark.slow),
        pytest.param(1, 1, "device", 1, marks=pytest.mark.slow),
        pytest.param(1, 8, "host", 1, marks=pytest.mark.slow),
        pytest.param(4, 3, "never", 1, marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradients_equal_the_direct_step_with_dropout(
    batch, expected, devices, microbatch, keep, fsdp
):
    _check(streamed(batch, devices, microbatch, keep, mesh={"fsdp": fsdp}), expected)


@pytest.mark.parametrize("keep", ["device", pytest.param("never", marks=pytest.mark.slow)])
def test_a_frozen_connector_keeps_what_enters_the_tuned_blocks(batch, keep):
    tune = {"connector": "frozen", "text_blocks": 1, "dropout": 0.1, "rank": 3}
    _check(streamed(batch, 2, 4, keep, tune=tune), direct(batch, tune=tune))


def test_a_connector_tuned_in_full_a_head_a_modality_and_texts_alike_in_other_microbatches(batch):
    sections = {
        "tune": {"connector": "full"},
        "model": {"head": "per_modality"},
        "objective": {"similar_text_threshold": 0.5},
    }
    unlike, alike = (  # each text, and every fourth
        batch._replace(identity=batch.identity._replace(signature=signature))
        for signature in (
            np.eye(16, dtype=np.float32),
            np.tile(np.eye(4, 16, dtype=np.float32), (4, 1)),
        )
    )
    unlike_found, expected = direct(unlike, alike, **sections)
    _check(streamed(alike, 2, 3, "device", **sections), expected)
    assert expected.metrics["loss"] < unlike_found.metrics["loss"] - 1e-3


ALL_LOSSES = {
    "objective": {"itm_weight": 0.5, "caption_weight": 0.2},
    "data": {"max_text_tokens": 8},
}


@pytest.fixture(scope="module")
def with_all_losses():
    """What gives (batch, sections, what the direct step finds) of a connector."""

    @functools.cache
    def make(connector):
        batch = make_batch(16, real=13, has_captions=True)
        sections = ALL_LOSSES | {"tune": {"connector": connector}}
        return batch, sections, direct(batch, **sections)

    return make


@pytest.mark.parametrize(
    ("devices", "microbatch", "connector"),
    [
        (4, 3, "lora"),
        pytest.param(1, 3, "lora", marks=pytest.mark.slow),
        pytest.param(2, 4, "frozen", marks=pytest.mark.slow),
    ],
)
def test_matching_and_captions_join_with_exact_gradients(
    with_all_losses, devices, microbatch, connector
):
    batch, sections, expected = with_all_losses(connector)
    _check(streamed(batch, devices, microbatch, "device", **sections), expected)


def test_the_losses_are_weighted_as_configured(with_all_losses):
    metrics = with_all_losses("lora")[2].metrics
    itc, itm, caption = (float(metrics[f"loss_{name}"]) for name in ("itc", "itm", "caption"))
    assert min(itc, itm, caption) > 0
    assert float(metrics["loss"]) == pytest.approx(itc + 0.5 * itm + 0.2 * caption, rel=1e-6)


def test_four_functions_are_traced_once_and_no_device_waits_inside_the_loop(batch):
    step, frozen, state = make_step(4, 2, "device")
    for _ in range(3):
        state, *_ = step(state, frozen, batch)
    assert [function._cache_size() for function in step.functions] == [1, 1, 1, 1]

    made = {"embed": [], "accumulate": []}
    plain = step.functions
    for name, calls in made.items():
        recording = _recording(getattr(plain, name), calls)
        step.functions = step.functions._replace(**{name: recording})
    step(state, frozen, batch)
    for name, calls in made.items():
        text = getattr(plain, name).lower(*calls[0]).compile().as_text()
        assert not re.search(r"all-reduce|reduce-scatter|all-gather|all-to-all", text), name


def _recording(function, calls):
    """Return the function, keeping the shapes of each call's arguments."""

    def call(*arguments):
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arguments
        )
        calls.append(shapes)
        return function(*arguments)

    return call


def test_embeddings_meet_their_slopes_in_no_product_of_low_precision(batch):
    """On a TPU such a product is one bfloat16 pass, which no test on a CPU would see."""
    step, frozen, state = make_step(1, 8, "device", model={"compute_dtype": "bfloat16"})
    part, *_ = step._parts(batch)
    step.keep = "device"
    inputs = (state.params, frozen, part)
    z, prefixes = jax.eval_shape(step._embed, *inputs, state.seed, state.step)
    found, slopes = step._zeros(state.params), (z, jnp.float32(1.0))
    traced = jax.make_jaxpr(step._accumulate)(
        found, *inputs, prefixes, slopes, state.seed, state.step
    )
    products = [
        equation.params["precision"]
        for equation in equations(traced.jaxpr)
        if equation.primitive.name == "dot_general"
        and all(x.aval.dtype == jnp.float32 for x in equation.invars)
    ]
    assert products  # those of the head
    assert set(products) == {(jax.lax.Precision.HIGHEST,) * 2}


def test_the_place_of_what_is_kept_follows_the_free_memory_and_is_said(batch, monkeypatch):
    said = []
    for free, place in [((10**9, 10**9), "device"), ((0, 10**9), "host"), ((0, 0), "never")]:
        monkeypatch.setattr(
            "vtalign_jax.training.memory.free_bytes", lambda device, free=free: free
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
