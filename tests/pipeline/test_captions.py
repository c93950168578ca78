"""Rows whose clips are followed by a caption, where the caption loss has a weight."""

import numpy as np
import pytest

from tests.pipeline.clip_fixtures import (
    FRAMES,
    FakeTokenizer,
    jpeg,
    make_clip,
    make_tiny_tokenizer,
    write_dataset,
)
from vtalign_jax.config import resolve
from vtalign_jax.errors import UserError
from vtalign_jax.pipeline.clip_cache import ClipCache
from vtalign_jax.pipeline.dataset import open_split
from vtalign_jax.pipeline.order import PADDING
from vtalign_jax.pipeline.transforms import RowMaker

LONG = "turn the long screw slowly with the small blue screwdriver"


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    clips = [
        make_clip("u", "whole", 10.0, "turn screw"),
        make_clip("u", "short", 1.0, "lift lid", frames=[jpeg("red")] * 2, frame_times=[0.5, 1.5]),
        make_clip("u", "long", 20.0, LONG),
        make_clip("u", "child", 30.0, "push", parent_text="build car"),
    ]
    write_dataset(directory, {"train": clips})
    return open_split(str(directory), "train")


@pytest.fixture(scope="module")
def tiny_tokenizer(tmp_path_factory):
    return make_tiny_tokenizer(tmp_path_factory.mktemp("tiny"))


def make_rows(split, weight=0.2, tokenizer=None, train=True, probability=0.0, tokens=12):
    data = {"frames": FRAMES, "max_text_tokens": tokens, "parent_text_probability": probability}
    config = resolve({"data": data, "objective": {"caption_weight": weight}})
    return RowMaker(split, tokenizer or FakeTokenizer(), config, ClipCache(0), train=train)


def index_of(split, node_id):
    return split.table["node_id"].to_pylist().index(node_id)


def row_of(split, node_id, weight=0.2, **arguments):
    return make_rows(split, weight, **arguments)(0, index_of(split, node_id))


def test_a_caption_follows_its_clip_directly_and_says_the_text_shown(split, tiny_tokenizer):
    arguments = {"tokenizer": tiny_tokenizer, "tokens": 20}
    plain, row = (row_of(split, "short", **arguments, weight=w) for w in (0.0, 0.2))
    clip = plain.clip_ids[plain.clip_mask]
    caption, is_predicted = tiny_tokenizer.encode_caption("lift lid", 20)
    end = len(clip) + len(caption)
    np.testing.assert_array_equal(row.clip_ids[:end], [*clip, *caption])
    assert (row.clip_ids[end:] == tiny_tokenizer.pad_id).all()
    assert row.clip_ids.shape == row.clip_mask.shape == row.caption_mask.shape
    assert len(row.clip_ids) == len(plain.clip_ids) + 20  # room for the longest caption
    np.testing.assert_array_equal(np.flatnonzero(row.clip_mask), np.arange(len(clip)))
    expected = len(clip) + np.flatnonzero(is_predicted)
    np.testing.assert_array_equal(np.flatnonzero(row.caption_mask), expected)
    np.testing.assert_array_equal(row.text_ids, plain.text_ids)


def test_without_a_weight_and_at_evaluation_no_caption_is_there(split):
    plain = row_of(split, "whole", weight=0.0)
    assert not plain.caption_mask.any()
    assert plain.caption_mask.shape == plain.clip_ids.shape == (FRAMES + 3,)
    for found, expected in zip(
        row_of(split, "whole", train=False),
        row_of(split, "whole", weight=0.0, train=False),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


def caption_of(row):
    return FakeTokenizer.text(row.clip_ids, row.caption_mask)


def test_a_caption_says_the_parents_text_where_the_row_does_and_is_cut_like_it(split):
    rows = make_rows(split, probability=0.5, tokens=32)
    index = index_of(split, "child")
    shown = [rows(epoch, index) for epoch in range(20)]
    texts = [FakeTokenizer.text(row.text_ids, row.text_mask) for row in shown]
    assert set(texts) == {"push", "build car: push"}
    assert [caption_of(row) for row in shown] == texts
    assert caption_of(row_of(split, "long")) == LONG[:10]


def test_a_padding_row_has_no_caption(split):
    row = make_rows(split)(0, PADDING)
    assert len(row.clip_ids) == FRAMES + 3 + 12
    assert not row.caption_mask.any()
    np.testing.assert_array_equal(np.flatnonzero(row.clip_mask), [0])


def test_rows_with_captions_do_not_share_what_is_kept_of_prompts(split):
    rows = make_rows(split, tokens=32)
    names = ("whole", "child", "whole")
    assert [caption_of(rows(0, index_of(split, name))) for name in names] == [
        "turn screw",
        "push",
        "turn screw",
    ]


def test_a_limit_without_room_for_a_caption_is_refused(split):
    class Roomy(FakeTokenizer):
        def encode_caption(self, text, max_tokens):
            raise ValueError(f"a turn alone takes 20 tokens, not {max_tokens}")

    make_rows(split, weight=0.0, tokenizer=Roomy())
    with pytest.raises(UserError, match="max_text_tokens is too small: a turn alone takes 20"):
        make_rows(split, tokenizer=Roomy())
