"""Raw rows -> checked videos: times parsed, trees linked, rows of one video merged."""

import collections
import dataclasses
import math
import re
import reprlib
from typing import Any

from vtalign_jax.dst.faults import EPSILON
from vtalign_jax.dst.identity import is_safe_uid
from vtalign_jax.dst.nodes import LEVELS, Node, RawNode, RawVideo, Remark, Skip, Video

SLACK_SECONDS = 0.1  # a child may stick out of its parent by this much without a warning
MAX_TEXT_LENGTH = 1000  # characters; several times what fits the longest text a model is given
MAX_ID_LENGTH = 200  # bytes, of uids and node ids; uids become file names
MAX_SECONDS = 1e7  # four months; beyond it a time is a mistake, and no decoder takes it

_SECONDS = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|nan|[+-]?inf(inity)?")
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d+)?)")
_MARKUP = re.compile(r"<[a-zA-Z/!][^>]*>")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # controls, halves of surrogates
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


@dataclasses.dataclass(frozen=True)
class Checked:
    """What `build_videos` returns.

    Attributes:
      videos: one a (uid, split), in the order of the files.
      skips: what was left out.
      warnings: what was kept and looks wrong.
      asides: lines that are no nodes by nature, counted by kind.
    """

    videos: list[Video]
    skips: list[Skip]
    warnings: list[Remark]
    asides: collections.Counter[str]


def parse_seconds(value: Any) -> float:
    """Return a time as finite seconds.

    Args:
      value: a number, or a string holding one or a clock time ("62.5", "00:01:02.50", "1:02.5").

    Raises:
      ValueError: another form, NaN, infinity, or a time beyond `MAX_SECONDS`.
    """
    shown = _SHORT.repr(value)
    if isinstance(value, str):
        text = value.strip().lower()
        clock = _CLOCK.fullmatch(text)
        if clock:
            hours, minutes, seconds = (float(part or 0) for part in clock.groups())
            value = 3600 * hours + 60 * minutes + seconds
        elif _SECONDS.fullmatch(text):
            value = float(text)
        else:
            raise ValueError(f"time {shown} is neither seconds nor HH:MM:SS")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"time {shown} is not a number")
    if not math.isfinite(value):
        raise ValueError(f"time {shown} is not finite")
    if abs(value) > MAX_SECONDS:
        raise ValueError(f"time {shown} is beyond {MAX_SECONDS:.0f} seconds")
    return float(value)


def build_videos(rows: list[RawVideo]) -> Checked:
    """Return the checked videos; rows with the same uid and split are merged into one.

    Rows of a file that gives no split join those of the same uid that have one.
    """
    splits: dict[str, str] = {}
    for row in rows:
        if row.split:
            splits.setdefault(row.uid, row.split)
    merged: dict[tuple[str, str], list[RawVideo]] = {}
    checked = Checked([], [], [], collections.Counter())
    for row in rows:
        skip = _refuse_row(row)
        if skip:
            checked.skips.append(skip)
        else:
            split = row.split or splits.get(row.uid, "")
            merged.setdefault((row.uid, split), []).append(row)
    for (uid, split), same in merged.items():
        nodes, skips = _merge_nodes(same)
        dataset, fps, remarks = _merge_facts(same)
        known = {_node_id(raw.node_id) for row in same for raw in row.nodes}
        remarks += _miss_parents(uid, nodes, known)
        nodes = _without_missing_ancestors(nodes)
        checked.videos.append(Video(uid, nodes, dataset, split, fps))
        checked.skips.extend(skips)
        checked.warnings.extend(remarks + _look_over(uid, nodes))
        asides: collections.Counter[str] = collections.Counter()
        for row in same:
            asides |= row.asides  # the same lines in each row
        checked.asides.update(asides)
    return checked


def _refuse_row(row: RawVideo) -> Skip | None:
    """Return why a whole row is left out, None if it is not."""
    lost = max(1, len(row.nodes))
    if not row.uid:
        return Skip("", "", "no uid", "", lost, row.where)
    if not is_safe_uid(row.uid) or _UNPRINTABLE.search(row.uid):
        detail = f"uid {_SHORT.repr(row.uid)} has '..', a slash or a control character"
        return Skip(row.uid[:MAX_ID_LENGTH], "", "unsafe uid", detail, lost, row.where)
    if len(row.uid.encode()) > MAX_ID_LENGTH:
        detail = f"{len(row.uid)} characters"
        return Skip(row.uid[:MAX_ID_LENGTH], "", "over-long uid", detail, lost, row.where)
    return None if row.nodes else Skip(row.uid, "", "no nodes", where=row.where)


def _merge_nodes(rows: list[RawVideo]) -> tuple[list[Node], list[Skip]]:
    """Merge the rows of one uid: equal nodes once, a second node of another content is left out.

    What is wrong in the same way in several rows is left out once, too. The ancestors of the nodes
    are not looked for yet.
    """
    kept: dict[str, Node] = {}
    skips: dict[tuple[str, str, str, int], Skip] = {}
    parents = {above for row in rows for raw in row.nodes for above in _ancestors(raw)}
    for row in rows:
        seen: set[str] = set()
        times: collections.Counter[tuple[str, str, str]] = collections.Counter()
        for raw in row.nodes:
            node_id = _node_id(raw.node_id)
            where = " ".join(filter(None, (row.where, raw.where)))
            try:
                node = _check_node(raw, node_id, node_id not in parents, where)
                first = kept.setdefault(node_id, node)
                if node_id in seen:
                    raise _Refused("duplicate id", f"{_shown(node)} after {_shown(first)}")
                seen.add(node_id)
                if node != first:
                    detail = f"{_shown(node)}, but {_shown(first)} in {first.where}"
                    raise _Refused("rows of one video disagree", detail)
            except _Refused as refusal:
                same = (node_id[:MAX_ID_LENGTH], refusal.reason, refusal.detail)
                skip = Skip(row.uid, *same, where=where)
                skips.setdefault((*same, times[same]), skip)
                times[same] += 1
    return list(kept.values()), list(skips.values())


def _miss_parents(uid: str, nodes: list[Node], known: set[str]) -> list[Remark]:
    """Return a remark for each parent that the annotation does not have, not even a bad one.

    An annotation without a single node as high as the parent leaves that level out on purpose.
    """
    depths = {len(node.ancestor_ids) for node in nodes}
    missing: dict[str, list[str]] = {}
    for node in nodes:
        above = node.ancestor_ids
        if above and above[-1] not in known and len(above) - 1 in depths:
            missing.setdefault(above[-1], []).append(node.node_id)
    return [
        Remark(uid, below[0], "parent is not there", f"{parent}, of {len(below)} node(s)")
        for parent, below in missing.items()
    ]


def _without_missing_ancestors(nodes: list[Node]) -> tuple[Node, ...]:
    kept = {node.node_id for node in nodes}
    return tuple(
        dataclasses.replace(node, ancestor_ids=tuple(a for a in node.ancestor_ids if a in kept))
        for node in nodes
    )


def _merge_facts(rows: list[RawVideo]) -> tuple[str, float | None, list[Remark]]:
    """Return dataset and frame rate of a video, the first that is usable, and remarks."""
    remarks = []
    dataset, fps = "", None
    for row in rows:
        if row.dataset and not dataset:
            if is_safe_uid(row.dataset) and len(row.dataset) <= MAX_ID_LENGTH:
                dataset = row.dataset
            else:
                remarks.append(Remark(row.uid, "", "unusable dataset", _SHORT.repr(row.dataset)))
        if row.source_fps is not None and fps is None:
            fps = _parse_fps(row.source_fps)
            if fps is None:
                detail = _SHORT.repr(row.source_fps)
                remarks.append(Remark(row.uid, "", "unusable frame rate", detail))
    return dataset, fps, list(dict.fromkeys(remarks))


class _Refused(Exception):
    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def _shown(node: Node) -> str:
    return f"{_SHORT.repr(node.name)} ({node.level}, {node.start} to {node.end})"


def _check_node(raw: RawNode, node_id: str, is_leaf: bool, where: str) -> Node:
    """Return the node, its ancestors not yet looked for; raises _Refused."""
    if raw.fault:
        raise _Refused(raw.fault, _SHORT.repr(raw.name))
    if not node_id:
        raise _Refused("no id", f"name {_SHORT.repr(raw.name)}")
    if len(node_id.encode(errors="replace")) > MAX_ID_LENGTH or _UNPRINTABLE.search(node_id):
        raise _Refused("unusable id", _SHORT.repr(node_id))
    ancestors = _ancestors(raw)
    level = LEVELS[min(len(ancestors), len(LEVELS) - 1)]
    if raw.level is not None:
        level = str(raw.level).strip().lower()
    if level not in LEVELS:
        shown = _SHORT.repr(raw.level)
        raise _Refused("unknown type", f"type {shown}; known are {', '.join(LEVELS)}")
    name = _check_text(raw.name)
    try:
        start, end = parse_seconds(raw.start), parse_seconds(raw.end)
    except ValueError as error:
        raise _Refused("unusable time", str(error)) from None
    if end < start:
        raise _Refused("reversed times", f"{start} to {end}")
    if start < 0:
        raise _Refused("span outside the video", f"{start} to {end}, before the start")
    return Node(node_id, level, start, end, name, ancestors, is_leaf, raw.note, where)


def _check_text(name: Any) -> str:
    """Return the text with single spaces; raises _Refused."""
    if not isinstance(name, str) or not name.strip():
        raise _Refused("empty text", f"name {_SHORT.repr(name)}")
    text = " ".join(name.split())
    if len(text) > MAX_TEXT_LENGTH:
        detail = f"{len(text)} characters, more than {MAX_TEXT_LENGTH}: {_SHORT.repr(text)}"
        raise _Refused("over-long text", detail)
    if _UNPRINTABLE.search(text):
        raise _Refused("unprintable text", _SHORT.repr(text))
    return text


def _node_id(value: Any) -> str:
    """Return an id as text, "" if it is none."""
    is_id = isinstance(value, str | int | float) and not isinstance(value, bool)
    return str(value).strip() if is_id else ""


def _ancestors(raw: RawNode) -> tuple[str, ...]:
    """Return the ids above a node, root first; by its id: "S1.1.a" -> ("S1", "S1.1")."""
    if raw.ancestor_ids is not None:
        return raw.ancestor_ids
    node_id = _node_id(raw.node_id)
    parts = node_id.split(".") if len(node_id) <= MAX_ID_LENGTH else []
    return tuple(".".join(parts[:n]) for n in range(1, len(parts)))


def _parse_fps(value: Any) -> float | None:
    try:
        fps = parse_seconds(value)
    except ValueError:
        return None
    return fps if fps > 0 else None


def _look_over(uid: str, nodes: tuple[Node, ...]) -> list[Remark]:
    """Return what looks wrong in the nodes of a video."""
    by_id = {node.node_id: node for node in nodes}
    remarks = []
    for node in nodes:
        if _MARKUP.search(node.name):
            remarks.append(Remark(uid, node.node_id, "markup in the text", _SHORT.repr(node.name)))
        parent = by_id[node.ancestor_ids[-1]] if node.ancestor_ids else node
        outside = max(parent.start - node.start, node.end - parent.end)
        if outside > SLACK_SECONDS + EPSILON:
            detail = f"by {outside:.2f} s"
            remarks.append(Remark(uid, node.node_id, "child outside its parent", detail))
    return remarks
