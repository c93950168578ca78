"""From a stored record to the rows of a batch: frames decoded and shrunk, clip and text as tokens.

Frames stay uint8; they are normalised on the device. The tokens come from the checkpoint's own
tokenizer (`interop.tokens.ClipTokenizer`), which is passed in.
"""

import functools
import hashlib
import io
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from vtalign_jax.array_types import Array
from vtalign_jax.config import Config
from vtalign_jax.errors import UserError
from vtalign_jax.pipeline.dataset import ClipCache, ClipSplit, DecodedClip, Record
from vtalign_jax.pipeline.order import PADDING


class Tokenizer(Protocol):
    """What the pipeline asks of `interop.tokens.ClipTokenizer`; picklable."""

    image_size: int
    pad_id: int

    def encode_clip(self, frame_times: list[float], window_seconds: float) -> np.ndarray: ...

    def encode_text(self, text: str, max_tokens: int | None) -> np.ndarray: ...

    def max_clip_tokens(self, frames: int, window_seconds: float) -> int: ...


class Row(NamedTuple):
    """One row of a `Batch` but its identity; or several, stacked."""

    frames: Array
    frame_mask: Array
    clip_ids: Array
    clip_mask: Array
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
        parent_text_probability: float,
    ) -> None:
        """Check that dataset, model and configuration fit together.

        Args:
          split: where the records are.
          tokenizer: the model's.
          config: of the run.
          clip_cache: keeps decoded clips.
          parent_text_probability: 0 outside training.

        Raises:
          UserError: stored frames smaller than the model's, another number of frames a clip, no
            room for a text, or a parent template with an unknown field.
        """
        data = config.data
        if split.image_size < tokenizer.image_size:
            raise UserError(
                f"the frames of {data.dir} are {split.image_size} pixels wide, the model takes "
                f"{tokenizer.image_size}; they are never enlarged: prepare again with "
                f"--image_size={tokenizer.image_size}"
            )
        if split.frames != data.frames:
            raise UserError(
                f"{data.dir} was prepared with {split.frames} frames a clip, config.data.frames is "
                f"{data.frames}; set it to {split.frames} or prepare again with "
                f"--frames={data.frames}"
            )
        _with_parent(data.parent_text, "parent", "name")
        try:
            tokenizer.encode_text("", data.max_text_tokens)
        except ValueError as error:
            raise UserError(f"config.data.max_text_tokens is too small: {error}") from error
        self._split = split
        self._tokenizer = tokenizer
        self._clip_cache = clip_cache
        self._frames = data.frames
        self._text_tokens = data.max_text_tokens
        self._clip_tokens = tokenizer.max_clip_tokens(data.frames, split.window_seconds)
        self._seed = config.train.seed
        self._template = data.parent_text
        self._parent_text_probability = parent_text_probability
        self._memoise()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_clip_row": None, "_text_row": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._memoise()

    def _memoise(self) -> None:
        """Prompts repeat: few patterns of whole seconds, and the same texts every epoch."""
        self._clip_row = functools.lru_cache(4096)(self._tokenised_clip)
        self._text_row = functools.lru_cache(65536)(self._tokenised_text)

    def __call__(self, epoch: int, index: int) -> Row:
        """Return the row of a record, or a padding row for `PADDING`.

        Raises:
          UserError: the record cannot be read or decoded.
        """
        if index == PADDING:
            return self._padding
        clip = self._clip(index)
        frame_mask = np.arange(self._frames) < clip.num_frames
        text = self._text(clip, epoch, index)
        return Row(clip.frames, frame_mask, *self._clip_row(clip.seconds), *self._text_row(text))

    @functools.cached_property
    def _padding(self) -> Row:
        """A row of zeros; its token masks keep one position, so that no softmax sees none."""
        edge = self._tokenizer.image_size
        empty = np.zeros(0, np.int32)
        clip_ids, clip_mask = _padded(empty, self._clip_tokens, self._tokenizer.pad_id)
        text_ids, text_mask = _padded(empty, self._text_tokens, self._tokenizer.pad_id)
        clip_mask[0] = text_mask[0] = True
        frames = np.zeros((self._frames, edge, edge, 3), np.uint8)
        return Row(frames, np.zeros(self._frames, bool), clip_ids, clip_mask, text_ids, text_mask)

    def _clip(self, index: int) -> DecodedClip:
        edge = self._tokenizer.image_size
        clip = self._clip_cache.get(index, edge)
        if clip is None:
            record = self._split.record(index)
            try:
                frames = decode_frames(record, self._frames, self._split.image_size, edge)
            except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises
                raise UserError(
                    f"cannot decode the frames of clip {record.clip_id} in "
                    f"{self._split.file(index)}: {error}; prepare the dataset again"
                ) from error
            seconds = whole_seconds(record, self._split.window_seconds)
            clip = DecodedClip(frames, len(record.frames), seconds, record.text, record.parent_text)
            self._clip_cache.offer(index, edge, clip)
        return clip

    def _text(self, clip: DecodedClip, epoch: int, index: int) -> str:
        if not clip.parent_text or not self._parent_text_probability:
            return clip.text
        if uniform(self._seed, epoch, index) >= self._parent_text_probability:
            return clip.text
        return _with_parent(self._template, clip.parent_text, clip.text)

    def _tokenised_clip(self, seconds: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        ids = self._tokenizer.encode_clip(list(seconds), self._split.window_seconds)
        return _padded(ids, self._clip_tokens, self._tokenizer.pad_id)

    def _tokenised_text(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids = self._tokenizer.encode_text(text, self._text_tokens)
        return _padded(ids, self._text_tokens, self._tokenizer.pad_id)


def decode_frames(record: Record, frames: int, stored_edge: int, edge: int) -> np.ndarray:
    """Return uint8[F, H, W, 3], the record's frames first, zeros after them.

    Args:
      record: as stored.
      frames: F.
      stored_edge: pixels, what every stored frame must measure.
      edge: pixels, H and W; smaller than `stored_edge` shrinks by LANCZOS, as SmolVLM's processor.

    Raises:
      ValueError, OSError, SyntaxError: a frame is no JPEG, cut off or of another size, or the
        number of frames is not between 1 and F.
    """
    if not 1 <= len(record.frames) <= frames or len(record.frames) != len(record.frame_times):
        raise ValueError(
            f"{len(record.frames)} frames with {len(record.frame_times)} times, of at most {frames}"
        )
    decoded = np.zeros((frames, edge, edge, 3), np.uint8)
    for row, encoded in zip(decoded, record.frames, strict=False):
        with Image.open(io.BytesIO(encoded), formats=("JPEG",)) as image:
            if image.size != (stored_edge, stored_edge):
                raise ValueError(f"a frame measures {image.size}, not {(stored_edge, stored_edge)}")
            rgb = image if image.mode == "RGB" else image.convert("RGB")
            if stored_edge != edge:
                rgb = rgb.resize((edge, edge), Image.Resampling.LANCZOS)
            row[...] = np.asarray(rgb)
    return decoded


def whole_seconds(record: Record, window_seconds: float) -> tuple[int, ...]:
    """Return each frame's time since the window's start, in whole seconds.

    Whole seconds are all that SmolVLM's prompt shows of a time ("Frame from 00:02:", its processor
    truncates). Rounding to hundredths first keeps a clip's prompt the same wherever in the video it
    lies: TFDS stores floats in 32 bits, which hours into a video is off by milliseconds, and 1 s
    would become 0. A frame shown at the window's start may have appeared before it, hence the
    limits.
    """
    since_start = np.round(np.subtract(record.frame_times, record.window_start), 2)
    return tuple(np.clip(since_start, 0.0, window_seconds).astype(int).tolist())


def uniform(seed: int, epoch: int, index: int) -> float:
    """Return a number in [0, 1) that depends on nothing but seed, epoch and record."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53


def _with_parent(template: str, parent: str, name: str) -> str:
    try:
        return template.format(parent=parent, name=name)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise UserError(
            f"config.data.parent_text {template!r} may hold {{parent}} and {{name}} alone ({error})"
        ) from error


def _padded(ids: np.ndarray, length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int32[length] ids, padded on the right, and bool[length], True for the real ones."""
    if len(ids) > length:
        raise ValueError(f"{len(ids)} tokens do not fit into {length}")
    padded = np.full(length, pad_id, np.int32)
    padded[: len(ids)] = ids
    return padded, np.arange(length) < len(ids)
