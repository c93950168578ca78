"""Annotation files -> raw rows, one function a format; nothing is judged here but the form.

`tree.build_videos` turns the raw rows of all files into checked `Video`s.
"""

import dataclasses
import json
import re
from typing import Any

from etils import epath

from vtalign_jax.dst.nodes import Skip
from vtalign_jax.errors import UserError

DATASETS = ("assembly101", "ego4d", "holoassist", "epickitchens", "egoexolearn", "wtag")

_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SPLIT_FILE = re.compile(r"(train|validation|valid|val|test)(_filtered|_training)?")


@dataclasses.dataclass(frozen=True)
class RawNode:
    """A node as written: nothing is checked yet."""

    node_id: Any
    level: Any
    start: Any
    end: Any
    name: Any
    note: str = ""


@dataclasses.dataclass(frozen=True)
class RawVideo:
    """One row of an annotation file, as written.

    Attributes:
      where: file and row, for messages.
    """

    uid: str
    nodes: tuple[RawNode, ...]
    dataset: str
    split: str
    source_fps: Any
    where: str


def split_of_file(path: str) -> str:
    """Return the split that a file's name gives ("train_filtered.json" -> "train"), else ""."""
    match = _SPLIT_FILE.fullmatch(epath.Path(path).stem.lower())
    return _SPLIT_NAMES[match[1]] if match else ""


def expand_paths(patterns: str) -> list[str]:
    """Return the files that comma-separated paths and globs name, in order and without repeats.

    Raises:
      UserError: a path or pattern that names no file.
    """
    found: list[str] = []
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        path = epath.Path(pattern)
        if any(char in path.name for char in "*?["):
            matches = sorted(str(match) for match in path.parent.glob(path.name))
        else:
            matches = [pattern] if path.is_file() else []
        if not matches:
            raise UserError(f"no annotation file {pattern}; --annotations takes files or globs")
        found += [match for match in matches if match not in found]
    if not found:
        raise UserError("--annotations names no file; give comma-separated files or globs")
    return found


def read_annotations(path: str) -> tuple[list[RawVideo], list[Skip]]:
    """Return the rows of one annotation file, and the rows whose form could not be read.

    Raises:
      UserError: a file that is not UTF-8 JSON or JSON lines.
    """
    rows, skips = _json_rows(path)
    videos = []
    for where, row in rows:
        try:
            videos.append(_read_flat_row(row, path, where))
        except ValueError as error:
            uid = row.get("video_uid", "") if isinstance(row, dict) else ""
            skips.append(Skip(str(uid), "", "not a flat-JSON row", f"{where}: {error}"))
    return videos, skips


def _json_rows(path: str) -> tuple[list[tuple[str, Any]], list[Skip]]:
    """Return (where, row) of a JSON list, a single JSON object, or JSON lines."""
    name = epath.Path(path).name
    try:
        text = epath.Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
        if len(lines) < 2 or not lines[0][1].lstrip().startswith("{"):
            raise UserError(f"{path} is not JSON: {error}; mend or leave out that file") from None
        return _json_lines(lines, path, error)
    rows = content if isinstance(content, list) else [content]
    return [(f"{name} row {n}", row) for n, row in enumerate(rows, 1)], []


def _json_lines(
    lines: list[tuple[int, str]], path: str, error: json.JSONDecodeError
) -> tuple[list[tuple[str, Any]], list[Skip]]:
    name = epath.Path(path).name
    rows, skips = [], []
    for number, line in lines:
        try:
            rows.append((f"{name} line {number}", json.loads(line)))
        except json.JSONDecodeError as line_error:
            detail = f"{name} line {number}: {line_error}"
            skips.append(Skip("", "", "line is not JSON", detail))
    if not rows:  # a broken JSON document, not JSON lines
        raise UserError(f"{path} is not JSON: {error}; mend or leave out that file")
    return rows, skips


def _read_flat_row(row: Any, path: str, where: str) -> RawVideo:
    """Read one object of the DST label generator's flat list (DATA.md, annotations 1)."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    if not isinstance(row.get("video_uid"), str) or not row["video_uid"].strip():
        raise ValueError("no video_uid")
    if not isinstance(row.get("dst"), list):
        raise ValueError('no "dst" list of nodes (flat JSON)')
    if not all(isinstance(node, dict) for node in row["dst"]):
        raise ValueError('"dst" holds something that is not a node')
    extra = row.get("parsed_video_anns")
    extra = extra if isinstance(extra, dict) else {}
    nodes = tuple(
        RawNode(
            node.get("id"),
            node.get("type"),
            node.get("start_ts"),
            node.get("end_ts"),
            node.get("name"),
        )
        for node in row["dst"]
    )
    dataset = row.get("dataset") or extra.get("dataset") or _dataset_of_file(path)
    return RawVideo(
        row["video_uid"].strip(), nodes, str(dataset), split_of_file(path), extra.get("fps"), where
    )


def _dataset_of_file(path: str) -> str:
    """Hand-made files carry the dataset as a prefix of their name (`ego4d_grp-....json`)."""
    stem = epath.Path(path).stem.lower()
    return next((name for name in DATASETS if stem.startswith(f"{name}_")), "")
