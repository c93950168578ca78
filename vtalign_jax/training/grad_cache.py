"""A step whose batch is larger than memory: GradCache, with exact gradients.

First pass: embed each microbatch and keep the embeddings. Then the loss over all of them, and its
gradient to each embedding. Second pass: embed each microbatch again and let that gradient flow to
the trainable leaves. Four jitted functions, each traced once.

- What no trained leaf touches (the vision tower above all) is kept between the passes where memory
  allows, on the devices or on the host, and recomputed where not. What a feature cache holds of it
  is never computed; it waits on the devices, or is sent to them twice.
- Microbatches are streamed: the frames of the whole batch are never on the devices together.
- Each device adds up the gradient of its own rows; they are summed over the devices once, in the
  update.
- Dropout keys follow the record, so both passes draw the same masks, and so does the direct step.

Source: Gao et al., 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup".
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vtalign_jax import sharding
from vtalign_jax.array_types import Batch, Identity
from vtalign_jax.config import Config
from vtalign_jax.models.aligner import attended
from vtalign_jax.objectives.captioning import count_tokens
from vtalign_jax.training.memory import OnHost, least_free_bytes
from vtalign_jax.training.state import TrainState
from vtalign_jax.training.step import (
    NOTHING_KEPT,
    Bind,
    Embedded,
    Prefixes,
    embed,
    embed_and_caption,
    make_pair_loss,
    row_keys,
    stored_prefixes,
)
from vtalign_jax.training.update import make_update

_DEVICE_SHARE, _HOST_SHARE = 0.4, 0.5  # of the free memory that prefixes may fill


class _Functions(NamedTuple):
    """The four jitted functions of a step."""

    embed: Callable
    loss: Callable
    accumulate: Callable
    update: Callable


class _Loss(NamedTuple):
    """What the pair loss of the whole batch gives.

    Attributes:
      value: float32[].
      metrics: float32[] each.
      gradient: to the leaves that the pair loss itself uses; zeros for the others.
      caption_scale: float32[], 1 / tokens of all captions.
      slopes: the gradient to each microbatch's embeddings.
      embedded: of all rows.
      identity: of all rows.
    """

    value: jax.Array
    metrics: dict[str, jax.Array]
    gradient: dict[str, jax.Array]
    caption_scale: jax.Array
    slopes: list[Embedded]
    embedded: Embedded
    identity: Identity


class StreamedStep:
    """`step(state, frozen, batch) -> (state, metrics, Embedded, Identity)`; see the module.

    `batch` is this process's slice on the host. Rows come back in the order of the devices, with
    the identity arrays in the same order.

    Attributes:
      functions: the four jitted functions, from the first call on.
      keep: where prefixes wait for the second pass, from the first call on: "device", "host" or
        "never".
    """

    def __init__(
        self,
        bind: Bind,
        optimizer: optax.GradientTransformation,
        learning_rate: optax.Schedule,
        config: Config,
        mesh: Mesh,
        say: Callable[[str], None] = print,
    ) -> None:
        """Prepare; nothing is compiled yet.

        Args:
          bind: arrays by path -> model.
          optimizer: of the trainable leaves.
          learning_rate: the optimizer's schedule, to be reported.
          config: of the run.
          mesh: each microbatch is split over its devices, the state is whole on each.
          say: prints where prefixes are kept.
        """
        self._bind, self._mesh, self._say = bind, mesh, say
        self._microbatch = config.train.microbatch
        self._keep_wanted = config.train.keep_prefix
        self._has_dropout = config.tune.dropout > 0
        # Where a clip meets the first trained leaf; a text meets it in the tuned blocks.
        self._depth = "decoder" if config.tune.connector == "frozen" else "tower"
        self._caption_weight = config.objective.caption_weight
        self._caption_tokens = config.data.max_text_tokens
        self._pair_loss = make_pair_loss(config.objective, mesh)
        self._update_leaves = make_update(optimizer, learning_rate)
        self._unreduced = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self.functions: _Functions | None = None
        self.keep = ""

    def __call__(self, state: TrainState, frozen: dict, batch: Batch) -> tuple:
        """Make one step."""
        parts = list(self._parts(batch))
        if self.functions is None:
            self._compile(state, frozen, parts)
        embedded, kept = [], []
        for rows in self._on_devices(parts):
            z, prefixes = self.functions.embed(state.params, frozen, rows, state.seed, state.step)
            embedded.append(z)
            kept.append(self._put_aside(prefixes))
            jax.block_until_ready(z)
        known = [
            sharding.to_devices((part.identity, part.caption_mask), self._mesh) for part in parts
        ]
        loss = self.functions.loss(state.params, frozen, embedded, known, state.seed, state.step)
        if self.keep != "never":
            parts = [part._replace(frames=None, features=None) for part in parts]
        gradient, nll = self._zeros(state.params)
        for rows, prefixes, slope in zip(self._on_devices(parts), kept, loss.slopes, strict=True):
            gradient, nll = self.functions.accumulate(
                (gradient, nll),
                state.params,
                frozen,
                rows,
                self._fetch(prefixes),
                (slope, loss.caption_scale),
                state.seed,
                state.step,
            )
            jax.block_until_ready(gradient)
        state, metrics = self.functions.update(state, gradient, nll, loss)
        return state, metrics, loss.embedded, loss.identity

    def _compile(self, state: TrainState, frozen: dict, parts: list[Batch]) -> None:
        """Make the four functions, once it is known where prefixes are kept."""
        local = self._mesh.local_devices
        size = self.prefix_bytes(state, frozen, parts)
        free_on_device, free_on_host = least_free_bytes(local[0])
        is_stored = parts[0].features is not None  # and lies on the host already
        keep = self.choose_keep(size, free_on_device * len(local), 0 if is_stored else free_on_host)
        where = {"device": "kept on the devices", "host": "kept on the host"}
        again = "sent to the devices twice" if is_stored else "computed twice"
        self._say(
            f"{len(parts)} microbatches a step; what the frozen part makes of them "
            f"({size / 2**20:,.0f} MiB a process) is {where.get(keep, again)}"
        )
        self.make_functions(keep)

    def make_functions(self, keep: str) -> None:
        """Make the four functions.

        Args:
          keep: where prefixes wait: "device", "host" or "never".
        """
        whole, rows = (NamedSharding(self._mesh, s) for s in (sharding.WHOLE, sharding.ROWS))
        self.keep = keep
        places = _Loss(whole, whole, whole, whole, rows, rows, rows)
        jit = functools.partial(jax.jit, compiler_options=sharding.compiler_options(self._mesh))
        self.functions = _Functions(
            jit(self._embed, out_shardings=rows),
            jit(self._loss, out_shardings=places),
            jit(self._accumulate, donate_argnums=0, out_shardings=self._unreduced),
            jit(self._update, donate_argnums=0, out_shardings=whole),
        )

    def prefix_bytes(self, state: TrainState, frozen: dict, parts: list[Batch]) -> int:
        """Return the bytes of the prefixes of all microbatches; arrays may be abstract."""
        shapes = jax.eval_shape(
            lambda *given: self._prefixes(self._bind(given[0] | given[1]), given[2]),
            state.params,
            frozen,
            parts[0],
        )
        return len(parts) * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))

    def choose_keep(self, size: int, free_on_devices: int, free_on_host: int) -> str:
        """Return where prefixes of `size` bytes wait: as configured, or where they fit."""
        if self._keep_wanted != "auto":
            return self._keep_wanted
        if size <= _DEVICE_SHARE * free_on_devices:
            return "device"
        return "host" if size <= _HOST_SHARE * free_on_host else "never"

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        """Yield microbatches of this process, the last one filled up with padding rows."""
        rows = len(batch.clip_ids)
        size = self._microbatch * len(self._mesh.local_devices)
        for start in range(0, rows, size):
            part = jax.tree.map(lambda x, at=start: x[at : at + size], batch)
            missing = size - len(part.clip_ids)
            if missing:
                taken = np.minimum(np.arange(size), size - missing - 1)
                is_real = np.arange(size) < size - missing
                part = jax.tree.map(lambda x, taken=taken: x[taken], part)
                identity = part.identity._replace(
                    row_mask=part.identity.row_mask & is_real,
                    record=np.where(is_real, part.identity.record, np.int32(-1)),
                )
                part = part._replace(identity=identity)
            yield part

    def _on_devices(self, parts: Iterable[Batch]) -> Iterator[Batch]:
        """Yield each microbatch on the devices, the next one under way: never more than two."""
        following = None
        for part in parts:
            current, following = following, sharding.to_devices(part, self._mesh)
            if current is not None:
                yield current
        yield following

    def _keys(self, seed: jax.Array, step: jax.Array, batch: Batch) -> tuple:
        return row_keys(seed, step, batch.identity) if self._has_dropout else (None, None)

    def _prefixes(self, model: Any, batch: Batch) -> Prefixes:
        token_mask = batch.clip_mask
        if self._caption_weight:
            token_mask = attended(batch.clip_mask, batch.caption_mask)
        prefixes = stored_prefixes(model, batch)
        if prefixes.clips is None:
            clips = model.clip_prefix(batch.clip_ids, token_mask, batch.frames, self._depth)
            prefixes = Prefixes(clips, depth=self._depth)
        if prefixes.texts is None:
            texts = model.text_prefix(batch.text_ids, batch.text_mask)
            prefixes = dataclasses.replace(prefixes, texts=texts)
        return prefixes

    def _embed(
        self, params: dict, frozen: dict, batch: Batch, seed: jax.Array, step: jax.Array
    ) -> tuple[Embedded, Prefixes]:
        """Return the embeddings of a microbatch, and its prefixes if they are kept."""

        def of_rows(
            params: dict, frozen: dict, batch: Batch, seed: jax.Array, step: jax.Array
        ) -> tuple[Embedded, Prefixes]:
            model = sharding.bind_whole(self._bind, self._mesh, params, frozen)
            prefixes = self._prefixes(model, batch)
            z = embed(model, batch, self._keys(seed, step, batch), prefixes)
            return z, NOTHING_KEPT if self.keep == "never" else prefixes

        rows, whole = sharding.ROWS, sharding.WHOLE
        given = (whole, sharding.frozen_specs(frozen), rows, whole, whole)
        everywhere = sharding.per_device(of_rows, self._mesh, given, rows)
        return everywhere(params, frozen, batch, seed, step)

    def _loss(
        self,
        params: dict,
        frozen: dict,
        embedded: list[Embedded],
        known: list,
        seed: jax.Array,
        step: jax.Array,
    ) -> "_Loss":
        """Return loss, metrics and gradients of the whole batch, but for its captions.

        Each device keeps the rows it has: B = k * devices * microbatch in the order of devices,
        then microbatches.

        Args:
          params: the trainable leaves.
          frozen: the others.
          embedded: of each microbatch.
          known: identity and caption mask of each microbatch.
          seed: see `row_keys`.
          step: see `row_keys`.
        """

        def joined(parts: list) -> Any:
            return jax.tree.map(
                lambda *x: jnp.stack(x, axis=1).reshape(len(x) * len(x[0]), *x[0].shape[1:]), *parts
            )

        identity, caption_mask = joined(known)

        def loss(params: dict, embedded: list[Embedded]) -> tuple:
            everything = joined(embedded)
            model = self._bind(params | frozen)
            value, metrics = self._pair_loss(model, everything, identity, seed, step)
            return value, (metrics, everything)

        differentiate = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (value, (metrics, everything)), (gradient, slopes) = differentiate(params, embedded)
        tokens = count_tokens(caption_mask, identity.row_mask)
        scale = 1.0 / jnp.maximum(tokens, 1.0)
        return _Loss(value, metrics, gradient, scale, slopes, everything, identity)

    def _accumulate(
        self,
        found: tuple[dict, jax.Array],
        params: dict,
        frozen: dict,
        batch: Batch,
        prefixes: Prefixes,
        slopes: tuple[Embedded, jax.Array],
        seed: jax.Array,
        step: jax.Array,
    ) -> tuple[dict, jax.Array]:
        """Add a microbatch's gradient and captions, device by device: none waits for another."""

        def of_rows(
            params: dict,
            frozen: dict,
            rows: tuple[Batch, Prefixes, Embedded],
            shared: tuple[jax.Array, jax.Array, jax.Array],
        ) -> tuple[dict, jax.Array]:
            batch, prefixes, slope = rows
            caption_scale, seed, step = shared
            keys = self._keys(seed, step, batch)

            def inner(params: dict) -> tuple[jax.Array, jax.Array]:
                model = sharding.bind_whole(self._bind, self._mesh, params, frozen)
                nll = jnp.float32(0.0)
                known = stored_prefixes(model, batch) if self.keep == "never" else prefixes
                if self._caption_weight:
                    most = self._caption_tokens
                    z, nll = embed_and_caption(model, batch, keys, most, known)
                else:
                    z = embed(model, batch, keys, known)
                # No dot product: a TPU's is one bfloat16 pass, also on the way back to `slope`.
                pull = sum(jnp.sum(a * b) for a, b in zip(z, slope, strict=True))
                return pull + self._caption_weight * caption_scale * nll, nll

            added = jax.grad(inner, has_aux=True)(params)
            return jax.tree.map(lambda x: x[None], added)  # a row for each device

        rows, whole = sharding.ROWS, sharding.WHOLE
        given = (whole, sharding.frozen_specs(frozen), rows, whole)
        everywhere = sharding.per_device(of_rows, self._mesh, given, rows)
        slope, caption_scale = slopes
        added = everywhere(params, frozen, (batch, prefixes, slope), (caption_scale, seed, step))
        return jax.tree.map(jnp.add, found, added)

    def _update(
        self, state: TrainState, gradient: dict, nll: jax.Array, loss: "_Loss"
    ) -> tuple[TrainState, dict]:
        """Sum gradient and captions over the devices, and update."""
        whole = {path: jnp.sum(x, axis=0) + loss.gradient[path] for path, x in gradient.items()}
        value, metrics = loss.value, loss.metrics
        if self._caption_weight:
            caption = jnp.sum(nll) * loss.caption_scale
            value += self._caption_weight * caption
            metrics = metrics | {"loss_caption": caption}
        state, updated = self._update_leaves(state, value, whole)
        return state, {"loss": value} | metrics | updated

    def _zeros(self, params: dict) -> tuple[dict, jax.Array]:
        shapes = {path: (self._mesh.size, *x.shape) for path, x in params.items()}
        return _make_zeros(tuple(shapes.items()), self._mesh.size, self._unreduced)()

    def _put_aside(self, prefixes: Prefixes) -> Prefixes:
        """Return the prefixes where they wait: on the devices, or as this process's own shards."""
        if self.keep != "host":
            return prefixes
        return jax.tree.map(OnHost, prefixes)

    def _fetch(self, prefixes: Prefixes) -> Prefixes:
        if self.keep != "host":
            return prefixes
        return jax.tree.map(OnHost.to_devices, prefixes, is_leaf=lambda x: isinstance(x, OnHost))


@functools.lru_cache(maxsize=1)
def _make_zeros(
    shapes: tuple, devices: int, placed: NamedSharding
) -> Callable[[], tuple[dict, jax.Array]]:
    """Return what makes the first sums, one a device."""

    def make() -> tuple[dict, jax.Array]:
        gradient = {path: jnp.zeros(shape, jnp.float32) for path, shape in shapes}
        return gradient, jnp.zeros(devices, jnp.float32)

    return jax.jit(make, out_shardings=placed)
