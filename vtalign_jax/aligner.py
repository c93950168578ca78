"""Embeddings of clips and texts with a trained model, outside the training loop."""

import dataclasses
import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vtalign_jax import sharding
from vtalign_jax.clips import Clip, Pictures, Span, Square, check_clips, check_spans, read_spans
from vtalign_jax.config import MeshConfig
from vtalign_jax.dst.images import FITS, ROTATIONS
from vtalign_jax.errors import UserError
from vtalign_jax.interop.tokens import ClipTokenizer
from vtalign_jax.models.aligner import AlignerModel
from vtalign_jax.pipeline.sampling import whole_seconds
from vtalign_jax.training.assemble import assemble, load_frozen
from vtalign_jax.training.trained import Trained, load_trained

# Shapes are few, because each is compiled once: rows come in pieces of these sizes (nothing is
# padded to them), and what a row holds is padded to a bucket.
_PIECES = (16, 4, 1)
_MOST_FRAMES = 128  # of a piece; longer clips go by fewer at a time
_SHORTEST_TEXT = 32  # tokens; the next buckets are 4 times as long each
_WINDOWS = (59, 599, 3599)  # seconds; a clip's tokens are padded to the longest turn below one
_TOKEN_STEP = 16  # to whose multiple


class _Row(NamedTuple):
    """One input of the model.

    Attributes:
      ids: int32[n].
      tokens: to pad the ids to.
      frames: of a clip, uint8[H, W, 3] each.
      slots: frames to pad the clip to; 0 for a text.
    """

    ids: np.ndarray
    tokens: int
    frames: list[np.ndarray]
    slots: int


class Aligner:
    """Base, adapters and head on one device.

    Attributes:
      trained: where it comes from, and its configuration.
      temperature: tau; `z_video @ z_text.T / temperature` are the logits of training.
      square: how pictures are made the model's.
    """

    def __init__(
        self, trained: Trained, dtype: str = "", *, fit: str = "", rotate: int | None = None
    ):
        """Load the base and put the trained leaves in their places.

        Args:
          trained: of `load_trained`.
          dtype: see `load`.
          fit: see `load`.
          rotate: see `load`.

        Raises:
          UserError: the base's tensors do not fit, or an argument is none of its choices.
        """
        for name, value, allowed in (
            ("dtype", dtype, ("", "float32", "bfloat16")),
            ("fit", fit, ("", *FITS)),
            ("rotate", rotate, (None, *ROTATIONS)),
        ):
            if value not in allowed:
                choices = ", ".join(str(choice) for choice in allowed if choice not in ("", None))
                raise UserError(f"{name} is one of {choices}, got {value!r}")
        model = dataclasses.replace(trained.config.model, remat="none")
        if dtype:
            model = dataclasses.replace(model, compute_dtype=dtype, frozen_dtype=dtype)
        config = dataclasses.replace(trained.config, model=model)
        assembly = assemble(config)
        mesh = sharding.make_mesh(MeshConfig(1, 1), jax.local_devices()[:1])
        frozen = load_frozen(assembly, mesh)
        self.trained = trained
        self._params = frozen | {path: jnp.asarray(x) for path, x in trained.params.items()}
        self._tokenizer = ClipTokenizer(assembly.directory)
        self.square = Square(
            self._tokenizer.image_size,
            fit or trained.facts["fit"],
            trained.facts["rotate"] if rotate is None else rotate,
        )
        # A TPU's default float32 product is one bfloat16 pass.
        self._precision = "highest" if model.compute_dtype == "float32" else "default"
        bind = assembly.bind

        def clips(model: AlignerModel, ids: jax.Array, mask: jax.Array, frames: jax.Array):
            return model.project_clips(model.pooled_clips(ids, mask, frames))

        def texts(model: AlignerModel, ids: jax.Array, mask: jax.Array):
            return model.project_texts(model.pooled_texts(ids, mask))

        self._clips = jax.jit(lambda params, *rows: clips(bind(params), *rows))
        self._texts = jax.jit(lambda params, *rows: texts(bind(params), *rows))
        self.temperature = float(bind(self._params).temperature())

    @classmethod
    def load(
        cls,
        path: str | Path,
        base: str = "",
        dtype: str = "",
        *,
        fit: str = "",
        rotate: int | None = None,
    ) -> "Aligner":
        """Return the aligner of a workdir (its best checkpoint), a checkpoint or an export.

        Args:
          path: of it.
          base: directory or hub id of the base model, if it is not where it was in training.
          dtype: "float32" or "bfloat16" for storage and products; by default as in training.
          fit: "square" squeezes frames to the model's square, "center_crop" cuts it out of their
            middle; by default as `prepare` did for the clips trained on.
          rotate: degrees counter-clockwise that frames are turned by first; by default likewise.
            For frames that stand upright already, 0.

        Raises:
          UserError: nothing of the kind is there, or it does not fit its base model.
        """
        return cls(load_trained(path, base), dtype, fit=fit, rotate=rotate)

    def encode_clips(
        self,
        frames: np.ndarray | Sequence[Pictures],
        frame_mask: np.ndarray | Sequence[Sequence[bool]] | None = None,
        window_seconds: float | Sequence[float] | None = None,
    ) -> np.ndarray:
        """Return the embeddings of clips.

        Args:
          frames: uint8[B, F, H, W, 3] of any size; or a list of clips, each a list of pictures (PIL
            images, or uint8[H, W, 3]) of any number and sizes. Evenly spread over the window: frame
            k of F is shown at (k + 0.5) / F of it. They are made square as in training, see `load`.
          frame_mask: bool[B, F], or a row for each clip; at least one True a row, None for all
            frames. A frame left out does not move the times of the others.
          window_seconds: length of the clips, or of each one; None for that of the clips trained on
            (4 by default; their median, where `prepare --strategy` made windows of many lengths).

        Returns:
          float32[B, E], unit norm.

        Raises:
          UserError: arrays or pictures of another form, or a length that is not above 0.
        """
        windows = self.trained.facts["window_seconds"] if window_seconds is None else window_seconds
        given = enumerate(check_clips(frames, frame_mask, windows))
        rows = ((place, self._clip_row(clip.squared(self.square))) for place, clip in given)
        return self._embed(self._clips, rows)

    def encode_videos(self, spans: Sequence[Span], frames: int | None = None) -> np.ndarray:
        """Return the embeddings of spans of video files.

        Args:
          spans: (path, start, end) each, in seconds from the video's first frame. Each is a clip
            whose window it is; frames are taken from where `prepare` takes them, and those that lie
            before the start or after the end of the video are left out.
          frames: of a clip; by default as in training.

        Returns:
          float32[B, E], unit norm, in the order of `spans`.

        Raises:
          UserError: a file that cannot be read, or a span without a frame or with a damaged one.
        """
        count = self.trained.config.data.frames if frames is None else frames
        if not isinstance(count, numbers.Integral) or count < 1:
            raise UserError(f"frames must be 1 or more, a whole number, got {frames!r}")
        check_spans(spans)
        return self.encode_squares(read_spans(spans, count, self.square))

    def encode_squares(
        self, clips: Iterable[tuple[int, Clip]], *, is_padded: bool = False
    ) -> np.ndarray:
        """Return the embeddings of clips that come one by one, of squares that are made already.

        The next clips are made while earlier ones are embedded, and few are held at a time.

        Args:
          clips: (place, clip) in any order; the places are 0 to B - 1, once each.
          is_padded: fill the last rows of a kind up to a full piece: for many clips, of which the
            one shape is compiled then, not three.

        Returns:
          float32[B, E], unit norm, in the order of the places.
        """
        rows = ((place, self._clip_row(clip)) for place, clip in clips)
        return self._embed(self._clips, rows, is_padded)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return the embeddings of texts: float32[B, E], unit norm.

        A text longer than the run's `data.max_text_tokens` is cut, as in training.

        Raises:
          UserError: one of them is no string.
        """
        if isinstance(texts, str):
            raise UserError("encode_texts takes a list of texts, got one string; put it in a list")
        if not isinstance(texts, Iterable):
            raise UserError(f"encode_texts takes a list of texts, got {type(texts).__name__}")
        texts = list(texts)
        for number, text in enumerate(texts):
            if not isinstance(text, str):  # a missing value would be embedded as "None" or "nan"
                raise UserError(f"text {number} is {text!r}, no string; give one, or leave it out")
        return self._embed(self._texts, ((n, self._text_row(text)) for n, text in enumerate(texts)))

    def _text_row(self, text: str) -> _Row:
        most = self.trained.config.data.max_text_tokens
        ids = self._tokenizer.encode_text(text, most)
        tokens = _SHORTEST_TEXT
        while tokens < len(ids):
            tokens *= 4
        return _Row(ids, min(tokens, max(most, len(ids))), [], 0)

    def _clip_row(self, clip: Clip) -> _Row:
        seconds = whole_seconds(clip.numbers, clip.seconds, clip.sampled)
        ids = self._tokenizer.encode_clip(seconds, clip.seconds)
        slots = 1
        if len(clip.frames) > 1:
            slots = self.trained.config.data.frames
            while slots < len(clip.frames):
                slots *= 2
        window = next((most for most in _WINDOWS if clip.seconds <= most), clip.seconds)
        tokens = self._tokenizer.max_clip_tokens(slots, window)
        return _Row(ids, -(-tokens // _TOKEN_STEP) * _TOKEN_STEP, clip.frames, slots)

    def _embed(
        self, function: Callable, rows: Iterable[tuple[int, _Row]], is_padded: bool = False
    ) -> np.ndarray:
        """Return the embeddings of rows in the order of their places."""
        found: dict[int, np.ndarray] = {}
        running: list[tuple[Sequence[int], jax.Array]] = []  # while the next rows are made

        def fetch() -> None:
            places, embedded = running.pop(0)
            found.update(zip(places, np.asarray(embedded), strict=True))

        for places, piece in _pieces(rows, is_padded):
            with jax.default_matmul_precision(self._precision):
                running.append((places, function(self._params, *self._stack(piece))))
            if len(running) > 1:
                fetch()
        while running:
            fetch()
        if not found:
            return np.zeros((0, self.trained.config.model.embedding_dim), np.float32)
        return np.stack([found[place] for place in range(len(found))])

    def _stack(self, rows: Sequence[_Row]) -> tuple[np.ndarray, ...]:
        """Return ids int32[n, S], mask bool[n, S] and, of clips, frames uint8[n, F, H, W, 3]."""
        tokens, slots = rows[0].tokens, rows[0].slots
        ids = np.full((len(rows), tokens), self._tokenizer.pad_id, np.int32)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = row.ids
        mask = np.arange(tokens) < np.array([[len(row.ids)] for row in rows])
        if not slots:
            return ids, mask
        size = self._tokenizer.image_size
        frames = np.zeros((len(rows), slots, size, size, 3), np.uint8)
        for i, row in enumerate(rows):
            frames[i, : len(row.frames)] = row.frames
        return ids, mask, frames


def _pieces(
    rows: Iterable[tuple[int, _Row]], is_padded: bool
) -> Iterator[tuple[tuple[int, ...], tuple[_Row, ...]]]:
    """Yield (places, rows) of one bucket and of one of the sizes of `_PIECES`.

    Args:
      rows: (place, row).
      is_padded: repeat the last row of a bucket, at its own place, until the piece is full.
    """
    waiting: dict[tuple[int, int], list[tuple[int, _Row]]] = {}
    for place, row in rows:
        bucket = waiting.setdefault((row.tokens, row.slots), [])
        bucket.append((place, row))
        if len(bucket) == _sizes(row.slots)[0]:
            yield tuple(zip(*bucket, strict=True))
            bucket.clear()
    for (_, slots), bucket in waiting.items():
        if bucket and is_padded:
            bucket += [bucket[-1]] * (_sizes(slots)[0] - len(bucket))
        for size in _sizes(slots):
            while len(bucket) >= size:
                yield tuple(zip(*bucket[:size], strict=True))
                del bucket[:size]


def _sizes(slots: int) -> list[int]:
    return [size for size in _PIECES if size == 1 or size * slots <= _MOST_FRAMES]
