import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.pipeline.clip_fixtures import FRAMES, IMAGE_SIZE, make_clip, write_dataset
from vtalign_jax.config import DataConfig
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.held_out import read_held_out
from vtalign_jax.evaluation.retrieval import retrieval_metrics
from vtalign_jax.pipeline.dataset import open_split


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held_out")
    clips = [make_clip(f"r{r}", f"S{n}", 10.0 * n, f"do {n}") for r in range(4) for n in range(3)]
    clips.append(make_clip("short", "S0", 50.0, "do 0"))
    clips[-1] |= {key: clips[-1][key][1:] for key in ("frames", "frame_times")}
    write_dataset(folder, {"val": clips})
    return DataConfig(dir=str(folder), frames=FRAMES)


def test_clips_are_spread_over_the_split_and_come_again(data):
    held_out = read_held_out(data, IMAGE_SIZE, 5, 0)
    assert held_out.facts["records"] == [0, 3, 6, 9, 12]
    again = read_held_out(data, IMAGE_SIZE, 0, 0, held_out.facts["records"], "f" * 64)
    assert again.texts == held_out.texts
    assert len(read_held_out(data, IMAGE_SIZE, 64, 0).texts) == 13
    with pytest.raises(UserError, match="not the dataset that was exported with"):
        read_held_out(data, IMAGE_SIZE, 0, 0, held_out.facts["records"], "other")


@pytest.mark.parametrize("rotate", [0, 90])
def test_both_sides_get_the_same_frames_and_times(data, tmp_path, rotate):
    held_out = read_held_out(data, IMAGE_SIZE, 64, rotate)
    held_out.write(tmp_path)
    stored, given = (
        load_file(tmp_path / "clips.safetensors"),
        json.loads((tmp_path / "clips.json").read_text()),
    )
    pictures, masks, windows = held_out.pictures()
    assert {sum(mask) for mask in masks} == {FRAMES, FRAMES - 1}
    for i, (clip, shown, mask) in enumerate(zip(held_out.clips, pictures, masks, strict=True)):
        shown = np.stack([x for x, is_shown in zip(shown, mask, strict=True) if is_shown])
        np.testing.assert_array_equal(shown, stored[f"clip_{i}"])
        # The model's own turn gives the stored frames back.
        turned = np.rot90(shown, rotate // 90, axes=(1, 2))
        np.testing.assert_array_equal(turned, np.stack(clip.frames))
        times = [(k + 0.5) * windows[i] / FRAMES for k in np.flatnonzero(mask)]
        assert given["times"][i] == pytest.approx(times)
    assert given["windows"] == windows
    assert given["texts"] == held_out.texts


def test_recall_is_that_of_an_evaluation_of_these_clips_alone(data):
    held_out = read_held_out(data, IMAGE_SIZE, 64, 0)
    z = np.random.default_rng(0).standard_normal((2, 13, 8)).astype(np.float32)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    whole = retrieval_metrics(*z, open_split(data.dir, "val").identity)
    assert held_out.recall(*z) == {name: whole[name] for name in ("recall@1", "recall@5")}
    assert held_out.recall(z[0], z[0])["recall@5"] > 0.5


def test_frames_smaller_than_the_model_takes_are_refused(data):
    with pytest.raises(UserError, match="prepare again with --image_size"):
        read_held_out(data, IMAGE_SIZE + 1, 3, 0)
