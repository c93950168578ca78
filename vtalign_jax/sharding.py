"""The mesh, and where each kind of array lies on it."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vtalign_jax.config import MeshConfig
from vtalign_jax.errors import UserError
from vtalign_jax.models import parameters
from vtalign_jax.models.layers import GATHERED

ROWS = PartitionSpec(("data", "fsdp"))  # a batch is split over every device
WHOLE = PartitionSpec()

# Frozen leaves: the dimension that fsdp splits. Stacked leaves lead with the layer axis. A kernel
# is split along its input or output, whichever divides further in the real checkpoints.
FROZEN_RULES = (
    (
        r"base\.vision_model\.embeddings\.patch_embedding\.kernel",
        PartitionSpec(None, None, None, "fsdp"),
    ),
    (r"base\.vision_model\.embeddings\.position_embedding\.embedding", PartitionSpec(None, "fsdp")),
    (r"base\.vision_model\..*(q|k|v|out)_proj\.kernel", PartitionSpec(None, "fsdp", None)),
    (r"base\.vision_model\..*fc1\.kernel", PartitionSpec(None, "fsdp", None)),
    (r"base\.vision_model\..*fc2\.kernel", PartitionSpec(None, None, "fsdp")),
    (r"base\.connector\.modality_projection\.proj\.kernel", PartitionSpec("fsdp", None)),
    (r"base\.text_model\.embed_tokens\.embedding", PartitionSpec(None, "fsdp")),
    (r"base\.text_model\.(tuned_)?layers\..*_proj\.kernel", PartitionSpec(None, "fsdp", None)),
    (r"base\.lm_head\.kernel", PartitionSpec("fsdp", None)),
    (r"base\..*\.(scale|bias)", WHOLE),
)

# With the default of 16 MiB matrix products run at 0.7 of what they reach with windows this large.
TPU_OPTIONS = {"xla_tpu_scoped_vmem_limit_kib": str(32 * 2**10)}


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """Return the (data, fsdp) mesh over `devices` (default: all).

    Over several TPU slices the data axis runs over the slices first: what fsdp gathers stays inside
    a slice, and only embeddings and gradients cross the slower network between them.

    Raises:
      UserError: the axes do not multiply to the number of devices, or fsdp would cross slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp]
    known = int(np.prod([s for s in sizes if s != -1]))
    if sizes.count(-1) == 1 and known > 0 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if min(sizes) < 1 or int(np.prod(sizes)) != len(devices):
        raise UserError(
            f"config.mesh.data={config.data} x config.mesh.fsdp={config.fsdp} does not make the "
            f"{len(devices)} devices at hand; set one of them to -1"
        )
    names, axis_types = ("data", "fsdp"), (AxisType.Auto, AxisType.Auto)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    split = {"allow_split_physical_axes": True}  # any two sizes, not only products of whole axes
    if slices == 1:
        grid = mesh_utils.create_device_mesh(sizes, devices, **split)
        return Mesh(grid, names, axis_types=axis_types)
    if sizes[0] % slices:
        raise UserError(
            f"config.mesh.data={sizes[0]} does not divide over {slices} slices; use a multiple of "
            f"{slices}, so that config.mesh.fsdp stays inside a slice"
        )
    of_slice = (sizes[0] // slices, sizes[1])
    grid = mesh_utils.create_hybrid_device_mesh(of_slice, (slices, 1), devices, **split)
    return Mesh(grid, names, axis_types=axis_types)


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """Return what the compiler is told of programs that run the model on these devices."""
    is_tpu = next(iter(mesh.devices.flat)).platform == "tpu"
    return TPU_OPTIONS if is_tpu else {}


def check_batch(name: str, size: int, mesh: Mesh) -> None:
    """Raise UserError, naming sizes that would do, if `size` rows cannot be split over the mesh."""
    count = mesh.size
    if size % count:
        below, above = size // count * count, -(-size // count) * count
        fitting = " or ".join(str(s) for s in (below, above) if s)
        raise UserError(f"config.{name}={size} does not divide over {count} devices; use {fitting}")


def frozen_shardings(abstract: dict[str, jax.ShapeDtypeStruct], mesh: Mesh) -> dict:
    """Return the sharding of each frozen leaf.

    Raises:
      UserError: a dimension does not divide by the fsdp axis; nothing falls back to a whole copy.
    """
    specs = frozen_specs(abstract)
    problems = []
    for path, spec in specs.items():
        for size, axis in zip(abstract[path].shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                problems.append(f"{path} {abstract[path].shape}")
    if problems:
        raise UserError(
            f"config.mesh.fsdp={mesh.shape['fsdp']} does not divide {', '.join(problems)}; "
            "use a smaller power of two"
        )
    return {path: NamedSharding(mesh, spec) for path, spec in specs.items()}


def per_device(function: Callable, mesh: Mesh, given: object, returned: object) -> Callable:
    """Return `function` run by every device on its own part of the arguments.

    Only what the function itself gathers or sums crosses devices; the gradient to an argument that
    is whole on all of them is summed over them once.

    Args:
      function: of the parts.
      mesh: of the devices.
      given: how the arguments are split, specifications in a tree.
      returned: how the results are.
    """
    return jax.shard_map(function, mesh=mesh, in_specs=given, out_specs=returned, check_vma=False)


def frozen_specs(paths: Iterable[str]) -> dict[str, PartitionSpec]:
    """Return how each frozen leaf is split: `FROZEN_RULES`, a rule for each path."""
    paths = list(paths)
    present = [
        rule for rule in FROZEN_RULES if any(parameters.matches(rule[0], path) for path in paths)
    ]
    return parameters.match(present, paths)


def bind_whole(bind: Callable, mesh: Mesh, trained: Mapping, frozen: Mapping) -> Any:
    """Return the model of a device, inside `per_device`, that holds a part of each frozen leaf.

    A layer that reads a leaf gathers it, and in a stack of layers its own slice alone: never is
    more than one layer whole on a device.

    Args:
      bind: arrays by path -> model.
      mesh: of the devices.
      trained: leaves that are whole on each device.
      frozen: this device's parts.
    """
    reads = {}
    if mesh.shape["fsdp"] > 1:
        for path, spec in frozen_specs(frozen).items():
            if "fsdp" in spec:  # counted from the end: a layer's slice has no leading layer axis
                axis = spec.index("fsdp") - frozen[path].ndim
                reads[path] = functools.partial(_gather, axis=axis)
    return bind({**trained, **frozen}, reads)


def _gather(part: jax.Array, axis: int) -> jax.Array:
    whole = jax.lax.all_gather(part, "fsdp", axis=part.ndim + axis, tiled=True)
    return checkpoint_name(whole, GATHERED)


def to_devices(tree: object, mesh: Mesh) -> object:
    """Return this process's slice of a batch as global arrays split by rows over the mesh."""
    sharding = NamedSharding(mesh, ROWS)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)
