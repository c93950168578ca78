"""Pictures of a sample: cosines as a heat map, embeddings as a plane."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from vtalign_jax.evaluation.report.sample import Sample

MOST_ROWS = 480  # of the heat map, a pixel each
MOST_NAMED = 48  # texts in the map's legend
# Cosine from `LOW` to 1, dark to light, even steps of lightness.
LOW = -0.2
COLOURS = ("#141b41", "#24427f", "#2f709c", "#45a0a2", "#86c9a0", "#d3e6a6", "#fbf7cf")
_PLANE = (640.0, 420.0)  # width and height of the map
_EDGE = 14.0
_MOST_RECORDINGS = 24  # named beside the heat map


class Border(NamedTuple):
    """Where a recording's rows begin and end, in pixels."""

    name: str
    begin: int
    end: int


class HeatMap(NamedTuple):
    """Cosines of clips (rows) with the texts of the same clips (columns), recording by recording.

    Attributes:
      png: the picture, one pixel a pair.
      size: its edge in pixels.
      borders: recordings in order; clips of an unnamed rest are not shown.
      own: mean cosine of clips with their own texts.
      same: of clips with other texts of their recording; None where there are none.
      other: of clips with other texts of other recordings; None likewise.
    """

    png: bytes
    size: int
    borders: list[Border]
    own: float
    same: float | None
    other: float | None


class Dot(NamedTuple):
    """An embedding in the plane.

    Attributes:
      x: in the picture's units.
      y: likewise.
      text: number of its text; -1 beyond the legend.
      label: what the pointer shows.
    """

    x: float
    y: float
    text: int
    label: str


class Plane(NamedTuple):
    """The two directions in which the embeddings differ most (principal components).

    Attributes:
      clips: a dot each.
      texts: a dot each.
      named: (number, text, clips of it), most frequent first.
      unnamed: how many more texts there are, drawn grey.
      explained: share of the variance in both directions.
      size: width and height.
    """

    clips: list[Dot]
    texts: list[Dot]
    named: list[tuple[int, str, int]]
    unnamed: int
    explained: tuple[float, float]
    size: tuple[float, float]


def heat_map(sample: Sample, most: int = MOST_ROWS) -> HeatMap:
    """Return the heat map of the first recordings that fit; one too long is cut."""
    edges = _recordings(sample.recordings)
    whole = [end for _, _, end in edges if end <= most]
    count = whole[-1] if whole else min(most, len(sample.recordings))
    cosines = sample.z_video[:count] @ sample.z_text[sample.text[:count]].T  # [count, count]
    recording = np.repeat(np.arange(len(edges)), [end - begin for _, begin, end in edges])[:count]
    is_right = sample.right[:count][:, sample.text[:count]]
    is_same = recording[:, None] == recording
    level = np.clip((cosines - LOW) / (1 - LOW), 0, 1)
    picture = Image.fromarray(np.round(np.nan_to_num(level) * 255).astype(np.uint8), "P")
    picture.putpalette(_palette().tobytes())
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return HeatMap(
        png=stream.getvalue(),
        size=count,
        borders=[Border(n, b, min(e, count)) for n, b, e in edges[:_MOST_RECORDINGS] if b < count],
        own=float(np.mean(np.diagonal(cosines))),
        same=_mean(cosines[is_same & ~is_right]),
        other=_mean(cosines[~is_same & ~is_right]),
    )


def similarity_image(sample: Sample) -> np.ndarray:
    """Return the heat map in colour, uint8[H, W, 3], small ones enlarged to be seen."""
    drawn = heat_map(sample)
    picture = Image.open(io.BytesIO(drawn.png)).convert("RGB")
    times = max(MOST_ROWS // max(drawn.size, 1), 1)
    return np.asarray(picture.resize((drawn.size * times,) * 2, Image.Resampling.NEAREST))


def plane(sample: Sample, most_named: int = MOST_NAMED) -> Plane:
    """Return clips and texts in the plane of the two largest principal components of both."""
    points = np.concatenate([sample.z_video, sample.z_text]).astype(np.float64)
    centred = points - points.mean(axis=0)
    # float64[E, E]: as small for 2,000 clips as for twenty.
    values, vectors = np.linalg.eigh(centred.T @ centred)
    values, axes = values[::-1], vectors[:, ::-1][:, :2]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), [0, 1]] < 0, -1.0, 1.0)  # one sign
    flat = centred @ axes
    total = float(values.sum()) or 1.0
    at = _placed(flat)
    frequent = np.argsort(-np.bincount(sample.text, minlength=len(sample.texts)), kind="stable")
    number = {int(text): n for n, text in enumerate(frequent[:most_named])}
    counts = np.bincount(sample.text, minlength=len(sample.texts))
    clips = [
        Dot(x, y, number.get(int(text), -1), sample.texts[text])
        for (x, y), text in zip(at[: len(sample.text)], sample.text, strict=True)
    ]
    texts = [
        Dot(x, y, number.get(n, -1), sample.texts[n])
        for n, (x, y) in enumerate(at[len(sample.text) :])
    ]
    return Plane(
        clips,
        texts,
        [(n, sample.texts[text], int(counts[text])) for text, n in number.items()],
        max(len(sample.texts) - most_named, 0),
        (float(values[0]) / total, float(values[1]) / total),
        _PLANE,
    )


def _placed(flat: np.ndarray) -> list[tuple[float, float]]:
    """Return places in the picture, both directions to one scale; y points up."""
    low, high = flat.min(axis=0), flat.max(axis=0)
    room = np.asarray(_PLANE) - 2 * _EDGE
    scale = min(room / np.maximum(high - low, 1e-9))
    centre = (low + high) / 2
    moved = (flat - centre) * scale * [1, -1] + np.asarray(_PLANE) / 2
    return [(round(float(x), 1), round(float(y), 1)) for x, y in moved]


def _recordings(names: list[str]) -> list[tuple[str, int, int]]:
    """Return (name, begin, end) of each run of equal names."""
    starts = [i for i, name in enumerate(names) if not i or name != names[i - 1]]
    return [
        (names[begin], begin, end)
        for begin, end in zip(starts, [*starts[1:], len(names)], strict=True)
    ]


def _palette() -> np.ndarray:
    """Return uint8[256, 3], between `COLOURS`."""
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLOURS], float)
    at = np.linspace(0, len(stops) - 1, 256)
    lines = [np.interp(at, np.arange(len(stops)), channel) for channel in stops.T]
    return np.round(np.stack(lines, axis=1)).astype(np.uint8)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
