import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from vtalign_jax import sharding
from vtalign_jax.config import MeshConfig
from vtalign_jax.interop import streaming, weights
from vtalign_jax.interop.base_files import stored_tensors
from vtalign_jax.interop.tiny import write_tiny_checkpoint
from vtalign_jax.models import parameters
from vtalign_jax.models.lora import AdapterConfig
from vtalign_jax.models.smolvlm import SmolVLM


class Counted:
    """A tensor that notes how many bytes of it are asked for."""

    def __init__(self, array):
        self.values, self.dtype, self.shape, self.bytes = array, array.dtype, array.shape, 0

    def array(self):
        return self

    def __getitem__(self, index):
        taken = self.values[index]
        self.bytes += taken.nbytes
        return taken


def _random(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("stored", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("wanted", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((130, 1100), (1, 0)), ((7, 3, 5, 4), (2, 3, 1, 0)), ((9, 8), None), ((6,), None)],
    ids=str,
)
def test_a_slice_is_turned_and_rounded_as_numpy_does(shape, axes, stored, wanted):
    array = _random(shape, stored)
    expected = array if axes is None else array.transpose(axes)
    whole = (slice(None),) * len(shape)
    for index in (whole, (slice(1, 5), *whole[1:]), (*whole[:-1], slice(2, None))):
        out = np.zeros(expected[index].shape, wanted)
        streaming.copy_slice(out, Counted(array), axes, index)
        np.testing.assert_array_equal(out, expected[index].astype(wanted))


def test_a_process_reads_the_rows_of_its_own_devices_only():
    parts = [Counted(_random((24, 16), seed=n)) for n in range(3)]
    mine = [(slice(None), slice(2 * n, 2 * n + 2), slice(None)) for n in (1, 6)]  # of 8 devices
    buffers = streaming.read_slices(parts, (1, 0), (3, 16, 24), np.float32, [*mine, *mine])
    whole = np.stack([part.values.T for part in parts])
    for index in mine:
        np.testing.assert_array_equal(buffers[str(index)], whole[index])
    assert [part.bytes for part in parts] == [24 * 16 * 4 // 4] * 3


def test_a_slice_of_blocks_reads_no_other_block():
    parts = [Counted(_random((4, 6), seed=n)) for n in range(4)]
    index = (slice(1, 3), slice(None), slice(None))
    streaming.read_slices(parts, (1, 0), (4, 6, 4), np.float32, [index])
    assert [part.bytes for part in parts] == [0, 96, 96, 0]


@pytest.mark.parametrize("mesh", [(1, 8), (2, 4), (8, 1)], ids=str)
def test_every_byte_of_a_base_is_read_once_for_eight_devices(mesh, tmp_path, monkeypatch):
    write_tiny_checkpoint(tmp_path)
    counted = {
        key: Counted(np.asarray(tensor.array())) for key, tensor in stored_tensors(tmp_path).items()
    }
    monkeypatch.setattr(weights, "stored_tensors", lambda directory: counted)
    config = weights.read_config(tmp_path)
    adapters = AdapterConfig(text_blocks=1, rank=2)
    _, abstract = parameters.abstract(lambda: SmolVLM(config, adapters, rngs=nnx.Rngs(0)))
    base = {f"base.{path}": leaf for path, leaf in abstract.items() if "lora_" not in path}
    places = sharding.frozen_shardings(base, sharding.make_mesh(MeshConfig(*mesh)))
    leaves = weights.load_into(abstract, tmp_path, lambda path: places[f"base.{path}"])
    assert {key: part.bytes for key, part in counted.items()} == {
        key: part.values.nbytes for key, part in counted.items()
    }
    kernel = leaves["text_model.layers.mlp.up_proj.kernel"]
    assert kernel.addressable_shards[0].data.shape[1] == kernel.shape[1] // mesh[1]


def test_a_leaf_that_the_cpu_holds_is_the_buffer_it_was_read_into(monkeypatch):
    read, made = streaming.read_slices, {}

    def note(*arguments):
        made.update(read(*arguments))
        return made

    monkeypatch.setattr(streaming, "read_slices", note)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    part = Counted(_random((64, 32)))
    leaf = streaming.load_leaf([part], (1, 0), (32, 64), np.float32, place)
    assert [array.ctypes.data for array in made.values()] == [leaf.unsafe_buffer_pointer()]
