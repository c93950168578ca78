"""Hugging Face weights into the model: one table of keys, checked both ways, read leaf by leaf."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vtalign_jax.config import TuneConfig
from vtalign_jax.errors import UserError
from vtalign_jax.interop.base_files import CONVERTED, read_json, resolve_base, stored_tensors
from vtalign_jax.interop.streaming import Stored, load_leaf
from vtalign_jax.models import parameters
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.models.lora import AdapterConfig
from vtalign_jax.models.smolvlm import SmolVLM

# Our path -> Hugging Face's key, and the axes of Hugging Face's tensor in our order.
KEY_RULES: tuple[tuple[str, tuple[str, tuple[int, ...] | None]], ...] = (
    (
        r"(vision_model\.embeddings\.patch_embedding)\.kernel",
        (r"model.\1.weight", (2, 3, 1, 0)),  # [out, in, height, width] of a convolution
    ),
    (
        r"((?:vision_model\.encoder|connector|text_model)\..+)\.kernel",
        (r"model.\1.weight", (1, 0)),  # [out, in]
    ),
    (r"(lm_head)\.kernel", (r"\1.weight", (1, 0))),
    (r"(.+)\.(?:scale|embedding)", (r"model.\1.weight", None)),
    (r"(.+)\.bias", (r"model.\1.bias", None)),
)
_ADAPTER_LEAF = r".*\.lora_[ab]"
_STACK = re.compile(r"\.(tuned_)?layers\.")
_ANY_TEXT_LEAF = "text_model.layers.input_layernorm.scale"
_HEADS = {"lm_head.weight", "lm_head.kernel"}  # Hugging Face's key, and ours
_FLOATS = ("float32", "bfloat16", "float16")

ShardingOf = Callable[[str], jax.sharding.Sharding | None]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one leaf of the model comes from.

    Attributes:
      keys: Hugging Face's keys, one a stacked block, or a single one.
      axes: the order in which the stored tensor's axes are taken; None as stored.
      is_stacked: whether the leaf has a leading axis of blocks.
    """

    keys: tuple[str, ...]
    axes: tuple[int, ...] | None
    is_stacked: bool


def read_config(directory: Path) -> SmolVLMConfig:
    """Return the model's numbers from a checkpoint directory.

    A checkpoint that holds `lm_head.weight` is not tied, whatever its configuration says:
    transformers too then keeps the two apart unless they are equal.

    Raises:
      UserError: no such directory or file, or another architecture.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"no base model directory {directory}; is the path right?")
    config = SmolVLMConfig.from_hf(read_json(directory, "config.json"))
    if config.tie_word_embeddings and _HEADS & set(_stored(directory)):
        config = dataclasses.replace(config, tie_word_embeddings=False)
    return config


def run_file(config: SmolVLMConfig) -> str:
    """Return the file of configs/ whose run tunes no more blocks than this base has."""
    fits = config.text.num_hidden_layers >= TuneConfig().text_blocks
    return f"configs/{'pretrain' if fits else 'tiny'}.py"


def hugging_face_sources(abstract: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Source]:
    """Return where each leaf comes from; adapters have no source and are left out.

    Args:
      abstract: `{path: shape and dtype}` of a `SmolVLM`.

    Raises:
      ValueError: a leaf that not exactly one of `KEY_RULES` matches.
    """
    paths = [path for path in abstract if not re.fullmatch(_ADAPTER_LEAF, path)]
    rules = [
        (pattern, (pattern, *target))
        for pattern, target in KEY_RULES
        if any(parameters.matches(pattern, path) for path in paths)
    ]
    names = block_names(abstract)
    sources = {}
    for path, (pattern, template, axes) in parameters.match(rules, paths).items():
        keys = tuple(re.sub(pattern, template, name) for name in names[path])
        sources[path] = Source(keys, axes, is_stacked=_STACK.search(path) is not None)
    return sources


def block_names(abstract: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, tuple[str, ...]]:
    """Return the names of each leaf's blocks, `text_model.layers.3.norm.scale`, or its own alone.

    They do not depend on how many of the decoder's blocks are tuned.
    """
    lower = abstract[_ANY_TEXT_LEAF].shape[0] if _ANY_TEXT_LEAF in abstract else 0
    names = {}
    for path, leaf in abstract.items():
        stack = _STACK.search(path)
        if stack is None:
            names[path] = (path,)
            continue
        first = lower if stack[1] else 0
        numbers = range(first, first + leaf.shape[0])
        names[path] = tuple(_STACK.sub(f".layers.{n}.", path) for n in numbers)
    return names


def source_shape(source: Source, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of each tensor that makes up a leaf of `shape`, in Hugging Face's layout."""
    inner = tuple(shape[source.is_stacked :])
    if source.axes is None:
        return inner
    return tuple(inner[source.axes.index(axis)] for axis in range(len(inner)))


def load_into(
    abstract: Mapping[str, jax.ShapeDtypeStruct],
    directory: Path,
    sharding_of: ShardingOf | None = None,
    dtype: str | Callable[[str], str] | None = None,
) -> dict[str, jax.Array]:
    """Return the leaves that a checkpoint holds, each put straight onto its devices.

    One leaf at a time is in host memory, of which a process reads only what its devices hold.

    Args:
      abstract: `{path: shape and dtype}` of a `SmolVLM`, paths without prefix.
      directory: a Hugging Face checkpoint directory, or what launch/convert.py made of one.
      sharding_of: path -> where the leaf lies; None (the function or its answer) for the default
        device.
      dtype: storage of every leaf, or a function of its path; None for the abstract leaf's.

    Returns:
      `{path: array}` of every leaf but the adapters'.

    Raises:
      UserError: a missing or broken file, or tensors that do not fit the model; all missing keys,
        unexpected keys and wrong shapes are named at once.
    """
    sources, tensors = hugging_face_sources(abstract), _stored(directory)
    if _is_converted(directory):
        names = block_names(abstract)
        sources = {
            path: Source(names[path], None, source.is_stacked) for path, source in sources.items()
        }
    _check_fit(sources, abstract, tensors, directory)
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    leaves = {}
    for path, source in sources.items():
        kind = dtype(path) if callable(dtype) else dtype or abstract[path].dtype
        sharding = (sharding_of(path) if sharding_of else None) or default
        parts = [tensors[key] for key in source.keys]
        shape = abstract[path].shape
        leaves[path] = load_leaf(parts, source.axes, shape, jnp.dtype(kind), sharding)
    return leaves


def load_smolvlm(
    path_or_hub_id: str | Path,
    dtype: str = "float32",
    adapters: AdapterConfig | None = None,
    shardings: ShardingOf | None = None,
) -> SmolVLM:
    """Return the model holding a checkpoint's weights.

    Args:
      path_or_hub_id: directory or hub id of a `SmolVLMForConditionalGeneration` or
        `Idefics3ForConditionalGeneration`, in safetensors; or "tiny".
      dtype: storage and compute dtype, "float32", "bfloat16" or "float16".
      adapters: where LoRA is added (with no effect until trained); None for none.
      shardings: path -> `jax.sharding.Sharding`, or None for the default device.

    Raises:
      UserError: no such checkpoint, another architecture, or tensors that do not fit it.
    """
    if str(dtype) not in _FLOATS:
        raise UserError(f"dtype must be one of {', '.join(_FLOATS)}, got {dtype!r}")
    directory = resolve_base(str(path_or_hub_id))
    config = read_config(directory)

    def make() -> SmolVLM:
        kinds = {"param_dtype": dtype, "compute_dtype": dtype}
        return SmolVLM(config, adapters, rngs=nnx.Rngs(0), **kinds)

    bind, abstract = parameters.abstract(make)
    leaves = load_into(abstract, directory, shardings)

    @jax.jit
    def adapter_leaves() -> dict[str, jax.Array]:
        made = parameters.parameters_of(make())
        return {path: value for path, value in made.items() if path not in leaves}

    return bind({**leaves, **adapter_leaves()})


def views(directory: Path) -> dict[str, np.ndarray]:
    """Return a base's tensors by the names of our blocks, their axes in our order; none is read.

    Raises:
      UserError: see `load_into`.
    """
    config = read_config(directory)
    _, abstract = parameters.abstract(lambda: SmolVLM(config, rngs=nnx.Rngs(0)))
    sources, tensors = hugging_face_sources(abstract), stored_tensors(directory)
    _check_fit(sources, abstract, tensors, directory)
    names, found = block_names(abstract), {}
    for path, source in sources.items():
        for name, key in zip(names[path], source.keys, strict=True):
            array = np.asarray(tensors[key].array())
            found[name] = array if source.axes is None else array.transpose(source.axes)
    return found


def _is_converted(directory: Path) -> bool:
    return (Path(directory) / CONVERTED).is_file()


def _stored(directory: Path) -> Mapping[str, Stored]:
    """Return the tensors by Hugging Face's keys, or those of a converted base by our names."""
    if not _is_converted(directory):
        return stored_tensors(Path(directory))
    from vtalign_jax.interop import converted  # needs TensorStore; most bases do not

    return converted.stored_arrays(Path(directory))


def _check_fit(
    sources: Mapping[str, Source],
    abstract: Mapping[str, jax.ShapeDtypeStruct],
    tensors: Mapping[str, Stored],
    directory: Path,
) -> None:
    """Raise one UserError that names every missing key, unexpected key and wrong shape."""
    expected = {key: path for path, source in sources.items() for key in source.keys}
    wrong = []
    for path, source in sources.items():
        ours = abstract[path].shape[source.is_stacked :]
        for key in source.keys:
            shape = tensors[key].shape if key in tensors else None
            taken = shape if source.axes is None or shape is None else _permuted(shape, source.axes)
            if shape is not None and taken != ours:
                needed = source_shape(source, abstract[path].shape)
                wrong.append(f"{key} is {shape}, config.json asks for {needed}")
    problems = {
        "missing": _ranges(key for key in expected if key not in tensors),
        "unexpected": _ranges(key for key in tensors if key not in expected),
        "wrong shape": wrong,
    }
    found = [f"{what}: {', '.join(names)}" for what, names in problems.items() if names]
    if found:
        raise UserError(
            f"the weights in {directory} do not fit its config.json: {'; '.join(found)}; "
            "use the files of one and the same checkpoint"
        )


def _permuted(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...] | None:
    return tuple(shape[axis] for axis in axes) if len(shape) == len(axes) else None


def _ranges(keys: Iterable[str]) -> list[str]:
    """Return the keys, those that differ by their block's number only as one: `layers.{0-23}.`."""
    groups: dict[str, list[int]] = {}
    for key in keys:
        number = re.search(r"\.layers\.(\d+)\.", key)
        name = re.sub(r"\.layers\.\d+\.", ".layers.{}.", key)
        groups.setdefault(name, []).extend([int(number[1])] if number else [])
    return [name.replace("{}", _span(sorted(numbers))) for name, numbers in groups.items()]


def _span(numbers: list[int]) -> str:
    """Return `3`, `{0-23}` or `{0,4,7}`."""
    if len(numbers) < 2:
        return "".join(map(str, numbers))
    whole = numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{{{numbers[0]}-{numbers[-1]}}}" if whole else f"{{{','.join(map(str, numbers))}}}"
