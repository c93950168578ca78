"""The text of a compiled TPU program: its instructions, and how often each of them runs.

Source: XLA's HLO text format as `Compiled.as_text()` prints it.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) .*\{$")
_NAME = re.compile(r"%([\w.-]+)")
_BITS = {"pred": 8, "c64": 64, "c128": 128}  # others end in their number of bits, as bf16 does
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]((?:\{[^{}]*\})?)")
_COPIES = ("bitcast", "copy", "copy-done", "copy-start")


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name: unique in its computation.
      shape: as printed, layout included.
      opcode: such as "fusion".
      operands: the names of the instructions it takes, for a constant its value.
      attributes: the rest of the line.
      is_root: whether it is what the computation returns.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    def computation(self, role: str) -> str | None:
        """Return the computation named as `role=%name`."""
        found = re.search(rf"\b{role}=%?([\w.-]+)", self.attributes)
        return found[1] if found else None

    @property
    def channel(self) -> str | None:
        """The channel of an exchange between devices, and its chain where fusions share one."""
        found = re.findall(r'\bcha(?:nnel|in)_id="?(\d+)', self.attributes)
        return ".".join(found) or None

    @property
    def source(self) -> str:
        """The operation it was made of, as JAX names it; "" if that is not said."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    def number(self, key: str) -> int | None:
        """Return the whole number at `"key":"number"` of the backend's configuration."""
        found = re.search(rf'"{key}":"?(\d+)"?', self.attributes)
        return int(found[1]) if found else None


Computation = dict[str, Instruction]


class Module(NamedTuple):
    """A parsed program.

    Attributes:
      entry: name of the computation that runs.
      computations: all of them by name, instructions in their order.
    """

    entry: str
    computations: dict[str, Computation]


class Visit(NamedTuple):
    """An instruction as a run of the program meets it.

    Attributes:
      instruction: the instruction.
      times: how often it runs.
      is_fused: whether it stands inside a fusion, which takes its time as a whole.
    """

    instruction: Instruction
    times: int
    is_fused: bool


def parse(text: str) -> Module:
    """Return the program of a text.

    Raises:
      ValueError: it has no ENTRY computation.
    """
    entry, computations, current = None, {}, None
    for line in text.splitlines():
        if not line.startswith(" "):
            header = _HEADER.match(line)
            if header and not line.startswith("HloModule"):
                current = computations.setdefault(header[2], {})
                entry = header[2] if header[1] else entry
        elif current is not None and " = " in line:
            instruction = _instruction(line)
            current[instruction.name] = instruction
    if entry is None:
        raise ValueError("the text holds no ENTRY computation")
    return Module(entry, computations)


def _instruction(line: str) -> Instruction:
    left, right = line.strip().split(" = ", 1)
    end = _closing(right) + 1 if right.startswith("(") else right.index(" ")
    shape, rest = right[:end], right[end:].lstrip()
    start = rest.index("(")
    close = start + _closing(rest[start:])
    inside = rest[start + 1 : close]
    opcode = rest[:start]
    operands = (inside,) if opcode in ("constant", "parameter") else tuple(_NAME.findall(inside))
    name = left.removeprefix("ROOT ").removeprefix("%")
    return Instruction(name, shape, opcode, operands, rest[close + 1 :], left.startswith("ROOT "))


def _closing(text: str) -> int:
    """Return where the parenthesis closes that `text` begins with."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return place
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def visits(module: Module) -> Iterator[Visit]:
    """Yield every instruction that runs, those of a loop's body with the number of its rounds.

    Of a conditional all branches are yielded. A loop whose rounds cannot be read counts once; see
    `unread_loops`.
    """
    yield from _visits(module, module.entry, 1, False)


def _visits(module: Module, name: str, times: int, is_fused: bool) -> Iterator[Visit]:
    computation = module.computations[name]
    for instruction in computation.values():
        yield Visit(instruction, times, is_fused)
        if instruction.opcode == "while":
            rounds = trip_count(module, computation, instruction) or 1
            for role in ("condition", "body"):
                inner = instruction.computation(role)
                yield from _visits(module, inner, times * rounds, is_fused)
        elif instruction.opcode == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
            names = _NAME.findall(branches[1]) if branches else []
            names += [instruction.computation(f"{x}_computation") for x in ("true", "false")]
            for inner in filter(None, names):
                yield from _visits(module, inner, times, is_fused)
        elif instruction.opcode in ("fusion", "call", "async-start"):
            inner = instruction.computation("calls") or instruction.computation("to_apply")
            fused = is_fused or instruction.opcode == "fusion"
            yield from _visits(module, inner, times, fused)


def unread_loops(module: Module) -> list[str]:
    """Return the names of loops whose number of rounds cannot be read."""
    return [
        instruction.name
        for computation in module.computations.values()
        for instruction in computation.values()
        if instruction.opcode == "while" and trip_count(module, computation, instruction) is None
    ]


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Return how many rounds a loop makes, None if its text does not say.

    Read from `known_trip_count`, or from a counter that is compared with a constant: where it
    starts, where it ends and how it grows.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
        return int(known[1])
    condition = module.computations[loop.computation("condition")]
    body = module.computations[loop.computation("body")]
    compared = _root(condition)
    if compared.opcode != "compare" or "direction=LT" not in compared.attributes:
        return None
    counter, bound = (_origin(condition, name) for name in compared.operands)
    given = _Carried(computation, loop.operands[0])
    place, limit = _place(counter), given.constant(bound)
    if place is None or limit is None:
        return None
    start = given.constant(given.element(place))
    added = _Carried(body, _root(body).name).element(place)
    if added is None or added.opcode != "add":
        return None
    parts = [_origin(body, name) for name in added.operands]
    steps = [given.constant(part) for part in parts if _place(part) != place]
    if start is None or len(steps) != 1 or not steps[0]:
        return None
    return max(-(-(limit - start) // steps[0]), 0)


class _Carried(NamedTuple):
    """What a loop starts from, or hands on to its next round.

    Attributes:
      computation: where it is made.
      name: of the tuple that holds it.
    """

    computation: Computation
    name: str

    def element(self, place: int) -> Instruction | None:
        """Return what stands at a place, None if it is not made by a `tuple` here."""
        whole = _origin(self.computation, self.name)
        if whole is None or whole.opcode != "tuple":
            return None
        return _origin(self.computation, whole.operands[place])

    def constant(self, instruction: Instruction | None) -> int | None:
        """Return a whole number, that of a constant or one carried through the loop."""
        place = _place(instruction)
        if place is not None:
            instruction = self.element(place)
        if instruction is None or instruction.opcode != "constant":
            return None
        value = instruction.operands[0]
        return int(value) if re.fullmatch(r"-?\d+", value) else None


def _root(computation: Computation) -> Instruction:
    return next(x for x in computation.values() if x.is_root)


def _origin(computation: Computation, name: str) -> Instruction | None:
    """Return what an instruction is a copy of."""
    instruction = computation.get(name)
    while instruction is not None and instruction.opcode in _COPIES:
        instruction = computation.get(instruction.operands[0])
    return instruction


def _place(instruction: Instruction | None) -> int | None:
    """Return the index of a get-tuple-element."""
    if instruction is None or instruction.opcode != "get-tuple-element":
        return None
    return int(re.search(r"index=(\d+)", instruction.attributes)[1])


class Array(NamedTuple):
    """One array of a shape.

    Attributes:
      shape: dtype and sizes, such as "bf16[4,851]".
      bytes: of its values.
      padded_bytes: of the tiles that they are laid out in.
      is_in_hbm: whether it lies in the main memory.
    """

    shape: str
    bytes: int
    padded_bytes: int
    is_in_hbm: bool


def arrays(shape: str) -> list[Array]:
    """Return the arrays of a shape, of a tuple all of them.

    Source: XLA, "Tiled layout"; a memory space `S(n)` other than 0 is not HBM.
    """
    found = []
    for kind, dimensions, layout in _ARRAY.findall(shape):
        bits = _BITS.get(kind) or int(re.search(r"\d+", kind)[0])
        sizes = [int(size) for size in filter(None, dimensions.split(","))]
        order = re.match(r"\{([\d,]+)", layout)
        if order:  # listed from the fastest on
            sizes = [sizes[int(axis)] for axis in reversed(order[1].split(","))]
        tile = re.search(r":T\(([\d,]+)\)", layout)
        padded = _padded(sizes, [int(size) for size in tile[1].split(",")] if tile else [])
        whole, laid_out = (-(-math.prod(x) * bits // 8) for x in (sizes, padded))
        is_in_hbm = re.search(r"S\([1-9]\d*\)", layout) is None
        found.append(Array(f"{kind}[{dimensions}]", whole, laid_out, is_in_hbm))
    return found


def _padded(sizes: list[int], tile: list[int]) -> list[int]:
    """Return the sizes, the last ones rounded up to whole tiles."""
    sizes = [1] * (len(tile) - len(sizes)) + sizes
    rest = len(sizes) - len(tile)
    return sizes[:rest] + [-(-s // t) * t for s, t in zip(sizes[rest:], tile, strict=True)]
