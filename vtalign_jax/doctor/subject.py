"""What the checks examine: a small aligner, batches of it, and the devices.

Everything is made by what training itself calls. What several checks need is computed once.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from vtalign_jax import sharding
from vtalign_jax.array_types import Batch
from vtalign_jax.config import Config, MeshConfig, resolve
from vtalign_jax.doctor.recordings import make_nodes, make_split
from vtalign_jax.evaluation.embed import Embeddings, make_embed
from vtalign_jax.interop.tokens import ClipTokenizer
from vtalign_jax.models import parameters
from vtalign_jax.pipeline.loader import make_loader
from vtalign_jax.training.assemble import assemble, load
from vtalign_jax.training.grad_cache import StreamedStep
from vtalign_jax.training.state import init_state
from vtalign_jax.training.step import Bind, Embedded, make_train_step

FRAMES, MICROBATCH, SEED = 3, 2, 7
_LEAST_ROWS = 16
_RECORDER = optax.trace(decay=0.0)  # its state is the gradient, bit by bit


class Stepped(NamedTuple):
    """What a step computed.

    Attributes:
      losses: by name.
      gradient: to every trainable leaf.
      embedded: of the rows in their order, where this process holds them all; else None.
    """

    losses: dict[str, float]
    gradient: dict[str, np.ndarray]
    embedded: Embedded | None

    def parts(self) -> dict[str, np.ndarray]:
        """Return losses and gradients by name."""
        return {name: np.asarray(value) for name, value in self.losses.items()} | self.gradient


class Subject:
    """The patient.

    Attributes:
      base: directory of the base model whose weights are taken.
      processor: directory of the base whose tokenizer and processor are looked at.
      mesh: of all devices, (data, fsdp); fsdp is 2 where their number is even.
      alone: of one device of this process.
    """

    def __init__(
        self,
        base: Path,
        processor: Path,
        devices: list | None = None,
        sections: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        """Prepare; nothing is read or compiled yet.

        Args:
          base: see the class.
          processor: see the class.
          devices: to be examined; None for all that there are.
          sections: fields of the configuration that are to differ from `config_of`.
        """
        devices = jax.devices() if devices is None else devices
        self.base, self.processor = base, processor
        self.mesh = sharding.make_mesh(MeshConfig(fsdp=2 - len(devices) % 2), devices)
        self._sections = sections or {}
        self._embedders: dict[Mesh, Callable] = {}
        self.alone = sharding.make_mesh(MeshConfig(), self.mesh.local_devices[:1])

    @functools.cached_property
    def config(self) -> Config:
        """All three losses, dropout, adapters on the connector and the top blocks; float32."""
        return self.config_of("float32")

    def config_of(self, dtype: str, max_text_tokens: int = 24) -> Config:
        """Return the configuration for a compute dtype and a length of texts."""
        rows = self.mesh.size * max(MICROBATCH + 1, -(-_LEAST_ROWS // self.mesh.size))
        values = {
            "model": {
                "base": str(self.base),
                "embedding_dim": 40,
                "compute_dtype": dtype,
                "frozen_dtype": dtype,
            },
            "tune": {"text_blocks": 2, "rank": 3, "alpha": 6.0, "dropout": 0.1},
            "data": {"frames": FRAMES, "max_text_tokens": max_text_tokens},
            "objective": {"itm_weight": 0.5, "caption_weight": 0.2},
            "train": {"contrastive_batch": rows, "microbatch": MICROBATCH, "seed": SEED},
        }
        for name, fields in self._sections.items():
            values[name] = values.get(name, {}) | fields
        return resolve(values)

    @functools.cached_property
    def bind(self) -> Bind:
        """Arrays by path -> model."""
        return assemble(self.config).bind

    @functools.cached_property
    def leaves(self) -> tuple[parameters.Parameters, parameters.Parameters]:
        """(trainable, frozen) on the host; LoRA B drawn instead of zero, so that all is alive."""
        trained, frozen = jax.device_get(load(assemble(self.config), self.alone))
        rng = np.random.default_rng(SEED)
        for path, value in trained.items():
            if path.endswith("lora_b"):
                trained[path] = 0.1 * rng.standard_normal(value.shape, np.float32)
        return trained, frozen

    @functools.cached_property
    def batch(self) -> Batch:
        """The whole global batch on the host; its last rows, an eighth, are padding."""
        rows = self.config.train.contrastive_batch
        real = rows - rows // 8
        tokenizer = ClipTokenizer(self.base)
        nodes = make_nodes(real, recordings=1 + real // 8)
        split = make_split(nodes, tokenizer.image_size, FRAMES)
        slices = {"start_step": 0, "num_steps": 1, "process_index": 0, "process_count": 1}
        ((_, batch),) = make_loader(split, tokenizer, self.config, train=True, **slices)
        return batch

    @functools.cached_property
    def real_rows(self) -> Batch:
        """The batch without its padding rows."""
        return jax.tree.map(lambda x: x[self.batch.identity.row_mask], self.batch)

    @functools.cached_property
    def on_all(self) -> Stepped:
        """The direct step of the batch over all devices."""
        return self.step(self.mesh, self.batch)

    @functools.cached_property
    def on_one(self) -> Stepped:
        """The direct step of the batch on one device."""
        return self.step(self.alone, self.batch)

    @functools.cached_property
    def without_padding(self) -> Stepped:
        """The direct step of the real rows on one device."""
        return self.step(self.alone, self.real_rows)

    @functools.cached_property
    def streamed(self) -> Stepped:
        """The streamed step of the batch over all devices."""
        return self._record(_make_streamed, self.mesh, self.batch)

    def step(self, mesh: Mesh, batch: Batch) -> Stepped:
        """Return what the direct step of a batch finds over a mesh."""
        return self._record(_make_direct, mesh, batch)

    def _record(self, make_step: Callable, mesh: Mesh, batch: Batch) -> Stepped:
        # What is compared is arithmetic of one precision; the checks of precision do without this.
        with jax.default_matmul_precision("highest"):
            step = make_step(self.bind, _RECORDER, lambda step: 1.0, self.config, mesh)
            trained, frozen = self.on(mesh)
            state = init_state(trained, _RECORDER, SEED, mesh)
            state, metrics, embedded, _ = step(state, frozen, local_rows(batch, mesh))
        metrics, gradient = jax.device_get((metrics, state.opt_state.trace))
        losses = {name: float(x) for name, x in metrics.items() if name.startswith("loss")}
        is_here = embedded.z_video.is_fully_addressable
        return Stepped(losses, gradient, jax.device_get(embedded) if is_here else None)

    def embed(self, batch: Batch, mesh: Mesh) -> Embeddings:
        """Return the embeddings of whole batches as evaluation makes them, on the host."""
        if mesh not in self._embedders:
            self._embedders[mesh] = make_embed(self.bind, mesh)
        with jax.default_matmul_precision("highest"):
            _, embedded = self._embedders[mesh](*self.on(mesh), spread(batch, mesh))
        return jax.device_get(embedded)

    def on(self, mesh: Mesh) -> tuple[parameters.Parameters, parameters.Parameters]:
        """Return the leaves where training has them."""
        trained, frozen = self.leaves
        whole = NamedSharding(mesh, sharding.WHOLE)
        places = sharding.frozen_shardings(frozen, mesh)
        return jax.device_put(trained, whole), jax.device_put(frozen, places)


def _make_direct(*arguments: Any) -> Callable:
    """Return the direct step, of a batch on the host."""
    step, mesh = make_train_step(*arguments), arguments[-1]
    return lambda state, frozen, batch: step(state, frozen, sharding.to_devices(batch, mesh))


def _make_streamed(*arguments: Any) -> Callable:
    return StreamedStep(*arguments, say=lambda line: None)


def spread(tree: Any, mesh: Mesh) -> Any:
    """Return whole arrays, known to every process, split by rows over the mesh, in their order."""
    rows = NamedSharding(mesh, sharding.ROWS)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, rows, lambda index: x[index]), tree
    )


def local_rows(batch: Batch, mesh: Mesh) -> Batch:
    """Return this process's slice of a whole batch, as a loader gives it."""
    share = len(mesh.local_devices)
    if share == mesh.size:
        return batch
    rows = len(batch.frames) // mesh.size * share
    first = jax.process_index() * rows
    return jax.tree.map(lambda x: x[first : first + rows], batch)
