"""Compiled programs kept from one start to the next, so that the second compiles nothing."""

import zlib
from pathlib import Path

import jax

from vtalign_jax import remote

FOLDER = "compilation_cache"  # inside a workdir
_ZSTANDARD = b"\x28\xb5\x2f\xfd"  # how such a file begins; JAX takes zlib where it has no other


def keep(workdir: str) -> None:
    """Keep compiled programs in the workdir, unless JAX_COMPILATION_CACHE_DIR says where.

    JAX writes a program under its final name and never again: one that was cut off by a kill would
    be compiled anew at every start, so process 0 removes it here. It must hold the workdir: another
    run's file may be cut off because it is being written.
    """
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if jax.config.jax_compilation_cache_dir:  # may be shared by many, and large
        return
    folder = f"{workdir}/{FOLDER}"
    jax.config.update("jax_compilation_cache_dir", folder)
    if jax.process_index() == 0 and not remote.is_remote(folder):  # no object is seen in part
        _remove_cut_off(Path(folder))


def _remove_cut_off(folder: Path) -> None:
    for file in folder.glob("*-cache"):
        if not _is_whole(file.read_bytes()):
            file.unlink(missing_ok=True)


def _is_whole(program: bytes) -> bool:
    """Return whether a file of JAX's can be unpacked."""
    try:
        if program.startswith(_ZSTANDARD):
            _unpack(program)
        else:
            zlib.decompress(program)
    except Exception:  # each library raises its own
        return False
    return True


def _unpack(program: bytes) -> None:
    try:
        from compression import zstd  # of Python 3.14
    except ImportError:
        import zstandard

        zstandard.ZstdDecompressor().decompress(program)
    else:
        zstd.decompress(program)
