"""How much of the decoder the backward pass computes again: as little as memory allows."""

import dataclasses
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from vtalign_jax import sharding
from vtalign_jax.config import Config
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.training import trainable
from vtalign_jax.training.assemble import Assembly, assemble_of
from vtalign_jax.training.memory import least_free_bytes
from vtalign_jax.training.step import Bind

_AUTO, _LEAST_MEMORY = "auto", "full"
_SHARE = 0.8  # of the free memory that a choice may fill; buffers are padded, and some lie twice


def settle(config: Config, base: SmolVLMConfig, tokens: int, devices: int, free: int) -> Config:
    """Return the configuration with `model.remat` chosen, if it is "auto".

    Args:
      config: of the run.
      base: numbers of its base.
      tokens: of a clip's turn, without a caption.
      devices: over which a batch is split.
      free: bytes of a device beside the model and the optimizer's state.
    """
    if config.model.remat != _AUTO:
        return config
    rows = config.train.rows_at_once(devices)
    if config.objective.caption_weight:
        tokens += config.data.max_text_tokens
    left = _SHARE * free - rows * _working_bytes(config, base, tokens)
    # What a streamed step has left is its prefixes', which spare more.
    levels = () if config.train.is_streamed(devices) else ("norms", "mlp")
    # Of blocks below the first trainable leaf nothing is kept.
    all_blocks = base.text.num_hidden_layers
    blocks = config.tune.text_blocks if config.tune.connector == "frozen" else all_blocks
    kept = {level: rows * tokens * blocks * _kept_bytes(base, level) for level in levels}
    chosen = next((level for level, size in kept.items() if size <= left), _LEAST_MEMORY)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, remat=chosen))


def settled_bind(
    config: Config, assembly: Assembly, tokens: int, mesh: Mesh, say: Callable[[str], None]
) -> Bind:
    """Return what binds a loaded model for training, by the memory that it has left.

    Args:
      config: of the run.
      assembly: of this configuration.
      tokens: of a clip's turn, without a caption.
      mesh: on whose devices the model and the optimizer's state lie already.
      say: prints what was chosen.
    """
    if config.model.remat != _AUTO:
        return assembly.bind
    free, _ = least_free_bytes(mesh.local_devices[0])
    settled = settle(config, assembly.base, tokens, mesh.size, free)
    say(f"{free / 2**30:.1f} GiB of a device are free: config.model.remat={settled.model.remat}")
    return assemble_of(assembly.base, settled, assembly.directory).bind


def held_bytes(assembly: Assembly, mesh: Mesh) -> int:
    """Return what model and optimizer take of a device: float32 leaves, AdamW's two moments."""
    places = sharding.frozen_shardings(assembly.frozen, mesh)
    frozen = sum(_part_bytes(x, places[path]) for path, x in assembly.frozen.items())
    return frozen + 3 * 4 * trainable.count(assembly.trainable)


def _part_bytes(x: jax.ShapeDtypeStruct, place: jax.sharding.Sharding) -> int:
    size = x.dtype.itemsize
    for length in place.shard_shape(x.shape):
        size *= length
    return size


def _kept_bytes(base: SmolVLMConfig, level: str) -> int:
    """Return the bytes that a block keeps of a token, bfloat16: see `layers.REMAT`."""
    text = base.text
    width = 2 * text.hidden_size  # a block's input, and what enters its MLP
    width += 2 * (text.num_attention_heads + text.num_key_value_heads) * text.head_dim
    if level == "norms":
        width += 2 * text.intermediate_size
    return 2 * width


def _working_bytes(config: Config, base: SmolVLMConfig, tokens: int) -> int:
    """Return the bytes of a row that one block of the tower and one of the decoder work with.

    A row from a feature cache passes no tower. Its room is left all the same: 16 such rows on v5e
    would be given "mlp" without, and not fit (docs/speed.md).
    """
    vision, text = base.vision, base.text
    patches = config.data.frames * vision.patches_per_side**2
    tower = patches * (vision.intermediate_size + 6 * vision.hidden_size)
    decoder = tokens * (3 * text.intermediate_size + 6 * text.hidden_size)
    return 2 * (tower + decoder)
