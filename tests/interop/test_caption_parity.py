"""The caption loss against transformers' own on the same tokens and weights."""

import jax
import numpy as np
import pytest
import torch
import transformers

from tests.interop.checkpoints import make_config, write_base
from vtalign_jax import sharding
from vtalign_jax.config import MeshConfig
from vtalign_jax.interop.tokens import ClipTokenizer
from vtalign_jax.objectives.captioning import caption_nll, count_tokens
from vtalign_jax.training.assemble import assemble, load

pytestmark = pytest.mark.parity

TEXTS = ("attach wheel to chassis", "turn it")
FLOAT32 = {"compute_dtype": "float32", "frozen_dtype": "float32"}
MOST = 24


@pytest.mark.parametrize("architecture", ["smolvlm", "idefics3"])
def test_the_loss_equals_transformers_with_every_other_label_ignored(architecture, tmp_path):
    directory = write_base(tmp_path, architecture)
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(directory).eval()
    assembly = assemble(make_config(directory, model=FLOAT32))
    mesh = sharding.make_mesh(MeshConfig(1, 1), jax.devices()[:1])
    params, frozen = load(assembly, mesh)
    model, tokens = assembly.bind(params | frozen), ClipTokenizer(directory)

    turns = [tokens.encode_clip([0.5, 1.5], 4.0), tokens.encode_clip([0.5, 2.5], 4.0)]
    captions = [tokens.encode_caption(text) for text in TEXTS]
    length = max(map(len, turns)) + MOST
    ids = np.full((2, length), tokens.pad_id, np.int32)
    place = np.arange(length)
    ends = []
    clip_mask, caption_mask = np.zeros((2, length), bool), np.zeros((2, length), bool)
    for row, (turn, (caption, is_predicted)) in enumerate(zip(turns, captions, strict=True)):
        start, end = len(turn), len(turn) + len(caption)
        ids[row, :start], ids[row, start:end] = turn, caption
        clip_mask[row], caption_mask[row, start:end] = place < start, is_predicted
        ends.append(end)
    size = tokens.image_size
    frames = np.random.default_rng(0).integers(0, 256, (2, 2, size, size, 3)).astype(np.uint8)

    @jax.jit
    def ours():
        _, states = model.captioned_clips(ids, clip_mask, caption_mask, frames, MOST)
        return caption_nll(model.base.logits, states, np.ones(2, bool), tile=10**5)

    pixels = np.float32(frames).transpose(0, 1, 4, 2, 3) / 127.5 - 1
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(ids, dtype=torch.long),
            attention_mask=torch.tensor(place < np.array(ends)[:, None]).long(),
            pixel_values=torch.tensor(pixels),
            labels=torch.tensor(np.where(caption_mask, ids, -100), dtype=torch.long),
        ).loss
    mean = ours() / count_tokens(caption_mask, np.ones(2, bool))
    assert float(mean) == pytest.approx(float(expected), rel=1e-4)
    assert (ids == assembly.base.image_token_id).sum() == 2 * 2 * tokens.tokens_per_frame
