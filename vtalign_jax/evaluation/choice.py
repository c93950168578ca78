"""Five-way choice: which of five clips does a text describe (docs/plan.md)?

A question is a text, its own clip and four clips of other texts, all five texts different. *Inter*:
the four come from other recordings. *Intra*: from the same recording, whichever camera or part of
it, but from another time: windows and spans apart, and no ancestor or descendant. The four are
drawn once: texts with equal chances, then a clip of each with equal chances, by a generator of
fixed seed. The questions depend on nothing but who the records are.

After EgoMCQ of EgoVLP (Lin et al., 2022).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from vtalign_jax.array_types import Identity
from vtalign_jax.evaluation.ranking import check_finite, on_grid

WAYS = 5
KINDS = ("inter", "intra")
_SEED = 20_240
_CHUNK = 2**21  # pairs of one recording looked at together
_SCORED = 4096  # questions scored together
_NEVER = 2.0  # above every random number


class Questions(NamedTuple):
    """Of one kind.

    Attributes:
      row: int64[Q], the record whose text is asked for; its clip is the right one.
      wrong: int64[Q, 4], the records of the other clips.
      left_out: records without four clips to choose from.
    """

    row: np.ndarray
    wrong: np.ndarray
    left_out: int


def make_questions(identity: Identity) -> dict[str, Questions]:
    """Return the questions of each of `KINDS`.

    Args:
      identity: N rows of NumPy arrays; those with `row_mask` False take no part.
    """
    real = np.flatnonzero(identity.row_mask)
    identity = Identity(*(np.asarray(values)[real] for values in identity))
    wrong = {"inter": _draw_inter(identity), "intra": _draw_intra(identity)}
    questions = {}
    for kind in KINDS:
        asked = np.flatnonzero(wrong[kind][:, 0] >= 0)
        left_out = len(real) - len(asked)
        questions[kind] = Questions(real[asked], real[wrong[kind][asked]], left_out)
    return questions


def choice_metrics(
    z_video: np.ndarray, z_text: np.ndarray, questions: dict[str, Questions]
) -> dict[str, float]:
    """Return `choice_<kind>`, the share of questions answered right, and how many there are.

    A tie is wrong. NaN where there is no question. `choice_<kind>_queries` and
    `choice_<kind>_left_out` count.

    Args:
      z_video: float32[N, E], unit norm.
      z_text: float32[N, E], unit norm.
      questions: of the same N rows.

    Raises:
      UserError: an embedding is not finite.
    """
    check_finite("clip", z_video)
    check_finite("text", z_text)
    metrics = {}
    for kind, asked in questions.items():
        clips = np.column_stack([asked.row, asked.wrong])  # [Q, 5], the right one first
        right = 0
        for begin in range(0, len(clips), _SCORED):
            chosen = clips[begin : begin + _SCORED]
            text, video = on_grid(z_text[chosen[:, 0]]), on_grid(z_video[chosen])
            scores = np.einsum("QE,QWE->QW", text, video)
            right += np.sum(scores[:, 0] > np.max(scores[:, 1:], axis=1))
        metrics[f"choice_{kind}"] = float(right / len(clips)) if len(clips) else float("nan")
    return metrics | _counts(questions)


def choice_chance(questions: dict[str, Questions]) -> dict[str, float]:
    """Return what guessing scores, under the names of `choice_metrics`."""
    found = {
        f"choice_{kind}": 1 / WAYS if len(asked.row) else float("nan")
        for kind, asked in questions.items()
    }
    return found | _counts(questions)


def _counts(questions: dict[str, Questions]) -> dict[str, int]:
    counts = {}
    for kind, asked in questions.items():
        counts[f"choice_{kind}_queries"] = len(asked.row)
        counts[f"choice_{kind}_left_out"] = asked.left_out
    return counts


def _draw_intra(identity: Identity) -> np.ndarray:
    """Return the four other clips of each row, -1 where there are none: int64[N, 4]."""
    random = np.random.Generator(np.random.Philox(_SEED))
    drawn = np.full((len(identity.text), WAYS - 1), -1)
    for group in _by_recording(identity):
        columns = group[np.argsort(identity.text[group], kind="stable")]
        texts, starts = np.unique(identity.text[columns], return_index=True)
        if len(texts) < WAYS:
            continue
        for rows in np.split(group, range(0, len(group), max(1, _CHUNK // len(group)))[1:]):
            number = random.random((len(rows), len(columns)))
            number[~_is_elsewhere(identity, rows, columns)] = _NEVER
            clip = np.minimum.reduceat(number, starts, axis=1)  # of each text [rows, texts]
            order = np.where(clip < 1.0, random.random(clip.shape), _NEVER)
            four = np.argsort(order, axis=1)[:, : WAYS - 1]
            enough = np.take_along_axis(order, four[:, -1:], axis=1)[:, 0] < 1.0
            four, number = four[enough], number[enough]
            smallest = np.take_along_axis(clip[enough], four, axis=1)
            for way in range(WAYS - 1):
                at = np.argmax(number == smallest[:, way, None], axis=1)
                drawn[rows[enough], way] = columns[at]
    return drawn


def _by_recording(identity: Identity) -> Iterator[np.ndarray]:
    """Yield the rows of one recording after the other."""
    order = np.argsort(identity.recording, kind="stable")
    borders = np.flatnonzero(np.diff(identity.recording[order])) + 1
    yield from np.split(order, borders)


def _is_elsewhere(identity: Identity, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return whether a column may stand beside a row: bool[rows, columns], of one recording."""
    start = np.minimum(identity.window[:, 0], identity.span[:, 0])
    end = np.maximum(identity.window[:, 1], identity.span[:, 1])
    meets = (start[rows, None] < end[columns]) & (start[columns] < end[rows, None])
    ours, theirs = identity.ancestors[rows], identity.ancestors[columns]
    for depth in range(ours.shape[1]):  # -1, no ancestor, equals no node
        meets |= ours[:, depth, None] == identity.node[columns]
        meets |= identity.node[rows, None] == theirs[:, depth]
    return ~meets & (identity.text[rows, None] != identity.text[columns])


def _draw_inter(identity: Identity) -> np.ndarray:
    """Return the four other clips of each row, -1 where there are none: int64[N, 4]."""
    random = np.random.Generator(np.random.Philox(_SEED + 1))
    drawn = np.full((len(identity.text), WAYS - 1), -1)
    _, text = np.unique(identity.text, return_inverse=True)
    names, recording = np.unique(identity.recording, return_inverse=True)
    place = text * len(names) + recording
    order = np.argsort(place, kind="stable")  # the clips of a text, of each recording in a row
    total = np.bincount(text)
    starts = np.cumsum(total) - total
    for group in _by_recording(identity):
        inside = np.bincount(text[group], minlength=len(total))
        outside = np.flatnonzero(total > inside)  # texts that other recordings have
        own = np.searchsorted(outside, text[group])
        own = np.where(np.append(outside, -1)[own] == text[group], own, len(outside))
        enough = len(outside) - (own < len(outside)) >= WAYS - 1
        rows, own = group[enough], own[enough]
        four = outside[_four_below(len(outside), own, random)]
        at = (random.random(four.shape) * (total - inside)[four]).astype(np.int64) + starts[four]
        first = np.searchsorted(place[order], four * len(names) + recording[rows, None])
        drawn[rows] = order[at + inside[four] * (at >= first)]
    return drawn


def _four_below(size: int, excluded: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return four different numbers of 0..size-1 a row, none of them the excluded: int64[b, 4].

    Args:
      size: at least 4, or 5 where a number is excluded.
      excluded: int64[b]; `size` excludes none.
      random: where the numbers come from.
    """
    taken = excluded[:, None]
    for way in range(WAYS - 1):
        left = size - way - (excluded < size)
        drawn = (random.random(len(excluded)) * left).astype(np.int64)
        for number in np.sort(taken, axis=1).T:  # step over what is taken, smallest first
            drawn += drawn >= number
        taken = np.column_stack([taken, drawn])
    return taken[:, 1:]
