"""From a configuration to a model: its parameters' shapes, then the arrays on their devices."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from vtalign_jax import sharding
from vtalign_jax.config import Config
from vtalign_jax.errors import UserError
from vtalign_jax.interop.base_files import resolve_base
from vtalign_jax.interop.weights import load_into, read_config
from vtalign_jax.models import parameters
from vtalign_jax.models.aligner import AlignerModel
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.training import trainable

_BASE = "base."
Abstract = dict[str, jax.ShapeDtypeStruct]


class Assembly(NamedTuple):
    """A model that holds no arrays yet.

    Attributes:
      directory: the base checkpoint; None where only its numbers are known.
      base: its numbers.
      make_model: builds the module with random values.
      bind: arrays by path -> model.
      trainable: shapes and dtypes (float32) of the trainable leaves by path.
      frozen: of the frozen leaves.
    """

    directory: Path | None
    base: SmolVLMConfig
    make_model: Callable[[], AlignerModel]
    bind: Callable[[Mapping[str, jax.Array]], AlignerModel]
    trainable: Abstract
    frozen: Abstract


def assemble(config: Config) -> Assembly:
    """Return the model of a configuration; only the base's `config.json` is read.

    Raises:
      UserError: no such base, or one of another architecture.
    """
    directory = resolve_base(config.model.base)
    return assemble_of(read_config(directory), config, directory)


def assemble_of(base: SmolVLMConfig, config: Config, directory: Path | None = None) -> Assembly:
    """Return the model of a configuration on a base of these numbers, wherever its files are."""
    adapters = trainable.adapter_config(config.tune)

    def make_model() -> AlignerModel:
        return AlignerModel(
            config.model,
            base,
            adapters,
            rngs=nnx.Rngs(config.train.seed),
            has_matching_head=config.objective.itm_weight > 0,
        )

    bind, abstract = parameters.abstract(make_model)
    trained, frozen = trainable.split(abstract, config.model, config.tune)
    trained = {path: jax.ShapeDtypeStruct(x.shape, jnp.float32) for path, x in trained.items()}
    return Assembly(directory, base, make_model, bind, trained, frozen)


def load(assembly: Assembly, mesh: Mesh) -> tuple[parameters.Parameters, parameters.Parameters]:
    """Return (trainable, frozen) before training.

    The base's tensors go straight to their shards; heads, adapters and temperature are drawn from
    the configuration's seed and lie whole on every device.

    Raises:
      UserError: the base's tensors do not fit or are not finite, or the mesh does not divide them.
    """
    from_base = _read_base(assembly, mesh)
    fresh = [path for path in assembly.trainable if path not in from_base]

    def draw() -> parameters.Parameters:
        values = parameters.parameters_of(assembly.make_model())
        return {path: values[path] for path in fresh}

    drawn = jax.jit(draw, out_shardings=NamedSharding(mesh, sharding.WHOLE))()
    trained = {path: drawn.get(path, from_base.get(path)) for path in assembly.trainable}
    return trained, {path: from_base[path] for path in assembly.frozen}


def load_frozen(assembly: Assembly, mesh: Mesh) -> parameters.Parameters:
    """Return the frozen leaves alone, for who has the trained ones: nothing is drawn.

    Raises:
      UserError: see `load`.
    """
    from_base = _read_base(assembly, mesh)
    return {path: from_base[path] for path in assembly.frozen}


def _read_base(assembly: Assembly, mesh: Mesh) -> parameters.Parameters:
    """Return the base's leaves, each straight to its shards."""
    whole = NamedSharding(mesh, sharding.WHOLE)
    places = sharding.frozen_shardings(assembly.frozen, mesh)
    abstract = assembly.trainable | assembly.frozen
    stored = {path.removeprefix(_BASE): x for path, x in abstract.items() if path.startswith(_BASE)}
    loaded = load_into(stored, assembly.directory, lambda path: places.get(_BASE + path, whole))
    finite = jax.device_get(_finite(mesh)(loaded))
    if broken := sorted(path for path, is_finite in finite.items() if not is_finite):
        raise UserError(
            f"the weights in {assembly.directory} are not finite: {', '.join(broken[:3])}; "
            "download them again"
        )
    return {_BASE + path: value for path, value in loaded.items()}


@functools.cache
def _finite(mesh: Mesh) -> Callable[[parameters.Parameters], parameters.Parameters]:
    """Return what looks for NaN and infinity on the devices, where that takes no time."""
    whole = NamedSharding(mesh, sharding.WHOLE)
    return jax.jit(
        lambda leaves: {path: jnp.isfinite(x).all() for path, x in leaves.items()},
        out_shardings=whole,
    )
