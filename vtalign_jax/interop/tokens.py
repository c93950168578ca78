"""Clips and texts as token ids, laid out as SmolVLM's processor does, without PyTorch.

Source: `SmolVLMProcessor.replace_video_token` and its `DEFAULT_CHAT_TEMPLATE`, transformers 5.
"""

import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from num2words import num2words

from vtalign_jax.errors import UserError
from vtalign_jax.interop.base_files import read_json
from vtalign_jax.models.configuration import SmolVLMConfig

_TURN_START = "<|im_start|>User: "
_REPLY_START = "Assistant: "  # after another turn
_VIDEO_INTRO = (
    "You are provided the following series of {frames} frames from a {duration} [H:MM:SS] video.\n"
)
_FRAME_LABEL = "\nFrame from {minutes:02d}:{seconds:02d}:"
_VIDEO_OUTRO = "\n\n"

# Attribute of Hugging Face's tokenizer -> the token, unless tokenizer_config.json names another.
_TOKENS = {
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",  # several tokens in SmolVLM-Instruct
    "image_token": "<image>",
    "end_of_utterance_token": "<end_of_utterance>",
}
_CACHED_CLIPS = 4096


class ClipTokenizer:
    """The checkpoint's own tokenizer and the layout of its chat turns.

    Attributes:
      image_size: side of the square frames the model takes, in pixels.
      tokens_per_frame: image tokens of one frame (`Q`).
      pad_id: the id that fills up rows.
    """

    def __init__(self, directory: str | Path):
        """Read `config.json`, `tokenizer.json` and `tokenizer_config.json`.

        Args:
          directory: a Hugging Face checkpoint directory.

        Raises:
          UserError: a missing or broken file, or a tokenizer that is not this model's.
        """
        directory = Path(directory)
        config = SmolVLMConfig.from_hf(read_json(directory, "config.json"))
        read_json(directory, "tokenizer.json")  # missing or broken: says so
        settings = read_json(directory, "tokenizer_config.json")
        self.image_size = config.vision.image_size
        self.tokens_per_frame = config.tokens_per_frame
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(
                f"cannot read {directory / 'tokenizer.json'} ({error}); download it again"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._names = _token_names(settings)
        self._clips: dict[tuple, np.ndarray] = {}
        self._longest: dict[tuple[int, int], int] = {}
        image_token = self._names["image_token"]
        if self._tokenizer.token_to_id(image_token) != config.image_token_id:
            raise UserError(
                f"the tokenizer in {directory} gives {image_token} the id "
                f"{self._tokenizer.token_to_id(image_token)}, config.json says "
                f"{config.image_token_id}; use the files of one and the same checkpoint"
            )
        self.pad_id = _pad_id(settings, self._tokenizer)

    def encode_clip(self, frame_times: Sequence[float], window_seconds: float) -> np.ndarray:
        """Return the user turn that holds one video.

        Args:
          frame_times: seconds from the clip's start, one a frame, ascending. A time before the
            start (the frame shown at the start began earlier) counts as 0.
          window_seconds: length of the clip's window, said in the intro.

        Returns:
          int32[n], as `SmolVLMProcessor` gives for this clip alone; do not change it.

        Raises:
          ValueError: no frame.
        """
        if not len(frame_times):
            raise ValueError("a clip has at least one frame")
        seconds = tuple(max(int(np.floor(time)), 0) for time in frame_times)
        key = (seconds, int(window_seconds))
        if key not in self._clips:
            if len(self._clips) >= _CACHED_CLIPS:
                self._clips.clear()
            self._clips[key] = self._encode(self._clip_turn(*key))
        return self._clips[key]

    def encode_text(self, text: str, max_tokens: int | None = None) -> np.ndarray:
        """Return the user turn that holds a text.

        Args:
          text: what the clip shows.
          max_tokens: longest result; the text is cut, never the end of the turn, whose last
            position is pooled. None for no limit.

        Returns:
          int32[n].

        Raises:
          ValueError: `max_tokens` leaves no room for the turn itself.
        """
        ids = self._encode(f"{_TURN_START}{text}{self._turn_end()}")
        if max_tokens is None or len(ids) <= max_tokens:
            return ids
        end = self._encode(self._turn_end(), is_start=False)
        start = self._encode(_TURN_START)
        if max_tokens < len(start) + len(end):
            raise ValueError(f"a turn alone takes {len(start) + len(end)} tokens, not {max_tokens}")
        return np.concatenate([ids[: max_tokens - len(end)], end])

    def encode_caption(
        self, text: str, max_tokens: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the assistant's turn that follows a clip's and says a text.

        It ends with the token that ends a turn: nothing looks at the newline after it.

        Args:
          text: what the clip shows.
          max_tokens: longest result; the text is cut, never the end. None for no limit.

        Returns:
          int32[n], and bool[n], True at what is to be predicted: the text and the end. (The space
          before the text is predicted where the tokenizer joins it to the first word.)

        Raises:
          ValueError: `max_tokens` leaves no room for the turn itself.
        """
        encoding = self._tokenizer.encode(f"{_REPLY_START}{text}", add_special_tokens=False)
        is_text = [end > len(_REPLY_START) for _, end in encoding.offsets]
        end = self._encode(self._names["end_of_utterance_token"], is_start=False)
        least = is_text.count(False) + len(end)
        room = len(is_text) if max_tokens is None else max_tokens - len(end)
        if max_tokens is not None and max_tokens < least:
            raise ValueError(f"a turn alone takes {least} tokens, not {max_tokens}")
        ids = np.concatenate([np.asarray(encoding.ids[:room], np.int32), end])
        return ids, np.array(is_text[:room] + [True] * len(end))

    def max_clip_tokens(self, frames: int, window_seconds: float) -> int:
        """Return the length of the longest clip turn (`S`).

        Args:
          frames: the most frames a clip has; fewer are considered too.
          window_seconds: length of the longest window; frames lie in their window or at its ends.
        """
        key = (frames, int(window_seconds))
        if key not in self._longest:
            self._longest[key] = self._longest_turn(*key)
        return self._longest[key]

    def _longest_turn(self, frames: int, seconds: int) -> int:
        # Special tokens keep the tokenizer from joining what stands on their two sides, hence a
        # frame's length is that of its label and its images, and the labels can be compared alone.
        # Only the first label may join the intro in one token.
        second = self._longest_of(seconds, _label)
        duration = self._longest_of(seconds, lambda length: _intro(1, length))
        frame = len(self._encode(self._frame(second), is_start=False))
        turn = max(
            len(self._encode(self._clip_turn((second,), duration, count)))
            for count in range(1, frames + 1)
        )
        return turn + (frames - 1) * frame

    def _longest_of(self, most: int, make: Callable[[int], str]) -> int:
        """Return the number of 0..most whose string takes the most tokens."""
        return max(
            range(most + 1), key=lambda number: len(self._encode(make(number), is_start=False))
        )

    def layout(self, frames: int) -> dict[str, Any]:
        """Return the turns' strings, from which an export's `embed.py` makes the same tokens.

        Args:
          frames: the most frames that a clip has.
        """
        return {
            "turn": f"{_TURN_START}{{}}{self._turn_end()}",
            "end_tokens": len(self._encode(self._turn_end(), is_start=False)),
            "intros": [
                _VIDEO_INTRO.format(frames=num2words(count), duration="{duration}")
                for count in range(1, frames + 1)
            ],
            "frame": _FRAME_LABEL + self._images(),
            "outro": _VIDEO_OUTRO,
        }

    def _clip_turn(self, seconds: Sequence[int], duration: int, count: int | None = None) -> str:
        """Return the turn's string; `count` is said in the intro instead of the frames shown."""
        intro = _intro(count or len(seconds), duration)
        shown = "".join(self._frame(second) for second in seconds)
        return f"{_TURN_START}{intro}{shown}{_VIDEO_OUTRO}{self._turn_end()}"

    def _frame(self, second: int) -> str:
        return _label(second) + self._images()

    def _images(self) -> str:
        images = self._names["image_token"] * self.tokens_per_frame
        fake = self._names["fake_image_token"]
        return f"{fake}{self._names['global_image_token']}{images}{fake}"

    def _turn_end(self) -> str:
        return f"{self._names['end_of_utterance_token']}\n"

    def _encode(self, text: str, *, is_start: bool = True) -> np.ndarray:
        """Return int32[n]; at the start of a sequence a tokenizer may add a token of its own."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=is_start).ids, np.int32)


def _intro(frames: int, duration: int) -> str:
    """Return the line before the frames; `duration` in whole seconds."""
    return _VIDEO_INTRO.format(
        frames=num2words(frames), duration=datetime.timedelta(seconds=duration)
    )


def _label(second: int) -> str:
    """Return what stands before a frame's images; past an hour the minutes go on counting."""
    return _FRAME_LABEL.format(minutes=second // 60, seconds=second % 60)


def _token_names(settings: Mapping[str, Any]) -> dict[str, str]:
    extra = settings.get("extra_special_tokens")
    named = {**settings, **(extra if isinstance(extra, Mapping) else {})}
    return {name: _content(named.get(name)) or default for name, default in _TOKENS.items()}


def _content(token: Any) -> str | None:
    """Return the string of a token that may be written as an AddedToken's fields."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None


def _pad_id(settings: Mapping[str, Any], tokenizer: tokenizers.Tokenizer) -> int:
    names = (_content(settings.get(name)) for name in ("pad_token", "eos_token"))
    ids = [tokenizer.token_to_id(name) for name in names if name]
    return next((i for i in ids if i is not None), 0)
