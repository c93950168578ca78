"""What a run costs on a topology: the numbers, as JSON values."""

import dataclasses
import importlib.metadata
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from vtalign_jax import sharding
from vtalign_jax.array_types import Features
from vtalign_jax.config import Config
from vtalign_jax.planning import collectives, flops, hlo, memory, programs
from vtalign_jax.planning.abstract import Base, Given, make_given
from vtalign_jax.planning.topology import Topology
from vtalign_jax.training import remat
from vtalign_jax.training.assemble import Assembly, assemble_of

_LARGEST = 5  # temporaries shown
_CACHE_BYTES = 2  # bfloat16


class Asked(NamedTuple):
    """What the user asks beside the configuration.

    Attributes:
      pairs: of an epoch; 0 if not known.
      price: US dollars an hour of a chip; 0 if not known.
    """

    pairs: int
    price: float


class Compiled(NamedTuple):
    """A step compiled for a topology.

    Attributes:
      programs: of a step.
      uses: of the HBM, one a program.
      way: facts of how the step is made.
    """

    programs: list[programs.Program]
    uses: list[memory.Use]
    way: dict[str, Any]

    @property
    def worst(self) -> memory.Use:
        """The use of the program that takes most."""
        return max(self.uses, key=lambda use: use.total)


def compile_step(
    assembly: Assembly, base: Base, given: Given, config: Config, mesh: Mesh, topology: Topology
) -> Compiled:
    """Return the step of a configuration, direct or streamed as `train` makes it.

    Raises:
      OutOfMemory: the compiler cannot fit one of its programs.
    """
    if not config.train.is_streamed(mesh.size):
        found = programs.compile_direct(assembly, given, config, mesh)
        rows = config.train.contrastive_batch // mesh.size
        way = {"way": "direct", "pairs_per_device": rows}
        return Compiled(found, [memory.of_direct(found[0], given)], way)
    free = _free(assembly, mesh, topology)
    streamed = programs.compile_streamed(assembly, base, given, config, mesh, free)
    way = {
        "way": "streamed",
        "pairs_per_device": config.train.microbatch,
        "microbatches": streamed.parts,
        "keep_prefix": streamed.keep,
        "prefix_bytes_per_device": streamed.prefix_bytes // mesh.size,
    }
    uses = memory.of_streamed(streamed.programs, streamed.keep, given)
    return Compiled(streamed.programs, uses, way)


def _free(assembly: Assembly, mesh: Mesh, topology: Topology) -> tuple[int, int]:
    """Return the bytes free on all devices once the model is there, and on all hosts."""
    held = remat.held_bytes(assembly, mesh)
    devices = len(topology.devices)
    on_host = (topology.chip.host_bytes or 0) * topology.chips
    return max(topology.hbm_bytes - held, 0) * devices, on_host


def _settled(base: Base, config: Config, mesh: Mesh, topology: Topology) -> Config:
    """Return the configuration with what is computed again chosen as `train` chooses it."""
    held = remat.held_bytes(assemble_of(base.config, config), mesh)
    free = topology.hbm_bytes - held
    return remat.settle(config, base.config, base.clip_tokens, mesh.size, free)


def make_report(base: Base, config: Config, topology: Topology, asked: Asked) -> dict[str, Any]:
    """Return the report of a configuration that may or may not fit.

    Raises:
      UserError: the batch or the frozen leaves do not divide over the devices.
    """
    mesh = sharding.make_mesh(config.mesh, topology.devices)
    sharding.check_batch("train.contrastive_batch", config.train.contrastive_batch, mesh)
    config = _settled(base, config, mesh, topology)
    assembly = assemble_of(base.config, config)
    given = make_given(assembly, base, config, mesh)
    report = {
        "topology": _topology(topology),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
        "base": {"name": config.model.base, "numbers": base.source},
        "mesh": dict(mesh.shape),
        "pairs": config.train.contrastive_batch,
        "remat": config.model.remat,
    }
    try:
        compiled = compile_step(assembly, base, given, config, mesh, topology)
    except programs.OutOfMemory as error:
        return report | {"fits": False, "memory": _exhausted(error, topology)}
    found = _memory(compiled, topology)
    report |= {"fits": found["total_bytes"] <= topology.hbm_bytes, "step": compiled.way}
    report |= {"memory": found, "collectives": _collectives(compiled.programs, topology)}
    if len(topology.devices) > 1:
        loss = programs.compile_loss(assembly, given, config, mesh)
        report["loss"] = {
            "temporary_bytes": loss.memory["temp"],
            "collectives": _collectives([loss], topology),
        }
    tokens = flops.tokens_of(config, base.clip_tokens)
    report["tokens"] = tokens._asdict()
    required, features = flops.of_pair(assembly, config, tokens), given.batch.features
    if features:
        spared = flops.below(assembly, config, tokens, features.depth)
        required = flops.Flops(*(a - b for a, b in zip(required, spared, strict=True)))
    report |= _speed(compiled, required, config, topology)
    report |= _data(config, base, report.get("pairs_per_second"), topology, asked)
    if features:
        report |= _reading(features, config, report.get("pairs_per_second"))
    return report


def _topology(topology: Topology) -> dict[str, Any]:
    chip = dataclasses.asdict(topology.chip)
    found = {"name": topology.name, "slices": topology.slices, "chips": topology.chips}
    return found | {
        "devices": len(topology.devices),
        "hbm_bytes_per_device": topology.hbm_bytes,
        "chip": chip,
    }


def _exhausted(error: programs.OutOfMemory, topology: Topology) -> dict[str, Any]:
    return {
        "hbm_bytes": topology.hbm_bytes,
        "total_bytes": error.wanted,
        "program": error.program,
        "largest": error.largest[:_LARGEST],
    }


def _memory(compiled: Compiled, topology: Topology) -> dict[str, Any]:
    use = compiled.worst
    program = next(x for x in compiled.programs if x.name == use.program)
    return {
        "hbm_bytes": topology.hbm_bytes,
        "total_bytes": use.total,
        "program": use.program,
        "compiler_bytes": program.total,
        "parts": use.parts,
        "beside": use.beside,
        "largest_temporaries": [x._asdict() for x in memory.largest_temporaries(program, _LARGEST)],
        "programs": [
            {
                "name": each.name,
                "times": each.times,
                "total_bytes": of.total,
                "compiler_bytes": each.total,
                "temporary_bytes": each.memory["temp"],
                "cycles": each.cycles(),
                "unread_loops": hlo.unread_loops(each.module),
            }
            for each, of in zip(compiled.programs, compiled.uses, strict=True)
        ],
    }


def _collectives(found: list[programs.Program], topology: Topology) -> list[dict[str, Any]]:
    """Return the exchanges of programs, those with most bytes first."""
    per_slice = len(topology.devices) // topology.slices
    rows = []
    for program in found:
        counted = collectives.find(program.module, per_slice, topology.slices)
        for exchange, times in counted.items():
            row = {"program": program.name, **exchange._asdict()}
            times *= program.times
            rows.append(row | {"times": times, "sent_bytes": exchange.sent_bytes * times})
    return sorted(rows, key=lambda row: -row["sent_bytes"])


def _speed(
    compiled: Compiled, required: flops.Flops, config: Config, topology: Topology
) -> dict[str, Any]:
    """Return time, utilisation and pairs a second, as far as the chip's clock is known."""
    chip, pairs = topology.chip, config.train.contrastive_batch
    per_slice = len(topology.devices) // topology.slices
    cycles = sum(program.cycles() * program.times for program in compiled.programs)
    per_chip = len(topology.devices) // topology.chips
    kernels = sum(
        program.times * kernel.seconds(chip, per_chip)
        for program in compiled.programs
        for kernel in program.kernels()
    )
    busy = dict.fromkeys((collectives.ICI, collectives.DCN), 0.0)
    for program in compiled.programs:
        found = collectives.find(program.module, per_slice, topology.slices)
        for net, seconds in collectives.seconds(found.items(), chip, per_chip).items():
            busy[net] += seconds * program.times
    result = {
        "flops_per_pair": {"weights": required.weights, "attention": required.attention},
        "cycles": cycles,
        "kernel_seconds": kernels,
        "ici_seconds": busy[collectives.ICI],
        "dcn_seconds": busy[collectives.DCN],
    }
    if chip.clock_hz is None:
        return result
    compute = cycles / chip.clock_hz + kernels
    total = compute + sum(busy.values())
    peak = chip.peak_flops * topology.chips
    return result | {
        "compute_seconds": compute,
        "step_seconds": total,
        "mfu": required.weights * pairs / compute / peak,
        "pairs_per_second": pairs / total,
        "frames_per_second": pairs * config.data.frames / total,
    }


def _reading(features: Features, config: Config, rate: float | None) -> dict[str, Any]:
    """Return what is read of a feature cache instead of frames."""
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(features))
    clip = size // config.train.contrastive_batch
    found = {"cached": features.depth, "read_bytes_per_clip": clip}
    if rate:
        found |= {"read_bytes_per_second": clip * rate, "frames_per_second": 0.0}
    return found


def _data(
    config: Config, base: Base, rate: float | None, topology: Topology, asked: Asked
) -> dict[str, Any]:
    """Return the size of the cache of the tower's features, and what an epoch takes."""
    vision = base.config.vision
    clip = config.data.frames * vision.patches_per_side**2 * vision.hidden_size * _CACHE_BYTES
    found = {"cache_bytes_per_clip": clip}
    if not asked.pairs:
        return found
    steps = -(-asked.pairs // config.train.contrastive_batch)
    found |= {"epoch_pairs": asked.pairs, "epoch_steps": steps, "cache_bytes": clip * asked.pairs}
    if rate:
        hours = steps * config.train.contrastive_batch / rate / 3600
        found["epoch_hours"] = hours
        if asked.price:
            found["epoch_usd"] = hours * topology.chips * asked.price
    return found
