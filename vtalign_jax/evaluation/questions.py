"""What is asked about a video: texts, and where its annotation says that they are shown."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vtalign_jax.dst.identity import text_key
from vtalign_jax.dst.nodes import Node, Video
from vtalign_jax.dst.pairs import is_chosen

POINT_SECONDS = 0.5  # a node that is shorter is a moment: one frame of two a second shows it


@dataclasses.dataclass(frozen=True)
class Question:
    """One text that is looked for in one video.

    Attributes:
      text: as written first, if it stands there in several ways.
      level: of the nodes that it names; "" for a text that the annotation does not have.
      annotated: (start, end) in seconds of every node of the video with an equal text, of any
        level, by time: each of them is a right answer.
    """

    text: str
    level: str = ""
    annotated: tuple[tuple[float, float], ...] = ()


def questions_of(video: Video, levels: tuple[str, ...]) -> list[Question]:
    """Return each distinct text of a video once a level, by time, parents first.

    Texts are equal if their `text_key` is. A name that stands at two levels is asked at both, since
    it counts in the figures of both; where it is shown is the same.

    Args:
      video: with its nodes.
      levels: of the chosen nodes, see `pairs.parse_levels`.
    """
    spans = _spans(video.nodes)
    asked: dict[tuple[str, str], Question] = {}
    for node in sorted(video.nodes, key=lambda node: (node.start, -node.end)):
        if is_chosen(node, levels):
            key = text_key(node.name)
            asked.setdefault((node.level, key), Question(node.name, node.level, spans[key]))
    return list(asked.values())


def questions_for(texts: Sequence[str], video: Video | None = None) -> list[Question]:
    """Return a question for each given text; of a video with nodes, with where it is shown.

    Args:
      texts: as given; repeats are asked once.
      video: None for one that is not annotated.
    """
    nodes = video.nodes if video else ()
    spans, levels = _spans(nodes), {text_key(node.name): node.level for node in nodes}
    keys = {text: text_key(text) for text in texts}
    return [Question(text, levels.get(key, ""), spans.get(key, ())) for text, key in keys.items()]


def right_spans(
    annotated: Sequence[tuple[float, float]], seconds: float, window_seconds: float
) -> np.ndarray:
    """Return the spans that an answer is compared with: float64[M, 2] within the video, M >= 0.

    A node shorter than `POINT_SECONDS` is a moment, which no window can overlap by much, however
    good: it is given the window that a clip of it has in training, `window_seconds` around its
    middle. Everything else counts as annotated. What sticks out of the video is cut off, and what
    lies outside is none.

    Args:
      annotated: (start, end) each, in seconds.
      seconds: length of the video.
      window_seconds: of the clips trained on.
    """
    spans = np.array(annotated, np.float64).reshape(-1, 2)
    is_point = np.ptp(spans, axis=1) < POINT_SECONDS
    middle = spans.mean(axis=1, keepdims=True)
    around = middle + np.array([[-0.5, 0.5]]) * window_seconds
    is_inside = (spans[:, 0] < seconds) & (spans[:, 1] >= 0)
    spans = np.clip(np.where(is_point[:, None], around, spans), 0.0, seconds)
    return spans[is_inside & (np.ptp(spans, axis=1) > 0)]


def _spans(nodes: Sequence[Node]) -> dict[str, tuple[tuple[float, float], ...]]:
    """Return (start, end) of the nodes of each text key, by time, without repeats."""
    found: dict[str, set[tuple[float, float]]] = {}
    for node in nodes:
        found.setdefault(text_key(node.name), set()).add((node.start, node.end))
    return {key: tuple(sorted(spans)) for key, spans in found.items()}
