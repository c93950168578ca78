import importlib.metadata
import math

import pytest

from vtalign_jax import sharding
from vtalign_jax.config import MeshConfig
from vtalign_jax.errors import UserError
from vtalign_jax.planning import topology
from vtalign_jax.planning.chips import CHIPS, chip_of


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    for name, value in topology.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("name", "slices", "chips", "chip"),
    [
        ("v5e:1x1", 1, 1, "v5e"),
        ("v5e:4x4", 1, 16, "v5e"),
        ("v5e:16x16", 1, 256, "v5e"),
        ("v6e:4x4", 1, 16, "v6e"),
        ("v5p:2x2x2", 1, 8, "v5p"),
        ("v5p:4x4x4", 2, 128, "v5p"),
        ("v3:2x2", 1, 4, "v3"),
    ],
)
def test_a_topology_has_its_chips_whatever_a_device_is(name, slices, chips, chip):
    found = topology.describe(name, slices)
    assert (found.chips, found.chip.name) == (chips, chip)
    per_chip = len(found.devices) // chips
    assert found.hbm_bytes == found.chip.hbm_bytes // per_chip
    assert per_chip == (2 if chip == "v3" else 1)


@pytest.mark.parametrize("name", ["v5e", "v5e:3x3", "v9z:2x2", "v5p:4x4x4x4", "v5e:0x2"])
def test_an_unknown_topology_is_one_sentence(name):
    with pytest.raises(UserError, match="name one such as v5e:4x4") as error:
        topology.describe(name)
    assert "\n" not in str(error.value)


def test_a_chip_that_libtpu_describes_otherwise_than_its_machines_is_refused():
    with pytest.raises(UserError, match="v4 as two devices a chip"):
        topology.describe("v4:2x2x1")


def test_a_chip_without_figures_is_refused():
    with pytest.raises(UserError, match="no figures of 'TPU v9'"):
        chip_of("TPU v9")


def test_the_data_axis_runs_over_the_slices_first_and_fsdp_may_split_an_axis():
    devices = topology.describe("v5p:2x2x1", 2).devices
    mesh = sharding.make_mesh(MeshConfig(fsdp=2), devices)
    slices = [[device.slice_index for device in row] for row in mesh.devices]
    assert slices == [[0, 0], [0, 0], [1, 1], [1, 1]]
    with pytest.raises(UserError, match="stays inside a slice"):
        sharding.make_mesh(MeshConfig(data=1, fsdp=8), devices)
    devices = topology.describe("v6e:4x4").devices
    mesh = sharding.make_mesh(MeshConfig(fsdp=2), devices)
    distances = [math.dist(*(device.coords for device in row)) for row in mesh.devices]
    assert distances == [1.0] * 8  # neighbours


def test_libtpu_must_be_there_and_be_the_one_that_jax_pins(monkeypatch):
    assert topology.check_libtpu() == importlib.metadata.version("libtpu")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1")
    with pytest.raises(UserError, match=r"libtpu 0\.0\.1 is installed, this JAX pins"):
        topology.check_libtpu()

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match=r"not installed; install what JAX pins .*\[tpu\]"):
        topology.check_libtpu()


def test_the_pin_is_read_from_jaxs_requirements():
    pinned = topology.pinned_libtpu(["numpy>=2", 'libtpu==0.0.42.*; extra == "tpu"'])
    assert pinned == "0.0.42.*"
    assert topology.pinned_libtpu(["numpy>=2"]) is None


def test_every_chips_figures_are_of_a_chip():
    for chip in CHIPS.values():
        assert 2**33 < chip.hbm_bytes < 2**38
        assert chip.peak_flops / chip.hbm_bandwidth > 60  # operations a byte
