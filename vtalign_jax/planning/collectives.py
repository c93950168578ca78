"""What devices send each other during a program: kind, how often, how many bytes, over which net.

Inside a slice that is the chips' own interconnect (ICI). Between slices it is the data centre's
network (DCN): the compiler writes it as transfers of the host, by its runtime "megascale".
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from vtalign_jax.planning import hlo
from vtalign_jax.planning.chips import Chip

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_MEGASCALE = "xla_megascale_runtime"
ICI, DCN = "ICI", "DCN"


class Collective(NamedTuple):
    """One kind of exchange with everything that is the same of it.

    Attributes:
      kind: such as "all-gather".
      net: "ICI" or "DCN".
      shape: of the arrays, dtype and sizes.
      bytes: of one of them on a device: what is gathered, reduced or sent.
      group: devices, over DCN slices, that take part together.
    """

    kind: str
    net: str
    shape: str
    bytes: int
    group: int

    @property
    def sent_bytes(self) -> float:
        """What a device sends at least: a ring passes on (n - 1) / n, twice to reduce."""
        share = (self.group - 1) / self.group
        if self.kind == "collective-permute":
            return self.bytes
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)


def find(module: hlo.Module, devices: int, slices: int) -> Counter[Collective]:
    """Return the exchanges of a program and how often each is made.

    Args:
      module: of one device.
      devices: of a slice.
      slices: how many.
    """
    found: Counter[Collective] = Counter()
    seen = set()
    for instruction, times, is_fused in hlo.visits(module):
        collective = _collective(instruction, devices, slices)
        if collective is None:
            continue
        if is_fused:  # one that overlaps with products stands in each of the fusions it spans
            key = (collective, instruction.channel)
            if key in seen:
                continue
            seen.add(key)
        found[collective] += times
    return found


def _collective(instruction: hlo.Instruction, devices: int, slices: int) -> Collective | None:
    kind = instruction.opcode.removesuffix("-start")
    if kind == "recv" and _MEGASCALE in instruction.attributes:
        said = re.search(r'megascale_transfer_type="(\w+)"', instruction.attributes)
        kind = said[1].lower().replace("_", "-") if said else "transfer"
        received = hlo.arrays(instruction.shape)[0]
        return Collective(kind, DCN, received.shape, received.bytes, slices)
    if kind not in _KINDS:
        return None
    results = hlo.arrays(instruction.shape)
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        results = results[len(instruction.operands) : 2 * len(instruction.operands)]
    group = _group_size(instruction.attributes, devices)
    total = sum(array.bytes for array in results) * (group if kind == "reduce-scatter" else 1)
    shape = ", ".join(dict.fromkeys(array.shape for array in results[:3]))
    more = f" and {len(results) - 3} more" if len(results) > 3 else ""
    return Collective(kind, ICI, shape + more, total, group)


def _group_size(attributes: str, devices: int) -> int:
    """Return how many devices take part together; all where no groups are named.

    Groups are written out, `{{0,1},{2,3}}`, as a grid, `[groups,size]<=[...]`, or as axes of a
    mesh, `mesh['a'=2,'b'=4] {'b'}`, of which an axis may be a part, `'b':(2)2`.
    """
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return listed[1].count(",") + 1
    if grid := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(grid[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        size = 1
        for axis, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2]):
            size *= int(part or sizes[axis])
        return size
    return devices


def seconds(found: Iterable[tuple[Collective, int]], chip: Chip, per_chip: int) -> dict[str, float]:
    """Return how long each network is busy at least, by its bandwidth; NaN if that is not known.

    Args:
      found: exchanges and how often each is made.
      chip: of the devices.
      per_chip: devices on a chip, which share its links.
    """
    bandwidth = {ICI: chip.ici_bandwidth, DCN: chip.dcn_bandwidth}
    sent = dict.fromkeys(bandwidth, 0.0)
    for collective, times in found:
        sent[collective.net] += collective.sent_bytes * times * per_chip
    return {
        net: total / (bandwidth[net] or float("nan")) if total else 0.0
        for net, total in sent.items()
    }
