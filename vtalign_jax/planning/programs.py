"""The very programs that a training step runs, compiled for a topology from abstract arguments."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vtalign_jax import sharding
from vtalign_jax.array_types import Batch
from vtalign_jax.config import Config
from vtalign_jax.planning import hlo
from vtalign_jax.planning.abstract import STEPS, Base, Given, everywhere, make_batch
from vtalign_jax.planning.chips import Chip
from vtalign_jax.training.assemble import Assembly
from vtalign_jax.training.grad_cache import StreamedStep
from vtalign_jax.training.optim import learning_rate, make_optimizer
from vtalign_jax.training.step import Embedded, make_pair_loss, make_train_step

_KERNEL_SHARE = 0.6  # of the chip's peak that a custom kernel is taken to reach
# What an argument is, by its name in the program.
ROLES = (
    (r"(state\.)?params\b.*", "trainable"),
    (r"state\.opt_state\b.*", "optimizer"),
    (r"state\b.*|seed|step", "counters"),
    (r"frozen\b.*", "frozen"),
    (r"batch\b.*", "batch"),
    (r"prefixes\b.*", "prefixes"),
    (r"(found|gradient|nll)\b.*", "gradient"),
    (r"(embedded|known|slopes|loss|identity|temperature)\b.*", "embeddings"),
)


class OutOfMemory(Exception):
    """The compiler found no way to fit a program.

    Attributes:
      program: which.
      wanted: bytes that it would take, 0 if the compiler does not say.
      largest: what it says of the largest buffers, a line each.
    """

    def __init__(self, program: str, wanted: int, largest: list[str]) -> None:
        super().__init__(f"{program} takes {wanted} bytes")
        self.program, self.wanted, self.largest = program, wanted, largest


class Program(NamedTuple):
    """A compiled program.

    Attributes:
      name: such as "step".
      times: how often it runs in a step.
      module: its instructions.
      memory: as the compiler says: argument, output, alias, temporary and code bytes of a device.
      arguments: bytes on a device by name, such as "frozen['base.lm_head.kernel']".
    """

    name: str
    times: int
    module: hlo.Module
    memory: dict[str, int]
    arguments: dict[str, int]

    @property
    def total(self) -> int:
        """What the compiler reserves on a device for it."""
        kinds = self.memory
        return kinds["argument"] + kinds["output"] - kinds["alias"] + kinds["temp"] + kinds["code"]

    def by_role(self) -> dict[str, int]:
        """Return the bytes of the arguments by what they are."""
        found: dict[str, int] = {}
        for name, size in self.arguments.items():
            found[role_of(name)] = found.get(role_of(name), 0) + size
        return found

    def cycles(self) -> int:
        """Return the cycles that the compiler estimates, a fusion as a whole, loops in full."""
        return sum(
            visit.times * (visit.instruction.number("estimated_cycles") or 0)
            for visit in hlo.visits(self.module)
            if not visit.is_fused
        )

    def kernels(self) -> list["Kernel"]:
        """Return the work of custom kernels, which the compiler's cycles leave out."""
        return [
            Kernel(
                visit.times,
                visit.instruction.number("flops"),
                visit.instruction.number("bytes_accessed"),
            )
            for visit in hlo.visits(self.module)
            if visit.instruction.opcode == "custom-call"
            and visit.instruction.number("flops") is not None
        ]


class Kernel(NamedTuple):
    """A custom kernel, as it was described to the compiler.

    Attributes:
      times: how often it runs.
      flops: that one run takes, without padding.
      bytes: that one run reads and writes.
    """

    times: int
    flops: int
    bytes: int

    def seconds(self, chip: Chip, per_chip: int) -> float:
        """Return the time of all runs: 0.6 of the peak or the memory's bandwidth, the longer."""
        computing = self.flops / (_KERNEL_SHARE * chip.peak_flops)
        return self.times * per_chip * max(computing, self.bytes / chip.hbm_bandwidth)


def role_of(argument: str) -> str:
    """Return what an argument is; "other" if no row of `ROLES` says so."""
    return next((role for pattern, role in ROLES if re.fullmatch(pattern, argument)), "other")


def compile_program(name: str, times: int, function: Callable, *arguments: Any) -> Program:
    """Return the program of a jitted function.

    Raises:
      OutOfMemory: it does not fit.
    """
    lowered = function.lower(*arguments)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(name, *read_exhausted(str(error))) from None
    module = hlo.parse(compiled.as_text())
    said = compiled.memory_analysis()
    memory = {
        "argument": said.argument_size_in_bytes,
        "output": said.output_size_in_bytes,
        "alias": said.alias_size_in_bytes,
        "temp": said.temp_size_in_bytes,
        "code": said.generated_code_size_in_bytes,
    }
    return Program(name, times, module, memory, arguments_of(module))


def arguments_of(module: hlo.Module) -> dict[str, int]:
    """Return the padded bytes of a program's arguments by JAX's names of them."""
    return {
        (instruction.source or instruction.name).replace("\\'", "'"): sum(
            array.padded_bytes for array in hlo.arrays(instruction.shape) if array.is_in_hbm
        )
        for instruction in module.computations[module.entry].values()
        if instruction.opcode == "parameter"
    }


def read_exhausted(message: str) -> tuple[int, list[str]]:
    """Return bytes wanted and largest buffers of a compiler's RESOURCE_EXHAUSTED."""
    used = re.search(r"Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm", message)
    used = used or re.search(r"temporaries \(([\d.]+)([KMG])\) exceeds", message)
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}
    wanted = int(float(used[1]) * unit[used[2]]) if used else 0
    largest = []
    for part in re.split(r"\n\s*\d+\. Size: ", message)[1:]:
        size = part.split()[0]
        shape = re.search(r"Shape: (\S+)", part)
        source = re.search(r'op_name="([^"]*)"', part)
        parts = [size, shape[1].split("{")[0] if shape else "", source[1] if source else ""]
        line = " ".join(filter(None, parts))
        largest += [line] if line not in largest else []
    return wanted, largest


def compile_direct(assembly: Assembly, given: Given, config: Config, mesh: Mesh) -> list[Program]:
    """Return the one program of a direct step."""
    optimizer = make_optimizer(config.optim, STEPS)
    rate = learning_rate(config.optim, STEPS)
    step = make_train_step(assembly.bind, optimizer, rate, config, mesh)
    return [compile_program("step", 1, step, given.state, given.frozen, given.batch)]


class Streamed(NamedTuple):
    """The programs of a streamed step and what waits on the devices around them.

    Attributes:
      programs: embed, loss, accumulate, update.
      keep: where prefixes wait.
      parts: microbatches of a step.
      prefix_bytes: of all of them, on all devices.
    """

    programs: list[Program]
    keep: str
    parts: int
    prefix_bytes: int


def compile_streamed(
    assembly: Assembly,
    base: Base,
    given: Given,
    config: Config,
    mesh: Mesh,
    free: tuple[int, int],
) -> Streamed:
    """Return the four programs of a streamed step.

    Args:
      assembly: the model.
      base: it was made of.
      given: the abstract arguments of the whole batch.
      config: of the run.
      mesh: of the topology.
      free: bytes on all devices and on the hosts that prefixes may count on.
    """
    optimizer = make_optimizer(config.optim, STEPS)
    rate = learning_rate(config.optim, STEPS)
    step = StreamedStep(assembly.bind, optimizer, rate, config, mesh, lambda line: None)
    rows = config.train.microbatch * mesh.size
    count = -(-config.train.contrastive_batch // rows)
    part = make_batch(base, config, rows, mesh)
    size = step.prefix_bytes(given.state, given.frozen, [part]) * count
    free_on_host = 0 if part.features else free[1]  # features of a cache lie there already
    step.make_functions(step.choose_keep(size, free[0], free_on_host))
    return Streamed(list(_streamed(step, given, part, count, mesh)), step.keep, count, size)


def _streamed(step: StreamedStep, given: Given, part: Batch, count: int, mesh: Mesh) -> Any:
    state, frozen, functions = given.state, given.frozen, step.functions
    random = state.seed, state.step
    first = (state.params, frozen, part, *random)
    yield compile_program("embed", count, functions.embed, *first)
    embedded, prefixes = everywhere(jax.eval_shape(functions.embed, *first), mesh, sharding.ROWS)
    known = [(part.identity, part.caption_mask)] * count
    second = (state.params, frozen, [embedded] * count, known, *random)
    yield compile_program("loss", 1, functions.loss, *second)
    loss = jax.eval_shape(functions.loss, *second)
    rows = {"slopes", "embedded", "identity"}
    loss = loss._replace(
        **{
            name: everywhere(x, mesh, sharding.ROWS if name in rows else sharding.WHOLE)
            for name, x in loss._asdict().items()
        }
    )
    zeros = {
        path: jax.ShapeDtypeStruct((mesh.size, *x.shape), jnp.float32)
        for path, x in state.params.items()
    }
    found = (zeros, jax.ShapeDtypeStruct((mesh.size,), jnp.float32))
    found = everywhere(found, mesh, sharding.ROWS)
    kept = part if step.keep == "never" else part._replace(frames=None, features=None)
    slopes = (loss.slopes[0], loss.caption_scale)
    third = (found, state.params, frozen, kept, prefixes, slopes, *random)
    yield compile_program("accumulate", count, functions.accumulate, *third)
    yield compile_program("update", 1, functions.update, state, *found, loss)


def compile_loss(assembly: Assembly, given: Given, config: Config, mesh: Mesh) -> Program:
    """Return the program of the loss alone and its gradient to the embeddings, of all rows."""
    pair_loss = make_pair_loss(config.objective, mesh)
    identity = given.batch.identity
    rows = jax.ShapeDtypeStruct((len(identity.record), config.model.embedding_dim), jnp.float32)
    embedded = everywhere(Embedded(rows, rows), mesh, sharding.ROWS)

    def loss(
        embedded: Embedded, params: dict, frozen: dict, identity: Any, seed: Any, step: Any
    ) -> jax.Array:
        return pair_loss(assembly.bind(params | frozen), embedded, identity, seed, step)[0]

    state = given.state
    arguments = (embedded, state.params, given.frozen, identity, state.seed, state.step)
    return compile_program("loss", 1, jax.jit(jax.grad(loss)), *arguments)
