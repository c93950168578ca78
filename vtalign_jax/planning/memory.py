"""What lies in a device's HBM while each program of a step runs."""

import math
from typing import NamedTuple

import jax

from vtalign_jax.planning import hlo
from vtalign_jax.planning.abstract import Given
from vtalign_jax.planning.programs import Program, role_of

# Their results are another buffer's, or several buffers that stand elsewhere on their own.
_NO_BUFFER = {"parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call"}


class Use(NamedTuple):
    """The HBM of a device while a program runs, in bytes.

    Attributes:
      program: its name.
      parts: what the compiler reserves, by what it is; their sum is the compiler's own total.
      beside: what lies there as well, though it is no argument of the program.
    """

    program: str
    parts: dict[str, int]
    beside: dict[str, int]

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values()) + sum(self.beside.values())


class Temporary(NamedTuple):
    """A buffer inside a program.

    Attributes:
      shape: dtype and sizes.
      bytes: with padding.
      count: how many instructions make one of this shape.
      source: the operation it is made by, as JAX names it.
    """

    shape: str
    bytes: int
    count: int
    source: str


def parts_of(program: Program) -> dict[str, int]:
    """Return what the compiler reserves by what it is; the sum is `program.total`."""
    memory, parts = program.memory, program.by_role()
    parts["other"] = parts.get("other", 0) + memory["argument"] - sum(parts.values())
    parts["results"] = memory["output"] - memory["alias"]
    parts["temporaries"], parts["code"] = memory["temp"], memory["code"]
    return {name: size for name, size in parts.items() if size}


def of_direct(program: Program, given: Given) -> Use:
    """Return the use of a direct step: beside it lies the next batch, on its way to the devices."""
    parts = parts_of(program)
    beside = {"next batch": parts.get("batch", 0)} | _unused_leaves([program], given)
    return Use(program.name, parts, {name: size for name, size in beside.items() if size})


def of_streamed(programs: list[Program], keep: str, given: Given) -> list[Use]:
    """Return the use of each program of a streamed step.

    Args:
      programs: embed, loss, accumulate, update.
      keep: where prefixes wait.
      given: the abstract arguments of the whole batch.
    """
    known: dict[str, int] = {}
    for program in programs:
        known |= program.arguments
    held: dict[str, int] = {}
    for name, size in known.items():
        role = role_of(name)
        if role in ("trainable", "optimizer", "frozen"):
            # params['x'] of one program is state.params['x'] of another
            held[name.removeprefix("state.")] = size
    embed, loss, accumulate, _ = programs
    parts = accumulate.times
    prefixes = accumulate.by_role().get("prefixes", 0) * parts if keep == "device" else 0
    waiting = {
        "prefixes kept": prefixes,
        # embeddings and their slopes stay until the update, in microbatches and joined
        "embeddings": loss.by_role().get("embeddings", 0) + loss.memory["output"],
    }
    uses = []
    for program in programs:
        beside = dict(waiting)
        own = {name.removeprefix("state.") for name in program.arguments}
        for name, size in held.items():
            if name not in own:
                beside[role_of(name)] = beside.get(role_of(name), 0) + size
        for role, sizes in program.by_role().items():
            if role in ("prefixes", "embeddings"):
                key = "prefixes kept" if role == "prefixes" else role
                beside[key] = max(beside.get(key, 0) - sizes, 0)
        if program is embed:
            beside["embeddings"] = 0
        beside["next batch"] = program.by_role().get("batch", 0)
        beside |= _unused_leaves(programs, given)
        uses.append(Use(program.name, parts_of(program), {k: v for k, v in beside.items() if v}))
    return uses


def _unused_leaves(programs: list[Program], given: Given) -> dict[str, int]:
    """Return the frozen leaves that no program takes: they are loaded all the same."""
    taken = {name for program in programs for name in program.arguments}
    unused = [x for path, x in given.frozen.items() if f"frozen['{path}']" not in taken]
    return {"unused leaves": sum(device_bytes(x) for x in unused)}


def device_bytes(x: jax.ShapeDtypeStruct) -> int:
    """Return an abstract array's bytes on a device, without padding."""
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def largest_temporaries(program: Program, count: int) -> list[Temporary]:
    """Return the largest buffers in HBM that a program makes, one a shape."""
    found: dict[str, Temporary] = {}
    for visit in hlo.visits(program.module):
        instruction = visit.instruction
        skipped = instruction.opcode in _NO_BUFFER or instruction.opcode.endswith("-done")
        if visit.is_fused or skipped:
            continue
        for array in hlo.arrays(instruction.shape):
            if not array.is_in_hbm:
                continue
            before = found.get(array.shape)
            times = before.count + 1 if before else 1
            size = max(array.padded_bytes, before.bytes if before else 0)
            source = before.source if before and before.source else instruction.source
            found[array.shape] = Temporary(array.shape, size, times, source)
    return sorted(found.values(), key=lambda x: -x.bytes)[:count]
