"""What a linter finds, and what to do about it."""

import dataclasses

from vtalign_jax.dst.nodes import Remark, Skip

SEVERITIES = {  # from the worst down
    "error": "prepare leaves these out, or refuses",
    "warning": "kept, but they look wrong",
    "info": "fine as they are, but worth a look",
}

ADVICE = {  # by check, for those whose name does not say it all
    # files and rows
    "unreadable annotation file": "mend the file, or leave it out of --annotations",
    "row in no known form": "a video has video_uid and nodes; see --format",
    "another number of cells than the header": "a separator or quote too many, or too few",
    "no recordings": "the file holds no row; leave it out of --annotations",
    "no nodes": "the video is annotated with nothing; remove the row",
    "unsafe uid": "uids become file names: no .., no slash, no control character",
    "rows of one video disagree": "the first row is kept; make them equal, or split the uid",
    "duplicate id": "the first node is kept; ids are unique within a video",
    "unknown type": "types are step, substep and action",
    # times
    "unusable time": "times are seconds, or HH:MM:SS.ss",
    "reversed times": "the end lies before the start",
    "span outside the video": "no frame shows it: wrong file, wrong times, or wrong frame rate",
    "annotation past the end of the video": "wrong file, wrong times, or wrong frame rate",
    "child outside its parent": "widen the parent, or move the child",
    "siblings out of order": "ids say one order, times another",
    "siblings overlap": "both clips then show both actions",
    # tree
    "parent is not there": "add the parent, or mend the id",
    "level unlike the place in the tree": "a step has no ancestor, a substep one, an action two",
    "same text at the same time": "one node written twice",
    # splits
    "recording in train and in val or test": "validation would be too good: mend the files, or "
    "--on_leakage=drop",
    "recording in val and in test": "allowed, but the two are not independent",
    "uid in two splits": "remove it from one file",
    "no node at these levels": "choose others with --levels",
    # texts
    "empty text": "name the node, or remove it",
    "over-long text": "a name is a phrase, not a page",
    "long text": "a run cuts texts after data.max_text_tokens",
    "markup in the text": "the model would learn the tags",
    "remark in the text": "remarks are not part of what is seen; move them out of the name",
    "odd characters": "invisible, or broken by a wrong encoding",
    "one text written in several ways": "counted as one text, never as each other's negative",
    # frames
    "no frames": "see --videos, --layout and --path_template",
    "no frame rate": "give --source_fps",
    "damaged video": "copy the file again",
    "unreadable video": "copy the file again",
    "unreadable Arrow file": "copy the file again",
    "Arrow file cut off": "copy the file again",
    "frame rate drift": "times made with one rate do not fit frames at the other",
    "Arrow rows unlike the video": "rows of another video, of several, or at another rate",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or looks so.

    Attributes:
      severity: a key of `SEVERITIES`.
      check: short and without values, so that equal ones can be counted.
      uid: the video, "" if it is about a file or about several videos.
      node_id: the node, "" if it is about more than one.
      detail: the values.
      where: file, row and place within it, "" if it lies in no single one.
      clips: how many clips `prepare` leaves out because of it.
    """

    severity: str
    check: str
    uid: str = ""
    node_id: str = ""
    detail: str = ""
    where: str = ""
    clips: int = 0


def from_skip(skip: Skip) -> Finding:
    """Return what `prepare` leaves out as a finding."""
    return Finding(
        "error", skip.reason, skip.uid, skip.node_id, skip.detail, skip.where, skip.clips
    )


def from_remark(remark: Remark, severity: str = "warning") -> Finding:
    """Return what `prepare` warns about, or refuses, as a finding."""
    return Finding(severity, remark.reason, remark.uid, remark.node_id, remark.detail)
