import json
import pickle

import numpy as np
import pytest

from vtalign_jax.errors import UserError
from vtalign_jax.interop import tiny
from vtalign_jax.interop.tokens import ClipTokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    tiny.write_tiny_checkpoint(directory)
    return directory


@pytest.fixture(scope="module")
def tokens(checkpoint):
    return ClipTokenizer(checkpoint)


def test_moving_a_clip_in_time_is_the_callers_task_so_equal_times_give_equal_ids(tokens):
    first = tokens.encode_clip([0.25, 0.75], 4.0)
    np.testing.assert_array_equal(first, tokens.encode_clip((0.3, 0.9), 4.5))
    assert not np.array_equal(first, tokens.encode_clip([0.25, 1.75], 4.0))


def test_a_frame_shown_before_the_clip_starts_counts_as_second_zero(tokens):
    np.testing.assert_array_equal(
        tokens.encode_clip([-0.4, 1.0], 4.0), tokens.encode_clip([0.0, 1.0], 4.0)
    )


def test_a_clip_without_frames_is_refused(tokens):
    with pytest.raises(ValueError, match="at least one frame"):
        tokens.encode_clip([], 4.0)


@pytest.mark.parametrize(
    ("frames", "window"),
    [(1, 4.0), (8, 4.0), (5, 12.5), (3, 0.5), (8, 600.0), (4, 7300.0)],
)
def test_no_clip_is_longer_than_the_static_length_and_one_is_as_long(tokens, frames, window):
    rng = np.random.default_rng(0)
    longest = tokens.max_clip_tokens(frames, window)
    lengths = [
        len(tokens.encode_clip(np.sort(rng.uniform(0, window, count)), window))
        for count in range(1, frames + 1)
        for _ in range(20)
    ]
    assert max(lengths) <= longest <= max(lengths) + frames


def test_the_static_length_is_that_of_the_longest_turn_of_any_shorter_window(tokens):
    longest = max(
        len(tokens.encode_clip([second] * frames, window))
        for window in range(63)
        for second in range(window + 1)
        for frames in (1, 2)
    )
    assert tokens.max_clip_tokens(2, 62.9) == longest


def test_truncation_cuts_the_text_and_keeps_the_end_of_the_turn(tokens):
    whole = tokens.encode_text("attach the red wheel to the new chassis of the old car")
    cut = tokens.encode_text("attach the red wheel to the new chassis of the old car", 9)
    assert len(cut) == 9 < len(whole)
    np.testing.assert_array_equal(cut[-2:], whole[-2:])
    np.testing.assert_array_equal(cut[:7], whole[:7])
    np.testing.assert_array_equal(tokens.encode_text("a b", 64), tokens.encode_text("a b"))


def test_a_limit_below_the_turn_itself_is_refused(tokens):
    with pytest.raises(ValueError, match="a turn alone takes"):
        tokens.encode_text("attach the wheel", 3)


def test_a_caption_predicts_its_text_and_its_end_but_not_who_speaks(tokens):
    ids, is_predicted = tokens.encode_caption("attach the red wheel")
    assert ids.dtype == np.int32
    first = int(np.argmax(is_predicted))
    assert is_predicted.tolist() == [False] * first + [True] * (len(ids) - first)
    assert 0 < first < len(ids) - 1
    said = tokens.encode_text("attach the red wheel")
    assert ids[-1] == said[-2]  # <end_of_utterance>, without the newline after it


def test_truncation_cuts_a_caption_and_keeps_its_end(tokens):
    whole, _ = tokens.encode_caption("attach the red wheel to the new chassis")
    cut, is_predicted = tokens.encode_caption("attach the red wheel to the new chassis", 6)
    assert len(cut) == len(is_predicted) == 6 < len(whole)
    np.testing.assert_array_equal(cut[:5], whole[:5])
    assert cut[-1] == whole[-1]
    assert is_predicted[-1]
    for limit in (None, len(whole)):
        again, _ = tokens.encode_caption("attach the red wheel to the new chassis", limit)
        np.testing.assert_array_equal(again, whole)


def test_a_limit_below_a_captions_turn_is_refused(tokens):
    with pytest.raises(ValueError, match="a turn alone takes"):
        tokens.encode_caption("attach the wheel", 1)


def test_the_tokenizer_travels_to_worker_processes(tokens):
    copy = pickle.loads(pickle.dumps(tokens))
    np.testing.assert_array_equal(copy.encode_clip([0.5], 4.0), tokens.encode_clip([0.5], 4.0))
    np.testing.assert_array_equal(copy.encode_text("spin"), tokens.encode_text("spin"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_missing_file_is_named(checkpoint, tmp_path, name):
    for file in checkpoint.iterdir():
        if file.name != name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=f"has no {name}"):
        ClipTokenizer(tmp_path)


def test_a_damaged_tokenizer_is_named(checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"cannot read .*tokenizer\.json .*download it again"):
        ClipTokenizer(tmp_path)


def test_the_tokenizer_of_another_model_is_refused(checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "image_token_id": 49190}))
    with pytest.raises(UserError, match=r"config\.json says 49190"):
        ClipTokenizer(tmp_path)
