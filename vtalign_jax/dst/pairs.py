"""Videos -> clip-text pairs: which nodes, which window, which frame times."""

import dataclasses
from collections.abc import Callable, Iterable

from vtalign_jax.dst.identity import text_key
from vtalign_jax.dst.nodes import LEVELS, Node, Video
from vtalign_jax.errors import UserError

WindowOf = Callable[[Video, Node], tuple[float, float]]  # (start, end), seconds


@dataclasses.dataclass(frozen=True)
class Pair:
    """One clip and its text, with everything the records say about them but the frames.

    Attributes:
      clip_id: "<uid>/<node_id>", unique within a split.
      text: the node's name.
      parent_text: the name of the nearest ancestor, "" for a root.
      order: rank of the node within its uid and level, by time.
      window_start: seconds; the sampled window, not clipped to the video.
      window_end: seconds.
      times: seconds; where frames are wanted, ascending, not clipped to the video.
      where: file, row and place within it, for messages; no part of the record.
    """

    clip_id: str
    uid: str
    node_id: str
    text: str
    parent_text: str
    level: str
    dataset: str
    recording_id: str
    text_key: str
    order: int
    node_start: float
    node_end: float
    ancestor_ids: tuple[str, ...]
    window_start: float
    window_end: float
    times: tuple[float, ...]
    where: str = dataclasses.field(default="", compare=False)


def frame_times(start: float, end: float, frames: int) -> tuple[float, ...]:
    """Return t_k = t0 + (k + 0.5) (t1 - t0) / F, in seconds (docs/plan.md)."""
    return tuple(start + (k + 0.5) * (end - start) / frames for k in range(frames))


def parse_levels(text: str) -> tuple[str, ...]:
    """Return the levels that `--levels` names: "leaves", "all", or comma-separated levels.

    Raises:
      UserError: an unknown level.
    """
    levels = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    known = ("leaves", "all", *LEVELS)
    for level in levels:
        if level not in known:
            raise UserError(f"--levels knows {', '.join(known)}, got {level!r}")
    if not levels:
        raise UserError(f"--levels is empty; give some of {', '.join(known)}")
    return levels


def is_chosen(node: Node, levels: tuple[str, ...]) -> bool:
    """Return whether `--levels` takes the node."""
    return "all" in levels or node.level in levels or ("leaves" in levels and node.is_leaf)


def make_pairs(
    video: Video, levels: tuple[str, ...], window_of: WindowOf, frames: int
) -> list[Pair]:
    """Return one pair for each chosen node of a video, by time.

    Args:
      video: with its nodes.
      levels: of the chosen nodes, see `parse_levels`.
      window_of: gives a node's window, see `windows.window_chooser`.
      frames: wanted in each window.
    """
    names = {node.node_id: node.name for node in video.nodes}
    orders = _orders(video.nodes)
    pairs = []
    for node in video.nodes:
        if not is_chosen(node, levels):
            continue
        start, end = window_of(video, node)
        pairs.append(
            Pair(
                clip_id=f"{video.uid}/{node.node_id}",
                uid=video.uid,
                node_id=node.node_id,
                text=node.name,
                parent_text=names[node.ancestor_ids[-1]] if node.ancestor_ids else "",
                level=node.level,
                dataset=video.dataset,
                recording_id=video.recording_id,
                text_key=text_key(node.name),
                order=orders[node.node_id],
                node_start=node.start,
                node_end=node.end,
                ancestor_ids=node.ancestor_ids,
                window_start=start,
                window_end=end,
                times=frame_times(start, end, frames),
                where=node.where,
            )
        )
    return sorted(pairs, key=lambda pair: (pair.window_start, pair.clip_id))


def _orders(nodes: Iterable[Node]) -> dict[str, int]:
    """Return each node's rank within its level, by start, then end, then place in the file."""
    orders: dict[str, int] = {}
    ranks = dict.fromkeys(LEVELS, 0)
    for node in sorted(nodes, key=lambda node: (node.start, node.end)):
        orders[node.node_id] = ranks[node.level]
        ranks[node.level] += 1
    return orders
