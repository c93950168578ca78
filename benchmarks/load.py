"""Time and memory of loading a base, beside transformers; and one forward pass against it."""

import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.random_model import FULL_SIZE
from vtalign_jax.errors import UserError
from vtalign_jax.interop.base_files import resolve_base

_NEEDED_GB = 10  # a checkpoint and its converted form
_DTYPE = "bfloat16"


def measure(
    base: str, scratch: str, repeats: int, say: Callable[[str], None], *, forward: bool
) -> Iterator[dict[str, Any]]:
    """Yield a row: how three ways load, or how far two forward passes are apart.

    Args:
      base: directory or hub id of a Hugging Face checkpoint; "" for a random one of 2.2B.
      scratch: folder to write in; "" for the system's temporary one. What is written is removed.
      repeats: counted runs of each way, taking turns.
      say: prints what runs.
      forward: compare the forward passes, in float32, instead.

    Raises:
      UserError: PyTorch is absent, or the disk is too small.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError("load compares with PyTorch; pip install -r requirements-dev.txt")
    with tempfile.TemporaryDirectory(dir=_checked(scratch, base)) as folder:
        if base:
            directory = resolve_base(base)
        else:
            directory = Path(folder) / "base"
            say("writing a random checkpoint of 2.2B parameters, about a minute")
            _run("make", directory, json.dumps(FULL_SIZE))
        if forward:
            yield _compare(directory, Path(folder), say)
        else:
            yield _load(directory, Path(folder), repeats, say)


def _checked(scratch: str, base: str) -> str | None:
    if scratch and not Path(scratch).is_dir():
        raise UserError(f"--scratch={scratch} is no folder; make it first")
    where = scratch or tempfile.gettempdir()
    free = shutil.disk_usage(where).free / 1e9
    if not base and free < _NEEDED_GB:
        raise UserError(
            f"{where} has {free:.0f} GB free, a random 2.2B checkpoint and its converted form take "
            f"{_NEEDED_GB}; name another folder with --scratch"
        )
    return scratch or None


def _load(
    directory: Path, folder: Path, repeats: int, say: Callable[[str], None]
) -> dict[str, Any]:
    say("converting it, about a minute at 2.2B parameters")
    converted = folder / "converted"
    writing = _run("convert", directory, str(converted))
    ways = {
        "here": ("here", directory),
        "converted": ("here", converted),
        "peer": ("peer", directory),
    }
    say(f"loading, {repeats} times in each of {len(ways)} ways")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, (way, source) in ways.items():
            for file in source.rglob("*"):  # into the page cache, for all alike
                _read(file)
            found[name].append(_run(way, source, _DTYPE))
    size = found["here"][0]["bytes"]
    seconds = {
        name: statistics.median(run["seconds"] for run in runs) for name, runs in found.items()
    }
    peaks = {name: max(run["peak"] for run in runs) for name, runs in found.items()}
    return {
        "part": "load",
        "gib": round(size / 2**30, 3),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "peak_anonymous_gib": {name: round(peak / 2**30, 3) for name, peak in peaks.items()},
        "peak_to_weights": {name: round(peak / size, 3) for name, peak in peaks.items()},
        "ratio_to_peer": round(seconds["here"] / seconds["peer"], 3),
        "seconds_to_convert": round(writing["seconds"], 1),
    }


def _compare(directory: Path, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    states = {}
    for way in ("forward_here", "forward_peer"):  # one after the other: 9 GB each at 2.2B
        say(f"{way}: one clip of two frames and a text, in float32")
        _run(way, directory, str(folder / f"{way}.npz"))
        states[way] = np.load(folder / f"{way}.npz")
    row: dict[str, Any] = {"part": "load", "forward": "float32"}
    for name in ("clip", "text"):
        ours, theirs = (states[way][name].astype(np.float64) for way in states)
        errors = np.abs(ours - theirs).max(axis=(1, 2)) / np.abs(theirs).max(axis=(1, 2))
        pooled = [x[-1, -1] / np.linalg.norm(x[-1, -1]) for x in (ours, theirs)]
        row |= {
            f"{name}_hidden_error": float(f"{errors[-1]:.2g}"),
            f"{name}_worst_layer_error": float(f"{errors.max():.2g}"),
            f"{name}_cosine_distance": float(f"{1 - pooled[0] @ pooled[1]:.2g}"),
            f"{name}_largest_state": float(f"{np.abs(theirs).max():.3g}"),
        }
    return row


def _run(way: str, folder: Path, argument: str) -> dict[str, Any]:
    """Return what one way gives in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.load_ways", way, str(folder), argument]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _read(file: Path) -> None:
    if file.is_file():
        with file.open("rb") as stream:
            while stream.read(1 << 24):
                pass
