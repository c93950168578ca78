"""Memory and time of the loss, and what GradCache costs beside plain microbatches."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import random_model
from vtalign_jax import sharding
from vtalign_jax.config import Config, MeshConfig, ObjectiveConfig, resolve
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.objectives import negatives
from vtalign_jax.objectives.info_nce import make_info_nce, weighted_info_nce
from vtalign_jax.training.grad_cache import StreamedStep
from vtalign_jax.training.state import init_state
from vtalign_jax.training.step import embed, make_loss, row_keys

_EMBEDDING_DIM = 1024
_MANY_PAIRS, _TIMED_PAIRS = 65_536, 8_192
_MICROBATCH, _MICROBATCHES, _FRAMES, _TEXT_TOKENS = 4, 4, 4, 24
_RATE = 0.0


def measure(repeats: int) -> Iterator[dict[str, Any]]:
    """Yield the memory at 65,536 pairs, the time at 8,192 and the cost of GradCache, a row each.

    Args:
      repeats: counted runs of each way, taking turns.
    """
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    yield {"part": "loss", "pairs": _MANY_PAIRS} | {
        f"{name}_temporary_gib": round(_temporary_bytes(function, _MANY_PAIRS) / 2**30, 2)
        for name, function in _losses(mesh).items()
    }
    yield _timed_losses(mesh, repeats)
    yield _grad_cache(mesh, repeats)


def _losses(mesh: jax.sharding.Mesh) -> dict[str, Callable]:
    """Return loss and gradient of both forms, with weights computed from the identity."""
    objective = ObjectiveConfig()
    chunked = make_info_nce(objective, mesh)

    def dense(z_video: Any, z_text: Any, temperature: Any, identity: Any) -> jax.Array:
        weights = jnp.exp(negatives.log_weights(identity, identity, objective))
        return weighted_info_nce(z_video, z_text, temperature, weights)

    forms = {"chunked": chunked, "dense": dense}
    return {n: jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2))) for n, f in forms.items()}


def _arguments(pairs: int) -> tuple:
    z = np.random.default_rng(0).normal(size=(2, pairs, _EMBEDDING_DIM)).astype(np.float32)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    identity = random_model.make_identity(pairs)
    return random_model.on_device((z[0], z[1], np.float32(0.07), identity))


def _temporary_bytes(function: Callable, pairs: int) -> int:
    """Return what the compiled program needs beside arguments and results."""
    shapes = jax.eval_shape(lambda: _abstract(pairs))
    return function.lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def _abstract(pairs: int) -> tuple:
    z = jnp.zeros((pairs, _EMBEDDING_DIM))
    return z, z, jnp.float32(0.07), random_model.on_device(random_model.make_identity(pairs))


def _timed_losses(mesh: jax.sharding.Mesh, repeats: int) -> dict[str, Any]:
    arguments = _arguments(_TIMED_PAIRS)
    ways = {
        name: lambda function=function: function(*arguments)
        for name, function in _losses(mesh).items()
    }
    seconds = _medians(ways, repeats)
    return {
        "part": "loss",
        "pairs": _TIMED_PAIRS,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "ratio_to_dense": round(seconds["chunked"] / seconds["dense"], 3),
    }


def _grad_cache(mesh: jax.sharding.Mesh, repeats: int) -> dict[str, Any]:
    """Compare a streamed step with as many plain forward and backward passes.

    The work predicts (T + 3 f + r f) / (T + 2 f + r f): tower once, decoder forward twice, backward
    once, and r = 1 more forward where blocks are recomputed.
    """
    config = resolve(
        {
            "model": {"embedding_dim": 256, "compute_dtype": "float32", "frozen_dtype": "float32"},
            "train": {
                "contrastive_batch": _MICROBATCH * _MICROBATCHES,
                "microbatch": _MICROBATCH,
                "keep_prefix": "device",
            },
        }
    )
    base = SmolVLMConfig.from_hf(random_model.SMALL)
    bind, params, frozen = random_model.make_aligner(config, base)
    optimizer = optax.sgd(_RATE)
    state = init_state(params, optimizer, 0, mesh)
    batch = random_model.make_batch(base, _MICROBATCH * _MICROBATCHES, _FRAMES, _TEXT_TOKENS)
    parts = _parts(batch)
    streamed = StreamedStep(bind, optimizer, lambda step: _RATE, config, mesh, lambda line: None)

    def stream() -> jax.Array:
        nonlocal state
        state, metrics, *_ = streamed(state, frozen, batch)
        return metrics["loss"]

    ways = {"streamed": stream} | _passes(bind, params, frozen, config, mesh, parts)
    seconds = _medians(ways, repeats)
    tower, forward = seconds["tower"], seconds["forward"] - seconds["tower"]
    remat = float(config.model.remat == "full")
    predicted = (tower + (3 + remat) * forward) / (tower + (2 + remat) * forward)
    measured = seconds["streamed"] / seconds["plain"]
    return {
        "part": "grad_cache",
        "microbatches": _MICROBATCHES,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "ratio_to_plain": round(measured, 3),
        "ratio_predicted": round(predicted, 3),
        "measured_to_predicted": round(measured / predicted, 3),
    }


def _passes(
    bind: Callable,
    params: dict,
    frozen: dict,
    config: Config,
    mesh: jax.sharding.Mesh,
    parts: list,
) -> dict[str, Callable]:
    """Return forward and backward, forward, and the tower alone, over all microbatches."""
    seed, step = jax.random.key_data(jax.random.key(0)), jnp.int32(0)
    loss = jax.value_and_grad(make_loss(bind, config, mesh), has_aux=True)

    def plain(params: dict, frozen: dict, batch: Any) -> tuple:
        return loss(params, frozen, batch, seed, step)

    def forward(params: dict, frozen: dict, batch: Any) -> tuple:
        return embed(bind(params | frozen), batch, row_keys(seed, step, batch.identity))

    def tower(params: dict, frozen: dict, batch: Any) -> jax.Array:
        model = bind(params | frozen)
        return model.clip_prefix(batch.clip_ids, batch.clip_mask, batch.frames, "tower")

    functions = {"plain": plain, "forward": forward, "tower": tower}
    compiled = {name: jax.jit(function) for name, function in functions.items()}
    return {
        name: lambda function=function: [
            jax.block_until_ready(function(params, frozen, part)) for part in parts
        ]
        for name, function in compiled.items()
    }


def _parts(batch: Any) -> list:
    return [
        random_model.on_device(jax.tree.map(lambda x, at=at: x[at : at + _MICROBATCH], batch))
        for at in range(0, len(batch.frames), _MICROBATCH)
    ]


def _medians(ways: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Return the median seconds of each way, compiled and run once before; they take turns."""
    for way in ways.values():
        jax.block_until_ready(way())
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            jax.block_until_ready(way())
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}
