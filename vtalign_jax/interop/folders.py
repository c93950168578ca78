"""Folders that appear whole or not at all."""

import contextlib
import fcntl
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vtalign_jax import remote
from vtalign_jax.errors import UserError

if TYPE_CHECKING:
    from etils import epath

_UNFINISHED, _REPLACED = ".unfinished-", ".replaced"  # in the names of folders beside the final one


@contextlib.contextmanager
def new_folder(out: str | Path, marker: str, *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty folder to write in, and rename it to `out` when the block ends without error.

    If `out` lies in a bucket, the folder is uploaded instead, `marker` as the last.

    Args:
      out: the final name.
      marker: file that every folder of this kind holds; only such a folder is ever replaced.
      overwrite: replace `out` if it exists.

    Raises:
      UserError: `out` exists and may not be replaced, or its parent cannot be written.
    """
    if remote.is_remote(out):
        target = remote.path(out)
        _check_free(target, marker, overwrite)
        with tempfile.TemporaryDirectory(prefix="outgoing-", dir=remote.cache()) as work:
            yield Path(work)
            _check_free(target, marker, overwrite)
            remote.upload(Path(work), target, marker)
        return
    out = Path(out).expanduser().resolve()  # of a link, what it names: links are never replaced
    _check_free(out, marker, overwrite)
    with contextlib.ExitStack() as writing:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with _locked(out.parent):
                _clear_remains(out)
                name = f".{out.name}{_UNFINISHED}"
                work = Path(tempfile.mkdtemp(prefix=name, dir=out.parent))
                writing.callback(shutil.rmtree, work, ignore_errors=True)
                writing.enter_context(_locked(work))  # `_clear_remains` of others lets it be
        except OSError as error:
            raise UserError(f"cannot write {out}: {error.strerror}; choose another --out") from None
        yield work
        _grant_umask(work)
        with _locked(out.parent):  # others would put back what is moved aside
            _check_free(out, marker, overwrite)
            replaced = work.with_name(work.name + _REPLACED)
            if out.exists():
                out.rename(replaced)
            work.rename(out)
            shutil.rmtree(replaced, ignore_errors=True)


def _clear_remains(out: Path) -> None:
    """Remove what killed processes left beside `out`; put back what one had moved aside.

    The folder that holds `out` is locked meanwhile.
    """
    for stale in out.parent.glob(f".{glob.escape(out.name)}{_UNFINISHED}*"):
        try:
            with _opened(stale) as descriptor:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # being written, gone meanwhile, or on a file system without locks
            continue
        if stale.name.endswith(_REPLACED) and not out.exists():
            stale.rename(out)
        else:
            shutil.rmtree(stale, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, once others have let go; without locks nothing is held.

    Whoever has to wait says so on stderr.
    """
    with _opened(folder) as descriptor:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another that writes into {folder}", file=sys.stderr, flush=True)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check_free(out: "Path | epath.Path", marker: str, overwrite: bool) -> None:
    if not out.exists() or (out / remote.UPLOADING).exists():  # an upload that was cut off
        return
    if not overwrite:
        raise UserError(f"{out} exists; choose another --out, or replace it with --overwrite")
    is_empty = out.is_dir() and not any(out.iterdir())
    if not is_empty and not (out / marker).exists():
        raise UserError(
            f"{out} is nothing that --overwrite replaces (it has no {marker}) and is left alone; "
            "choose another --out"
        )


def _grant_umask(folder: Path) -> None:
    """Give folder and files the usual rights; mkdtemp and safetensors make them the owner's."""
    umask = os.umask(0)
    os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
