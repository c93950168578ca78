"""What looks wrong in annotations that can be read: trees, times, texts and splits.

These are the checks beyond those of `tree.build_videos`, whose skips and warnings `prepare` shares.
"""

import collections
import itertools
import re
import unicodedata
from collections.abc import Iterator

from vtalign_jax.dst.faults import EPSILON
from vtalign_jax.dst.findings import Finding
from vtalign_jax.dst.identity import text_key
from vtalign_jax.dst.nodes import LEVELS, Node, Video
from vtalign_jax.dst.splits import shared_recordings
from vtalign_jax.dst.tree import SLACK_SECONDS

_SLACK = SLACK_SECONDS + EPSILON  # seconds
_CHARACTERS_A_TOKEN = 4  # of English; other scripts need more tokens
_SHOWN = 3  # of several uids or texts

_ORDINAL = re.compile(r"(?:.*\D)?\d{1,6}|[a-z]{1,2}")  # the last part of ids that count
_ID_PARTS = re.compile(r"\d+|[^\W\d_]+")
_REMARK_WORD = r"(?:mistakes?|errors?|corrections?|notes?|todo|fixme|unsure|unclear|not sure)"
_REMARK = re.compile(
    rf"(?:{_REMARK_WORD}|n\.?b\.?)\s*:.*|(?:todo|fixme)\b.*"  # in front
    rf"|.*[(\[{{][^()\[\]{{}}]*(?:\b{_REMARK_WORD}\b|\?)[^()\[\]{{}}]*[)\]}}]\W*"  # at the end
    r"|.*\?\?+",
    re.IGNORECASE,
)
_DECODED_TWICE = re.compile("[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac")  # UTF-8 read as Latin-1
_JOINERS = "\u200c\u200d"  # letters of several scripts need them


def check_tree(video: Video) -> Iterator[Finding]:
    """Yield what looks wrong in the levels, ids and times of a video's nodes."""
    repeated = dict(_repeats(video))
    for node, detail in repeated.items():
        yield _finding("same text at the same time", video, node, detail)
    for node, detail in _misplaced(video):
        yield _finding("level unlike the place in the tree", video, node, detail)
    for siblings in _siblings(video):
        for node, detail in _out_of_order(siblings):
            yield _finding("siblings out of order", video, node, detail)
        for node, detail in _overlaps([node for node in siblings if node not in repeated]):
            yield _finding("siblings overlap", video, node, detail)


def check_texts(videos: list[Video], max_text_chars: int) -> Iterator[Finding]:
    """Yield what looks wrong in texts, and one finding for each text written in several ways."""
    written: dict[str, collections.Counter[str]] = {}
    keys: dict[str, str] = {}
    for video in videos:
        for node in video.nodes:
            yield from _check_text(video, node, max_text_chars)
            key = keys.get(node.name) or keys.setdefault(node.name, text_key(node.name))
            written.setdefault(key, collections.Counter())[node.name] += 1
    for forms in written.values():
        if len(forms) > 1:
            shown = ", ".join(f"{form!r} ({count})" for form, count in forms.most_common(_SHOWN))
            more = f", and {len(forms) - _SHOWN} more" if len(forms) > _SHOWN else ""
            yield Finding("info", "one text written in several ways", detail=shown + more)


def check_splits(videos: list[Video], on_leakage: str) -> Iterator[Finding]:
    """Yield one finding for each recording that stands in several splits.

    Args:
      videos: each with a split.
      on_leakage: with "drop", `prepare` only removes such a recording from train.
    """
    shared = shared_recordings(videos)
    uids: dict[str, dict[str, list[str]]] = {name: {} for name in shared}
    for video in videos:
        if video.recording_id in shared:
            uids[video.recording_id].setdefault(video.split, []).append(video.uid)
    for name, by_split in uids.items():
        leaks = "train" in by_split
        check = "recording in train and in val or test" if leaks else "recording in val and in test"
        counts = collections.Counter(uid for of_split in by_split.values() for uid in of_split)
        twice = sorted(uid for uid, count in counts.items() if count > 1)
        shown = "; ".join(f"{split}: {_some(found)}" for split, found in by_split.items())
        detail = f"recording {name}: {shown}"
        severity = "error" if leaks and on_leakage == "error" else "warning"
        if twice:
            check, detail = "uid in two splits", f"{_some(twice)} in {' and '.join(by_split)}"
        yield Finding(severity, check, twice[0] if len(twice) == 1 else "", "", detail)


def _finding(check: str, video: Video, node: Node, detail: str) -> Finding:
    return Finding("warning", check, video.uid, node.node_id, detail, node.where)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _repeats(video: Video) -> Iterator[tuple[Node, str]]:
    """Yield nodes with the text, the level and the span of an earlier one."""
    alike: dict[tuple[str, str], list[Node]] = {}
    for node in sorted(video.nodes, key=lambda node: (node.start, node.end)):
        earlier = alike.setdefault((node.level, node.name.casefold()), [])
        if (
            earlier
            and max(abs(node.start - earlier[-1].start), abs(node.end - earlier[-1].end)) <= _SLACK
        ):
            yield node, f"{node.name!r} at {_span(node)}, as {earlier[-1].node_id}"
        earlier.append(node)


def _misplaced(video: Video) -> Iterator[tuple[Node, str]]:
    """Yield nodes whose level does not fit their ancestors, their children or their siblings.

    Levels may be left out (an action right below a step), but not mixed among siblings.
    """
    ranks = {node.node_id: LEVELS.index(node.level) for node in video.nodes}
    depths = {node.node_id: min(len(node.ancestor_ids), len(LEVELS) - 1) for node in video.nodes}
    highest_below: dict[str, int] = {}
    regular: set[tuple[str, ...]] = set()  # ancestors below which some node is at its own level
    for node in video.nodes:
        rank = ranks[node.node_id]
        if node.ancestor_ids and rank >= depths[node.node_id]:
            parent = node.ancestor_ids[-1]
            highest_below[parent] = min(rank, highest_below.get(parent, rank))
        if rank == depths[node.node_id]:
            regular.add(node.ancestor_ids)
    for node in video.nodes:
        rank, depth = ranks[node.node_id], depths[node.node_id]
        below = highest_below.get(node.node_id, len(LEVELS))
        if rank < depth:
            yield node, f"{_a(node.level)} below {' and '.join(node.ancestor_ids)}"
        elif rank >= below:
            yield node, f"{_a(node.level)} with {_a(LEVELS[below])} below it"
        elif rank > depth and node.ancestor_ids in regular and _has_parent(node):
            yield node, f"{_a(node.level)} beside {_a(LEVELS[depth])}"


def _a(level: str) -> str:
    return f"an {level}" if level.startswith("a") else f"a {level}"


def _has_parent(node: Node) -> bool:
    """Return whether the nearest ancestor is the one that the id names."""
    parent = node.node_id.rpartition(".")[0]
    return parent == (node.ancestor_ids[-1] if node.ancestor_ids else "")


def _siblings(video: Video) -> list[list[Node]]:
    """Return the nodes of each parent and level.

    Segments without any tree, as of a CSV, may lie as they like.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[Node]] = {}
    for node in video.nodes:
        if node.ancestor_ids or node.level == LEVELS[0]:
            groups.setdefault((node.level, node.ancestor_ids), []).append(node)
    return [group for group in groups.values() if len(group) > 1]


def _out_of_order(siblings: list[Node]) -> Iterator[tuple[Node, str]]:
    """Yield nodes that start before the one whose id comes before theirs."""
    if not all(_ORDINAL.fullmatch(node.node_id.rpartition(".")[2].lower()) for node in siblings):
        return  # names, not places in an order
    ordered = sorted(siblings, key=_place)
    for before, node in itertools.pairwise(ordered):
        if node.start < before.start - _SLACK:
            yield node, f"at {_span(node)}, but {before.node_id} at {_span(before)}"


def _place(node: Node) -> list[tuple[bool, int, str]]:
    """Return what sorts ids as people count: 2 before 10, z before aa."""
    parts = _ID_PARTS.findall(node.node_id.lower())
    return [
        (False, int(part), "") if part.isdecimal() else (True, len(part), part) for part in parts
    ]


def _overlaps(siblings: list[Node]) -> Iterator[tuple[Node, str]]:
    """Yield nodes that start before an earlier one ends."""
    longest = None
    for node in sorted(siblings, key=lambda node: (node.start, node.end)):
        if longest and (seconds := min(longest.end, node.end) - node.start) > _SLACK:
            yield node, f"{_span(node)}, by {seconds:.2f} s with {longest.node_id} {_span(longest)}"
        if longest is None or node.end > longest.end:
            longest = node


def _span(node: Node) -> str:
    return f"{node.start:.2f}-{node.end:.2f} s"


def _check_text(video: Video, node: Node, max_text_chars: int) -> Iterator[Finding]:
    name = node.name
    if len(name) > max_text_chars:
        tokens = len(name) // _CHARACTERS_A_TOKEN
        detail = f"{len(name)} characters, about {tokens} tokens or more: {name[:60]!r}..."
        yield _finding("long text", video, node, detail)
    if _REMARK.fullmatch(name):
        yield _finding("remark in the text", video, node, repr(name))
    if name.isascii():
        return
    odd = sorted({f"U+{ord(char):04X}" for char in name if _is_odd(char)})
    if odd or _DECODED_TWICE.search(name):
        why = ", ".join(odd) or "UTF-8 read as Latin-1"
        yield _finding("odd characters", video, node, f"{name!r} ({why})")


def _is_odd(char: str) -> bool:
    """Return whether a character is invisible, of no meaning, or the mark of a lost one."""
    if char in _JOINERS:
        return False
    return char == "\ufffd" or unicodedata.category(char) in ("Cf", "Co", "Cn")
