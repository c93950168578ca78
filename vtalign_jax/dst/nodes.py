"""What an annotation becomes: raw rows, then videos with a tree of nodes, and what is wrong."""

import collections
import dataclasses
from typing import Any

from vtalign_jax.dst.identity import recording_id

LEVELS = ("step", "substep", "action")  # from the root down


@dataclasses.dataclass(frozen=True)
class RawNode:
    """A node as written: nothing is checked yet.

    Attributes:
      node_id: unique within the uid.
      level: one of `LEVELS` in either case; None: as deep as the id.
      start: seconds or a clock time.
      end: seconds or a clock time.
      name: the text.
      note: remarks that are not part of the text.
      ancestor_ids: root first; None: as the dots of the id say.
      where: place within the row, for messages.
      fault: why this is no node after all, "" if it is one; `name` then holds what was found.
    """

    node_id: Any
    level: Any
    start: Any
    end: Any
    name: Any
    note: str = ""
    ancestor_ids: tuple[str, ...] | None = None
    where: str = ""
    fault: str = ""


@dataclasses.dataclass(frozen=True)
class RawVideo:
    """One row of an annotation file, or the rows of one video, as written.

    Attributes:
      where: file and row, for messages.
      asides: lines that are no nodes by nature, counted by kind.
    """

    uid: str
    nodes: tuple[RawNode, ...]
    dataset: str
    split: str
    source_fps: Any
    where: str
    asides: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


@dataclasses.dataclass(frozen=True)
class Node:
    """One step, substep or action.

    Attributes:
      node_id: unique within the uid; the hierarchy is in it ("S1" > "S1.1" > "S1.1.a").
      level: one of `LEVELS`.
      start: seconds from the start of the video.
      end: seconds from the start of the video, >= start.
      name: the text, stripped.
      ancestor_ids: nodes of the same uid, root first, parent last.
      is_leaf: True if the annotation has no node below it.
      note: remarks that are not part of the text.
      where: file, row and place within it, for messages.
    """

    node_id: str
    level: str
    start: float
    end: float
    name: str
    ancestor_ids: tuple[str, ...] = ()
    is_leaf: bool = True
    note: str = ""
    where: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True)
class Video:
    """One annotated video.

    Attributes:
      uid: as in the annotation.
      nodes: in the order of the annotation.
      dataset: name of the source dataset, "" if the annotation does not say.
      split: "train", "val", "test", or "" as long as none is given.
      source_fps: frame rate of the source video according to the annotation, frames a second.
      named_recording: the recording according to the layout, "" if it names none.
    """

    uid: str
    nodes: tuple[Node, ...]
    dataset: str = ""
    split: str = ""
    source_fps: float | None = None
    named_recording: str = ""

    @property
    def recording_id(self) -> str:
        """The recording: as the layout names it, else by the rule of `identity.recording_id`."""
        return self.named_recording or recording_id(self.uid)


@dataclasses.dataclass(frozen=True)
class Skip:
    """Something that was left out, and why; one line of `skipped.jsonl`.

    Attributes:
      uid: the video ("" if the row does not say).
      node_id: the node, "" if the whole video or a row without an id is left out.
      reason: short and without values, so that equal reasons can be counted.
      detail: the values.
      clips: how many clips are lost by it.
      where: file, row and place within it, "" if it is about a whole video.
    """

    uid: str
    node_id: str
    reason: str
    detail: str = ""
    clips: int = 1
    where: str = ""


@dataclasses.dataclass(frozen=True)
class Remark:
    """Something that was kept and looks wrong: a warning.

    Attributes:
      uid: the video ("" if it is about several).
      node_id: the node, "" if it is about the whole video.
      reason: short and without values, so that equal reasons can be counted.
      detail: the values.
    """

    uid: str
    node_id: str
    reason: str
    detail: str = ""
