"""Checksums by which a checkpoint proves that it holds what was saved: its files carry none.

Every leaf is whole on every process, so that process 0 sums up its own, which at worst
takes each once more off the devices. CRC-32 finds every single flipped byte; nobody forges
checkpoints.
"""

import json
import textwrap
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vtalign_jax.errors import UserError

_SEAL = "crc32"
_MOST_LETTERS = 200  # of a library's reason
# Codes by which TensorStore, whose errors are all ValueErrors, says that it cannot get at a file.
_REFUSALS = (
    "ABORTED",
    "CANCELLED",
    "DEADLINE_EXCEEDED",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
    "UNKNOWN",
)


class Damaged(UserError):
    """A checkpoint that does not hold what was saved."""


def sums(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Return the checksum of each array by its name; none of one in parts on several hosts."""
    return {name: _crc(np.asarray(leaf)) for name, leaf in leaves.items() if _is_whole(leaf)}


def problem(leaves: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Return what is wrong with arrays that were read, "" for nothing.

    Args:
      leaves: by name.
      expected: checksums by name; a leaf that was saved in parts on several hosts has none.
    """
    for name, leaf in leaves.items():
        if not _is_whole(leaf):
            continue
        array = np.asarray(leaf)
        if name in expected and expected[name] != _crc(array):
            return f"{name} is not what was saved"
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return f"{name} is not finite"
    return ""


def unreadable(path: object, error: object) -> UserError:
    """Return the error of a checkpoint that cannot be read.

    What the file system, the network or the devices refuse is no proof that the files are damaged.
    """
    root = getattr(error, "__cause__", None) or error
    reason = textwrap.shorten(str(root).split("\n")[0], _MOST_LETTERS, placeholder=" ...")
    is_refused = isinstance(root, OSError | MemoryError | jax.errors.JaxRuntimeError)
    if is_refused or reason.startswith(_REFUSALS):
        return UserError(
            f"checkpoint {path} cannot be read ({reason}); try again, or move it away, so that "
            "another one is taken"
        )
    return Damaged(
        f"checkpoint {path} is damaged ({reason}); put a copy back, or move it away, so that "
        "another one is taken"
    )


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON values with their own checksum."""
    return {**values, _SEAL: _json_crc(values)}


def unsealed(values: dict[str, Any], where: object) -> dict[str, Any]:
    """Return what `sealed` was given.

    Raises:
      Damaged: the checksum is another one, or there is none.
    """
    plain = {name: value for name, value in values.items() if name != _SEAL}
    if _SEAL not in values:
        raise Damaged(f"{where} has no checksum; copy the checkpoint again, or use another")
    if values[_SEAL] != _json_crc(plain):
        raise Damaged(f"{where} is not what was saved; copy the checkpoint again, or use another")
    return plain


def _is_whole(leaf: Any) -> bool:
    is_local = getattr(leaf, "is_fully_addressable", True)
    return is_local or leaf.is_fully_replicated


def _crc(array: np.ndarray) -> str:
    return f"{zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data):08x}"


def _json_crc(values: Mapping[str, Any]) -> str:
    text = json.dumps(json.loads(json.dumps(values)), sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"
