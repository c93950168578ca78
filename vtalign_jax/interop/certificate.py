"""The proof in an export: fixed clips and texts and our embeddings, compared in PyTorch.

It is measured on the files as written, by `torch_scripts/check.py` in a subprocess, so that no JAX
process imports torch; elsewhere through `launch/export.py --verify=DIR`.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import save_file

from vtalign_jax.errors import UserError
from vtalign_jax.interop.forms import FORMS, PEFT, SETTINGS, Form

INPUTS, TENSORS = "certificate.json", "certificate.safetensors"
MIN_COSINE = 0.9999  # float32 on both sides
_LIBRARIES = ("torch", "transformers", "peft", "sentence-transformers")  # as results name them
_SIZES = ((96, 128), (120, 90), (64, 64))  # height, width: wide, tall, square
_TEXTS = (
    "attach wheel to chassis",
    "detach the second wheel",
    "Schraube Nr. 3 lösen, then turn  it over",
    "pick up the part and " * 40,  # longer than most max_text_tokens
)
# Prompts and answers whose loss is compared, some after a clip of the certificate.
_LANGUAGE = (
    (
        None,
        "How do you change the tyre of a bicycle?",
        "Take the wheel off, then the tyre.",
    ),
    (None, "Name three tools for working with wood.", "A saw, a hammer and a chisel."),
    (None, "What comes after tightening the last screw?", "Check that all parts hold."),
    (0, "Describe the video.", "Coloured squares move slowly to the right."),
    (1, "What is happening?", "A picture made of squares slides sideways."),
)


class Embeds(Protocol):
    """What the reference is made with: an `Aligner` that computes in float32."""

    def encode_clips(
        self, frames: np.ndarray, frame_mask: np.ndarray | None, window_seconds: float
    ) -> np.ndarray: ...

    def encode_texts(self, texts: list[str]) -> np.ndarray: ...


class CheckFailed(Exception):
    """The comparison could not run; the message is the last line of PyTorch's side."""


def write_reference(folder: Path, aligner: Embeds, frames: int, window_seconds: float) -> None:
    """Write the fixed clips and texts and our embeddings of them.

    Args:
      folder: the export.
      aligner: embeds in float32.
      frames: of a whole clip; the last clip has only half of them.
      window_seconds: of a clip; the last one's is longer by half.
    """
    clips = [_clip(i, frames, size) for i, size in enumerate(_SIZES)]
    masks = [np.ones(frames, bool) for _ in clips]
    masks[-1][1::2] = False
    windows = [window_seconds] * (len(clips) - 1) + [1.5 * window_seconds]
    embeddings = [
        aligner.encode_clips(clip[None], mask[None], window)
        for clip, mask, window in zip(clips, masks, windows, strict=True)
    ]
    shown_at = (np.arange(frames) + 0.5) / frames  # of a window
    inputs = {
        "texts": list(_TEXTS),
        "times": [
            np.round(shown_at[mask] * window, 6).tolist()
            for mask, window in zip(masks, windows, strict=True)
        ],
        "windows": windows,
        "language": [
            {"clip": clip, "prompt": prompt, "answer": answer} for clip, prompt, answer in _LANGUAGE
        ],
        "results": [],
    }
    shown = [clip[mask] for clip, mask in zip(clips, masks, strict=True)]
    tensors = {f"clip_{i}": clip for i, clip in enumerate(shown)}
    tensors["z_video"] = np.concatenate(embeddings)
    tensors["z_text"] = np.asarray(aligner.encode_texts(list(_TEXTS)))
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / TENSORS)
    (folder / INPUTS).write_text(json.dumps(inputs, indent=1))


def missing_packages(needs: tuple[str, ...]) -> list[str]:
    """Return which of the packages that a verification needs are not installed here."""
    return [name for name in needs if importlib.util.find_spec(name) is None]


def form_of(folder: Path) -> Form:
    """Return the form of an export; those of before there were several do not name theirs."""
    return FORMS[json.loads((folder / SETTINGS).read_text()).get("form", PEFT)]


def verify(folder: Path, base: str | None = None) -> dict[str, Any]:
    """Compare in a subprocess, keep the figures in `certificate.json` and return them.

    Args:
      folder: an export.
      base: directory or hub id of the base model; None takes the one that the export names.

    Raises:
      UserError: not an export, or packages are missing.
      CheckFailed: PyTorch's side raised.
    """
    if not (folder / INPUTS).exists():
        raise UserError(f"{folder} is not an export of launch/export.py (no {INPUTS} in it)")
    form = form_of(folder)
    if missing := missing_packages(form.needs):
        raise UserError(f"verifying needs {', '.join(missing)}; pip install {' '.join(missing)}")
    command = [sys.executable, str(form.check), str(folder), *([f"--base={base}"] if base else [])]
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise CheckFailed(said[-1])
    result = json.loads(done.stdout.strip().splitlines()[-1])
    record(folder, result)
    return result


def record(folder: Path, result: dict[str, Any]) -> None:
    """Keep a result in `certificate.json`, in place of an earlier one with the same libraries."""
    inputs = json.loads((folder / INPUTS).read_text())
    others = [r for r in inputs["results"] if _libraries(r) != _libraries(result)]
    inputs["results"] = [*others, result]
    (folder / INPUTS).write_text(json.dumps(inputs, indent=1))


def results(folder: Path) -> list[dict[str, Any]]:
    """Return the figures measured so far, one for each set of library versions."""
    return json.loads((folder / INPUTS).read_text())["results"]


def is_passed(result: dict[str, Any]) -> bool:
    """Return whether nothing was lost and every cosine reaches `MIN_COSINE`."""
    is_whole = not result["missing"] and not result["unexpected"]
    return is_whole and min(result["cosine_video"], result["cosine_text"]) >= MIN_COSINE


def describe(result: dict[str, Any]) -> str:
    """Return one line for a terminal."""
    lost = "".join(f", {len(result[k])} {k} keys" for k in ("missing", "unexpected") if result[k])
    return (
        f"{libraries(result)}: "
        f"lowest cosine {result['cosine_video']:.7f} (clips) {result['cosine_text']:.7f} (texts), "
        f"largest error {max(result['max_error_video'], result['max_error_text']):.1e}{lost}"
    )


def libraries(result: dict[str, Any]) -> str:
    """Return the versions that a result was measured with, the form's own library first."""
    names = [name for name in reversed(_LIBRARIES) if name in result]
    return ", ".join(f"{name} {result[name]}" for name in names)


def _libraries(result: dict[str, Any]) -> tuple[str, ...]:
    return tuple(result.get(name, "") for name in _LIBRARIES)


def _clip(seed: int, frames: int, size: tuple[int, int]) -> np.ndarray:
    """Return uint8[F, H, W, 3]: a mosaic that slides to the right."""
    height, width = size
    mosaic = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    rows, columns = np.arange(height) * 6 // height, np.arange(width) * 8 // width
    picture = mosaic[rows][:, columns]
    return np.stack([np.roll(picture, 5 * k, axis=1) for k in range(frames)])
