"""Clip and text turns against transformers' own processor, on two kinds of tokenizer."""

import json

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import pre_tokenizers

from vtalign_jax.interop import tiny
from vtalign_jax.interop.tokens import ClipTokenizer

pytestmark = pytest.mark.parity


def _like_smolvlm_instruct(directory):
    """Make `<global-img>` plain text and split digits, as SmolVLM-Instruct's tokenizer does."""
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [
        token for token in tokenizer["added_tokens"] if token["content"] != "<global-img>"
    ]
    changed = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
    changed.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    changed.save(str(directory / "tokenizer.json"))
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "GPT2Tokenizer"
    settings["added_tokens_decoder"] = {
        number: token
        for number, token in settings["added_tokens_decoder"].items()
        if token["content"] != "<global-img>"
    }
    settings["additional_special_tokens"].remove("<global-img>")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module", params=["video", "instruct"])
def both(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    tiny.write_tiny_checkpoint(directory)
    if request.param == "instruct":
        _like_smolvlm_instruct(directory)
    ours, theirs = ClipTokenizer(directory), transformers.AutoProcessor.from_pretrained(directory)
    several = len(ours._encode("<global-img>")) > 1
    assert several == (request.param == "instruct")
    return ours, theirs


def _processor_ids(processor, frame_times, window_seconds, *turns, generates=False):
    conversation = [{"role": "user", "content": [{"type": "video"}]}, *turns]
    text = processor.apply_chat_template(conversation, add_generation_prompt=generates)
    rate = 1000  # frames are then counted in milliseconds
    metadata = {
        "fps": rate,
        "total_num_frames": int(window_seconds * rate),
        "duration": window_seconds,
        "frames_indices": [round(time * rate) for time in frame_times],
    }
    frames = np.zeros((len(frame_times), 20, 24, 3), np.uint8)
    outputs = processor(
        text=[text],
        videos=[frames],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )
    return outputs["input_ids"][0].numpy()


CLIPS = {
    "eight-in-four-seconds": ([0.25 + 0.5 * k for k in range(8)], 4.0),
    "one-frame": ([1.999], 4.0),
    "uneven-and-missing": ([0.0, 0.1, 2.5, 3.9], 4.0),
    "window-of-a-fraction": ([0.1, 0.3, 0.5], 0.75),
    "over-a-minute": ([5.0 * k for k in range(21)], 105.5),
    "over-an-hour": ([59.9, 60.0, 3599.9, 3600.0, 3725.0], 3725.2),
}


@pytest.mark.parametrize("clip", CLIPS)
def test_clip_ids_equal_the_processors(both, clip):
    ours, theirs = both
    ids = ours.encode_clip(*CLIPS[clip])
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, _processor_ids(theirs, *CLIPS[clip]))


@pytest.mark.parametrize("text", ["attach wheel to chassis", "  Öl, 3x: naïve\n(2nd) ", "a"])
def test_text_ids_equal_the_processors(both, text):
    ours, theirs = both
    conversation = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    turn = theirs.apply_chat_template(conversation)
    np.testing.assert_array_equal(ours.encode_text(text), theirs(text=[turn])["input_ids"][0])


def test_every_frame_has_as_many_image_tokens_as_features(both):
    ours, theirs = both
    ids = ours.encode_clip([0.5, 1.5, 2.5], 4.0)
    assert (ids == theirs.image_token_id).sum() == 3 * ours.tokens_per_frame
    assert ours.tokens_per_frame == theirs.image_seq_len
    assert ours.pad_id == theirs.tokenizer.pad_token_id


@pytest.mark.parametrize("text", ["attach wheel to chassis", "3 Öl: naïve\n(2nd) ", "a", "  b"])
def test_a_caption_after_its_clip_is_the_template_of_a_clip_and_an_answer(both, text):
    ours, theirs = both
    clip = ours.encode_clip(*CLIPS["eight-in-four-seconds"])
    caption, is_predicted = ours.encode_caption(text)
    answer = {"role": "assistant", "content": [{"type": "text", "text": text}]}
    expected = _processor_ids(theirs, *CLIPS["eight-in-four-seconds"], answer)
    newline = len(theirs.tokenizer("\n")["input_ids"])
    np.testing.assert_array_equal(np.concatenate([clip, caption]), expected[:-newline])

    prompt = _processor_ids(theirs, *CLIPS["eight-in-four-seconds"], generates=True)
    np.testing.assert_array_equal(expected[: len(prompt)], prompt)  # what generation starts from
    predicted = theirs.tokenizer.decode(caption[is_predicted])
    assert predicted.lstrip() == f"{text}<end_of_utterance>".lstrip()
    said_before = theirs.tokenizer.decode(caption[~is_predicted])
    assert said_before.strip() == "Assistant:"
    assert theirs.image_token_id not in caption
