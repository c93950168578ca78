"""Annotation files -> raw rows: which files, which format, which split; nothing is judged here.

A file's format is recognised by its content. `json_readers` and `tables` hold one function a
format; `tree.build_videos` turns the raw rows of all files into checked `Video`s.
"""

import codecs
import dataclasses
import re

from etils import epath

from vtalign_jax import remote
from vtalign_jax.dst.json_readers import JSON_FORMATS, read_json
from vtalign_jax.dst.nodes import RawVideo, Skip
from vtalign_jax.dst.tables import Columns, is_node_table, read_csv, read_tsv, table_cells
from vtalign_jax.errors import UserError

FORMATS = (*JSON_FORMATS, "tsv", "csv")
MAX_FILE_BYTES = 2**30

# Hand-made files carry the dataset as a prefix of their name (`ego4d_grp-....json`).
_DATASET_PREFIXES = {
    "assembly101": "assembly101",
    "ego4d": "ego4d",
    "holoassist": "holoassist",
    "epickitchens": "epickitchens",
    "epic_100": "epickitchens",  # EPIC_100_validation.csv
    "egoexolearn": "egoexolearn",
    "wtag": "wtag",
}
_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SPLIT_FILE = re.compile(
    r"(?P<prefix>.+[_.-])?(?P<split>train|validation|valid|val|test)(_filtered|_training)?"
)
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def split_of_file(path: str, uid: str = "") -> str:
    """Return the split that a file's name gives ("ego4d_train_filtered.json" -> "train"), or "".

    Args:
      path: the file.
      uid: of the only video in it, "" for several; a file named after it ("take_test.tsv") has no
        split in its name.
    """
    stem = epath.Path(path).stem
    match = _SPLIT_FILE.fullmatch(stem.lower())
    is_uid = bool(match and match["prefix"] and uid and f"_{stem}".endswith(f"_{uid}"))
    return _SPLIT_NAMES[match["split"]] if match and not is_uid else ""


def expand_paths(patterns: str) -> list[str]:
    """Return the files that comma-separated paths and globs name, in order and without repeats.

    Raises:
      UserError: a path or pattern that names no file.
    """
    found: dict[str, None] = {}
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        matches = [pattern] if remote.is_file(remote.path(pattern)) else _glob(pattern)
        if not matches and remote.path(pattern).is_dir():
            raise UserError(f"{pattern} is a folder; give its files, such as '{pattern}/*.json'")
        if not matches:
            raise UserError(f"no annotation file {pattern}; --annotations takes files or globs")
        found.update(dict.fromkeys(matches))
    if not found:
        raise UserError("--annotations names no file; give comma-separated files or globs")
    return list(found)


def _glob(pattern: str) -> list[str]:
    """Return the files that a pattern names; any part of its path may hold a wildcard."""
    parts = epath.Path(pattern).parts
    first = next((n for n, part in enumerate(parts) if set("*?[") & set(part)), None)
    if first is None:
        return []
    folder = epath.Path(*parts[:first])
    found = [path for path in folder.glob("/".join(parts[first:])) if remote.is_file(path)]
    if not remote.is_remote(pattern):
        for path in found:
            if not remote.is_within(path, folder):
                raise UserError(
                    f"{path} is a link that leads out of {folder or '.'}; name its file itself in "
                    "--annotations, or remove it"
                )
    return sorted(map(str, found))


def read_annotations(
    path: str, form: str = "", columns: Columns | None = None
) -> tuple[list[RawVideo], list[Skip]]:
    """Return the rows of one annotation file, and the rows whose form could not be read.

    A file without any row is named among the latter.

    Args:
      path: the file.
      form: one of `FORMATS`; "" recognises the format by content. The rows of one JSON file may
        be of several formats.
      columns: names of a segments CSV's columns; None for those of EPIC-KITCHENS-100.

    Raises:
      UserError: a file in no known format, in another encoding, or too large.
    """
    text = _read_text(path)
    kind = form or _recognise(text, path)
    if kind == "tsv":
        rows, skips = read_tsv(text, path)
    elif kind == "csv":
        rows, skips = read_csv(text, path, columns or Columns())
    else:
        rows, skips = read_json(text, path, form)
    if not rows and not skips:
        skips = [Skip("", "", "no recordings", clips=0, where=epath.Path(path).name)]
    split = _split(path, {row.uid for row in rows})
    dataset = _dataset_of_file(path)
    rows = [dataclasses.replace(r, split=split, dataset=r.dataset or dataset) for r in rows]
    return rows, skips


def _read_text(path: str) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with a byte order mark."""
    try:
        file = epath.Path(path)
        if file.stat().length > MAX_FILE_BYTES:
            limit = MAX_FILE_BYTES // 2**20
            raise UserError(f"{path} is larger than {limit} MiB; split it into several files")
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}; mend or leave out that file") from None
    marks = (mark for mark in _BYTE_ORDER_MARKS if content.startswith(mark))
    encoding = _BYTE_ORDER_MARKS.get(next(marks, b""), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        raise UserError(f"{path} is not {name} (byte {error.start}); save it as UTF-8") from None
    if "\0" in text:
        place = len(text[: text.index("\0")].encode())
        raise UserError(f"{path} is not UTF-8 text (zero byte at {place}); save it as UTF-8")
    return text


def _recognise(text: str, path: str) -> str:
    """Return "json", "tsv" or "csv"; which JSON format it is, is seen row by row."""
    start = text.lstrip()
    if start.startswith(("{", "[")):
        return "json"
    first = re.split(r"[\r\n]", start, maxsplit=1)[0]
    if is_node_table(first):
        return "tsv"
    if len(table_cells(first)) > 1:
        return "csv"
    raise UserError(
        f"{path} is {'in no known format' if start else 'empty'}; --annotations takes JSON, JSON "
        "lines, TSV of nodes or CSV of segments"
    )


def _split(path: str, uids: set[str]) -> str:
    """Return the split of a file: by its name, or by its folder's if it holds a single video."""
    if len(uids) != 1:
        return split_of_file(path)
    folder = epath.Path(path).parent.name.lower()
    return split_of_file(path, *uids) or _SPLIT_NAMES.get(folder, "")


def _dataset_of_file(path: str) -> str:
    stem = epath.Path(path).stem.lower()
    names = (n for prefix, n in _DATASET_PREFIXES.items() if stem.startswith(f"{prefix}_"))
    return next(names, "")
