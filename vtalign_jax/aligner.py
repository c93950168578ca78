"""Embeddings of clips and texts with a trained model, outside the training loop."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vtalign_jax import sharding
from vtalign_jax.config import MeshConfig
from vtalign_jax.dst.images import make_square
from vtalign_jax.errors import UserError
from vtalign_jax.interop.tokens import ClipTokenizer
from vtalign_jax.models.aligner import AlignerModel
from vtalign_jax.pipeline.sampling import whole_seconds
from vtalign_jax.training.assemble import assemble, load
from vtalign_jax.training.trained import Trained, load_trained

_MAX_ROWS = 16  # embedded at once; smaller inputs are padded to a power of two
_TEXT_STEP = 16  # texts are padded to a multiple of this many tokens


class Aligner:
    """Base, adapters and head on one device.

    Attributes:
      trained: where it comes from, and its configuration.
      temperature: tau; `z_video @ z_text.T / temperature` are the logits of training.
    """

    def __init__(self, trained: Trained, dtype: str = ""):
        """Load the base and put the trained leaves in their places.

        Args:
          trained: of `load_trained`.
          dtype: "float32" or "bfloat16" for storage and products; by default as in training.

        Raises:
          UserError: the base's tensors do not fit.
        """
        if dtype not in ("", "float32", "bfloat16"):
            raise UserError(f"dtype must be float32 or bfloat16, got {dtype!r}")
        model = dataclasses.replace(trained.config.model, remat=False)
        if dtype:
            model = dataclasses.replace(model, compute_dtype=dtype, frozen_dtype=dtype)
        config = dataclasses.replace(trained.config, model=model)
        assembly = assemble(config)
        _, frozen = load(assembly, sharding.make_mesh(MeshConfig(1, 1), jax.local_devices()[:1]))
        self.trained = trained
        self._params = frozen | {path: jnp.asarray(x) for path, x in trained.params.items()}
        self._tokenizer = ClipTokenizer(assembly.directory)
        self._most_text_tokens = config.data.max_text_tokens
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
    def load(cls, path: str | Path, base: str = "", dtype: str = "") -> "Aligner":
        """Return the aligner of a workdir (its best checkpoint), a checkpoint or an export.

        Args:
          path: of it.
          base: directory or hub id of the base model, if it is not where it was in training.
          dtype: "float32" or "bfloat16"; by default as in training.

        Raises:
          UserError: nothing of the kind is there, or it does not fit its base model.
        """
        return cls(load_trained(path, base), dtype)

    def encode_clips(
        self,
        frames: np.ndarray,
        frame_mask: np.ndarray | None = None,
        window_seconds: float | Sequence[float] | None = None,
    ) -> np.ndarray:
        """Return the embeddings of clips.

        Args:
          frames: uint8[B, F, H, W, 3] of any size, evenly spread over the window: frame k of F is
            shown at (k + 0.5) / F of it. Squeezed to the model's square as in training.
          frame_mask: bool[B, F], at least one True a row; None for all frames. A frame left out
            does not move the times of the others.
          window_seconds: length of the clips, or of each one; None for that of the clips trained on
            (4 by default; their median, where `prepare --strategy` made windows of many lengths).

        Returns:
          float32[B, E], unit norm.

        Raises:
          UserError: an array of another shape or dtype, or a length that is not above 0.
        """
        frames, mask = _checked_clips(frames, frame_mask)
        windows = self._checked_windows(window_seconds, len(frames))
        count = frames.shape[1]
        if not len(frames):
            return self._none()
        ids = [
            self._tokenizer.encode_clip(whole_seconds(np.flatnonzero(row), window, count), window)
            for row, window in zip(mask, windows, strict=True)
        ]
        length = self._tokenizer.max_clip_tokens(count, max(windows))
        size = self._tokenizer.image_size
        pixels = np.zeros((len(frames), count, size, size, 3), np.uint8)
        for row, clip, valid in zip(pixels, frames, mask, strict=True):
            for place, frame in zip(row, clip[valid], strict=False):  # valid frames first
                place[...] = make_square(Image.fromarray(frame), size, "square", 0)
        return self._embed(self._clips, *_padded(ids, length, self._tokenizer.pad_id), pixels)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return the embeddings of texts: float32[B, E], unit norm.

        A text longer than the run's `data.max_text_tokens` is cut, as in training.
        """
        if isinstance(texts, str):
            raise UserError("encode_texts takes a list of texts, got one string; put it in a list")
        if not len(texts):
            return self._none()
        ids = [self._tokenizer.encode_text(text, self._most_text_tokens) for text in texts]
        length = -(-max(map(len, ids)) // _TEXT_STEP) * _TEXT_STEP
        return self._embed(self._texts, *_padded(ids, length, self._tokenizer.pad_id))

    def _checked_windows(self, given: float | Sequence[float] | None, clips: int) -> list[float]:
        """Return the length of each clip's window, in seconds."""
        lengths = np.asarray(self.trained.facts["window_seconds"] if given is None else given)
        if lengths.ndim and lengths.shape != (clips,):
            raise UserError(f"window_seconds are {list(lengths.shape)}, there are {clips} clips")
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise UserError(f"window_seconds must be above 0, got {given}")
        return np.broadcast_to(lengths, clips).tolist()

    def _embed(self, function: Callable, *arrays: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(arrays[0]), _MAX_ROWS):
            rows = [array[start : start + _MAX_ROWS] for array in arrays]
            count = len(rows[0])
            # The last row is repeated: a row of zeros would have no valid token.
            index = np.minimum(np.arange(1 << (count - 1).bit_length()), count - 1)
            with jax.default_matmul_precision(self._precision):
                embedded = function(self._params, *(array[index] for array in rows))
            parts.append(np.asarray(embedded)[:count])
        return np.concatenate(parts)

    def _none(self) -> np.ndarray:
        return np.zeros((0, self.trained.config.model.embedding_dim), np.float32)


def _checked_clips(
    frames: np.ndarray, frame_mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[-1] != 3:
        raise UserError(
            f"frames are {frames.dtype}{list(frames.shape)}, they must be uint8[B, F, H, W, 3]"
        )
    mask = np.ones(frames.shape[:2], bool) if frame_mask is None else np.asarray(frame_mask, bool)
    if mask.shape != frames.shape[:2]:
        raise UserError(f"frame_mask is {list(mask.shape)}, frames are {list(frames.shape)}")
    if not mask.any(axis=1).all():
        raise UserError(f"clip {int(np.argmin(mask.any(axis=1)))} has no valid frame")
    return frames, mask


def _padded(rows: list[np.ndarray], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = True
    return ids, mask
