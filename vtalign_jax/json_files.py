"""JSON files from elsewhere: objects of bounded size, whose fields are checked before use."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtalign_jax import remote
from vtalign_jax.errors import UserError

if TYPE_CHECKING:  # exports are verified where epath need not be
    from etils import epath

MAX_BYTES = 32 * 2**20  # parsed, 25 times as much at worst; the largest met are tokenizers of 4 MB

_KINDS = {
    str: "text",
    int: "a whole number",
    float: "a finite number",
    dict: "an object",
    list: "a list",
}


def read_object(file: "Path | epath.Path", mend: str) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Args:
      file: of this machine or in a bucket.
      mend: what to do about a damaged one, for the message.

    Raises:
      FileNotFoundError: there is none.
      UserError: no file but a pipe or a folder, too large, not JSON, nested beyond reason, an
        object with one key twice, or no object.
    """
    if not remote.is_file(file):
        if file.exists():  # a pipe or a device would never end
            raise UserError(f"cannot read {file}: it is no file; {mend}")
        raise FileNotFoundError(file)
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        values = loads(data)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file} ({error}); {mend}") from error
    if not isinstance(values, dict):
        raise UserError(f"cannot read {file} (it holds no JSON object); {mend}")
    return values


def loads(data: bytes) -> Any:
    """Return parsed JSON.

    Raises:
      ValueError: it is none, too large, nested beyond reason, or an object has one key twice.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES // 2**20} MiB of JSON")
    try:
        return json.loads(data, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def require(values: Mapping[str, Any], kinds: Mapping[str, type], where: object, mend: str) -> None:
    """Refuse an object without some fields, or with another kind of value in one.

    Args:
      values: the object.
      kinds: `{"field.field of that": str, int, float, dict or list}`; a float may be whole, and is
        finite.
      where: the file, for the message.
      mend: what to do about it, for the message.

    Raises:
      UserError: names the first such field.
    """
    for name, kind in kinds.items():
        value: Any = values
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if not _is(value, kind):
            found = "is missing" if value is None else f"is not {_KINDS[kind]}"
            raise UserError(f"{where}: {name} {found}; {mend}")


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int | float) and abs(value) < 1e300 and not math.isnan(value)
    return isinstance(value, kind)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return values
