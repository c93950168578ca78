"""Raw rows -> checked videos: times parsed, trees linked, rows of one video merged."""

import dataclasses
import math
import re
from typing import Any

from vtalign_jax.dst.identity import is_safe_uid
from vtalign_jax.dst.nodes import LEVELS, Node, Remark, Skip, Video
from vtalign_jax.dst.readers import RawNode, RawVideo

SLACK_SECONDS = 0.1  # a child may stick out of its parent by this much without a warning

_SECONDS = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|nan|[+-]?inf(inity)?")
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d+)?)")
_MARKUP = re.compile(r"<[a-zA-Z/!][^>]*>")


@dataclasses.dataclass(frozen=True)
class Checked:
    """What `build_videos` returns.

    Attributes:
      videos: one a (uid, split), in the order of the files.
      skips: what was left out.
      warnings: what was kept and looks wrong.
    """

    videos: list[Video]
    skips: list[Skip]
    warnings: list[Remark]


def parse_seconds(value: Any) -> float:
    """Return a time as finite seconds.

    Args:
      value: a number, or a string holding one or a clock time ("62.5", "00:01:02.50", "1:02.5").

    Raises:
      ValueError: another form, NaN or infinity.
    """
    if isinstance(value, str):
        text = value.strip().lower()
        clock = _CLOCK.fullmatch(text)
        if clock:
            hours, minutes, seconds = clock.groups()
            value = 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds)
        elif _SECONDS.fullmatch(text):
            value = float(text)
        else:
            raise ValueError(f"time {value!r} is neither seconds nor HH:MM:SS")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"time {value!r} is not a number")
    if not math.isfinite(value):
        raise ValueError(f"time {value!r} is not finite")
    return float(value)


def build_videos(rows: list[RawVideo]) -> Checked:
    """Return the checked videos; rows with the same uid and split are merged into one."""
    merged: dict[tuple[str, str], list[RawVideo]] = {}
    skips: list[Skip] = []
    for row in rows:
        if not is_safe_uid(row.uid):
            detail = f"{row.where}: uid {row.uid!r} has '..', a slash or a control character"
            skips.append(Skip(row.uid, "", "unsafe uid", detail, max(1, len(row.nodes))))
        elif not row.nodes:
            skips.append(Skip(row.uid, "", "no nodes", row.where))
        else:
            merged.setdefault((row.uid, row.split), []).append(row)
    videos, warnings = [], []
    for same in merged.values():
        video, video_skips, video_warnings = _build_video(same)
        videos.append(video)
        skips += video_skips
        warnings += video_warnings
    return Checked(videos, skips, warnings)


def _build_video(rows: list[RawVideo]) -> tuple[Video, list[Skip], list[Remark]]:
    """Merge the rows of one uid: equal nodes once, a second node of another content is left out."""
    uid = rows[0].uid
    kept: dict[str, Node] = {}
    skips: list[Skip] = []
    all_ids = {str(node.node_id).strip() for row in rows for node in row.nodes}
    parents = {ancestor for node_id in all_ids for ancestor in _prefixes(node_id)}
    for row in rows:
        seen_in_row: set[str] = set()
        for raw in row.nodes:
            node_id = "" if raw.node_id is None else str(raw.node_id).strip()
            try:
                node = _check_node(raw, node_id, is_leaf=node_id not in parents)
            except _Refused as refusal:
                skips.append(Skip(uid, node_id, refusal.reason, f"{row.where}: {refusal.detail}"))
                continue
            if node_id not in kept:
                kept[node_id] = node
            elif node_id in seen_in_row or node != kept[node_id]:
                detail = f"{row.where}: {node.name!r} after {kept[node_id].name!r}"
                skips.append(Skip(uid, node_id, "duplicate id", detail))
            seen_in_row.add(node_id)
    nodes = tuple(
        dataclasses.replace(node, ancestor_ids=tuple(a for a in _prefixes(node_id) if a in kept))
        for node_id, node in kept.items()
    )
    fps = next((fps for row in rows if (fps := _parse_fps(row.source_fps))), None)
    dataset = next((row.dataset for row in rows if row.dataset), "")
    return Video(uid, nodes, dataset, rows[0].split, fps), skips, _warnings(uid, nodes)


class _Refused(Exception):
    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def _check_node(raw: RawNode, node_id: str, is_leaf: bool) -> Node:
    if not node_id:
        raise _Refused("no id", f"name {raw.name!r}")
    depth = min(len(_prefixes(node_id)), len(LEVELS) - 1)
    level = LEVELS[depth] if raw.level is None else str(raw.level).strip().lower()
    if level not in LEVELS:
        raise _Refused("unknown type", f"type {raw.level!r}; known are {', '.join(LEVELS)}")
    if not isinstance(raw.name, str) or not raw.name.strip():
        raise _Refused("empty text", f"name {raw.name!r}")
    try:
        start, end = parse_seconds(raw.start), parse_seconds(raw.end)
    except ValueError as error:
        raise _Refused("unusable time", str(error)) from None
    if end < start:
        raise _Refused("reversed times", f"{start} to {end}")
    if start < 0:
        raise _Refused("span outside the video", f"{start} to {end}, before the start")
    name = " ".join(raw.name.split())
    return Node(node_id, level, start, end, name, (), is_leaf, raw.note)


def _prefixes(node_id: str) -> list[str]:
    """Return the ids above one, root first: "S1.1.a" -> ["S1", "S1.1"]."""
    parts = node_id.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _parse_fps(value: Any) -> float | None:
    try:
        fps = parse_seconds(value)
    except ValueError:
        return None
    return fps if fps > 0 else None


def _warnings(uid: str, nodes: tuple[Node, ...]) -> list[Remark]:
    by_id = {node.node_id: node for node in nodes}
    warnings = []
    for node in nodes:
        if _MARKUP.search(node.name):
            warnings.append(Remark(uid, node.node_id, "markup in the text", repr(node.name)))
        parent = by_id[node.ancestor_ids[-1]] if node.ancestor_ids else node
        outside = max(parent.start - node.start, node.end - parent.end)
        if outside > SLACK_SECONDS:
            detail = f"by {outside:.2f} s"
            warnings.append(Remark(uid, node.node_id, "child outside its parent", detail))
    return warnings
