"""JSON and JSON lines -> raw rows: flat and nested trees, and step text (DATA.md).

Which format a row has is seen row by row, so that one file may mix them. A row that has both a
tree (`dst`) and step text is read by its tree.
"""

import collections
import json
import math
from collections.abc import Iterator
from typing import Any

from etils import epath

from vtalign_jax.dst.nodes import RawNode, RawVideo, Skip
from vtalign_jax.dst.step_text import read_step_text
from vtalign_jax.errors import UserError

JSON_FORMATS = ("flat", "nested", "step_text")

_MOST_DIGITS = 300  # of an integer; more do not fit a float, and Python refuses thousands
_CHILDREN = {"substeps": "substep", "actions": "action"}
_PARTS = {"flat": 'list "dst"', "nested": 'list "steps"', "step_text": "all_step_descriptions"}
_ID_KEYS = ("step_id", "sub_id", "act_id", "id")
_START_KEYS, _END_KEYS = ("start_ts", "t0"), ("end_ts", "t1")

_Rows = list[tuple[str, Any]]  # where, row


def read_json(text: str, path: str, form: str = "") -> tuple[list[RawVideo], list[Skip]]:
    """Return the rows of a JSON list, a single JSON object, or JSON lines.

    Args:
      text: the file's content.
      path: the file, for messages.
      form: one of `JSON_FORMATS` to read every row that way, "" to look at each row.

    Raises:
      UserError: neither JSON nor JSON lines, or JSON nested beyond reason.
    """
    try:
        rows, skips = _json_rows(text, path)
        videos = []
        for where, row in rows:
            try:
                videos.append(_read_row(row, where, form))
            except ValueError as error:
                uid = row.get("video_uid", "") if isinstance(row, dict) else ""
                uid = uid if isinstance(uid, str) else ""
                skips.append(Skip(uid, "", "row in no known form", str(error), where=where))
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; mend or leave out that file") from None
    return videos, skips


def _json_rows(text: str, path: str) -> tuple[_Rows, list[Skip]]:
    name = epath.Path(path).name
    try:
        content = _loads(text)
    except json.JSONDecodeError as error:
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(lines) < 2 or not lines[0][1].lstrip().startswith("{"):
            raise UserError(f"{path} is not JSON: {error}; mend or leave out that file") from None
        return _json_lines(lines, path, error)
    rows = content if isinstance(content, list) else [content]
    return [(f"{name} row {n}", row) for n, row in enumerate(rows, 1)], []


def _json_lines(
    lines: list[tuple[int, str]], path: str, error: json.JSONDecodeError
) -> tuple[_Rows, list[Skip]]:
    name = epath.Path(path).name
    rows, skips = [], []
    for number, line in lines:
        try:
            rows.append((f"{name} line {number}", _loads(line)))
        except json.JSONDecodeError as line_error:
            where = f"{name} line {number}"
            skips.append(Skip("", "", "line is not JSON", str(line_error), where=where))
    if not any(row and isinstance(row, dict) for _, row in rows):  # a document, only broken
        raise UserError(f"{path} is not JSON: {error}; mend or leave out that file")
    return rows, skips


def _loads(text: str) -> Any:
    """Parse JSON; an integer beyond any float becomes infinity, which no time or id can be."""
    return json.loads(
        text,
        parse_int=lambda n: int(n) if len(n) <= _MOST_DIGITS else math.inf,
        object_pairs_hook=_once,
    )


class _Ambiguous:
    """Stands for an object with one key twice: no reader says which value is meant."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __repr__(self) -> str:
        return f"object with the key {self._key!r} twice"


def _once(pairs: list[tuple[str, Any]]) -> Any:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    names = [name for name, _ in pairs]
    return _Ambiguous(next(name for name in names if names.count(name) > 1))


def _read_row(row: Any, where: str, form: str) -> RawVideo:
    """Read one object; a ValueError says why it cannot be read (as `form`, if that is given)."""
    if not isinstance(row, dict):
        got = repr(row) if isinstance(row, _Ambiguous) else type(row).__name__
        raise ValueError(f"expected an object, got {got}")
    uid = row.get("video_uid")
    uid = str(uid) if isinstance(uid, int) and not isinstance(uid, bool) else uid
    if not isinstance(uid, str) or not uid.strip():
        raise ValueError("no video_uid")
    kind, tree = _find_tree(row, form)
    asides = collections.Counter()
    if kind == "flat":
        nodes = [_flat_node(node, number) for number, node in enumerate(tree, 1)]
    elif kind == "nested":
        nodes = list(_nested_nodes(tree, "step", ()))
    else:
        nodes, asides = read_step_text(tree)
    extra = _extra(row)
    dataset = str(row.get("dataset") or extra.get("dataset") or "").strip()
    return RawVideo(uid.strip(), tuple(nodes), dataset, "", extra.get("fps"), where, asides)


def _find_tree(row: dict[str, Any], form: str) -> tuple[str, Any]:
    """Return the format of a row and the part that holds its nodes; an empty part comes last."""
    steps = row["dst"].get("steps") if isinstance(row.get("dst"), dict) else row.get("steps")
    texts = [_extra(row).get("all_step_descriptions"), row.get("all_step_descriptions")]
    parts = {
        "flat": row["dst"] if isinstance(row.get("dst"), list) else None,
        "nested": steps if isinstance(steps, list) else None,
        "step_text": next((text for text in texts if isinstance(text, str)), None),
    }
    wanted = [form] if form else JSON_FORMATS
    there = [kind for kind in wanted if parts[kind] is not None]
    if not there:
        raise ValueError(f"no {' and no '.join(_PARTS[kind] for kind in wanted)}")
    kind = next((kind for kind in there if parts[kind]), there[0])
    return kind, parts[kind]


def _extra(row: dict[str, Any]) -> dict[str, Any]:
    found = row.get("parsed_video_anns")
    return found if isinstance(found, dict) else {}


def _flat_node(node: Any, number: int) -> RawNode:
    """Read a node of the DST label generator's flat list; the hierarchy is in its id."""
    where = f"node {number}"
    if not isinstance(node, dict):
        return RawNode(None, None, None, None, node, where=where, fault="not a node")
    values = (node.get(key) for key in ("id", "type", "start_ts", "end_ts", "name"))
    return RawNode(*values, where=where)


def _nested_nodes(items: list[Any], level: str, above: tuple[str, ...]) -> Iterator[RawNode]:
    """Yield the nodes of nested objects, a parent before its children.

    A missing id is made of the place; an id that does not go on from its parent's ("a" below
    "S1.1") gets the parent's in front, since such ids start again below each parent.
    """
    for number, item in enumerate(items, 1):
        where = f"{level} {number}" + (f" of {above[-1]}" if above else "")
        if not isinstance(item, dict):
            yield RawNode(None, level, None, None, item, where=where, fault="not a node")
            continue
        given = next((item[key] for key in _ID_KEYS if item.get(key) not in (None, "")), None)
        node_id = str((number if above else f"S{number}") if given is None else given).strip()
        if above and not node_id.startswith(f"{above[-1]}."):
            node_id = f"{above[-1]}.{node_id}"
        stamps = item.get("timestamps")
        times = item | stamps if isinstance(stamps, dict) else item
        start, end = (
            next((times[key] for key in keys if key in times), None)
            for keys in (_START_KEYS, _END_KEYS)
        )
        name = item.get("name")
        yield RawNode(node_id, level, start, end, name, "", above, where)
        for key, child_level in _CHILDREN.items():
            children = item.get(key)
            if isinstance(children, list):
                yield from _nested_nodes(children, child_level, (*above, node_id))
            elif children:
                fault = f"{key} is no list"
                yield RawNode(None, level, None, None, children, where=where, fault=fault)
