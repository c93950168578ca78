"""Slices of stored tensors into the host buffers of one leaf: each byte is copied once.

A buffer starts at a page, so that JAX's CPU backend takes it as it is, for every device that holds
the same slice; other backends copy it to their devices. Hugging Face stores kernels as [out, in],
ours are [in, out]: they are turned in tiles that stay in the caches.
"""

import mmap
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
import numpy as np

Index = tuple[slice, ...]

_TILE = 64, 512  # rows and columns of a stored matrix: eight times as fast as one NumPy copy
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32}
_THREADS = min(8, os.cpu_count() or 1)  # NumPy's copies run beside each other


class Stored(Protocol):
    """A tensor in a file.

    Attributes:
      dtype: of the stored values.
      shape: as stored.
    """

    dtype: Any
    shape: tuple[int, ...]

    def array(self) -> Any:
        """Return what NumPy slices, reading only the slices asked for."""


def load_leaf(
    parts: Sequence[Stored],
    axes: tuple[int, ...] | None,
    shape: tuple[int, ...],
    dtype: Any,
    sharding: jax.sharding.Sharding,
) -> jax.Array:
    """Return one leaf, of which this process reads the slices of its devices, each once.

    When it returns, the host holds none of it but what the CPU backend computes with.

    Args:
      parts: the tensors: one a block of a stacked leaf, or a single one.
      axes: the order in which their axes are taken; None as stored.
      shape: of the leaf; longer by one than the tensors' if these are stacked.
      dtype: of the leaf.
      sharding: where it lies.
    """
    slices = sharding.addressable_devices_indices_map(shape).values()
    buffers = read_slices(parts, axes, shape, dtype, slices)
    leaf = jax.make_array_from_callback(shape, sharding, lambda index: buffers[str(index)])
    return jax.block_until_ready(leaf)


def read_slices(
    parts: Sequence[Stored],
    axes: tuple[int, ...] | None,
    shape: tuple[int, ...],
    dtype: Any,
    slices: Iterable[Index],
) -> dict[str, np.ndarray]:
    """Return each slice of a leaf by its name, `str(index)`; equal ones are read once.

    Args:
      parts: as for `load_leaf`, and so are axes, shape and dtype.
      axes: see there.
      shape: see there.
      dtype: see there.
      slices: of the leaf.
    """
    is_stacked = len(shape) > len(parts[0].shape)
    named = {str(index): index for index in slices}
    buffers = {name: _empty(_extent(index, shape), dtype) for name, index in named.items()}

    def fill(number: int) -> None:
        """Read what all slices hold of one part."""
        for name, index in named.items():
            if not is_stacked:
                copy_slice(buffers[name], parts[number], axes, index)
                continue
            blocks = range(len(parts))[index[0]]
            if number in blocks:
                out = buffers[name][blocks.index(number)]
                copy_slice(out, parts[number], axes, index[1:])

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(fill, range(len(parts))))
    return buffers


def copy_slice(out: np.ndarray, part: Stored, axes: tuple[int, ...] | None, index: Index) -> None:
    """Fill `out` with a slice of a stored tensor, its axes reordered and its values converted.

    Args:
      out: the slice's shape.
      part: the tensor.
      axes: the order in which its axes are taken; None as stored.
      index: a slice of each axis of `out`'s order.
    """
    order = range(len(index)) if axes is None else axes
    stored = np.asarray(part.array()[tuple(index[order.index(axis)] for axis in range(len(index)))])
    if axes != (1, 0):
        turned = stored if axes is None else stored.transpose(axes)
        _bits(out)[...] = _bits(turned.astype(out.dtype, copy=False))
        return
    rows, columns = _TILE
    bits = _bits(out)
    for column in range(0, stored.shape[1], columns):  # the outer one: few pages of `out` at once
        for row in range(0, stored.shape[0], rows):
            tile = stored[row : row + rows, column : column + columns]
            tile = _bits(tile.astype(out.dtype, copy=False))
            bits[column : column + columns, row : row + rows] = tile.T


def _bits(array: np.ndarray) -> np.ndarray:
    """Return the array as plain integers: NumPy copies bfloat16 value by value."""
    return array.view(_BITS[array.dtype.itemsize])


def _empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an array of zeros on pages of its own.

    NumPy asks for huge pages where it can. In a virtual machine whose free memory the host has
    taken back, the first touch of each then waits for 2 MiB: 805 MB took 1.6 s instead of 0.3.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, max(size, 1), flags)  # at a multiple of 4096; JAX asks for 64
    return np.frombuffer(memory, np.uint8, size).view(dtype).reshape(shape)


def _extent(index: Index, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(len(range(size)[part]) for part, size in zip(index, shape, strict=True))
