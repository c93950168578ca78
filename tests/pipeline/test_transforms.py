import io

import numpy as np
import pytest
from PIL import Image

from tests.pipeline.clip_fixtures import (
    FRAMES,
    IMAGE_SIZE,
    FakeTokenizer,
    jpeg,
    make_clip,
    write_dataset,
)
from vtalign_jax.config import resolve
from vtalign_jax.errors import UserError
from vtalign_jax.interop.tiny import write_tiny_checkpoint
from vtalign_jax.interop.tokens import ClipTokenizer
from vtalign_jax.pipeline.dataset import ClipCache, Record, open_split
from vtalign_jax.pipeline.order import PADDING
from vtalign_jax.pipeline.transforms import RowMaker, decode_frames, uniform, whole_seconds


def noise(seed, size=IMAGE_SIZE, mode="RGB"):
    """Return an encoded picture and what Pillow decodes it to."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(encoded, "JPEG", quality=90)
    return encoded.getvalue(), Image.open(io.BytesIO(encoded.getvalue())).convert("RGB")


CLIPS = {
    clip["clip_id"].split("/")[1]: clip
    for clip in (
        make_clip("u", "whole", 10.0, "turn screw", frames=[noise(k)[0] for k in range(FRAMES)]),
        make_clip("u", "short", 1.0, "lift lid", frames=[noise(7)[0]] * 2, frame_times=[0.5, 1.5]),
        make_clip("u", "long", 20.0, "turn the long screw slowly with the small blue screwdriver"),
        make_clip("u", "child", 30.0, "push", parent_text="build car"),
        make_clip("u", "cut", 40.0, "x", frames=[noise(0)[0][:-40]] * FRAMES),
        make_clip("u", "none", 50.0, "x", frames=[], frame_times=[]),
        make_clip("u", "large", 60.0, "x", frames=[jpeg("red", IMAGE_SIZE + 2)] * FRAMES),
        make_clip("u", "many", 70.0, "x", frames=[jpeg("red")] * 5, frame_times=[68.0] * 5),
        make_clip("u", "untimed", 80.0, "x", frame_times=[78.5]),
    )
}


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    write_dataset(directory, {"train": list(CLIPS.values())})
    return open_split(str(directory), "train")


@pytest.fixture(scope="module")
def tiny_tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(directory)
    tokenizer = ClipTokenizer(directory)
    tokenizer.image_size = IMAGE_SIZE  # the fixture's frames are smaller than the model's
    return tokenizer


def make_rows(split, tokenizer=None, probability=0.0, cache_bytes=0, **data):
    config = resolve({"data": {"frames": FRAMES, "max_text_tokens": 12, **data}})
    tokenizer = tokenizer or FakeTokenizer()
    return RowMaker(split, tokenizer, config, ClipCache(cache_bytes), probability)


def index_of(split, node_id):
    return split.table["node_id"].to_pylist().index(node_id)


def row_of(split, node_id, epoch=0, **arguments):
    return make_rows(split, **arguments)(epoch, index_of(split, node_id))


def test_frames_of_the_models_size_are_decoded_as_pillow_does(split):
    row = row_of(split, "whole")
    expected = np.stack([np.asarray(noise(k)[1]) for k in range(FRAMES)])
    np.testing.assert_array_equal(row.frames, expected)
    assert row.frames.dtype == np.uint8
    assert row.frame_mask.tolist() == [True] * FRAMES


def test_larger_frames_are_shrunk_by_lanczos(split):
    row = row_of(split, "whole", tokenizer=FakeTokenizer(image_size=16))
    expected = noise(2)[1].resize((16, 16), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(row.frames[2], np.asarray(expected))


def test_smaller_frames_are_refused_with_the_command_that_mends_it(split):
    with pytest.raises(UserError, match=r"24 pixels wide, the model takes 32.*--image_size=32"):
        make_rows(split, tokenizer=FakeTokenizer(image_size=32))


def test_another_number_of_frames_is_refused_with_both_ways_out(split):
    with pytest.raises(UserError, match=r"set it to 4 or prepare again with --frames=8"):
        make_rows(split, frames=8)


def test_a_grey_jpeg_gives_three_equal_channels():
    encoded, rgb = noise(1, mode="L")
    record = Record("u/S1", [encoded], [0.0], 0.0, "x", "")
    np.testing.assert_array_equal(decode_frames(record, 1, 24, 24)[0], np.asarray(rgb))


def test_frames_that_are_missing_are_masked_and_zero_and_not_in_the_prompt(split):
    row = row_of(split, "short")
    assert row.frame_mask.tolist() == [True, True, False, False]
    np.testing.assert_array_equal(row.frames[1], np.asarray(noise(7)[1]))
    assert not row.frames[2:].any()
    # the window is -1 to 3 s, so 0.5 and 1.5 s are 1.5 and 2.5 s into it
    assert row.clip_ids[row.clip_mask].tolist() == [104, 11, 12, 1]
    assert row.clip_ids[~row.clip_mask].tolist() == [0, 0, 0]


@pytest.mark.parametrize("start", [0.0, 3.7, 999.3, 36000.35])
def test_a_clip_has_the_same_seconds_wherever_in_the_video_it_lies(start):
    stored = np.float32(start + np.array([0.0, 0.5, 1.0, 1.5, 3.0])).tolist()
    record = Record("u/S1", [], stored, float(np.float32(start)), "x", "")
    assert whole_seconds(record, 4.0) == (0, 0, 1, 1, 3)


def test_seconds_stay_within_the_window():
    record = Record("u/S1", [], [9.7, 10.0, 14.0, 14.3], 10.0, "x", "")
    assert whole_seconds(record, 4.0) == (0, 0, 4, 4)


def test_tokens_are_the_tokenizers_for_the_true_times(split, tiny_tokenizer):
    row = row_of(split, "whole", tokenizer=tiny_tokenizer, max_text_tokens=64)
    clip = tiny_tokenizer.encode_clip([0.5, 1.5, 2.5, 3.5], 4.0)
    np.testing.assert_array_equal(row.clip_ids[row.clip_mask], clip)
    assert row.clip_ids.shape == (tiny_tokenizer.max_clip_tokens(FRAMES, 4.0),)
    assert (row.clip_ids[~row.clip_mask] == tiny_tokenizer.pad_id).all()
    assert row.clip_mask[: len(clip)].all()  # padded on the right
    text = tiny_tokenizer.encode_text("turn screw", None)
    np.testing.assert_array_equal(row.text_ids[row.text_mask], text)
    assert row.text_ids.shape == row.text_mask.shape == (64,)


def test_a_long_text_is_cut_but_its_turn_keeps_its_end(split, tiny_tokenizer):
    row = row_of(split, "long", tokenizer=tiny_tokenizer, max_text_tokens=12)
    whole = tiny_tokenizer.encode_text(CLIPS["long"]["text"], None)
    assert len(whole) > 12
    assert row.text_mask.all()
    np.testing.assert_array_equal(row.text_ids[-2:], whole[-2:])  # <end_of_utterance>, newline
    np.testing.assert_array_equal(row.text_ids[:-2], whole[:10])


def test_a_limit_without_room_for_a_turn_is_refused(split):
    class Roomy(FakeTokenizer):
        def encode_text(self, text, max_tokens):
            raise ValueError(f"a turn alone takes 20 tokens, not {max_tokens}")

    with pytest.raises(UserError, match="max_text_tokens is too small: a turn alone takes 20"):
        make_rows(split, tokenizer=Roomy())


def test_a_padding_row_is_zero_and_keeps_one_token_in_each_mask(split):
    row = make_rows(split)(0, PADDING)
    assert row.frames.shape == (FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert not row.frames.any()
    assert not row.frame_mask.any()
    for ids, mask in ((row.clip_ids, row.clip_mask), (row.text_ids, row.text_mask)):
        assert not ids.any()  # the fake's pad_id is 0
        np.testing.assert_array_equal(np.flatnonzero(mask), [0])


def text_of(split, node_id, **arguments):
    row = row_of(split, node_id, max_text_tokens=32, **arguments)
    return FakeTokenizer.text(row.text_ids, row.text_mask)


def test_the_parents_text_is_taken_with_its_probability_and_only_where_there_is_one(split):
    assert text_of(split, "child") == "push"
    assert text_of(split, "child", probability=1.0) == "build car: push"
    assert text_of(split, "child", probability=1.0, parent_text="{name} ({parent})") == (
        "push (build car)"
    )
    assert text_of(split, "whole", probability=1.0) == "turn screw"
    texts = [text_of(split, "child", probability=0.5, epoch=epoch) for epoch in range(40)]
    assert 8 < texts.count("push") < 32
    again = [text_of(split, "child", probability=0.5, epoch=epoch) for epoch in range(40)]
    assert texts == again


def test_a_wrong_template_is_refused(split):
    for template in ("{parent}: {nme}", "{", "{0}"):
        with pytest.raises(UserError, match=r"config\.data\.parent_text"):
            make_rows(split, parent_text=template)


def test_the_draws_are_uniform_and_depend_on_seed_epoch_and_record():
    draws = [uniform(*key) for key in np.ndindex(10, 10, 10)]
    assert len(set(draws)) == 1000
    assert 0 <= min(draws) < 0.01 < 0.99 < max(draws) < 1
    assert abs(np.mean(draws) - 0.5) < 0.05


@pytest.mark.parametrize(
    ("node_id", "why"),
    [
        ("cut", "truncated"),
        ("none", "0 frames"),
        ("large", r"measures \(26, 26\), not \(24, 24\)"),
        ("many", "5 frames with 5 times, of at most 4"),
        ("untimed", "4 frames with 1 times"),
    ],
)
def test_a_record_that_cannot_be_decoded_names_clip_file_and_reason(split, node_id, why):
    with pytest.raises(UserError, match=rf"clip u/{node_id} in .*00000-of-00001: .*{why}"):
        row_of(split, node_id)


def test_a_kept_clip_gives_the_same_row_without_reading_again(split, monkeypatch):
    rows = make_rows(split, cache_bytes=10**6, probability=0.5)
    index = index_of(split, "child")
    first = rows(0, index)
    monkeypatch.setattr(split, "record", None)
    for before, after in zip(first, rows(0, index), strict=True):
        np.testing.assert_array_equal(before, after)
