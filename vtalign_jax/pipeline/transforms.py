"""From a stored record to the rows of a batch: frames decoded and shrunk, clip and text as tokens.

Frames stay uint8; they are normalised on the device. The tokens come from the checkpoint's own
tokenizer (`interop.tokens.ClipTokenizer`), which is passed in.
"""

import functools
import hashlib
import io
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from vtalign_jax.array_types import Array
from vtalign_jax.config import Config
from vtalign_jax.errors import UserError
from vtalign_jax.pipeline.clip_cache import ClipCache, DecodedClip
from vtalign_jax.pipeline.dataset import ClipSplit, Record
from vtalign_jax.pipeline.order import PADDING
from vtalign_jax.pipeline.sampling import (
    choose_frames,
    frame_numbers,
    whole_seconds,
    window_lengths,
)
from vtalign_jax.pipeline.texts import padded_length, with_parent

# What a row needs of its record beside the frames.
_FIELDS = ("frame_times", "window_start", "window_end", "text", "parent_text")


class Tokenizer(Protocol):
    """What the pipeline asks of `interop.tokens.ClipTokenizer`; picklable."""

    image_size: int
    pad_id: int

    def encode_clip(self, frame_times: list[float], window_seconds: float) -> np.ndarray: ...

    def encode_text(self, text: str, max_tokens: int | None) -> np.ndarray: ...

    def encode_caption(self, text: str, max_tokens: int) -> tuple[np.ndarray, np.ndarray]: ...

    def max_clip_tokens(self, frames: int, window_seconds: float) -> int: ...


class Row(NamedTuple):
    """One row of a `Batch` but its identity, frames one by one; or several, stacked.

    With a feature cache, `frames` are the bytes of its features, see `StoredFeatures`: of each
    frame, or one array of all tokens.
    """

    frames: Array | list[Array]
    frame_mask: Array
    clip_ids: Array
    clip_mask: Array
    caption_mask: Array
    text_ids: Array
    text_mask: Array


class RowMaker:
    """Turns (epoch, record) into a `Row` of static shape. Picklable, for Grain's workers."""

    def __init__(
        self,
        split: ClipSplit,
        tokenizer: Tokenizer,
        config: Config,
        clip_cache: ClipCache,
        *,
        train: bool,
    ) -> None:
        """Check that dataset, model and configuration fit together.

        Args:
          split: where the records are.
          tokenizer: the model's.
          config: of the run.
          clip_cache: keeps decoded clips.
          train: whether frames jitter, parent texts come at random and captions follow the clips,
            as configured.

        Raises:
          UserError: stored frames smaller than the model's, or fewer a clip, no room for a text,
            or a parent template with an unknown field.
        """
        data = config.data
        check_frames(split, tokenizer.image_size, data.frames)
        with_parent(data.parent_text, "parent", "name")
        self._has_captions = train and config.objective.caption_weight > 0
        try:
            tokenizer.encode_text("", data.max_text_tokens)
            if self._has_captions:
                tokenizer.encode_caption("", data.max_text_tokens)
        except ValueError as error:
            raise UserError(f"config.data.max_text_tokens is too small: {error}") from error
        self._split = split
        self._features = split.features
        self._tokenizer = tokenizer
        self._clip_cache = clip_cache
        self._frames = data.frames
        self._jitter = train and data.jitter
        self._clip_tokens = tokenizer.max_clip_tokens(data.frames, split.longest_window_seconds)
        self._clip_tokens += data.max_text_tokens * self._has_captions
        self._seed = config.train.seed
        self._template = data.parent_text
        self._parent_text_probability = (
            data.parent_text_probability if train else float(data.eval_parent_text)
        )
        self._text_tokens = padded_length(
            split, tokenizer.encode_text, data, has_parents=self._parent_text_probability > 0
        )
        self._memoise()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_clip_row": None, "_text_row": None, "_caption": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._memoise()

    def _memoise(self) -> None:
        """Prompts repeat: few patterns of whole seconds, and the same texts every epoch."""
        self._clip_row = functools.lru_cache(4096)(self._tokenised_clip)
        self._text_row = functools.lru_cache(65536)(self._tokenised_text)
        self._caption = functools.lru_cache(65536)(self._tokenised_caption)

    def __call__(self, epoch: int, index: int) -> Row:
        """Return the row of a record, or a padding row for `PADDING`.

        Raises:
          UserError: the record cannot be read or decoded.
        """
        if index == PADDING:
            return self._padding
        clip = self.clip(index)
        chosen = choose_frames(
            clip.numbers, clip.sampled_frames, self._frames, self._draw(epoch, index)
        )
        seconds = whole_seconds(
            [clip.numbers[place] for place in chosen], clip.window_seconds, clip.sampled_frames
        )
        missing = self._frames - len(chosen)
        text = self._text(clip, epoch, index)
        clip_tokens = self._captioned(*self._clip_row(seconds, clip.window_seconds), text)
        text_tokens = self._text_row(text)
        if self._is_by_clip:
            masks = clip_tokens[1] | clip_tokens[2], text_tokens[1]
            frames = [self._features.tokens(index, *masks)]
        else:
            frames = [clip.frames[place] for place in chosen] + [self._no_frame] * missing
        frame_mask = np.arange(self._frames) < len(chosen)
        return Row(frames, frame_mask, *clip_tokens, *text_tokens)

    @property
    def _is_by_clip(self) -> bool:
        return self._features is not None and self._features.layout.depth == "decoder"

    @functools.cached_property
    def _no_frame(self) -> np.ndarray:
        if self._features is not None:
            return self._features.no_frame
        edge = self._tokenizer.image_size
        return np.zeros((edge, edge, 3), np.uint8)

    @functools.cached_property
    def _no_caption(self) -> np.ndarray:
        return np.zeros(self._clip_tokens, bool)

    @functools.cached_property
    def _padding(self) -> Row:
        """A row of zeros; its token masks keep one position, so that no softmax sees none."""
        empty = np.zeros(0, np.int32)
        clip_ids, clip_mask = padded(empty, self._clip_tokens, self._tokenizer.pad_id)
        text_ids, text_mask = padded(empty, self._text_tokens, self._tokenizer.pad_id)
        clip_mask[0] = text_mask[0] = True
        if self._is_by_clip:
            frames = [self._features.no_tokens(self._clip_tokens + self._text_tokens)]
        else:
            frames = [self._no_frame] * self._frames
        return Row(
            frames,
            np.zeros(self._frames, bool),
            clip_ids,
            clip_mask,
            self._no_caption,
            text_ids,
            text_mask,
        )

    def clip(self, index: int) -> DecodedClip:
        """Return the clip with every frame that some epoch shows: all, or those always chosen."""
        if self._features is not None:
            return self._cached_clip(index)
        edge = self._tokenizer.image_size
        key = (index, edge, "all" if self._jitter else self._frames)
        clip = self._clip_cache.get(key)
        if clip is None:
            record = self._split.record(index)
            part, _ = self._split.part_of(index)
            try:
                wanted = part.frames if self._jitter else self._frames
                clip = decode_clip(record, part.frames, wanted, part.image_size, edge)
            except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises
                raise UserError(
                    f"cannot decode the frames of clip {record.clip_id} in "
                    f"{self._split.file(index)}: {error}; prepare the dataset again"
                ) from error
            self._clip_cache.offer(key, clip)
        return clip

    def _cached_clip(self, index: int) -> DecodedClip:
        """Return a clip with the features of every stored frame; its record is not read."""
        part, within = self._split.part_of(index)
        times, start, end, text, parent = (part.table[name][within].as_py() for name in _FIELDS)
        seconds = float(window_lengths(start, end))
        return DecodedClip(
            [] if self._is_by_clip else list(self._features.frames(index)),
            frame_numbers(times, start, seconds, part.frames),
            part.frames,
            seconds,
            text,
            parent,
        )

    def _draw(self, epoch: int, index: int) -> Callable[[int], float] | None:
        """Return what picks a frame of each segment, None for the one in its middle."""
        if not self._jitter:
            return None
        return lambda segment: uniform(self._seed, epoch, index, segment)

    def _text(self, clip: DecodedClip, epoch: int, index: int) -> str:
        if not clip.parent_text or not self._parent_text_probability:
            return clip.text
        if uniform(self._seed, epoch, index) >= self._parent_text_probability:
            return clip.text
        return with_parent(self._template, clip.parent_text, clip.text)

    def _tokenised_clip(
        self, seconds: tuple[int, ...], window_seconds: float
    ) -> tuple[np.ndarray, np.ndarray]:
        ids = self._tokenizer.encode_clip(list(seconds), window_seconds)
        return padded(ids, self._clip_tokens, self._tokenizer.pad_id)

    def _captioned(
        self, clip_ids: np.ndarray, clip_mask: np.ndarray, text: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the ids with the caption after the clip's turn, the turn's mask, the caption's."""
        if not self._has_captions:
            return clip_ids, clip_mask, self._no_caption
        ids, is_predicted = self._caption(text)
        place = slice(clip_mask.sum(), clip_mask.sum() + len(ids))
        clip_ids, caption_mask = clip_ids.copy(), self._no_caption.copy()
        clip_ids[place], caption_mask[place] = ids, is_predicted
        return clip_ids, clip_mask, caption_mask

    def _tokenised_caption(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        return self._tokenizer.encode_caption(text, self._text_tokens)

    def _tokenised_text(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids = self._tokenizer.encode_text(text, self._text_tokens)
        return padded(ids, self._text_tokens, self._tokenizer.pad_id)


def decode_clip(
    record: Record, sampled_frames: int, frames: int, stored_edge: int, edge: int
) -> DecodedClip:
    """Return the frames of a record that a clip of `frames` frames shows without jitter.

    Args:
      record: as stored.
      sampled_frames: M, how many were looked for in the window.
      frames: F; M for all that are stored.
      stored_edge: pixels, what every stored frame must measure.
      edge: pixels, H and W; smaller than `stored_edge` shrinks by LANCZOS, as SmolVLM's processor.

    Raises:
      ValueError, OSError, SyntaxError: a frame is no JPEG, cut off or of another size, or the
        frames are not 1 to M of the window, with a time each.
    """
    count = len(record.frames)
    if not 1 <= count <= sampled_frames or count != len(record.frame_times):
        raise ValueError(
            f"{count} frames with {len(record.frame_times)} times, of at most {sampled_frames}"
        )
    window_seconds = float(window_lengths(record.window_start, record.window_end))
    numbers = frame_numbers(record.frame_times, record.window_start, window_seconds, sampled_frames)
    chosen = choose_frames(numbers, sampled_frames, frames)
    return DecodedClip(
        [decode_frame(record.frames[place], stored_edge, edge) for place in chosen],
        tuple(numbers[place] for place in chosen),
        sampled_frames,
        window_seconds,
        record.text,
        record.parent_text,
    )


def decode_frame(encoded: bytes, stored_edge: int, edge: int) -> np.ndarray:
    """Return uint8[edge, edge, 3]; see `decode_clip`."""
    with Image.open(io.BytesIO(encoded), formats=("JPEG",)) as image:
        if image.size != (stored_edge, stored_edge):
            raise ValueError(f"a frame measures {image.size}, not {(stored_edge, stored_edge)}")
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        if stored_edge != edge:
            rgb = rgb.resize((edge, edge), Image.Resampling.LANCZOS)
        return np.asarray(rgb)


def uniform(*key: int) -> float:
    """Return a number in [0, 1) that depends on nothing but `key`: seed, epoch, record, ..."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53


def check_frames(split: ClipSplit, edge: int, frames: int) -> None:
    """Check that the stored frames serve a model of this edge (pixels) and number of frames.

    Raises:
      UserError: they are smaller, or fewer a clip.
    """
    for part in split.parts:
        if part.image_size < edge:
            raise UserError(
                f"the frames of {part.data_dir} are {part.image_size} pixels wide, the model takes "
                f"{edge}; they are never enlarged: prepare again with --image_size={edge}"
            )
        if part.frames < frames:
            raise UserError(
                f"{part.data_dir} was prepared with {part.frames} frames a clip, "
                f"config.data.frames is {frames}; set it to {part.frames} or less, or prepare "
                f"again with --frames={frames}"
            )


def padded(ids: np.ndarray, length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int32[length] ids, padded on the right, and bool[length], True for the real ones."""
    if len(ids) > length:
        raise ValueError(f"{len(ids)} tokens do not fit into {length}")
    padded = np.full(length, pad_id, np.int32)
    padded[: len(ids)] = ids
    return padded, np.arange(length) < len(ids)
