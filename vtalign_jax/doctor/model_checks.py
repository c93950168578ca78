"""Checks of the model and of the training step: what must not change a number changes none."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from vtalign_jax.array_types import Batch, Features
from vtalign_jax.config import Config
from vtalign_jax.doctor import reference, unrolled
from vtalign_jax.doctor.figures import Finding, relative_distance, relative_error, worst
from vtalign_jax.doctor.subject import FRAMES, SEED, Stepped, Subject
from vtalign_jax.evaluation.embed import Embeddings
from vtalign_jax.feature_cache.cost import make_layout
from vtalign_jax.feature_cache.write import make_encode
from vtalign_jax.objectives import negatives
from vtalign_jax.training.assemble import assemble
from vtalign_jax.training.step import make_loss

_LIMIT = 1e-4  # of float32 through a whole model
_SIDES = ("right", "left", "on both sides")
_BFLOAT16_LIMIT = 0.2  # of the distance; roundings alone come to 0.04, a wrong gradient to 1


def devices(subject: Subject) -> Finding:
    """Losses and gradients over all devices with those of one."""
    if subject.mesh.size == 1:
        return _one_device(subject)
    shape = " x ".join(str(size) for size in subject.mesh.shape.values())
    return _steps_apart(
        f"{subject.mesh.size} devices ({shape}) with 1", subject.on_all, subject.on_one
    )


def _one_device(subject: Subject) -> Finding:
    """There is nothing to compare with: the step's InfoNCE with float64 instead."""
    batch, stepped = subject.batch, subject.on_one
    real, objective = batch.identity.row_mask, subject.config.objective
    weights = np.exp(negatives.log_weights(batch.identity, batch.identity, objective))
    temperature = np.exp(np.float64(subject.leaves[0]["log_temperature"]))
    rows = [z[real] for z in stepped.embedded]
    expected = reference.info_nce(*rows, temperature, weights[real][:, real])
    figure = relative_error(stepped.losses["loss_itc"], expected)
    compared = "only 1 device, no other to compare with: InfoNCE of the step with float64 instead"
    return Finding(compared, figure, _LIMIT, "loss_itc")


def microbatches(subject: Subject) -> Finding:
    """The streamed step (GradCache) with the direct one."""
    rows = subject.config.train.contrastive_batch // subject.mesh.size
    compared = (
        f"{rows} rows a device streamed by {subject.config.train.microbatch} with all at once"
    )
    return _steps_apart(compared, subject.streamed, subject.on_all)


def features(subject: Subject) -> Finding:
    """The step from the tower's features, packed as a feature cache has them, with frames."""
    batch, frames = subject.batch, subject.batch.frames
    layout = make_layout("tower", "float32", assemble(subject.config).base)
    with jax.default_matmul_precision("highest"):
        leaves = {path: x for part in subject.on(subject.alone) for path, x in part.items()}
        values, scales, _ = make_encode(subject.bind, layout)(
            leaves, frames.reshape(-1, *frames.shape[2:])
        )
    packed = layout.pack(*jax.device_get((values, scales)))
    of_clips = packed.reshape(*frames.shape[:2], *packed.shape[1:])
    read = Features(*layout.unpack(of_clips), None, None, layout.depth)
    cached = subject.step(subject.alone, batch._replace(frames=None, features=read))
    return _steps_apart("cached features of the tower with frames", cached, subject.on_one)


def padding_rows(subject: Subject) -> Finding:
    """The step with padding rows with the step without."""
    count = int(np.sum(~subject.batch.identity.row_mask))
    return _steps_apart(f"{count} padding rows with none", subject.on_one, subject.without_padding)


def _steps_apart(compared: str, ours: Stepped, theirs: Stepped) -> Finding:
    figure, name = worst(_apart(ours, theirs, relative_error))
    counted = f"{len(ours.losses)} losses and {len(ours.gradient)} gradient leaves"
    return Finding(f"{counted}, {compared}", figure, _LIMIT, name)


def _apart(ours: Stepped, theirs: Stepped, distance: Callable) -> dict[str, float]:
    """Return how far losses and gradient leaves are apart, by name."""
    found, expected = ours.parts(), theirs.parts()
    if found.keys() != expected.keys():
        raise ValueError(f"only one of two has {', '.join(found.keys() ^ expected.keys())}")
    return {name: distance(value, expected[name]) for name, value in found.items()}


def padding_tokens(subject: Subject) -> Finding:
    """A clip and a text without padding with the same, padded left or right, and padding frames."""
    row = int(np.argmin(subject.batch.frame_mask[subject.batch.identity.row_mask].sum(axis=1)))
    plain = _unpadded(jax.tree.map(lambda x: x[row : row + 1], subject.batch))
    padded = _padded(plain, subject.batch)
    expected, found = (subject.embed(x, subject.alone) for x in (plain, padded))
    errors = {}
    for name, ours, theirs in zip(Embeddings._fields, found, expected, strict=True):
        for place, side in enumerate(_SIDES):
            errors[f"{name} padded {side}"] = relative_error(ours[place], theirs[0])
    figure, name = worst(errors)
    return Finding("embeddings padded left or right with unpadded ones", figure, _LIMIT, name)


def batch_mates(subject: Subject) -> Finding:
    """Rows alone with the same rows among others, over all devices."""
    real = np.flatnonzero(subject.batch.identity.row_mask)
    rows = [int(real[0]), int(real[len(real) // 2]), int(real[-1])]
    together = subject.embed(subject.batch, subject.mesh)
    errors = {}
    for row in rows:
        one = jax.tree.map(lambda x, row=row: x[row : row + 1], subject.batch)
        alone = subject.embed(one, subject.alone)
        for name, ours, theirs in zip(Embeddings._fields, together, alone, strict=True):
            errors[f"{name} of row {row}"] = relative_error(ours[row], theirs[0])
    figure, name = worst(errors)
    compared = f"embeddings in a batch of {len(together.z_video)} with each alone"
    return Finding(compared, figure, _LIMIT, name)


def _unpadded(row: Batch) -> Batch:
    """Return a batch of one row without its padding tokens, padding frames and caption."""
    frames, tokens, words = (
        int(mask.sum()) for mask in (row.frame_mask, row.clip_mask, row.text_mask)
    )
    return row._replace(
        frames=row.frames[:, :frames],
        frame_mask=row.frame_mask[:, :frames],
        clip_ids=row.clip_ids[:, :tokens],
        clip_mask=row.clip_mask[:, :tokens],
        caption_mask=row.caption_mask[:, :tokens],
        text_ids=row.text_ids[:, :words],
        text_mask=row.text_mask[:, :words],
    )


def _padded(row: Batch, like: Batch) -> Batch:
    """Return a batch of one row padded on each of `_SIDES`, to the lengths of another batch.

    Padding is no zeros: frames of noise, tokens of the text.
    """
    rng, words = np.random.default_rng(SEED), row.text_ids[0]
    noise = rng.integers(0, 256, (1, FRAMES, *row.frames.shape[2:]), np.uint8)
    noise[:, : row.frames.shape[1]] = row.frames
    sides = {}
    for name in ("clip_ids", "clip_mask", "caption_mask", "text_ids", "text_mask"):
        values = getattr(row, name)[0]
        room = getattr(like, name).shape[1] - len(values)
        filler = np.resize(words, room) if name.endswith("ids") else np.zeros(room, bool)
        befores = (0, room, room // 2)  # in the order of _SIDES
        sides[name] = np.stack([np.concatenate([filler[:n], values, filler[n:]]) for n in befores])
    return jax.tree.map(lambda x: np.repeat(x, len(_SIDES), axis=0), row)._replace(
        frames=np.repeat(noise, len(_SIDES), axis=0),
        frame_mask=np.repeat(np.arange(FRAMES)[None] < row.frames.shape[1], len(_SIDES), axis=0),
        **sides,
    )


def scans(subject: Subject) -> Finding:
    """The step's scans and tiles with plain loops, in float32."""
    with jax.default_matmul_precision("highest"):
        theirs = _unrolled(subject, subject.config)
    return _steps_apart("scans with plain loops", subject.without_padding, theirs)


def scans_bfloat16(subject: Subject) -> Finding:
    """The same in bfloat16, as training computes, by the distance of whole leaves."""
    config = subject.config_of("bfloat16")
    # Another rounding may draw another hard negative.
    config = dataclasses.replace(
        config, objective=dataclasses.replace(config.objective, itm_weight=0.0)
    )
    bind = assemble(config).bind
    loss = make_loss(bind, config, subject.alone)
    differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True))
    ours = _differentiated(subject, config, differentiate)
    errors = _apart(ours, _unrolled(subject, config), relative_distance)
    figure, name = worst(errors)
    compared = f"{len(errors)} losses and gradient leaves in bfloat16, scans with plain loops"
    return Finding(compared, figure, _BFLOAT16_LIMIT, name)


def _unrolled(subject: Subject, config: Config) -> Stepped:
    bind = assemble(config).bind

    def loss(params: dict, frozen: dict, batch: Batch, seed: jax.Array, step: int) -> tuple:
        model = bind(params | frozen)
        value, parts = unrolled.losses(model, batch, config, subject.alone, seed, step)
        return value, (parts, None)

    return _differentiated(subject, config, jax.jit(jax.value_and_grad(loss, has_aux=True)))


def _differentiated(subject: Subject, config: Config, differentiate: Callable) -> Stepped:
    """Return what a loss and its gradient find on the real rows, on one device."""
    trained, frozen = subject.on(subject.alone)
    frozen = {path: x.astype(config.model.frozen_dtype) for path, x in frozen.items()}
    if not config.objective.itm_weight:
        trained = {p: x for p, x in trained.items() if not p.startswith("matching_head")}
    seed = jax.random.key_data(jax.random.key(SEED))
    (_, (parts, _)), gradient = differentiate(trained, frozen, subject.real_rows, seed, 0)
    parts, gradient = jax.device_get((parts, gradient))
    losses = {name: float(x) for name, x in parts.items() if name.startswith("loss")}
    return Stepped(losses, gradient, None)
