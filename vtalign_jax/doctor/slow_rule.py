"""The weights of DESIGN section 6, read off annotations one pair at a time in plain Python.

It knows nodes as an annotator wrote them and none of the package's code: no identity array, no
class, no reader, no float32. What a pair is to each other is a set of words of the design.
"""

import dataclasses
import fractions
import operator
import re
from collections.abc import Iterable

HALF_WINDOW = fractions.Fraction(2)  # seconds; the windows of `prepare --strategy=center`

POLICIES = {
    "plan": "ignore",
    "neighbours_soft": "ignore",
    "infonce": "negative",
    "egonce": "multi_positive",
}


@dataclasses.dataclass(frozen=True)
class Annotated:
    """One node of a file; times are exact seconds.

    Attributes:
      uid: the video's.
      recording: what all cameras and task parts of it share.
      node_id: unique within the uid; the ids of its ancestors are the beginnings of it.
      level: the node's.
      start: of the node.
      end: of the node.
      name: the text.
      rank: order within uid and level, see `ranked`.
      signature: of the text, any numbers; () if texts are not compared.
    """

    uid: str
    recording: str
    node_id: str
    level: str
    start: fractions.Fraction
    end: fractions.Fraction
    name: str
    rank: int = -1
    signature: tuple[float, ...] = ()

    @property
    def window(self) -> tuple[fractions.Fraction, fractions.Fraction]:
        """The sampled window."""
        middle = (self.start + self.end) / 2
        return middle - HALF_WINDOW, middle + HALF_WINDOW

    @property
    def words(self) -> list[str]:
        """The text as far as equal texts must agree in it."""
        words = re.findall(r"[a-z0-9]+", self.name.lower())
        return [word for word in words if word not in ("a", "an", "the")]


def ranked(nodes: Iterable[Annotated]) -> list[Annotated]:
    """Return the nodes with their ranks: by start, then end, then place in the file."""
    counts: dict[tuple[str, str], int] = {}
    found = []
    for node in sorted(nodes, key=lambda node: (node.start, node.end)):
        key = (node.uid, node.level)
        counts[key] = counts.get(key, -1) + 1
        found.append(dataclasses.replace(node, rank=counts[key]))
    return found


def relations(
    a: Annotated | None, b: Annotated | None, radius: int = 1, threshold: float = 0.0
) -> frozenset[str]:
    """Return what the design calls a pair.

    Args:
      a: a node, or None for a padding row.
      b: likewise.
      radius: |order difference| of neighbours.
      threshold: products of signatures from which texts are similar; 0 for never.
    """
    if a is None or b is None:
        return frozenset({"padding"})
    if a is b:
        return frozenset({"itself"})
    found = set()
    is_one_recording = a.recording == b.recording
    if is_one_recording:
        found.add("same recording")
    if a.uid == b.uid and a.level == b.level and abs(a.rank - b.rank) <= radius:
        found.add("neighbours")
    if a.uid == b.uid and any(
        below.node_id.startswith(above.node_id + ".") for above, below in ((a, b), (b, a))
    ):
        found.add("ancestors")
    if is_one_recording and a.window[0] < b.window[1] and b.window[0] < a.window[1]:
        found.add("overlapping windows")
    if a.words == b.words:
        found.add("equal text")
    elif threshold and sum(map(operator.mul, a.signature, b.signature)) >= threshold:
        found.add("similar text")
    return frozenset(found)


def is_right(found: frozenset[str], preset: str, policy: str) -> bool:
    """Return whether the pair is in P_i."""
    policy = POLICIES[preset] if policy == "preset" else policy
    return "itself" in found or (policy == "multi_positive" and "equal text" in found)


def weight(found: frozenset[str], preset: str, policy: str, soft: float) -> float:
    """Return w of a pair.

    Args:
      found: see `relations`.
      preset: of the design.
      policy: `same_text`, or "preset" for the preset's own.
      soft: lambda.
    """
    policy = POLICIES[preset] if policy == "preset" else policy
    if "padding" in found:
        return 0.0
    if is_right(found, preset, policy):
        return 1.0
    if "equal text" in found and policy == "ignore":
        return 0.0
    if preset in ("infonce", "egonce"):  # 1 everywhere; every other pair 1
        return 1.0
    neighbours = soft if preset == "neighbours_soft" else 0.0
    values = {
        "similar text": 1.0 if policy == "negative" else 0.0,
        "ancestors": 0.0,
        "overlapping windows": 0.0,
        "neighbours": neighbours,
        "same recording": soft,
    }
    # Zero beats lambda beats 1.
    return min((value for name, value in values.items() if name in found), default=1.0)
