"""The proof in an export: fixed clips and texts and our embeddings, compared in PyTorch.

It is measured on the files as written, by `torch_scripts/check.py` in a subprocess, so that no JAX
process imports torch; elsewhere through `launch/export.py --verify=DIR`.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from safetensors.numpy import load_file, save_file

from vtalign_jax.errors import UserError
from vtalign_jax.interop.base_files import base_fingerprint
from vtalign_jax.interop.embedding_files import read_settings
from vtalign_jax.interop.forms import FORMS, Form, read_json
from vtalign_jax.interop.programs import refuse_programs
from vtalign_jax.secret_words import redact

INPUTS, TENSORS = "certificate.json", "certificate.safetensors"
EMBEDDED = "embedded.safetensors"  # what a check script makes of held-out clips
MIN_COSINE = 0.9999  # float32 on both sides
MOST_LOSS_RISE = 1.1
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
        self, frames: Any, frame_mask: Any = None, window_seconds: Any = None
    ) -> np.ndarray: ...

    def encode_texts(self, texts: list[str]) -> np.ndarray: ...


class Clips(Protocol):
    """Validation clips, see `evaluation.held_out.HeldOut`."""

    facts: dict[str, Any]
    texts: list[str]

    def pictures(self) -> tuple[Any, Any, Any]: ...

    def write(self, folder: Path) -> None: ...

    def recall(self, z_video: np.ndarray, z_text: np.ndarray) -> dict[str, float]: ...


class CheckFailed(Exception):
    """The comparison could not run; the message is the last line of PyTorch's side.

    Attributes:
      is_of_base: whether a library found no base model, rather than a file that it cannot read.
    """

    def __init__(self, message: str, is_of_base: bool = False) -> None:
        super().__init__(message)
        self.is_of_base = is_of_base


class Reference(NamedTuple):
    """Fixed clips and texts.

    Attributes:
      clips: uint8[F, H, W, 3] each.
      masks: bool[F] each; the last clip has only half of its frames.
      windows: seconds; the last clip's is longer by half.
      texts: one of them longer than most `max_text_tokens`.
    """

    clips: list[np.ndarray]
    masks: list[np.ndarray]
    windows: list[float]
    texts: list[str]

    def embed(self, aligner: Embeds) -> dict[str, np.ndarray]:
        """Return `z_video` and `z_text`, float32[N, E]."""
        return {
            "z_video": aligner.encode_clips(self.clips, self.masks, self.windows),
            "z_text": aligner.encode_texts(self.texts),
        }


def make_reference(frames: int, window_seconds: float) -> Reference:
    """Return the clips and texts that every certificate is made with.

    Args:
      frames: of a whole clip.
      window_seconds: of a clip.
    """
    clips = [_clip(i, frames, size) for i, size in enumerate(_SIZES)]
    masks = [np.ones(frames, bool) for _ in clips]
    masks[-1][1::2] = False
    windows = [window_seconds] * (len(clips) - 1) + [1.5 * window_seconds]
    return Reference(clips, masks, windows, list(_TEXTS))


def write_reference(
    folder: Path,
    reference: Reference,
    embeddings: Mapping[str, np.ndarray],
    held_out: Clips | None = None,
    **facts: Any,
) -> None:
    """Write clips, texts and our embeddings of them, without any result yet.

    Args:
      folder: the export.
      reference: of `make_reference`.
      embeddings: of `Reference.embed`; with `held_out` its `held_out_video` and `held_out_text`.
      held_out: validation clips; only their facts are kept.
      facts: JSON values.
    """
    clips, masks, windows, texts = reference
    shown_at = (np.arange(len(masks[0])) + 0.5) / len(masks[0])  # of a window
    inputs = facts | {
        "texts": texts,
        "times": [
            np.round(shown_at[mask] * window, 6).tolist()
            for mask, window in zip(masks, windows, strict=True)
        ],
        "windows": windows,
        "language": [
            {"clip": clip, "prompt": prompt, "answer": answer} for clip, prompt, answer in _LANGUAGE
        ],
        "held_out": held_out and held_out.facts,
        "results": [],
    }
    shown = {f"clip_{i}": x[mask] for i, (x, mask) in enumerate(zip(clips, masks, strict=True))}
    tensors = {name: np.ascontiguousarray(x) for name, x in {**shown, **embeddings}.items()}
    save_file(tensors, folder / TENSORS)
    (folder / INPUTS).write_text(json.dumps(inputs, indent=1))


def embed_held_out(aligner: Embeds, held_out: Clips) -> dict[str, np.ndarray]:
    """Return `held_out_video` and `held_out_text`, float32[N, E]."""
    return {
        "held_out_video": aligner.encode_clips(*held_out.pictures()),
        "held_out_text": aligner.encode_texts(held_out.texts),
    }


def lowest_cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Return the lowest cosine of two rows float32[N, E] of unit norm."""
    return float(np.sum(np.multiply(one, other, dtype=np.float64), axis=1).min())


def describe_rounding(
    dtypes: tuple[str, ...],
    error: float,
    exact: Mapping[str, np.ndarray],
    rounded: Mapping[str, np.ndarray],
    computed: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Return what rounding merged weights has cost, and whether it may.

    It may cost what computing in bfloat16, as training does, costs the same clips and texts, or
    what is within `MIN_COSINE`.

    Args:
      dtypes: of the merged weights.
      error: see `merged.Rounding`.
      exact: `z_video` and `z_text` of the trained model in float32.
      rounded: those of the rounded weights in float32.
      computed: those of the trained model, computed in bfloat16.
    """
    cosines = {name: lowest_cosine(exact[name], rounded[name]) for name in exact}
    allowed = {name: min(MIN_COSINE, lowest_cosine(exact[name], computed[name])) for name in exact}
    return {
        "dtypes": list(dtypes),
        "error": error,
        **{name.replace("z_", "cosine_"): value for name, value in cosines.items()},
        **{name.replace("z_", "allowed_"): value for name, value in allowed.items()},
        "is_allowed": all(cosines[name] >= allowed[name] for name in exact),
    }


def say_rounding(rounding: dict[str, Any]) -> str:
    """Return one line for a terminal."""
    cost = ", ".join(
        f"{name}s {rounding[f'cosine_{kind}']:.6f} (at least {rounding[f'allowed_{kind}']:.6f})"
        for kind, name in (("video", "clip"), ("text", "text"))
    )
    line = (
        f"merged weights are rounded to {', '.join(rounding['dtypes'])}, which loses "
        f"{rounding['error']:.1%} of the update; lowest cosine with the adapter kept apart: {cost}"
    )
    return line if rounding["is_allowed"] else f"{line}; export with --format=peft instead"


def missing_packages(needs: tuple[str, ...]) -> list[str]:
    """Return which of the packages that a verification needs are not installed here."""
    return [name for name in needs if importlib.util.find_spec(name) is None]


def check_verifiable(folder: Path) -> Form:
    """Return the form of an export that can be verified here.

    Raises:
      UserError: not an export, it holds programs of its own, packages are missing, or the result
        could not be written.
    """
    if not (folder / INPUTS).exists():
        raise UserError(f"{folder} is not an export of launch/export.py (no {INPUTS} in it)")
    form = form_of(folder)
    refuse_programs(folder, form)
    if missing := missing_packages(form.needs):
        raise UserError(f"verifying needs {', '.join(missing)}; pip install {' '.join(missing)}")
    if not os.access(folder / INPUTS, os.W_OK):
        raise UserError(
            f"{folder / INPUTS} may not be written, and the figures belong there; verify a copy"
        )
    return form


def check_base(folder: Path, base: str) -> None:
    """Make sure that the base given for a verification is the one an export was trained on.

    Args:
      folder: an export.
      base: a directory; anything else, such as a hub id, is left to the libraries that load it.

    Raises:
      UserError: it is another one.
    """
    if not base or not Path(base).is_dir():
        return
    expected = read_settings(folder)["trained"]["fingerprints"]["base"]
    found = base_fingerprint(Path(base))
    if found != expected:
        raise UserError(
            f"{base} is not the base that {folder} was trained on (fingerprint {expected}, here "
            f"{found}); name the right one with --base"
        )


def held_out_facts(folder: Path) -> dict[str, Any] | None:
    """Return the facts of the validation clips that an export was made with."""
    return read_json(folder, INPUTS).get("held_out")


def form_of(folder: Path) -> Form:
    """Return the form of an export; those of before there were several do not name theirs."""
    return FORMS[read_settings(folder)["form"]]


def verify(folder: Path, base: str | None = None, held_out: Clips | None = None) -> dict[str, Any]:
    """Compare in a subprocess, keep the figures in `certificate.json` and return them.

    Args:
      folder: an export.
      base: directory or hub id of the base model; None takes the one that the export names.
      held_out: the validation clips that the export was made with, if they are at hand.

    Raises:
      UserError: not an export, or packages are missing.
      CheckFailed: PyTorch's side raised.
    """
    form = check_verifiable(folder)
    command = [sys.executable, str(form.check), str(folder), *([f"--base={base}"] if base else [])]
    with tempfile.TemporaryDirectory() as clips:
        if held_out is not None:
            held_out.write(Path(clips))
            command.append(f"--clips={clips}")
        result = _run(command)
        if held_out is not None:
            theirs = load_file(Path(clips) / EMBEDDED)
            ours = load_file(folder / TENSORS)
            result["recall"] = {
                "clips": len(held_out.texts),
                "jax": held_out.recall(ours["held_out_video"], ours["held_out_text"]),
                "export": held_out.recall(theirs["z_video"], theirs["z_text"]),
            }
    record(folder, result)
    return result


def _run(command: list[str]) -> dict[str, Any]:
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        # transformers' message has several lines.
        raise CheckFailed(redact(said[-1]), any(line.startswith("OSError: ") for line in said))
    return json.loads(done.stdout.strip().splitlines()[-1])


def record(folder: Path, result: dict[str, Any]) -> None:
    """Keep a result in `certificate.json`, in place of an earlier one with the same libraries.

    What the earlier one found with a dataset or base that is not at hand this time stays, unless
    one of the two failed: then it was found with other embeddings.
    """
    inputs = read_json(folder, INPUTS)
    before = [r for r in inputs["results"] if _libraries(r) == _libraries(result)]
    others = [r for r in inputs["results"] if _libraries(r) != _libraries(result)]
    for earlier in before:
        if not (is_passed(earlier) and is_passed(result)):
            continue
        if "recall" in earlier:
            result = {"recall": earlier["recall"], **result}
        if "base_absent" in result.get("language", {}) and "language" in earlier:
            result = result | {"language": earlier["language"]}
    inputs["results"] = [*others, result]
    (folder / INPUTS).write_text(json.dumps(inputs, indent=1))


def results(folder: Path) -> list[dict[str, Any]]:
    """Return the figures measured so far, one for each set of library versions."""
    return read_json(folder, INPUTS)["results"]


def is_passed(result: dict[str, Any]) -> bool:
    """Return whether nothing was lost and every cosine reaches `MIN_COSINE`."""
    is_whole = not result["missing"] and not result["unexpected"]
    # Not the smaller of both: min(1.0, nan) is 1.0.
    return is_whole and all(result[f"cosine_{x}"] >= MIN_COSINE for x in ("video", "text"))


def warnings(result: dict[str, Any]) -> list[str]:
    """Return what is no error and yet wants to be known, a line each."""
    spoken = result.get("language", {})
    if "base" not in spoken:
        return []
    before, after = spoken["base"]["loss"], spoken["export"]["loss"]
    if after <= MOST_LOSS_RISE * before:
        return []
    return [
        f"the next-token loss of the fixed answers rose from {before:.3f} (base) to {after:.3f} "
        f"({after / before - 1:+.0%}): the language model has drifted; a lower "
        "config.optim.learning_rate, a lower config.tune.rank or fewer config.tune.text_blocks "
        "keep more of it"
    ]


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
