"""A cache changes nothing: the losses of training and the embeddings of evaluation."""

import functools

import jax
import numpy as np
import optax
import pytest

from tests.feature_cache.small_features import (
    ImageTokenizer,
    attached,
    make_model,
    make_run,
    make_small_splits,
    with_cache,
    write_features,
)
from tests.tiny_aligner import relative_error
from vtalign_jax import sharding
from vtalign_jax.evaluation.embed import Evaluator
from vtalign_jax.pipeline.loader import make_loader
from vtalign_jax.training.grad_cache import StreamedStep
from vtalign_jax.training.state import init_state
from vtalign_jax.training.step import make_train_step

OPTIMIZER = optax.sgd(0.01)
STEPS = 3  # an epoch has two, its last one padded

CASES = {
    "tower": {"tune": {"connector": "lora"}, "data": {"jitter": True}},
    "connector": {
        "tune": {"connector": "frozen", "text_blocks": 3},
        "data": {"jitter": True, "parent_text_probability": 0.5},
    },
    "decoder": {
        "tune": {"connector": "frozen"},
        "objective": {"caption_weight": 0.2, "itm_weight": 0.5},
    },
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_small_splits(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def caches(dataset, tmp_path_factory):
    """What writes a float32 cache of a depth, once, and returns its folder."""

    @functools.cache
    def write(depth):
        folder = tmp_path_factory.mktemp(depth)
        write_features(make_run(dataset, **CASES[depth]), folder, depth)
        return folder

    return write


@functools.cache
def make_step(config):
    """Return the direct step, or the streamed one if there are microbatches."""
    bind, _, _, mesh = make_model(config)
    if config.train.microbatch:
        return StreamedStep(bind, OPTIMIZER, lambda step: 1.0, config, mesh, lambda line: None)
    direct = make_train_step(bind, OPTIMIZER, lambda step: 1.0, config, mesh)
    return lambda *given: direct(*given[:2], sharding.to_devices(given[2], mesh))


def trace(config, start_step=0, state=None):
    """Return the losses of the steps from `start_step` on, and the state after each."""
    _, params, frozen, mesh = make_model(config)
    if state is None:
        state = init_state(params, OPTIMIZER, 0, mesh)
    batches = make_loader(
        attached(config)[0],
        ImageTokenizer(),
        config,
        start_step=start_step,
        num_steps=STEPS - start_step,
        process_index=0,
        process_count=1,
        train=True,
    )
    losses, states = [], []
    for _, batch in batches:
        assert (batch.frames is None) == bool(config.data.feature_cache)
        state, metrics, *_ = make_step(config)(state, frozen, batch)
        losses.append(float(metrics["loss"]))
        states.append(jax.device_get(state))
    return losses, states


def embeddings(config, name):
    """Return those of a split, as an evaluation makes them."""
    bind, params, frozen, mesh = make_model(config)
    (split,) = (split for split in attached(config) if split.name == name)
    evaluator = Evaluator(bind, mesh, split, ImageTokenizer(), config)
    return evaluator.embeddings(params, frozen)


@pytest.fixture(scope="module")
def uncached(dataset):
    """What gives the losses of an uncached run."""
    return functools.cache(lambda depth: trace(make_run(dataset, **CASES[depth]))[0])


@pytest.mark.parametrize(
    "depth", ["tower", "decoder", pytest.param("connector", marks=pytest.mark.slow)]
)
def test_the_losses_of_a_cached_run_are_those_of_an_uncached_one(dataset, caches, uncached, depth):
    config = with_cache(make_run(dataset, **CASES[depth]), caches(depth))
    losses, states = trace(config)
    assert len(set(losses)) == STEPS
    np.testing.assert_allclose(losses, uncached(depth), rtol=1e-5)
    mesh = make_model(config)[-1]
    middle = jax.device_put(states[0], jax.NamedSharding(mesh, sharding.WHOLE))
    assert trace(config, 1, middle)[0] == losses[1:]  # in the middle of an epoch


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "keep"), [("tower", "never"), ("decoder", "device")])
def test_so_are_those_of_a_streamed_one(dataset, caches, uncached, depth, keep):
    sections = CASES[depth] | {"train": {"microbatch": 2, "keep_prefix": keep}}
    config = with_cache(make_run(dataset, **sections), caches(depth))
    np.testing.assert_allclose(trace(config)[0], uncached(depth), rtol=1e-5)


def test_embeddings_of_an_evaluation_are_the_same(dataset, caches):
    # Those of the training split: its features hold captions, which evaluation has none of.
    plain = make_run(dataset, **CASES["decoder"])
    found = embeddings(with_cache(plain, caches("decoder")), "train")
    for ours, theirs in zip(found, embeddings(plain, "train"), strict=True):
        assert relative_error(ours, theirs) < 1e-5


def test_what_storing_takes_is_told_and_moves_embeddings_as_little(dataset, caches, tmp_path):
    config = make_run(dataset, **CASES["tower"])
    exact = embeddings(with_cache(config, caches("tower")), "val")
    for dtype, most in (("bfloat16", 2e-3), ("int8", 2e-2)):
        error = write_features(config, tmp_path / dtype, "tower", dtype)
        assert most / 20 < error < most
        found = embeddings(with_cache(config, tmp_path / dtype), "val")
        assert most / 20 < relative_error(found.z_video, exact.z_video) < most
        assert relative_error(found.z_text, exact.z_text) == 0
