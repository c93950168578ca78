"""Paths in a bucket (`gs://`): what is read and written there, and what through a copy here.

| what | how |
|---|---|
| JSON of a run, checkpoints, compiled programs, annotations, videos | in place (epath, Orbax) |
| datasets, bases, exports, to read: their libraries open files of this machine | `fetch` |
| the same, to write | in a folder here, then `upload`; the file that says "whole" comes last |
| files that grow (metrics, TensorBoard): an object cannot be appended to | `Growing` |

Every path of a user goes through `path`, which says in one line what is wrong with it.
"""

import base64
import concurrent.futures
import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import fsspec.config

from vtalign_jax.errors import UserError

if TYPE_CHECKING:  # exports are verified where epath need not be
    from etils import epath

UPLOADING = ".vtalign_uploading"  # an object beside the others until all are there
_SCHEME = "gs://"
_PARTIAL = ".vtalign_partial"  # suffix of what is not whole yet
_AT_A_TIME = 8  # files on their way
_SAY_SECONDS = 30.0

# Whoever opens a bucket first in this process: what other hosts write there must be seen.
fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)


def is_remote(path: "str | os.PathLike") -> bool:
    """Return whether a path names another machine's storage; not for `pathlib`, which cuts //."""
    return "://" in os.fspath(path)


def path(given: "str | os.PathLike") -> "epath.Path":
    """Return the path that a user gave, `~` expanded; a bucket is looked up first.

    Raises:
      UserError: another scheme than gs://, gcsfs is absent, or the bucket cannot be listed.
    """
    from etils import epath

    if is_remote(given):
        scheme, _, rest = os.fspath(given).partition("://")
        if f"{scheme}://" != _SCHEME:
            raise UserError(f"{given} is neither a path of this machine nor {_SCHEME}; copy it")
        _check_bucket(rest.partition("/")[0])
    return epath.Path(given).expanduser()


def absolute(given: "epath.Path") -> "epath.Path":
    """Return the absolute path; epath's `resolve` takes a bucket for a folder of this one."""
    return given if is_remote(given) else given.resolve()


def is_within(given: "str | os.PathLike", folder: "str | os.PathLike") -> bool:
    """Return whether a local path lies in a folder once the links of both are followed."""
    return Path(os.path.realpath(given)).is_relative_to(os.path.realpath(folder))


def is_file(given: "str | os.PathLike") -> bool:
    """Return whether there is a file; epath's own answer is yes for a pipe, which never ends."""
    if is_remote(given):
        return path(given).is_file()
    return os.path.isfile(given)


def write_text(file: "epath.Path", text: str) -> None:
    """Write a text as `write_bytes` does."""
    write_bytes(file, text.encode())


def write_bytes(file: "epath.Path", data: bytes) -> None:
    """Write a file that is never seen in part: objects never are, a local one is renamed."""
    if is_remote(file):
        file.write_bytes(data)
        return
    written = file.with_name(file.name + ".new")
    written.write_bytes(data)
    written.replace(file)


def check_writable(file: "epath.Path") -> None:
    """Make a local file's folder, and raise now the OSError that `write_bytes` would end with.

    A bucket is not tried: what may be written there shows when it is.
    """
    if is_remote(file):
        return
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.stat(file.with_name(file.name + ".new"))  # its name may be too long
    with tempfile.NamedTemporaryFile(dir=file.parent):
        pass


def cache() -> Path:
    """Return the folder of this user for what can be made again; it exists."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vtalign_jax"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetch(given: "str | os.PathLike") -> Path:
    """Return a folder of this machine: the one given, or a copy of a bucket's in `cache`.

    The copy is named after a hash of names, sizes and checksums: what has changed is copied anew,
    what has not is found again, whoever asks. It gets its name when it is whole, and so does each
    file; one that was cut off goes on from the files that are there.

    Raises:
      UserError: there is nothing, not all was uploaded, no space is left, or the network failed.
    """
    if not is_remote(given):
        return Path(given).expanduser()
    source = path(given)
    listed = _listing(source)
    if not listed:
        raise UserError(f"there is no folder {given}; look with: gcloud storage ls {given}")
    if UPLOADING in listed:
        raise UserError(
            f"{given} is being uploaded, or that was cut off; repeat the command that writes it"
        )
    form = [(name, info["size"], _checksum(info)) for name, info in sorted(listed.items())]
    key = hashlib.sha256(json.dumps(form).encode()).hexdigest()[:16]
    folder = cache() / key
    with _locked(folder):
        if not folder.is_dir():
            _download(source, listed, folder)
    return folder


def staging(out: str) -> Path:
    """Return the folder of this machine in which `out` is made: the same at every start."""
    return cache() / f"outgoing-{hashlib.sha256(out.encode()).hexdigest()[:16]}"


def upload(folder: Path, out: "str | os.PathLike", last: str) -> None:
    """Put the files of a folder here in place of all that stands in `out`.

    While `UPLOADING` lies there, or `last` does not, nothing takes it for whole. What is there
    already by its checksum is not sent again, so that an upload that was cut off goes on.

    Args:
      folder: of this machine.
      out: a folder of a bucket.
      last: the file of the folder that marks it as whole.

    Raises:
      UserError: it cannot be written, or the network failed.
    """
    target, storage = path(out), _storage()
    files = {file.relative_to(folder).as_posix(): file for file in _files(folder)}
    with _reported(f"upload {folder} to {target}"):
        there = _listing(target)
        same = {name for name, file in files.items() if _is_same(file, there.get(name))}
        storage.pipe_file(f"{target}/{UPLOADING}", b"")
        stale = [name for name in there if name not in files or name == last]
        if stale := [f"{target}/{name}" for name in stale if name != UPLOADING]:
            storage.rm(stale)
        waiting = [name for name in files if name not in same and name != last]

        def put(name: str) -> int:
            storage.put_file(str(files[name]), f"{target}/{name}")
            return files[name].stat().st_size

        sizes = {name: files[name].stat().st_size for name in waiting}
        print(f"uploading {_amount(sizes.values())} to {target}", flush=True)
        _each(put, waiting, sum(sizes.values()))
        put(last)
        storage.rm_file(f"{target}/{UPLOADING}")


class Growing:
    """The files of a folder that grow; those of a bucket are kept here and uploaded whole.

    Attributes:
      folder: where to write them: the folder itself, if it is on this machine.
    """

    def __init__(self, given: "str | os.PathLike") -> None:
        """Take the folder's `*.jsonl` over, if there are any; other files only get newer ones."""
        self._target, self.folder = path(given), path(given)
        self._seen: dict[Path, tuple[int, int]] = {}
        self._uploaded_at = time.monotonic()
        if is_remote(given):
            self.folder = path(tempfile.mkdtemp(prefix="vtalign_jax-"))
            for name in _listing(self._target, within=False):
                if name.endswith(".jsonl"):
                    (self.folder / name).write_bytes((self._target / name).read_bytes())

    def upload(self, *, every_seconds: float = 0.0) -> None:
        """Bring a bucket up to date.

        Args:
          every_seconds: do nothing if it was less long ago.
        """
        if not is_remote(self._target):
            return
        if time.monotonic() - self._uploaded_at < every_seconds:
            return
        for file in _files(Path(self.folder)):
            form = file.stat().st_size, file.stat().st_mtime_ns
            if self._seen.get(file) != form:
                name = file.relative_to(self.folder).as_posix()
                _storage().put_file(str(file), f"{self._target}/{name}")
                self._seen[file] = form
        self._uploaded_at = time.monotonic()

    def close(self) -> None:
        """Upload once more and remove what was kept here."""
        self.upload()
        if is_remote(self._target):
            shutil.rmtree(self.folder, ignore_errors=True)


@functools.cache
def _check_bucket(bucket: str) -> None:
    if not bucket:
        raise UserError(f"{_SCHEME} names no bucket; give {_SCHEME}bucket/folder")
    try:
        storage = _storage()
    except ImportError as error:
        raise UserError(
            f"{_SCHEME}{bucket} needs gcsfs, which is not installed: pip install -e '.[gcs]'"
        ) from error
    try:
        storage.call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
    except Exception as error:  # of the network, of Google's sign-in and of the service
        reason = "there is none" if isinstance(error, FileNotFoundError) else _reason(error)
        raise UserError(
            f"cannot list bucket {_SCHEME}{bucket} ({reason}); check its name and the rights of "
            "this machine's service account, or sign in: gcloud auth application-default login"
        ) from error


def _storage() -> Any:
    """Return the file system that epath uses."""
    import gcsfs  # noqa: F401  (fsspec would say less clearly that it is absent)

    return fsspec.filesystem("gcs", finalize_on_close=True)


def _listing(folder: "epath.Path", *, within: bool = True) -> dict[str, dict[str, Any]]:
    """Return what is known of each object below a folder, by its name there.

    Args:
      folder: of a bucket.
      within: its folders' objects as well.
    """
    start = os.fspath(folder).removeprefix(_SCHEME).rstrip("/") + "/"
    found = _storage().find(start, maxdepth=None if within else 1, detail=True)
    named = {name.removeprefix(start): info for name, info in found.items()}
    return {name: info for name, info in named.items() if name and not name.endswith("/")}


def _checksum(info: dict[str, Any]) -> str:
    return info.get("md5Hash") or info.get("crc32c") or info["generation"]


def _is_same(file: Path, info: dict[str, Any] | None) -> bool:
    if info is None or info["size"] != file.stat().st_size:
        return False
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "md5").digest()
    return info.get("md5Hash") == base64.b64encode(digest).decode()


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time make a folder."""
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(source: "epath.Path", listed: dict[str, dict[str, Any]], folder: Path) -> None:
    partial = folder.with_name(folder.name + _PARTIAL)
    partial.mkdir(exist_ok=True)
    sizes = {name: i["size"] for name, i in listed.items() if not (partial / name).is_file()}
    needed, free = sum(sizes.values()), shutil.disk_usage(partial).free
    if needed > free:
        raise UserError(
            f"{source} takes {needed / 1e9:,.1f} GB more here, {folder.parent} has "
            f"{free / 1e9:,.1f} GB left; let XDG_CACHE_HOME name a folder on a larger disk"
        )
    before = f" ({len(listed) - len(sizes)} are there)" if len(sizes) < len(listed) else ""
    print(f"copying {source} to {folder}: {_amount(sizes.values())}{before}", flush=True)

    def get(name: str) -> int:
        file = partial / name
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(file.name + _PARTIAL)
        _storage().get_file(f"{source}/{name}", str(part))
        part.rename(file)
        return sizes[name]

    with _reported(f"copy {source}"):
        _each(get, list(sizes), needed)
    partial.rename(folder)


def _each(copy: Callable[[str], int], names: list[str], total: int) -> None:
    """Copy several files at a time and say now and then how far it is."""
    done, said = 0, time.monotonic()
    pool = concurrent.futures.ThreadPoolExecutor(_AT_A_TIME)
    try:
        for future in concurrent.futures.as_completed([pool.submit(copy, n) for n in names]):
            done += future.result()
            if time.monotonic() - said > _SAY_SECONDS:
                said = time.monotonic()
                print(f"  {done / 1e9:,.1f} of {total / 1e9:,.1f} GB", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _reported(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise UserError(
            f"cannot {what} ({_reason(error)}); the same command goes on from there"
        ) from error


def _reason(error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return said[:200]


def _amount(sizes: Iterable[int]) -> str:
    sizes = list(sizes)
    return f"{len(sizes):,} files, {sum(sizes) / 1e6:,.1f} MB"
