import os

import pytest

from vtalign_jax.errors import UserError
from vtalign_jax.processes import host_gib, make_pool, map_in_order


def _square_or_die(number):
    if number < 0:
        os._exit(9)  # as a process that the operating system ends
    return number**2


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items(workers):
    with make_pool(workers) as pool:
        assert list(map_in_order(_square_or_die, range(40), pool)) == [n**2 for n in range(40)]


def test_a_worker_that_is_ended_from_outside_is_a_users_error():
    with make_pool(2) as pool, pytest.raises(UserError, match="fewer --workers"):
        list(map_in_order(_square_or_die, [1, -1, 2], pool))


def test_the_memory_of_processes_started_here_counts():
    alone = host_gib()
    with make_pool(2) as pool:
        list(map_in_order(_square_or_die, range(4), pool))
        together = host_gib()
    assert 0.01 < alone < together
