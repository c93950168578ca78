import os

import jax
import numpy as np

from vtalign_jax.training import memory


def test_the_process_with_the_least_memory_decides_for_all(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: (2**36, 2**40))
    assert memory.least_free_bytes(jax.devices()[0]) == [2**36, 2**40]
    others = np.array([[2**17, 2**9], [2**13, 2**19]], np.int32)  # MiB
    monkeypatch.setattr(
        memory.multihost_utils,
        "process_allgather",
        lambda own, tiled: np.concatenate([own, others]),
    )
    assert memory.least_free_bytes(jax.devices()[0]) == [2**33, 2**29]


def test_memory_that_holds_cached_files_counts_as_free():
    free, everything = (os.sysconf(name) for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
    page = os.sysconf("SC_PAGE_SIZE")
    assert 0.5 * free * page < memory._available_on_host() <= everything * page
