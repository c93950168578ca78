"""Queries and what they found: the best, the worst and the most confused, with their frames."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.report.sample import Sample
from vtalign_jax.pipeline.dataset import ClipSplit, open_split

QUERIES = 4  # of each kind and direction
_TEXTS, _CLIPS = 5, 3  # candidates shown to a clip, to a text
FRAMES, _EDGE = 4, 96  # of a strip; pixels
_QUALITY = 72


class Kind(NamedTuple):
    """Queries of one kind: which they are, and what is said where there are none."""

    means: str
    none: str


KINDS = {
    "best": Kind("found first, with the clearest lead", "None: nothing is found first."),
    "worst": Kind(
        "the right answer stands farthest down, or leads by least",
        "None: all queries are among the best.",
    ),
    "confused": Kind("a wrong answer leads by most", "None: no wrong answer leads, or none else."),
}


class Candidate(NamedTuple):
    """One answer.

    Attributes:
      name: its text.
      cosine: with the query.
      is_right: whether it is a right answer.
      clip: number of the clip in the sample; -1 for a text.
      rank: among all candidates, from 1.
    """

    name: str
    cosine: float
    is_right: bool
    clip: int
    rank: int


class Query(NamedTuple):
    """One question.

    Attributes:
      kind: of `KINDS`.
      text: the query's own text.
      clip: number of the clip in the sample; -1 if the text is the query.
      rank: of the best right candidate, ties behind wrong ones.
      candidates: the first ones, and the best right one if it is none of them.
    """

    kind: str
    text: str
    clip: int
    rank: int
    candidates: list[Candidate]


class Gallery(NamedTuple):
    """Both directions.

    Attributes:
      to_text: clips that look for their texts.
      to_clip: texts that look for their clips.
      strips: clip -> JPEG of some frames, side by side, and how many of `FRAMES` there are.
      absent: why there are no pictures, "" where there are.
    """

    to_text: list[Query]
    to_clip: list[Query]
    strips: dict[int, tuple[bytes, int]]
    absent: str


def make_gallery(sample: Sample, data_dir: str) -> Gallery:
    """Return the gallery of a sample; ranks are those within the sample.

    Args:
      sample: of an evaluation.
      data_dir: where its dataset was; if it has gone, the gallery says so and has no frames.
    """
    cosines = sample.z_video @ sample.z_text.T  # [M, T]
    own = [sample.texts[text] for text in sample.text]
    right, texts = sample.right, sample.texts
    to_text = [
        Query(kind, own[row], row, rank, _candidates(cosines[row], right[row], _TEXTS, texts))
        for kind, row, rank in choose_queries(cosines, right, sample.text)
    ]
    to_clip = [
        Query(
            kind,
            texts[row],
            -1,
            rank,
            _candidates(cosines[:, row], right[:, row], _CLIPS, own, are_clips=True),
        )
        for kind, row, rank in choose_queries(cosines.T, right.T, np.arange(len(texts)))
    ]
    shown = {query.clip for query in to_text}
    shown |= {candidate.clip for query in to_clip for candidate in query.candidates}
    strips, absent = read_strips(sample, sorted(shown - {-1}), data_dir)
    return Gallery(to_text, to_clip, strips, absent)


def choose_queries(
    cosines: np.ndarray, right: np.ndarray, text: np.ndarray, count: int = QUERIES
) -> list[tuple[str, int, int]]:
    """Return (kind, row, rank) of the queries to show, none twice, each text once a kind.

    Args:
      cosines: float32[queries, candidates].
      right: bool[queries, candidates]; each row has one at least.
      text: int[queries], the query's own text.
      count: of each kind.
    """
    found = np.where(right, cosines, -np.inf).max(axis=1)
    rival = np.where(right, -np.inf, cosines).max(axis=1)
    rank = 1 + np.sum(~right & (cosines >= found[:, None]), axis=1)
    lead = np.nan_to_num(found - rival, nan=0.0, posinf=2.0, neginf=-2.0)  # inf: no rival
    orders = {
        "best": np.lexsort((-lead, rank)),
        "worst": np.lexsort((lead, -rank)),
        "confused": np.argsort(lead, kind="stable"),
    }
    chosen, taken = [], set()
    for kind, order in orders.items():
        texts: set[int] = set()
        for row in order.tolist():
            is_other = {"best": rank[row] > 1, "confused": rank[row] == 1}
            if len(texts) == count or is_other.get(kind, False):
                break
            if row not in taken and int(text[row]) not in texts:
                chosen.append((kind, row, int(rank[row])))
                taken.add(row)
                texts.add(int(text[row]))
    return chosen


def _candidates(
    cosines: np.ndarray,
    right: np.ndarray,
    most: int,
    names: list[str],
    *,
    are_clips: bool = False,
) -> list[Candidate]:
    order = np.lexsort((right, -cosines))  # of equal ones, a wrong one first
    shown = list(enumerate(order[:most].tolist(), start=1))
    if not right[order[:most]].any():
        place = int(np.argmax(right[order]))
        shown.append((place + 1, int(order[place])))
    return [
        Candidate(names[n], float(cosines[n]), bool(right[n]), n if are_clips else -1, rank)
        for rank, n in shown
    ]


def read_strips(
    sample: Sample, clips: list[int], data_dir: str
) -> tuple[dict[int, tuple[bytes, int]], str]:
    """Return strips of clips, and why some are missing ("" if none is)."""
    try:
        split = open_split(data_dir, sample.split)
    except (UserError, OSError) as error:
        return {}, f"the dataset is not at hand: {error}"
    if split.fingerprint != sample.fingerprint:
        return {}, f"{data_dir} is another dataset than the one that was evaluated"
    strips, absent = {}, ""
    for clip in clips:
        try:
            strips[clip] = _strip(split, int(sample.records[clip]))
        except (UserError, OSError, SyntaxError, ValueError) as error:  # Pillow's
            absent = f"frames of {sample.clip_ids[clip]} cannot be shown: {error}"
    return strips, absent


def _strip(split: ClipSplit, record: int) -> tuple[bytes, int]:
    """Return evenly spread frames of a clip as one JPEG, and how many."""
    frames = split.record(record).frames
    chosen = np.unique(
        np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)
    )
    strip = Image.new("RGB", (_EDGE * len(chosen), _EDGE))
    for place, number in enumerate(chosen):
        with Image.open(io.BytesIO(frames[number])) as picture:
            picture.draft("RGB", (_EDGE, _EDGE))  # JPEG decodes smaller ones faster
            small = picture.convert("RGB").resize((_EDGE, _EDGE), Image.Resampling.BILINEAR)
        strip.paste(small, (place * _EDGE, 0))
    stream = io.BytesIO()
    strip.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue(), len(chosen)
