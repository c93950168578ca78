import jax
import numpy as np
import pytest
from filled import filled
from flax import nnx

from vtalign_jax.models.configuration import VisionConfig
from vtalign_jax.models.lora import Build
from vtalign_jax.models.vision import VisionModel, position_ids

CONFIG = VisionConfig(
    hidden_size=12,
    intermediate_size=20,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=24,
    patch_size=4,
)


def _tower(**options):
    return filled(lambda: VisionModel(CONFIG, Build(nnx.Rngs(0), "float32", "float32"), **options))


@pytest.mark.parametrize("side", [4, 8, 27, 32])
def test_on_the_grids_of_real_checkpoints_each_patch_has_its_own_row(side):
    np.testing.assert_array_equal(position_ids(side, side, side), np.arange(side * side))


def test_a_smaller_frame_is_spread_over_the_table():
    np.testing.assert_array_equal(position_ids(2, 2, 4), [0, 2, 8, 10])


def test_rounding_on_a_grid_of_25_moves_the_rows_that_it_moves_in_torch():
    # torch 2.13 on x86, whose `arange` adds up in vectors of eight.
    moved = np.flatnonzero(position_ids(25, 1, 25) // 25 != np.arange(25))
    np.testing.assert_array_equal(moved, [5, 9, 10, 11, 12, 13, 15, 18, 20, 23])


@pytest.mark.parity
@pytest.mark.parametrize("side", [8, 16, 27, 32])
@pytest.mark.parametrize("part", [1, 2])
def test_position_ids_equal_those_of_transformers(side, part):
    import torch
    from transformers import SmolVLMVisionConfig
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionEmbeddings

    patch, here = 2, side // part
    theirs = SmolVLMVisionEmbeddings(
        SmolVLMVisionConfig(
            hidden_size=1, num_attention_heads=1, image_size=side * patch, patch_size=patch
        )
    )
    theirs.patch_embedding.weight.data.zero_()
    theirs.patch_embedding.bias.data.zero_()
    theirs.position_embedding.weight.data[:, 0] = torch.arange(side * side)
    frame = torch.zeros(1, 3, here * patch, here * patch)
    rows = theirs(frame, torch.ones(1, here, here, dtype=torch.bool))[0, :, 0]
    np.testing.assert_array_equal(position_ids(here, here, side), rows.detach().numpy())


def test_a_patch_reads_its_own_pixels_only():
    tower = _tower()
    frames = np.zeros((1, 24, 24, 3), np.float32)
    embed = jax.jit(lambda frames: tower.embeddings(frames))
    before = embed(np.zeros_like(frames))  # not `frames`: JAX may still be reading it
    frames[0, 4:8, 8:12] = 1.0  # patch row 1, column 2
    changed = np.any(np.asarray(embed(frames) != before), axis=-1)[0]
    np.testing.assert_array_equal(np.flatnonzero(changed), [1 * 6 + 2])
