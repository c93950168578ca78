"""Exports: written, loaded back in PyTorch, compared, and only then given their name."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vtalign_jax.aligner import Aligner
from vtalign_jax.config import to_dict
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.held_out import HeldOut, read_held_out
from vtalign_jax.interop import (
    certificate,
    embedding_files,
    merged,
    model_card,
    peft,
    sentence_transformers,
)
from vtalign_jax.interop.base_files import base_fingerprint
from vtalign_jax.interop.embedding_files import Parts
from vtalign_jax.interop.folders import new_folder
from vtalign_jax.interop.forms import (
    FORMS,
    MERGED,
    PEFT,
    SENTENCE_TRANSFORMERS,
    SETTINGS,
    WEIGHTS_FOLDER,
)
from vtalign_jax.interop.tokens import ClipTokenizer
from vtalign_jax.models.aligner import MIN_TEMPERATURE
from vtalign_jax.models.vision import position_ids
from vtalign_jax.training import trainable
from vtalign_jax.training.trained import Trained, load_trained
from vtalign_jax.wording import counted

# Form -> what writes its weights and the base's files into an empty folder. Heads, settings,
# embed.py, certificate and card are the same for all; what else differs: `interop/forms.py`.
WRITERS: dict[str, Callable[[Path, Parts], merged.Rounding | None]] = {
    PEFT: peft.write,
    MERGED: merged.write,
    SENTENCE_TRANSFORMERS: sentence_transformers.write,
}

_MOST_FRAMES = 64  # of a clip that embed.py can say


class ExportDiffers(Exception):
    """PyTorch read other embeddings from the files; the message holds the figures."""


def export(
    checkpoint: str | Path,
    out: str | Path,
    form: str = PEFT,
    *,
    base: str = "",
    overwrite: bool = False,
    dataset: str = "",
    clips: int = 64,
    say: Callable[[str], None] = print,
) -> str:
    """Write an export of a checkpoint.

    Args:
      checkpoint: workdir (its best checkpoint is taken), checkpoint or export.
      out: the folder.
      form: one of `FORMS`.
      base: directory or hub id of the base model, if it is not where it was in training.
      overwrite: replace an export at `out`.
      dataset: whose validation clips the certificate compares recall on; by default the run's, if
        it is at hand.
      clips: the most of them; 0 for none.
      say: prints a line.

    Returns:
      Why the export is unverified; empty if it was verified.

    Raises:
      UserError: no such checkpoint, `out` is taken, or an adapter that would load as nothing.
      ExportDiffers: the files give other embeddings; nothing is left at `out`.
    """
    with new_folder(out, SETTINGS, overwrite=overwrite) as folder:
        trained = load_trained(checkpoint, base, needs_hugging_face=True)
        say(f"exporting {trained.source} as {form}")
        held_out = _held_out(trained, dataset, clips, say)
        rounding = write(folder, trained, form)
        if rounding and rounding.left_out:
            names = ", ".join(rounding.left_out)
            say(f"not copied, the base's programs and weights in other formats: {names}")
        _write_reference(folder, trained, held_out, rounding, say)
        unverified = _try_verify(folder, form, trained.assembly.directory, held_out, say)
        model_card.write_card(folder, unverified)
    return unverified


def _held_out(
    trained: Trained, dataset: str, clips: int, say: Callable[[str], None]
) -> HeldOut | None:
    """Return the validation clips of the certificate; None if there are none at hand."""
    if not clips:
        return None
    data = trained.origin.config.data
    data = dataclasses.replace(data, dir=dataset or data.dir)
    size = trained.assembly.base.vision.image_size
    try:
        held_out = read_held_out(data, size, clips, trained.facts["rotate"])
    except UserError as error:
        if dataset:
            raise
        say(f"recall is not compared: {error}")
        return None
    compared = counted(len(held_out.texts), "clip")
    say(f"comparing recall on {compared} of {data.dir}, {data.val_split}")
    return held_out


def _write_reference(
    folder: Path,
    trained: Trained,
    held_out: HeldOut | None,
    rounding: merged.Rounding | None,
    say: Callable[[str], None],
) -> None:
    """Write what PyTorch is compared with: the trained model's embeddings in float32.

    Where merging has rounded the weights, files and library are proved with the embeddings of the
    rounded weights, read back here, and what rounding itself has cost is said apart.

    Raises:
      ExportDiffers: rounding costs more than it may.
    """
    say("embedding the certificate's clips and texts in float32")
    window = trained.facts["window_seconds"]
    reference = certificate.make_reference(trained.config.data.frames, window)
    aligner = Aligner(trained, "float32")
    exact = embeddings = reference.embed(aligner)
    extra = certificate.embed_held_out(aligner, held_out) if held_out else {}
    del aligner  # the memory is the next one's turn
    facts = {}
    if rounding and set(rounding.dtypes) - {"float32"}:
        say(f"embedding them with the weights rounded to {', '.join(rounding.dtypes)}")
        embeddings = reference.embed(Aligner(load_trained(folder), "float32"))
        computed = reference.embed(Aligner(trained, "bfloat16"))
        facts["rounding"] = certificate.describe_rounding(
            rounding.dtypes, rounding.error, exact, embeddings, computed
        )
        if not facts["rounding"]["is_allowed"]:
            raise ExportDiffers(certificate.say_rounding(facts["rounding"]))
        say(certificate.say_rounding(facts["rounding"]))
    certificate.write_reference(folder, reference, {**embeddings, **extra}, held_out, **facts)


def write(folder: Path, trained: Trained, form: str) -> merged.Rounding | None:
    """Write all but certificate and card; return what merging has cost, where weights are merged.

    Raises:
      UserError: an adapter that would load as nothing, a missing head.
    """
    parts = make_parts(trained, form)
    side = trained.assembly.base.vision.patches_per_side
    rounding = WRITERS[form](folder, parts)
    if form != PEFT:
        place = folder / parts.settings.get(WEIGHTS_FOLDER, "")
        parts.settings["weights"] = base_fingerprint(place)
    embedding_files.write(folder, parts, position_ids(side, side, side))
    return rounding


def make_parts(trained: Trained, form: str) -> Parts:
    """Return what a form is written from.

    Raises:
      UserError: an adapter that would load as nothing, a missing head.
    """
    assembly, config = trained.assembly, trained.config
    keys = peft.adapter_keys(trained.params, assembly.trainable | assembly.frozen)
    adapter = peft.adapter_tensors(trained.params, keys)
    peft.check(adapter, assembly.directory)
    head = embedding_files.head_tensors(trained.params)
    embedding_files.check_head(head)
    tokenizer = ClipTokenizer(assembly.directory)
    settings = {
        "format": embedding_files.FORMAT,
        "form": form,
        "base": trained.origin.base,
        "image_size": tokenizer.image_size,
        "frames": config.data.frames,
        "window_seconds": trained.facts["window_seconds"],
        "fit": trained.facts["fit"],
        "rotate": trained.facts["rotate"],
        "max_text_tokens": config.data.max_text_tokens,
        "pooling": config.model.pooling,
        "embedding_dim": config.model.embedding_dim,
        "temperature": max(float(np.exp(trained.params["log_temperature"])), MIN_TEMPERATURE),
        "heads": {kind: _head_names(config.model.head, kind) for kind in ("video", "text")},
        "layout": tokenizer.layout(max(_MOST_FRAMES, config.data.frames)),
        "trained": trained.facts,
        "config": to_dict(trained.origin.config),
    }
    scale = trainable.adapter_config(config.tune).scale
    return Parts(adapter, scale, head, settings, config.tune, assembly.directory)


def _head_names(head: str, kind: str) -> list[str]:
    """Return the tensors of one modality's head, in the order they are applied."""
    name = "head" if head == "shared" else f"{kind}_head"
    return [f"{name}.{layer}.{leaf}" for layer in ("fc1", "fc2") for leaf in ("weight", "bias")]


def _try_verify(
    folder: Path, form: str, base: Path, held_out: HeldOut | None, say: Callable[[str], None]
) -> str:
    """Return why there is no result, or "" after a comparison that passed."""
    missing = certificate.missing_packages(FORMS[form].needs)
    if missing:
        return f"{', '.join(missing)} not installed where it was written."
    say("loading the files in PyTorch and comparing")
    try:
        result = certificate.verify(folder, str(base), held_out)
    except certificate.CheckFailed as error:
        return f"PyTorch could not load it where it was written ({error})."
    if not certificate.is_passed(result):
        raise ExportDiffers(certificate.describe(result))
    say(certificate.describe(result))
    for line in certificate.warnings(result):
        say(f"warning: {line}")
    return ""
