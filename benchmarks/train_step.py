"""The training step itself, with random weights of any size, and beside it PyTorch's.

Needs jax, flax, optax, absl and numpy; the peer torch, transformers and peft.
"""

import dataclasses
import importlib.metadata
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from benchmarks import random_model
from vtalign_jax import sharding
from vtalign_jax.array_types import Batch, Features
from vtalign_jax.config import Config, MeshConfig, resolve
from vtalign_jax.errors import UserError
from vtalign_jax.interop.public_bases import CONFIGS, clip_tokens
from vtalign_jax.models import parameters
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.objectives import negatives
from vtalign_jax.planning import flops
from vtalign_jax.training.assemble import Assembly, assemble_of
from vtalign_jax.training.grad_cache import StreamedStep
from vtalign_jax.training.optim import learning_rate, make_optimizer
from vtalign_jax.training.state import init_state
from vtalign_jax.training.step import make_train_step

SIZES = {
    "tiny": random_model.SMALL,
    "256M": CONFIGS["HuggingFaceTB/SmolVLM2-256M-Video-Instruct"],
    "500M": CONFIGS["HuggingFaceTB/SmolVLM2-500M-Video-Instruct"],
    "2.2B": CONFIGS["HuggingFaceTB/SmolVLM2-2.2B-Instruct"],
}
_STEPS = 10**9  # of the schedule: the rate stays as it is
_PRODUCT = {"cpu": 2048}  # edge of the matrices whose product is the limit
_LARGE_PRODUCT = 8192
_NO_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "OutOfMemory")


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is measured.

    Attributes:
      values: the base's `config.json`.
      pairs: in the loss.
      frames: of a clip.
      text_tokens: of a text's turn, and the most of a caption.
      dtype: of weights and products.
      microbatch: pairs at once; 0 for all.
      itm_weight: of the matching loss.
      caption_weight: of the caption loss.
      cached: the batch carries the tower's features instead of frames.
      dropout: of the adapters.
    """

    values: Mapping[str, Any]
    pairs: int
    frames: int
    text_tokens: int
    dtype: str
    microbatch: int = 0
    itm_weight: float = 0.0
    caption_weight: float = 0.0
    cached: bool = False
    dropout: float = 0.05

    @property
    def clip_tokens(self) -> int:
        """Tokens of a clip's turn."""
        base = SmolVLMConfig.from_hf(self.values)
        return clip_tokens("", self.frames, base.tokens_per_frame)


def measure(
    size: str, shape: Shape, repeats: int, say: Callable[[str], None], *, peer: bool
) -> Iterator[dict[str, Any]]:
    """Yield one row: pairs a second, model FLOPs utilisation, memory and time to compile.

    Args:
      size: what the base is called.
      shape: what is measured.
      repeats: counted steps of each way, taking turns.
      say: prints what is under way.
      peer: whether PyTorch's step is measured too; it never reads a cache.

    Raises:
      UserError: the peer is asked for losses that it does not have.
    """
    if peer and (shape.itm_weight or shape.caption_weight):
        raise UserError("--peer computes InfoNCE alone; leave out --losses")
    config = make_config(shape)
    assembly = assemble_of(SmolVLMConfig.from_hf(shape.values), config)
    batch = make_batch(shape, config)
    say(f"compiling our step ({size}, {shape.pairs} pairs)")
    ways = {"ours": _ready(lambda recompute: _our_way(shape, batch, recompute))}
    if peer:
        say("building and warming up PyTorch's")
        ways["peer"] = _ready(lambda recompute: _peer_way(shape, batch, recompute))
    seconds, processor = ({name: [] for name in ways} for _ in range(2))
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.process_time()
            seconds[name].append(seconds_of(way.step))
            processor[name].append(time.process_time() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    limit = matmul_flops(shape.dtype, peer=peer)
    needed = {name: _flops_a_pair(shape, assembly, config, name == "ours") for name in ways}
    row = {"part": "step", "size": size} | _described(shape)
    row |= {
        "seconds": medians,
        "processor_seconds": {n: statistics.median(times) for n, times in processor.items()},
        "pairs_a_second": {name: shape.pairs / s for name, s in medians.items()},
        "mfu": {name: needed[name] * shape.pairs / s / limit for name, s in medians.items()},
        "tflop_a_pair": {name: value / 1e12 for name, value in needed.items()},
        "limit_tflop_a_second": limit / 1e12,
        "compile_seconds": {name: way.first_seconds - medians[name] for name, way in ways.items()},
        "recomputed": {name: way.recompute for name, way in ways.items()},
        "peak_gib": {name: way.peak_gib() for name, way in ways.items()},
    }
    if peer:
        row["ratio_to_peer"] = medians["peer"] / medians["ours"]
        row["peer"] = ways["peer"].said
    yield jax.tree.map(_rounded, row) | _machine(peer=peer)


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


@dataclasses.dataclass
class Way:
    """A step, ready to be timed.

    Attributes:
      step: makes one and waits for it.
      peak_gib: most memory of the device, None where it does not say.
      said: how it is made, for the reader.
      recompute: whether blocks are computed again in the backward pass.
      first_seconds: of the first step, compilation included.
    """

    step: Callable[[], float]
    peak_gib: Callable[[], float | None]
    said: str = ""
    recompute: bool = False
    first_seconds: float = 0.0


def _ready(make: Callable[[bool], Way]) -> Way:
    """Return a way after its first steps; blocks are recomputed only where memory asks for it."""
    for recompute in (False, True):
        try:
            way = make(recompute)
            way.first_seconds, way.recompute = seconds_of(way.step), recompute
            way.step()
            return way
        except RuntimeError as error:  # of JAX and of PyTorch alike
            if recompute or not any(said in str(error) for said in _NO_MEMORY):
                raise
    raise AssertionError("unreachable")


def make_config(shape: Shape, recompute: bool = False) -> Config:
    """Return the configuration of a run of this shape: the plan's, at a constant rate."""
    depth = shape.values["text_config"]["num_hidden_layers"]
    return resolve(
        {
            "model": {
                "compute_dtype": shape.dtype,
                "frozen_dtype": shape.dtype,
                "remat": "full" if recompute else "none",
            },
            "tune": {"text_blocks": min(8, depth // 3), "dropout": shape.dropout},
            "data": {"frames": shape.frames, "max_text_tokens": shape.text_tokens},
            "objective": {
                "itm_weight": shape.itm_weight,
                "caption_weight": shape.caption_weight,
            },
            "optim": {"warmup_fraction": 0.0},
            "train": {"contrastive_batch": shape.pairs, "microbatch": shape.microbatch},
        }
    )


def make_batch(shape: Shape, config: Config) -> Batch:
    """Return a batch of noise on the host, as long as real ones: nothing is padded."""
    base = SmolVLMConfig.from_hf(shape.values)
    words = shape.clip_tokens - shape.frames * base.tokens_per_frame
    captions = shape.text_tokens if config.objective.caption_weight else 0
    return random_model.make_batch(
        base, shape.pairs, shape.frames, shape.text_tokens, words, captions
    )


def make_ours(shape: Shape, batch: Batch, recompute: bool = False) -> tuple[Callable, dict]:
    """Return `step() -> loss`, which goes on from its last state, and the leaves at its start."""
    config = make_config(shape, recompute)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    assembly = assemble_of(SmolVLMConfig.from_hf(shape.values), config)
    drawn = jax.jit(lambda: parameters.parameters_of(assembly.make_model()))()
    frozen = {path: drawn[path] for path in assembly.frozen}
    optimizer = make_optimizer(config.optim, _STEPS)
    start = {path: drawn[path] for path in assembly.trainable}
    state = init_state(start, optimizer, config.train.seed, mesh)
    step, given = _make_step(shape, assembly, config, mesh, optimizer, frozen, batch)

    def advance() -> jax.Array:
        nonlocal state
        state, metrics, *_ = step(state, frozen, given)
        return metrics["loss"]

    return advance, drawn


def _make_step(
    shape: Shape,
    assembly: Assembly,
    config: Config,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    frozen: dict,
    batch: Batch,
) -> tuple[Callable, Any]:
    """Return the step that `launch/train.py` would take, and what it is given each time."""
    rate = learning_rate(config.optim, _STEPS)
    if config.train.is_streamed(mesh.size):
        return StreamedStep(assembly.bind, optimizer, rate, config, mesh, lambda _: None), batch
    step = make_train_step(assembly.bind, optimizer, rate, config, mesh)
    on_device = sharding.to_devices(batch, mesh)
    if shape.cached:
        tower = jax.jit(lambda leaves, batch: _tower(assembly, leaves, batch))
        features = tower({**frozen, **_no_leaves(assembly)}, on_device)
        on_device = on_device._replace(frames=None, features=features)
    return step, on_device


def _no_leaves(assembly: Assembly) -> dict[str, jax.Array]:
    return {path: jnp.zeros(x.shape, x.dtype) for path, x in assembly.trainable.items()}


def _tower(assembly: Assembly, leaves: dict, batch: Batch) -> Features:
    model, depth = assembly.bind(leaves), "tower"
    clips = model.clip_prefix(batch.clip_ids, batch.clip_mask, batch.frames, depth)
    return Features(clips, None, None, None, depth)


def _our_way(shape: Shape, batch: Batch, recompute: bool) -> Way:
    step, _ = make_ours(shape, batch, recompute)
    return Way(lambda: float(step()), _our_peak)


def _peer_way(shape: Shape, batch: Batch, recompute: bool) -> Way:
    import torch

    from benchmarks import peer_step

    config = make_config(shape)
    is_gpu = torch.cuda.is_available()
    with torch.device("cuda" if is_gpu else "cpu"):
        model = peer_step.PeerModel(shape.values, config)
    step = peer_step.PeerStep(model, config, compiled=is_gpu, recompute=recompute)
    given = peer_batch(batch, config)
    said = peer_step.attention_name(shape.dtype) + (", torch.compile" if is_gpu else "")

    def peak() -> float | None:
        return torch.cuda.max_memory_allocated() / 2**30 if is_gpu else None

    return Way(lambda: float(step(given)), peak, said)


def peer_batch(batch: Batch, config: Config) -> dict[str, Any]:
    """Return the batch as PyTorch tensors on its device, with the loss's weights worked out."""
    import torch

    assert batch.clip_mask.all(), "the peer takes no padding"
    assert batch.text_mask.all(), "the peer takes no padding"
    weights = jnp.exp(negatives.log_weights(batch.identity, batch.identity, config.objective))
    arrays = {
        "frames": batch.frames,
        "clip_ids": batch.clip_ids.astype(np.int64),
        "text_ids": batch.text_ids.astype(np.int64),
        "weights": np.asarray(weights),
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {name: torch.tensor(array, device=device) for name, array in arrays.items()}


def matmul_flops(dtype: str, *, peer: bool) -> float:
    """Return the rate of a large matrix product here, operations a second: the best of both."""
    edge = _PRODUCT.get(jax.default_backend(), _LARGE_PRODUCT)
    a, b = jax.random.normal(jax.random.key(0), (2, edge, edge), dtype)
    multiply = jax.jit(jnp.matmul)
    rates = [2 * edge**3 / _least_seconds(lambda: jax.block_until_ready(multiply(a, b)))]
    if peer:
        from benchmarks import peer_step

        rates.append(peer_step.matmul_flops(edge, dtype, _least_seconds))
    return max(rates)


def seconds_of(step: Callable[[], Any]) -> float:
    """Return the seconds that one call takes."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _least_seconds(step: Callable[[], Any]) -> float:
    step()
    return min(seconds_of(step) for _ in range(5))


def _flops_a_pair(shape: Shape, assembly: Assembly, config: Config, ours: bool) -> float:
    tokens = flops.tokens_of(config, shape.clip_tokens)
    whole = flops.of_pair(assembly, config, tokens).weights
    if not (ours and shape.cached):
        return whole
    return whole - flops.below(assembly, config, tokens, "tower").weights


def _our_peak() -> float | None:
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return None if peak is None else peak / 2**30


def _described(shape: Shape) -> dict[str, Any]:
    fields = dataclasses.asdict(shape) | {"clip_tokens": shape.clip_tokens}
    return {name: value for name, value in fields.items() if name != "values"}


def _machine(*, peer: bool) -> dict[str, Any]:
    packages = ["jax", "jaxlib", "flax", "optax"] + ["torch", "transformers", "peft"] * peer
    return {
        "device": jax.devices()[0].device_kind,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
