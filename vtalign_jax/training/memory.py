"""How much memory is free, of a device and of the host; arrays that wait on the host."""

import os
import pathlib

import jax
import numpy as np
from jax.experimental import multihost_utils


def least_free_bytes(device: jax.Device) -> list[int]:
    """Return `free_bytes` where they are least: all processes must run the same programs."""
    mebibytes = np.array([free // 2**20 for free in free_bytes(device)], np.int32)
    least = np.min(multihost_utils.process_allgather(mebibytes[None], tiled=True), axis=0)
    return [int(free) * 2**20 for free in least]


def free_bytes(device: jax.Device) -> tuple[int, int]:
    """Return the free memory of a device and of the host; a CPU device has the host's."""
    free_on_host = _available_on_host()
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return free_on_host // jax.local_device_count(), free_on_host
    return stats["bytes_limit"] - stats["bytes_in_use"], free_on_host


def _available_on_host() -> int:
    """Return the bytes a program may still take; files that Linux has cached make room for it."""
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 2**10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # macOS tells no more


class OnHost:
    """The parts of a sharded array that this process's devices hold, in host memory."""

    def __init__(self, array: jax.Array) -> None:
        """Copy them to the host."""
        self._shape, self._sharding = array.shape, array.sharding
        self._shards = [(s.device, np.asarray(s.data)) for s in array.addressable_shards]

    def to_devices(self) -> jax.Array:
        """Return the array, where it lay."""
        arrays = [jax.device_put(shard, device) for device, shard in self._shards]
        return jax.make_array_from_single_device_arrays(self._shape, self._sharding, arrays)
