"""Export a checkpoint for PyTorch: an adapter that PEFT loads, the head, and the proof of both.

    python launch/export.py --checkpoint=runs/pretrain --format=peft --out=exports/pretrain
    python launch/export.py --verify=exports/pretrain

With PyTorch, transformers and peft installed, an export is loaded back and compared before it gets
its name. Without them it says UNVERIFIED; run the second command where they are (no JAX needed).
"""

import sys
from pathlib import Path

from absl import flags

from vtalign_jax import commandline
from vtalign_jax.errors import UserError
from vtalign_jax.interop import certificate, model_card
from vtalign_jax.interop.forms import FORMS

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "workdir (its best checkpoint is taken), one of its checkpoints, or an export"
)
_FORMAT = flags.DEFINE_enum("format", "peft", list(FORMS), "what to write")
_OUT = flags.DEFINE_string("out", "", "folder to write; default <workdir>/exports/<format>")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace an export that is already there")
_BASE = flags.DEFINE_string("base", "", "directory or hub id of the base model, if it has moved")
_VERIFY = flags.DEFINE_string("verify", "", "compare this export in PyTorch; writes none")


def main() -> None:
    """Export, or verify."""
    if _VERIFY.value:
        verify(Path(_VERIFY.value).expanduser(), _BASE.value)
        return
    if not _CHECKPOINT.value:
        raise UserError("--checkpoint is missing (or --verify=DIR, to check an export); see --help")
    # Imported here because --verify must run where there is no JAX.
    from vtalign_jax.export import ExportDiffers, export

    out = _OUT.value or _default_out(Path(_CHECKPOINT.value))
    try:
        unverified = export(
            _CHECKPOINT.value,
            out,
            _FORMAT.value,
            base=_BASE.value,
            overwrite=_OVERWRITE.value,
            say=_say,
        )
    except ExportDiffers as error:
        sys.exit(f"error: the export gives other embeddings in PyTorch, nothing was kept: {error}")
    _say(f"wrote {out}")
    if unverified:
        _say(f"UNVERIFIED: {unverified} Verify it elsewhere with")
        _say(f"  {model_card.verify_command(out)}")
    _say(f"next: python launch/evaluate.py --checkpoint={out}")


def verify(folder: Path, base: str) -> None:
    """Compare an export in PyTorch and write the figures into its model card."""
    _say("loading the files in PyTorch and comparing")
    try:
        result = certificate.verify(folder, base)
    except certificate.CheckFailed as error:
        raise UserError(
            f"PyTorch cannot load {folder}: {error}; if its base model has moved, give --base"
        ) from None
    model_card.write_card(folder)
    _say(certificate.describe(result))
    if not certificate.is_passed(result):
        sys.exit(f"error: {folder} gives other embeddings in PyTorch than it was exported with")
    _say(f"verified; the figures are in {folder / model_card.CARD}")


def _default_out(checkpoint: Path) -> str:
    """Return <workdir>/exports/<format>."""
    if not checkpoint.expanduser().exists():
        raise UserError(f"no such checkpoint or workdir {checkpoint}; train one with train.py")
    workdir = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint
    if not (workdir / "checkpoints").is_dir():
        raise UserError("--out is missing; name the folder to write")
    return str(workdir / "exports" / _FORMAT.value)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    commandline.run(main)
