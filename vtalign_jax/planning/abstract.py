"""What a training step is given, without a value in it: shapes, dtypes and places on the mesh."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vtalign_jax import remote, sharding
from vtalign_jax.array_types import MAX_ANCESTORS, Batch, Features, Identity
from vtalign_jax.config import Config
from vtalign_jax.errors import UserError
from vtalign_jax.feature_cache import keys
from vtalign_jax.interop import public_bases
from vtalign_jax.interop.base_files import TINY, resolve_base
from vtalign_jax.interop.tokens import ClipTokenizer
from vtalign_jax.interop.weights import read_config
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.objectives.negatives import compares_texts
from vtalign_jax.training import signatures
from vtalign_jax.training.assemble import Abstract, Assembly
from vtalign_jax.training.optim import make_optimizer
from vtalign_jax.training.state import TrainState, init_state

STEPS = 1000  # of a schedule; the program does not depend on it


class Base(NamedTuple):
    """A base model as far as a plan needs it.

    Attributes:
      config: its numbers.
      source: where they are from, for the reader.
      clip_tokens: the longest turn of a clip, without a caption.
    """

    config: SmolVLMConfig
    source: str
    clip_tokens: int


class Given(NamedTuple):
    """The abstract arguments of a direct step."""

    state: TrainState
    frozen: Abstract
    batch: Batch


def find_base(base: str, frames: int, window_seconds: float, clip_tokens: int = 0) -> Base:
    """Return what is known of a base: from its files, or by heart of a public one.

    Args:
      base: directory, hub id or "tiny".
      frames: of a clip.
      window_seconds: length of the longest window.
      clip_tokens: of the longest turn, where the user says it; 0 to work it out.

    Raises:
      UserError: neither is it at hand nor a public SmolVLM.
    """
    directory = _local_copy(base)
    if directory is not None:
        config = read_config(directory)
        if not clip_tokens:
            clip_tokens = ClipTokenizer(directory).max_clip_tokens(frames, window_seconds)
        return Base(config, str(directory), clip_tokens)
    if base not in public_bases.CONFIGS:
        raise UserError(
            f"config.model.base={base} is neither here nor one of {', '.join(public_bases.CONFIGS)}"
            "; give the directory of a copy (config.json and the tokenizer's files will do)"
        )
    config = SmolVLMConfig.from_hf(public_bases.CONFIGS[base])
    clip_tokens = clip_tokens or public_bases.clip_tokens(base, frames, config.tokens_per_frame)
    return Base(config, "the built-in table", clip_tokens)


def _local_copy(base: str) -> Path | None:
    """Return the folder of a base that needs no download."""
    if base == TINY or remote.is_remote(base) or Path(base).expanduser().is_dir():
        return resolve_base(base)
    if base.count("/") != 1:
        return resolve_base(base)  # says what may stand here
    files = [
        huggingface_hub.try_to_load_from_cache(base, name)
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
    ]
    return Path(files[0]).parent if all(isinstance(file, str) for file in files) else None


def make_given(assembly: Assembly, base: Base, config: Config, mesh: Mesh) -> Given:
    """Return the arguments of a step on a mesh.

    Raises:
      UserError: the mesh does not divide the frozen leaves.
    """
    optimizer = make_optimizer(config.optim, STEPS)
    state = jax.eval_shape(
        lambda params: init_state(params, optimizer, config.train.seed, mesh), assembly.trainable
    )
    places = sharding.frozen_shardings(assembly.frozen, mesh)
    frozen = {path: _placed(x, places[path]) for path, x in assembly.frozen.items()}
    batch = make_batch(base, config, config.train.contrastive_batch, mesh)
    return Given(everywhere(state, mesh, sharding.WHOLE), frozen, batch)


def make_batch(base: Base, config: Config, rows: int, mesh: Mesh) -> Batch:
    """Return a batch as the loader makes it, split by rows over the mesh."""
    data, edge = config.data, base.config.vision.image_size
    has_captions = config.objective.caption_weight > 0
    clip_tokens = base.clip_tokens + data.max_text_tokens * has_captions
    signature = signatures.SIZE if compares_texts(config.objective) else 0

    def array(dtype: Any, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *sizes), dtype)

    number, interval = array(jnp.int32), array(jnp.float32, 2)
    identity = Identity(
        row_mask=array(jnp.bool_),
        record=number,
        recording=number,
        uid=number,
        level=number,
        order=number,
        node=number,
        ancestors=array(jnp.int32, MAX_ANCESTORS),
        text=number,
        window=interval,
        span=interval,
        signature=array(jnp.float32, signature),
    )
    features = _features(base.config, config, clip_tokens, array) if data.feature_cache else None
    batch = Batch(
        frames=None if features else array(jnp.uint8, data.frames, edge, edge, 3),
        frame_mask=array(jnp.bool_, data.frames),
        clip_ids=array(jnp.int32, clip_tokens),
        clip_mask=array(jnp.bool_, clip_tokens),
        caption_mask=array(jnp.bool_, clip_tokens),
        text_ids=array(jnp.int32, data.max_text_tokens),
        text_mask=array(jnp.bool_, data.max_text_tokens),
        identity=identity,
        features=features,
    )
    return everywhere(batch, mesh, sharding.ROWS)


def _features(
    base: SmolVLMConfig, config: Config, clip_tokens: int, array: Callable[..., Any]
) -> Features:
    """Return bfloat16 features of the deepest point that the configuration allows."""
    depth, kind = keys.deepest(config, base), jnp.bfloat16
    texts = None
    if depth == "decoder":
        width = base.text.hidden_size
        clips = array(kind, clip_tokens, width)
        texts = array(kind, config.data.max_text_tokens, width)
    elif depth == "connector":
        clips = array(kind, config.data.frames, base.tokens_per_frame, base.text.hidden_size)
    else:
        patches = base.vision.patches_per_side**2
        clips = array(kind, config.data.frames, patches, base.vision.hidden_size)
    return Features(clips, None, texts, None, depth)


def everywhere(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Return the abstract arrays of a tree, all placed alike."""
    place = NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: _placed(x, place), tree)


def _placed(x: jax.ShapeDtypeStruct, place: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
