"""Validation clips that prove an export: embedded by JAX and by the library, recall of both.

Their frames go to the library in a temporary file and never into the export, which keeps our
embeddings and the records' numbers alone.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from vtalign_jax.array_types import Identity
from vtalign_jax.config import DataConfig, resolve
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.retrieval import retrieval_metrics
from vtalign_jax.interop.certificate import held_out_facts
from vtalign_jax.interop.embedding_files import read_settings
from vtalign_jax.pipeline.clip_cache import DecodedClip
from vtalign_jax.pipeline.dataset import ClipSplit, open_split
from vtalign_jax.pipeline.texts import evaluation_identity, with_parent
from vtalign_jax.pipeline.transforms import decode_clip

_RECALLS = ("recall@1", "recall@5")


class HeldOut(NamedTuple):
    """Some clips of a validation split.

    Attributes:
      facts: where they are from: `dataset`, `split`, `fingerprint`, `records`.
      clips: N of them, frames uint8[H, W, 3] at the model's size.
      texts: as an evaluation shows them.
      identity: N rows.
      rotate: degrees counter-clockwise that the model turns frames by.
    """

    facts: dict[str, Any]
    clips: list[DecodedClip]
    texts: list[str]
    identity: Identity
    rotate: int

    def pictures(self) -> tuple[list[list[np.ndarray]], list[np.ndarray], list[float]]:
        """Return what `Aligner.encode_clips` takes: pictures, masks and windows."""
        pictures, masks = [], []
        for clip in self.clips:
            mask = np.zeros(clip.sampled_frames, bool)
            mask[list(clip.numbers)] = True
            shown = iter(self._turned_back(clip))
            empty = np.zeros_like(clip.frames[0])
            pictures.append([next(shown) if is_shown else empty for is_shown in mask])
            masks.append(mask)
        return pictures, masks, [clip.window_seconds for clip in self.clips]

    def write(self, folder: Path) -> None:
        """Write `clips.json` and `clips.safetensors`, which the library's side embeds."""
        frames = {f"clip_{i}": np.stack(self._turned_back(x)) for i, x in enumerate(self.clips)}
        save_file(frames, folder / "clips.safetensors")
        values = {
            "texts": self.texts,
            "windows": [clip.window_seconds for clip in self.clips],
            "times": [
                [round((k + 0.5) * x.window_seconds / x.sampled_frames, 6) for k in x.numbers]
                for x in self.clips
            ],
        }
        (folder / "clips.json").write_text(json.dumps(values))

    def recall(self, z_video: np.ndarray, z_text: np.ndarray) -> dict[str, float]:
        """Return recall@1 and recall@5 among these clips and texts alone."""
        found = retrieval_metrics(z_video, z_text, self.identity)
        return {name: found[name] for name in _RECALLS}

    def _turned_back(self, clip: DecodedClip) -> list[np.ndarray]:
        """Return the stored frames as they were before `prepare` turned them."""
        return [np.ascontiguousarray(np.rot90(x, -self.rotate // 90)) for x in clip.frames]


def read_held_out(
    data: DataConfig,
    image_size: int,
    most: int,
    rotate: int,
    records: list[int] | None = None,
    fingerprint: str = "",
) -> HeldOut:
    """Return clips evenly spread over a validation split.

    Args:
      data: `dir` and `val_split` say which, the rest how clips and texts are shown.
      image_size: of the model, pixels.
      most: how many.
      rotate: see `HeldOut`.
      records: those of an earlier proof, instead of `most`.
      fingerprint: of the dataset then.

    Raises:
      UserError: no such dataset, or a record that cannot be read.
    """
    split = open_split(data.dir, data.val_split)
    if fingerprint and split.fingerprint != fingerprint:
        raise UserError(
            f"{data.dir} is not the dataset that was exported with (fingerprint {fingerprint}, "
            f"here {split.fingerprint}); name that one with --dataset, or none"
        )
    if records is None:
        records = sorted({round(x) for x in np.linspace(0, len(split) - 1, most)})
    clips = [_read(split, index, min(data.frames, split.frames), image_size) for index in records]
    texts = [
        with_parent(data.parent_text, x.parent_text, x.text) if data.eval_parent_text else x.text
        for x in clips
    ]
    whole = evaluation_identity(split, data)
    identity = Identity(*(np.asarray(rows)[records] for rows in whole))
    facts = {
        "dataset": data.dir,
        "split": split.name,
        "fingerprint": split.fingerprint,
        "records": records,
    }
    return HeldOut(facts, clips, texts, identity, rotate)


def read_again(folder: Path, dataset: str = "") -> HeldOut:
    """Return the clips that an export's certificate was made with.

    Args:
      folder: the export.
      dataset: where they are now, if not where they were.

    Raises:
      UserError: it is another dataset.
    """
    facts, settings = held_out_facts(folder), read_settings(folder)
    data = dataclasses.replace(
        resolve(settings["config"]).data, dir=dataset or facts["dataset"], val_split=facts["split"]
    )
    size, rotate = settings["image_size"], settings["rotate"]
    return read_held_out(data, size, 0, rotate, facts["records"], facts["fingerprint"])


def _read(split: ClipSplit, index: int, frames: int, image_size: int) -> DecodedClip:
    record, (part, _) = split.record(index), split.part_of(index)
    if part.image_size < image_size:
        raise UserError(
            f"the frames of {part.data_dir} are {part.image_size} pixels wide, the model takes "
            f"{image_size}; prepare again with --image_size={image_size}"
        )
    try:
        return decode_clip(record, part.frames, frames, part.image_size, image_size)
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises
        raise UserError(
            f"cannot decode the frames of clip {record.clip_id} ({error}); prepare {split.name} "
            "again"
        ) from error
