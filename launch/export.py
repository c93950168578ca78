"""Export a checkpoint for PyTorch, with the proof that the files give the same embeddings.

    python launch/export.py --checkpoint=runs/pretrain --format=peft --out=exports/pretrain
    python launch/export.py --verify=exports/pretrain

--format=peft is an adapter that PEFT loads onto the base, merged a whole SmolVLM folder with the
update in its weights, sentence-transformers one that SentenceTransformer loads; heads, settings, a
torch script and a model card lie in each.

With PyTorch and the form's own libraries installed, an export is loaded back and compared before it
gets its name. Without them it says UNVERIFIED; run the second command where they are (no JAX
needed).
"""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from vtalign_jax import commandline, remote
from vtalign_jax.errors import UserError
from vtalign_jax.interop import certificate, hub, model_card
from vtalign_jax.interop.forms import FORMS, SETTINGS
from vtalign_jax.wording import counted, typed_command

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "workdir (its best checkpoint is taken), one of its checkpoints, or an export"
)
_FORMAT = flags.DEFINE_enum("format", "peft", list(FORMS), "what to write")
_OUT = flags.DEFINE_string("out", "", "folder to write; default <workdir>/exports/<format>")
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "replace an export that is already there, in --out or on the hub"
)
_BASE = flags.DEFINE_string("base", "", "directory or hub id of the base model, if it has moved")
_DATASET = flags.DEFINE_string(
    "dataset",
    "",
    "what prepare.py wrote, to compare recall of checkpoint and export on its validation split; by "
    "default the run's, if it is at hand",
)
_CLIPS = flags.DEFINE_integer(
    "certificate_clips", 64, "the most validation clips to compare recall on; 0 for none", 0
)
_VERIFY = flags.DEFINE_string("verify", "", "compare this export in PyTorch; writes none")
_PUSH = flags.DEFINE_string(
    "push_to_hub", "", "organisation/name on the Hugging Face hub to upload to once it is verified"
)
_PRIVATE = flags.DEFINE_bool("private", False, "make the repository on the hub a private one")
_ALLOW_UNVERIFIED = flags.DEFINE_bool(
    "allow_unverified", False, "push an export that could not be verified where it was written"
)


def main() -> None:
    """Export or verify, and push."""
    if _PUSH.value:
        hub.check(_PUSH.value)
    if _VERIFY.value:
        if _CHECKPOINT.value or _OUT.value:
            raise UserError("--verify writes no export; leave --checkpoint and --out out")
        out, unverified = _VERIFY.value, ""
        with _here(out) as folder:
            verify(folder, _BASE.value, _DATASET.value)
    else:
        out, unverified = export_checkpoint()
    if _PUSH.value:
        with _here(out) as folder:
            push(folder, unverified)
    if not _VERIFY.value:
        _say(f"next: {typed_command('evaluate', f'--checkpoint={out}')}")


def export_checkpoint() -> tuple[str, str]:
    """Return the folder written, and why it is unverified (empty if it is not)."""
    if not _CHECKPOINT.value:
        raise UserError("--checkpoint is missing (or --verify=DIR, to check an export); see --help")
    # Imported here because --verify must run where there is no JAX.
    from vtalign_jax.export import ExportDiffers, export

    out = _OUT.value or _default_out(_CHECKPOINT.value)
    try:
        unverified = export(
            _CHECKPOINT.value,
            out,
            _FORMAT.value,
            base=_BASE.value,
            overwrite=_OVERWRITE.value,
            dataset=_DATASET.value,
            clips=_CLIPS.value,
            say=_say,
        )
    except ExportDiffers as error:
        sys.exit(f"error: the export gives other embeddings, nothing was kept: {error}")
    _say(f"wrote {out}")
    if unverified:
        _say(f"UNVERIFIED: {unverified} Verify it elsewhere with")
        _say(f"  {model_card.verify_command(out)}")
    return out, unverified


def verify(folder: Path, base: str, dataset: str) -> None:
    """Compare an export in PyTorch and write the figures into its model card."""
    certificate.check_verifiable(folder)
    certificate.check_base(folder, base)
    held_out = _held_out(folder, dataset)
    _say("loading the files in PyTorch and comparing")
    try:
        result = certificate.verify(folder, base, held_out)
    except certificate.CheckFailed as error:
        otherwise = "" if error.is_of_base else ", else copy the export again"
        raise UserError(
            f"PyTorch cannot load {folder}: {error}; give --base if its base model has moved"
            f"{otherwise}"
        ) from None
    model_card.write_card(folder)
    _say(certificate.describe(result))
    for line in certificate.warnings(result):
        _say(f"warning: {line}")
    if not certificate.is_passed(result):
        sys.exit(f"error: {folder} gives other embeddings in PyTorch than it was exported with")
    _say(f"verified; the figures are in {folder / model_card.CARD}")


def push(folder: Path, unverified: str) -> None:
    """Upload an export.

    Raises:
      UserError: it is not verified, or the hub refuses.
    """
    if unverified and not _ALLOW_UNVERIFIED.value:
        raise UserError(
            f"{folder} is UNVERIFIED ({unverified}) and was not pushed; push it with "
            f"--verify={folder} --push_to_hub={_PUSH.value} where PyTorch is, or with "
            "--allow_unverified"
        )
    for line in hub.warnings(folder):
        _say(f"warning: {line}")
    _say(f"uploading {folder} to {_PUSH.value}")
    address = hub.push(folder, _PUSH.value, private=_PRIVATE.value, overwrite=_OVERWRITE.value)
    _say(f"pushed to {address}")


def _held_out(folder: Path, dataset: str) -> certificate.Clips | None:
    """Return the validation clips that an export was made with, if they are at hand."""
    known = certificate.held_out_facts(folder)
    if known is None:
        if dataset:
            raise UserError(f"{folder} was exported without validation clips; leave --dataset out")
        return None
    if not dataset and not all(Path(name.strip()).exists() for name in known["dataset"].split(",")):
        _say(f"recall is not compared: {known['dataset']} is not here; name it with --dataset")
        return None
    try:
        from vtalign_jax.evaluation.held_out import read_again
    except ImportError as error:
        _say(f"recall is not compared: reading the dataset needs {error.name}")
        return None
    found = read_again(folder, dataset)
    _say(f"comparing recall on the {counted(len(found.texts), 'clip')} of {found.facts['dataset']}")
    return found


@contextlib.contextmanager
def _here(export: str) -> Iterator[Path]:
    """Give an export as a folder of this machine; of a bucket a copy, whose changes go back."""
    if not remote.is_remote(export):
        yield Path(export).expanduser()
        return
    with tempfile.TemporaryDirectory(dir=remote.cache()) as work:
        folder = Path(work, remote.path(export).name)
        shutil.copytree(remote.fetch(export), folder)
        try:
            yield folder
        finally:
            remote.upload(folder, export, SETTINGS)


def _default_out(given: str) -> str:
    """Return <workdir>/exports/<format>."""
    checkpoint = remote.path(given)
    if not checkpoint.exists():
        raise UserError(f"no such checkpoint or workdir {checkpoint}; train one with train.py")
    workdir = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint
    if not (workdir / "checkpoints").is_dir():
        raise UserError("--out is missing; name the folder to write")
    return str(workdir / "exports" / _FORMAT.value)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    commandline.run(main)
