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
    make_tiny_tokenizer,
    write_dataset,
)
from vtalign_jax.config import resolve
from vtalign_jax.dst.pairs import frame_times
from vtalign_jax.errors import UserError
from vtalign_jax.pipeline import transforms
from vtalign_jax.pipeline.clip_cache import ClipCache
from vtalign_jax.pipeline.dataset import open_split
from vtalign_jax.pipeline.order import PADDING
from vtalign_jax.pipeline.transforms import RowMaker, decode_frame, uniform


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
        make_clip("u", "astray", 90.0, "x", frame_times=[88.5, 89.5, 90.5, 95.0]),
        make_clip("u", "twice", 100.0, "x", frame_times=[98.5, 99.5, 99.5, 100.5]),
    )
}


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    write_dataset(directory, {"train": list(CLIPS.values())})
    return open_split(str(directory), "train")


@pytest.fixture(scope="module")
def tiny_tokenizer(tmp_path_factory):
    return make_tiny_tokenizer(tmp_path_factory.mktemp("tiny"))


def make_rows(split, tokenizer=None, probability=0.0, cache=None, train=True, **data):
    data = {"max_text_tokens": 12, "parent_text_probability": probability} | data
    config = resolve({"data": {"frames": FRAMES} | data})
    cache = cache or ClipCache(0)
    return RowMaker(split, tokenizer or FakeTokenizer(), config, cache, train=train)


def index_of(split, node_id):
    return split.table["node_id"].to_pylist().index(node_id)


def row_of(split, node_id, epoch=0, **arguments):
    return make_rows(split, **arguments)(epoch, index_of(split, node_id))


def test_frames_of_the_models_size_are_decoded_as_pillow_does(split):
    row = row_of(split, "whole")
    expected = np.stack([np.asarray(noise(k)[1]) for k in range(FRAMES)])
    np.testing.assert_array_equal(row.frames, expected)
    assert {frame.dtype for frame in row.frames} == {np.dtype(np.uint8)}
    assert row.frame_mask.tolist() == [True] * FRAMES


def test_larger_frames_are_shrunk_by_lanczos(split):
    row = row_of(split, "whole", tokenizer=FakeTokenizer(image_size=16))
    expected = noise(2)[1].resize((16, 16), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(row.frames[2], np.asarray(expected))


def test_smaller_frames_are_refused_with_the_command_that_mends_it(split):
    with pytest.raises(UserError, match=r"24 pixels wide, the model takes 32.*--image_size=32"):
        make_rows(split, tokenizer=FakeTokenizer(image_size=32))


def test_more_frames_than_are_stored_are_refused_with_both_ways_out(split):
    with pytest.raises(UserError, match=r"set it to 4 or less, or prepare again with --frames=8"):
        make_rows(split, frames=8)


def test_a_grey_jpeg_gives_three_equal_channels():
    encoded, rgb = noise(1, mode="L")
    np.testing.assert_array_equal(decode_frame(encoded, 24, 24), np.asarray(rgb))


def test_frames_that_are_missing_are_masked_and_zero_and_not_in_the_prompt(split):
    row = row_of(split, "short")
    assert row.frame_mask.tolist() == [True, True, False, False]
    np.testing.assert_array_equal(row.frames[1], np.asarray(noise(7)[1]))
    assert not np.any(row.frames[2:])
    # the window is -1 to 3 s, so 0.5 and 1.5 s are 1.5 and 2.5 s into it
    assert row.clip_ids[row.clip_mask].tolist() == [104, 11, 12, 1]
    assert row.clip_ids[~row.clip_mask].tolist() == [0, 0, 0]


def test_tokens_are_the_tokenizers_for_the_true_times(split, tiny_tokenizer):
    row = row_of(split, "whole", tokenizer=tiny_tokenizer, max_text_tokens=64)
    clip = tiny_tokenizer.encode_clip([0.5, 1.5, 2.5, 3.5], 4.0)
    np.testing.assert_array_equal(row.clip_ids[row.clip_mask], clip)
    assert row.clip_ids.shape == (tiny_tokenizer.max_clip_tokens(FRAMES, 4.0),)
    assert (row.clip_ids[~row.clip_mask] == tiny_tokenizer.pad_id).all()
    assert row.clip_mask[: len(clip)].all()  # padded on the right
    text = tiny_tokenizer.encode_text("turn screw", None)
    np.testing.assert_array_equal(row.text_ids[row.text_mask], text)
    longest = max(len(tiny_tokenizer.encode_text(text, None)) for text in split.texts)
    assert 0 <= len(row.text_ids) - longest < 8
    assert row.text_ids.shape == row.text_mask.shape


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
    assert np.shape(row.frames) == (FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert not np.any(row.frames)
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


def test_at_evaluation_the_parents_text_is_taken_always_if_asked_for_and_else_never(split):
    plain = [text_of(split, "child", probability=1.0, train=False, epoch=e) for e in range(9)]
    assert set(plain) == {"push"}
    asked = [text_of(split, "child", train=False, eval_parent_text=True, epoch=e) for e in range(9)]
    assert set(asked) == {"build car: push"}
    assert text_of(split, "whole", train=False, eval_parent_text=True) == "turn screw"
    assert text_of(split, "child", eval_parent_text=True) == "push"  # in training


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
        ("astray", r"not of 4 spread over 4 s from 88 s on"),
        ("twice", r"not of 4 spread over 4 s from 98 s on"),
        ("untimed", "4 frames with 1 times"),
    ],
)
def test_a_record_that_cannot_be_decoded_names_clip_file_and_reason(split, node_id, why):
    with pytest.raises(UserError, match=rf"clip u/{node_id} in .*00000-of-00001: .*{why}"):
        row_of(split, node_id)


def test_a_kept_clip_gives_the_same_row_without_reading_again(split, monkeypatch):
    rows = make_rows(split, cache=ClipCache(10**6), probability=0.5)
    index = index_of(split, "child")
    first = rows(0, index)
    monkeypatch.setattr(split, "record", None)
    for before, after in zip(first, rows(0, index), strict=True):
        np.testing.assert_array_equal(before, after)


DENSE = 12  # frames stored a window; frame k is a grey of 20 k


def dense_clip(node_id, start, length=6.0, stored=range(DENSE)):
    times = frame_times(start, start + length, DENSE)
    pictures = [jpeg((20 * k,) * 3) for k in stored]
    window = {"window_start": start, "window_end": start + length}
    times = [times[k] for k in stored]
    return make_clip("d", node_id, start, node_id, frames=pictures, frame_times=times, **window)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dense")
    clips = [
        dense_clip("first", 0.0),
        dense_clip("hours", 36000.35),
        dense_clip("edge", -2.5, stored=range(5, DENSE)),
        dense_clip("brief", 50.0, length=0.5),
        dense_clip("long", 100.0, length=4500.0),
    ]
    write_dataset(directory, {"train": clips}, frames=DENSE)
    return open_split(str(directory), "train")


def shown(row):
    """Return the numbers of the frames that a row shows."""
    assert not np.any([frame for frame, is_real in zip(*row[:2], strict=True) if not is_real])
    return [round(frame.mean() / 20) for frame in np.asarray(row.frames)[row.frame_mask]]


def said(row):
    """Return what FakeTokenizer said: window and seconds of the frames."""
    length, *seconds, end = row.clip_ids[row.clip_mask].tolist()
    assert end == 1
    return length - 100, [second - 10 for second in seconds]


def test_fewer_frames_than_stored_are_those_in_the_middle_of_their_share_of_the_window(dense):
    row = row_of(dense, "first")
    assert shown(row) == [1, 4, 7, 10]
    assert said(row) == (6, [0, 2, 3, 5])  # 0.75, 2.25, 3.75, 5.25 s
    assert np.shape(row.frames) == (4, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert shown(row_of(dense, "first", frames=DENSE)) == list(range(DENSE))
    assert shown(row_of(dense, "first", frames=1)) == [5]


def test_jitter_shows_every_stored_frame_of_each_part_of_the_window_in_some_epoch(dense):
    rows = make_rows(dense, jitter=True)
    index = index_of(dense, "first")
    of_epoch = [rows(epoch, index) for epoch in range(60)]
    for segment in range(4):
        drawn = {shown(row)[segment] for row in of_epoch}
        assert drawn == {3 * segment, 3 * segment + 1, 3 * segment + 2}
    for row in of_epoch:
        assert said(row) == (6, [k // 2 for k in shown(row)])  # frame k is k/2 + 0.25 s in


def test_jitter_is_a_pure_function_of_seed_epoch_and_record(dense):
    one, other = (make_rows(dense, jitter=True) for _ in range(2))
    forwards = [shown(one(epoch, 0)) for epoch in range(20)]
    backwards = [shown(other(epoch, 0)) for epoch in reversed(range(20))]
    assert forwards == backwards[::-1]
    seeded = RowMaker(
        dense,
        FakeTokenizer(),
        resolve({"data": {"frames": FRAMES, "jitter": True}, "train": {"seed": 1}}),
        ClipCache(0),
        train=True,
    )
    assert [shown(seeded(epoch, 0)) for epoch in range(20)] != forwards
    clip, another = index_of(dense, "first"), index_of(dense, "hours")
    drawn = [[shown(one(epoch, index)) for epoch in range(20)] for index in (clip, another)]
    assert drawn[0] != drawn[1]


def test_jitter_is_for_training_alone(dense):
    rows = make_rows(dense, jitter=True, train=False)
    assert all(shown(rows(epoch, index_of(dense, "first"))) == [1, 4, 7, 10] for epoch in range(9))


def test_a_part_of_the_window_outside_the_video_gives_no_frame(dense):
    row = row_of(dense, "edge")  # frames 5 to 11 exist
    assert shown(row) == [5, 7, 10]
    assert row.frame_mask.tolist() == [True, True, True, False]
    assert said(row) == (6, [2, 3, 5])
    rows = make_rows(dense, jitter=True)
    drawn = [shown(rows(epoch, index_of(dense, "edge"))) for epoch in range(30)]
    assert {len(numbers) for numbers in drawn} == {3}
    assert {numbers[0] for numbers in drawn} == {5}


def test_a_clip_has_the_same_row_hours_into_a_video(dense):
    for frames in (1, 4, 5, DENSE):
        rows = make_rows(dense, frames=frames)
        here, there = (rows(0, index_of(dense, name)) for name in ("first", "hours"))
        np.testing.assert_array_equal(here.clip_ids, there.clip_ids)
        np.testing.assert_array_equal(here.frames, there.frames)


def test_prompts_say_each_windows_own_length_in_one_static_shape(dense, tiny_tokenizer):
    rows = make_rows(dense, tokenizer=tiny_tokenizer, max_text_tokens=64)
    length = tiny_tokenizer.max_clip_tokens(FRAMES, 4500.0)
    expected = {
        "first": ([0.75, 2.25, 3.75, 5.25], 6.0),
        "brief": ([0.0] * 4, 0.5),
        "long": ([562.5, 1687.5, 2812.5, 3937.5], 4500.0),
    }
    for name, (times, window) in expected.items():
        row = rows(0, index_of(dense, name))
        assert row.clip_ids.shape == (length,)
        ids = tiny_tokenizer.encode_clip(times, window)
        np.testing.assert_array_equal(row.clip_ids[row.clip_mask], ids)


def test_kept_clips_give_the_rows_of_clips_read_anew_under_jitter_and_without(dense, monkeypatch):
    cache, index = ClipCache(10**6), index_of(dense, "first")
    jittered, still = make_rows(dense, jitter=True, cache=cache), make_rows(dense, cache=cache)
    fresh = [
        make_rows(dense, jitter=is_on)(epoch, index)
        for is_on in (True, False)
        for epoch in range(9)
    ]
    kept = [rows(epoch, index) for rows in (jittered, still) for epoch in range(9)]
    monkeypatch.setattr(dense, "record", None)
    kept_again = [rows(epoch, index) for rows in (jittered, still) for epoch in range(9)]
    for rows in (kept, kept_again):
        for row, expected in zip(rows, fresh, strict=True):
            for ours, theirs in zip(row, expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_what_is_decoded_and_kept_is_what_some_epoch_can_show(dense, monkeypatch):
    decoded = []

    def counted(*arguments):
        decoded.append(1)
        return decode_frame(*arguments)

    monkeypatch.setattr(transforms, "decode_frame", counted)
    frame_bytes = IMAGE_SIZE * IMAGE_SIZE * 3
    for jitter, frames in ((False, FRAMES), (True, DENSE)):
        for limit, is_kept in ((frames * frame_bytes, True), (frames * frame_bytes - 1, False)):
            decoded.clear()
            rows = make_rows(dense, jitter=jitter, cache=ClipCache(limit))
            for _ in range(2):
                rows(0, index_of(dense, "first"))
            assert len(decoded) == (frames if is_kept else 2 * frames)
