"""TPU devices to compile for, without any TPU: libtpu describes them."""

import fnmatch
import importlib.metadata
import os
import re
from typing import Any, NamedTuple

from vtalign_jax.errors import UserError
from vtalign_jax.planning.chips import Chip, chip_of

_INSTALL = "install what JAX pins with pip install -e '.[tpu]'"
# libtpu looks for a machine's metadata and for other programs on its chips, and tells of both at
# length; here there are neither.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # without the devices no program can be read back
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


class Topology(NamedTuple):
    """A machine to rent.

    Attributes:
      name: as asked for, such as "v5e:4x4".
      slices: how many of them, joined by the data centre's network.
      devices: of all slices, those of one slice after those of another.
      chip: what each chip can do.
      chips: how many there are; a device is one of them or half of one.
    """

    name: str
    slices: int
    devices: list[Any]
    chip: Chip
    chips: int

    @property
    def hbm_bytes(self) -> int:
        """What a device has for programs."""
        return self.chip.hbm_bytes * self.chips // len(self.devices)


def prepare_environment() -> None:
    """Set what JAX and libtpu read when they are imported: call it before."""
    os.environ.update(ENVIRONMENT)


def describe(name: str, slices: int = 1) -> Topology:
    """Return the devices of a topology.

    Args:
      name: generation and chips along each axis, such as "v5p:4x4x4".
      slices: how many of these.

    Raises:
      UserError: libtpu is missing or of another version, or it knows no such topology.
    """
    check_libtpu()
    import jax
    from jax.experimental import topologies

    options = {"num_slices": slices} if slices > 1 else {}
    sizes = [int(size) for size in re.findall(r"\d+", name.partition(":")[2])]
    if sizes and max(sizes) == 1:  # less than the host that libtpu takes for granted
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
        devices = list(found.devices)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        said = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise UserError(
            f"libtpu knows no --topology={name} ({said}); name one such as v5e:4x4, v6e:2x2 or "
            "v5p:2x2x2, whole hosts"
        ) from None
    places = {(getattr(device, "slice_index", 0), *device.coords) for device in devices}
    chip = chip_of(devices[0].device_kind)
    if chip.name == "v4" and len(places) < len(devices):
        raise UserError(
            "libtpu describes v4 as two devices a chip, its machines show one: no plan for it is "
            "right; take another --topology"
        )
    return Topology(name, slices, devices, chip, len(places))


def check_libtpu() -> str:
    """Return the version of libtpu.

    Raises:
      UserError: it is missing, or of another version than JAX pins.
    """
    try:
        version = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"plan compiles with libtpu, which is not installed; {_INSTALL}") from None
    wanted = pinned_libtpu(importlib.metadata.requires("jax") or [])
    if wanted and not fnmatch.fnmatch(version, wanted):
        raise UserError(f"libtpu {version} is installed, this JAX pins {wanted}; {_INSTALL}")
    return version


def pinned_libtpu(requirements: list[str]) -> str | None:
    """Return the version, such as "0.0.42.*", that JAX's metadata ask for; None without any."""
    for requirement in requirements:
        if found := re.match(r"libtpu\s*==\s*([\w.*]+)", requirement):
            return found[1]
    return None
