"""ProAssist's `all_step_descriptions` -> raw nodes.

    [97.2s-106.8s] attach chassis to chassis          a step
     - [110.7s] screw chassis with screwdriver        a child: a point in time
     - [12.3s-14.0s] grab battery (ERROR: too hard)   a child: a span, with a note
     - [13.0s] assistant: "Good"                      dialogue
    - [0.5s] start                                    mark of the recording's start
    Summary: the user changed the battery.            summary

It is the dash that makes a child, not the indent. Texts in it are people's own and may hold line
breaks, brackets and quotes.
"""

import collections
import re

from vtalign_jax.dst.nodes import RawNode

_HEAD = re.compile(r"\s*(?P<dash>-\s*)?\[(?P<time>[^\]]*)\]\s*(?P<text>.*)", re.DOTALL)
_TIMES = re.compile(r"\s*(-?[^\s-]+?)\s*s?\s*(?:-\s*(-?[^\s-]+?)\s*s?\s*)?")
_SPEECH = re.compile(r"[\s-]*(?:assistant|user|instructor|student)\s*:\s*", re.IGNORECASE)
_SUMMARY = re.compile(r"\s*summary\s*:", re.IGNORECASE)
_NOTE = re.compile(r"\((?=mistake:|correction of\b|error:)", re.IGNORECASE)


def read_step_text(text: str) -> tuple[list[RawNode], collections.Counter[str]]:
    """Return the nodes, and how many lines are dialogue, summary or a start mark.

    Steps get the ids S1, S2, ..., their children S1.1, S1.2, ...; a child before any step is a
    step. A line that is none of these becomes a node with a fault.
    """
    nodes: list[RawNode] = []
    asides: collections.Counter[str] = collections.Counter()
    steps, children, step_id = 0, 0, ""
    for number, line in _entries(text):
        where = f"line {number}"
        head = _HEAD.fullmatch(line)
        said = head["text"] if head else line
        aside = _aside(said)
        if aside:
            asides[aside] += 1
            continue
        if not head:
            fault = "line fits no step text"
            nodes.append(RawNode(None, None, None, None, line.strip(), where=where, fault=fault))
            continue
        is_child = bool(head["dash"] and step_id)
        if is_child:
            children += 1
            node_id = f"{step_id}.{children}"
        else:
            steps, children = steps + 1, 0
            node_id = f"S{steps}"
            step_id = "" if head["dash"] else node_id
        name, note = _split_note(said)
        level = "action" if is_child else "step"
        nodes.append(RawNode(node_id, level, *_times(head["time"]), name, note, where=where))
    return nodes, asides


def _entries(text: str) -> list[tuple[int, str]]:
    """Return (line number, line), with a line that goes on in the next ones joined with them."""
    entries: list[tuple[int, list[str]]] = []
    missing = ""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        starts = _HEAD.match(line) or _SPEECH.match(line) or _SUMMARY.match(line)
        if starts or not missing:
            entries.append((number, [line]))
            missing = _missing_end(line)
        else:
            entries[-1][1].append(line.strip())
            missing = "" if line.rstrip().endswith(missing) else missing
    return [(number, " ".join(lines)) for number, lines in entries]


def _missing_end(line: str) -> str:
    """Return what must still come before a summary, a quotation or a note is at its end."""
    head = _HEAD.fullmatch(line)
    said = (head["text"] if head else line).rstrip()
    if _SUMMARY.match(said):
        return "\n"  # in no line: a summary goes on to the next line that starts something
    speech = _SPEECH.match(said)
    if speech:
        quoted = said[speech.end() :]
        return '"' if quoted.startswith('"') and not quoted[1:].endswith('"') else ""
    note = _NOTE.search(said) if head else None
    return ")" if note and ")" not in said[note.end() :] else ""


def _aside(said: str) -> str:
    """Return what a text is if it is no node by nature, else ""."""
    if _SPEECH.match(said):
        return "dialogue"
    if _SUMMARY.match(said):
        return "summary"
    return "start" if said.strip().casefold() == "start" else ""


def _times(written: str) -> tuple[str, str]:
    """Return start and end without their unit; a point in time is both."""
    match = _TIMES.fullmatch(written)
    return (match[1], match[2] or match[1]) if match else (written, written)


def _split_note(said: str) -> tuple[str, str]:
    """Cut trailing remarks off: 'grind (mistake: coarse)' -> ('grind', 'mistake: coarse')."""
    for match in _NOTE.finditer(said):
        tail = said[match.end() :].rstrip()
        if tail.endswith(")") or ")" not in tail:  # not a remark in the middle of the text
            notes = re.split(r"\)\s*\((?=mistake:|correction of\b|error:)", tail, flags=re.I)
            return said[: match.start()].strip(), "; ".join(notes).removesuffix(")")
    return said.strip(), ""
