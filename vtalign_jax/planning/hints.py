"""Which setting makes a configuration fit: candidates in order, each to be compiled."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from vtalign_jax.config import Config
from vtalign_jax.planning.table import size
from vtalign_jax.planning.topology import Topology

_MARGIN = 0.8  # of the share that proportion gives, as not everything shrinks with the rows


def search(
    report: dict[str, Any],
    config: Config,
    topology: Topology,
    plan: Callable[[Config], dict[str, Any]],
    tries: int,
) -> str:
    """Return a sentence: a setting that was planned and fits, or what else there is to turn.

    Args:
      report: of the configuration that does not fit.
      config: that one.
      topology: of it.
      plan: makes the report of another.
      tries: how many others to plan at most.
    """
    failed: list[str] = []
    for candidate in candidates(report, config, topology):
        flags = changes(config, candidate)
        if len(failed) == tries:
            before = f", after {', '.join(failed)} did not fit" if failed else ""
            return f"--tries={tries} ended before {flags} was compiled{before}"
        print(f"does not fit; trying {flags}", flush=True)
        other = plan(candidate)
        if other["fits"]:
            return f"it fits with {flags}: {size(other['memory']['total_bytes'])} (compiled)"
        failed.append(flags)
    largest = report["memory"].get("largest") or [
        f"{each['shape']}, {size(each['bytes'])}"
        for each in report["memory"].get("largest_temporaries", [])
    ]
    named = f"; its largest buffer is {largest[0]}" if largest else ""
    return (
        f"no setting tried fits ({', '.join(failed) or 'there is none'}){named}; take more chips, "
        "chips with more memory, or fewer config.data.frames"
    )


def candidates(report: dict[str, Any], config: Config, topology: Topology) -> Iterator[Config]:
    """Yield configurations that may fit where this one does not, the least change first.

    Args:
      report: of the one that does not fit.
      config: that one.
      topology: of it.
    """
    if report["remat"] != "full":
        config = dataclasses.replace(config, model=_with(config.model, remat="full"))
        yield config
    devices = len(topology.devices)
    rows = config.train.rows_at_once(devices)
    for _ in range(2):
        rows = _fewer(rows, report["memory"])
        if not rows:
            break
        yield dataclasses.replace(config, train=_with(config.train, microbatch=rows))
    per_slice = devices // topology.slices
    split = config.mesh.fsdp if config.mesh.fsdp > 0 else 1
    if split < per_slice:
        mesh = _with(config.mesh, data=-1, fsdp=min(max(2 * split, 4), per_slice))
        train = _with(config.train, microbatch=max(rows, 1))
        yield dataclasses.replace(config, mesh=mesh, train=train)


def changes(before: Config, after: Config) -> str:
    """Return the flags that turn one configuration into the other."""
    flags = []
    for section in dataclasses.fields(Config):
        old, new = getattr(before, section.name), getattr(after, section.name)
        for field in dataclasses.fields(old):
            value = getattr(new, field.name)
            if getattr(old, field.name) != value:
                flags.append(f"--config.{section.name}.{field.name}={value}")
    return " ".join(flags)


def _fewer(rows: int, memory: dict[str, Any]) -> int:
    """Return a power of two below `rows` that may fit by proportion; 0 if there is none."""
    share = 0.5
    if memory["total_bytes"]:
        fixed = sum(memory.get("parts", {}).get(name, 0) for name in ("frozen", "optimizer"))
        free = max(memory["hbm_bytes"] - fixed, 0)
        share = min(share, _MARGIN * free / max(memory["total_bytes"] - fixed, 1))
    wanted = int(rows * share)
    return 1 << (wanted.bit_length() - 1) if wanted else rows // 2


def _with(section: Any, **fields: Any) -> Any:
    return dataclasses.replace(section, **fields)
