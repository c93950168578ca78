"""The losses without a scan, a tile, a mesh or recomputation: block after block, pair by pair.

Blocks, embeddings and the draw of hard negatives are the model's own; what runs through them is
written out here. A compiler pass has miscompiled the gradient of scans before (openxla/xla 49143).
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from vtalign_jax.array_types import Batch
from vtalign_jax.config import Config
from vtalign_jax.models.aligner import AlignerModel, normalise
from vtalign_jax.models.lora import fold_rows
from vtalign_jax.models.smolvlm import SmolVLM
from vtalign_jax.models.text import rotary_table
from vtalign_jax.objectives import negatives
from vtalign_jax.objectives.info_nce import weighted_info_nce
from vtalign_jax.objectives.matching import Drawn, make_draw
from vtalign_jax.training.step import row_keys


def losses(
    model: AlignerModel, batch: Batch, config: Config, mesh: Mesh, seed: jax.Array, step: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the whole loss and its parts.

    Args:
      model: with a shared head.
      batch: real rows alone, with captions.
      config: of the run.
      mesh: of one device, for the draw.
      seed: see `row_keys`.
      step: see `row_keys`.
    """
    clip_keys, text_keys = row_keys(seed, step, batch.identity)
    place = jnp.arange(batch.clip_ids.shape[1])
    end = jnp.max(jnp.where(batch.clip_mask | batch.caption_mask, place, 0), axis=1)
    mask = place <= end[:, None]  # who speaks stands between clip and caption, in neither mask
    clips = hidden_states(model.base, batch.clip_ids, mask, clip_keys, batch.frames)
    texts = hidden_states(model.base, batch.text_ids, batch.text_mask, text_keys)
    z_video = model.head(_last(clips, batch.clip_mask))
    z_text = model.head(_last(texts, batch.text_mask))
    weights = jnp.exp(negatives.log_weights(batch.identity, batch.identity, config.objective))
    parts = {
        "loss_itc": weighted_info_nce(z_video, z_text, model.temperature(), weights),
        "loss_caption": _captions(model.base, clips, batch),
    }
    objective = config.objective
    whole = parts["loss_itc"] + objective.caption_weight * parts["loss_caption"]
    if objective.itm_weight:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(seed), step), 2)
        known = jax.lax.stop_gradient((z_video, z_text, model.temperature()))
        drawn = make_draw(objective, mesh)(*known, batch.identity, key)
        parts["loss_itm"] = _matching(model, z_video, z_text, drawn)
        whole += objective.itm_weight * parts["loss_itm"]
    return whole, {"loss": whole} | parts


def hidden_states(
    base: SmolVLM,
    ids: jax.Array,
    mask: jax.Array,
    keys: jax.Array,
    frames: jax.Array | None = None,
) -> jax.Array:
    """Return float[B, S, D] as `SmolVLM.hidden_states`; frames uint8[B, F, H, W, 3]."""
    features = None
    if frames is not None:
        tower = base.vision_model
        x = tower.embeddings(normalise(frames).reshape(-1, *frames.shape[2:]))
        for block in _blocks(tower.encoder.layers, tower.encoder.depth):
            x = block(x)
        patches = tower.post_layernorm(x)
        features = base.connector(patches.reshape(*frames.shape[:2], *patches.shape[1:]), keys)
    x = base.merge_inputs(ids, features).astype(base.text_model.dtype)
    table = rotary_table(x.shape[1], *base.text_model.rotary)
    number = 0
    for name, depth in base.text_model.depths.items():
        for block in _blocks(getattr(base.text_model, name), depth):
            x = block(x, table, mask, fold_rows(keys, number))
            number += 1
    return base.text_model.norm(x)


def _blocks(stack: nnx.Module, depth: int) -> Iterator[nnx.Module]:
    """Yield the blocks of a stack, each with leaves of its own."""
    graphdef, state = nnx.split(stack)
    for place in range(depth):
        yield nnx.merge(graphdef, jax.tree.map(lambda x, place=place: x[place], state))


def _last(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """Return float32[B, D] of each row's last real token."""
    position = jnp.max(jnp.where(mask, jnp.arange(mask.shape[1]), 0), axis=1)
    return hidden[jnp.arange(len(hidden)), position].astype(jnp.float32)


def _captions(base: SmolVLM, hidden: jax.Array, batch: Batch) -> jax.Array:
    """Return the mean next-token loss of the captions, all logits side by side."""
    log_probabilities = jax.nn.log_softmax(base.logits(hidden[:, :-1]), axis=-1)
    following = batch.clip_ids[:, 1:, None]
    nll = -jnp.take_along_axis(log_probabilities, following, axis=-1)[..., 0]
    mask = batch.caption_mask[:, 1:]
    return jnp.sum(jnp.where(mask, nll, 0.0)) / jnp.sum(mask)


def _matching(
    model: AlignerModel, z_video: jax.Array, z_text: jax.Array, drawn: Drawn
) -> jax.Array:
    """Return the binary cross-entropy of pairs and of the negatives that are drawn."""

    def logits(clips: jax.Array, texts: jax.Array) -> jax.Array:
        return model.matching_head(jnp.concatenate([clips, texts], axis=1))

    to_text, to_clip = logits(z_video, z_text[drawn.text]), logits(z_video[drawn.clip], z_text)
    costs = [
        jax.nn.softplus(-logits(z_video, z_text)),
        jnp.where(drawn.text >= 0, jax.nn.softplus(to_text), 0.0),
        jnp.where(drawn.clip >= 0, jax.nn.softplus(to_clip), 0.0),
    ]
    count = len(z_video) + jnp.sum(drawn.text >= 0) + jnp.sum(drawn.clip >= 0)
    return sum(map(jnp.sum, costs)) / count
