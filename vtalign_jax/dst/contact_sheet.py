"""A picture of the frames that texts get, so that a person can see whether the two agree."""

import bisect
import collections
import dataclasses
import io
import itertools
import random
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

from PIL import Image, ImageDraw

from vtalign_jax.dst.nodes import Skip
from vtalign_jax.dst.pairs import Pair
from vtalign_jax.dst.records import Job, render
from vtalign_jax.dst.typeface import Typeface

_FRAME, _GAP = 128, 4  # pixels
_A_ROW = 8  # frames
_WIDTH = _A_ROW * (_FRAME + _GAP)  # of a clip
_MARGIN = 24
_LINE = _WIDTH - 2 * _MARGIN  # of text, with room for dots at its end
_MOST_LINES = 3  # of a text
_TITLE, _TEXT, _SMALL = 28, 24, 16  # pixels
_INK, _FAINT, _PAPER, _MISSING, _INSIDE, _FAULT = (
    "#111111",
    "#666666",
    "#ffffff",
    "#e4e4e4",
    "#1a9641",
    "#c0392b",
)


@dataclasses.dataclass(frozen=True)
class Clip:
    """One pair and its frames as `prepare` would store them.

    Attributes:
      pair: the text, and where frames are wanted.
      frames: by time in seconds, JPEG.
      skip: why there are none, None if there are.
    """

    pair: Pair
    frames: dict[float, bytes]
    skip: Skip | None = None


def choose_clips(jobs: dict[Hashable, list[Job]], count: int, seed: int) -> list[Job]:
    """Return jobs that hold `count` pairs in all, from as many videos as possible.

    Args:
      jobs: of each video.
      count: how many pairs to take, or all if there are fewer.
      seed: the same seed and jobs give the same pairs.
    """
    chance = random.Random(seed)
    videos = [key for key in sorted(jobs) if jobs[key]]
    chance.shuffle(videos)
    pairs = {key: [pair for job in jobs[key] for pair in job.pairs] for key in videos}
    for of_video in pairs.values():
        chance.shuffle(of_video)
    in_turn = (
        (key, pairs[key][turn])
        for turn in itertools.count()
        for key in videos
        if turn < len(pairs[key])
    )
    total = sum(map(len, pairs.values()))
    chosen: dict[Hashable, list[Pair]] = collections.defaultdict(list)
    for key, pair in itertools.islice(in_turn, min(count, total)):
        chosen[key].append(pair)
    return [
        dataclasses.replace(
            jobs[key][0], pairs=tuple(sorted(chosen[key], key=lambda pair: pair.window_start))
        )
        for key in sorted(chosen)
    ]


def render_clips(job: Job) -> list[Clip]:
    """Return the clips of a job, rendered by the code that `prepare` uses."""
    rendered = render(job)
    records = {record["node_id"]: record for record in rendered.records}
    skips = {skip.node_id: skip for skip in rendered.skips}
    clips = []
    for pair in job.pairs:
        record = records.get(pair.node_id, {"frame_times": [], "frames": []})
        frames = dict(zip(record["frame_times"], record["frames"], strict=True))
        clips.append(Clip(pair, frames, skips.get(pair.node_id)))
    return clips


def draw_sheet(clips: list[Clip], title: str, face: Typeface) -> Image.Image:
    """Return an RGB picture with each clip's text above its frames.

    Args:
      clips: at least one.
      title: one line at the top.
      face: of all letters.
    """
    tiles = [_draw_clip(clip, face) for clip in clips]
    columns = 1 if len(tiles) <= 3 else 2
    rows = [tiles[n : n + columns] for n in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) + _MARGIN for row in rows]
    top = _MARGIN + 2 * _TITLE
    width = columns * (_WIDTH + _MARGIN) + _MARGIN
    sheet = Image.new("RGB", (width, top + sum(heights)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), title, _INK, face.font(_TITLE))
    for row, y in zip(rows, itertools.accumulate([top, *heights]), strict=False):
        for column, tile in enumerate(row):
            sheet.paste(tile, (_MARGIN + column * (_WIDTH + _MARGIN), y))
    return sheet


def _draw_clip(clip: Clip, face: Typeface) -> Image.Image:
    pair, text_font, small = clip.pair, face.font(_TEXT), face.font(_SMALL)
    lines = list(_wrap(face.letters(pair.text), text_font))
    line_height, small_height = round(1.3 * _TEXT), round(1.4 * _SMALL)
    head = len(lines) * line_height + 2 * small_height
    slots = [pair.times[n : n + _A_ROW] for n in range(0, len(pair.times), _A_ROW)]
    slot_height = _FRAME + small_height + 2 * _GAP
    tile = Image.new("RGB", (_WIDTH, head + len(slots) * slot_height), _PAPER)
    draw = ImageDraw.Draw(tile)
    for number, line in enumerate(lines):
        draw.text((0, number * line_height), line, _INK, text_font)
    y = len(lines) * line_height
    draw.text((0, y), f"{pair.node_id}   {pair.level}   {pair.uid}", _FAINT, small)
    span = f"node {pair.node_start:.2f} to {pair.node_end:.2f} s, "
    span += f"clip {pair.window_start:.2f} to {pair.window_end:.2f} s"
    draw.text((0, y + small_height), span, _FAINT, small)
    if clip.skip:
        said = face.letters(f"left out, {clip.skip.reason}: {clip.skip.detail}")
        for number, line in enumerate(_wrap(said, text_font)):
            draw.text((0, head + number * line_height), line, _FAULT, text_font)
        return tile
    inside = _times_inside(pair)
    for row, times in enumerate(slots):
        for column, time in enumerate(times):
            corner = (column * (_FRAME + _GAP), head + row * slot_height)
            _draw_frame(tile, corner, clip.frames.get(time), f"{time:.2f}", time in inside, small)
    return tile


def _draw_frame(
    tile: Image.Image,
    corner: tuple[int, int],
    jpeg: bytes | None,
    label: str,
    is_inside: bool,
    font: Any,
) -> None:
    x, y = corner
    draw = ImageDraw.Draw(tile)
    if jpeg is None:
        draw.rectangle((x, y, x + _FRAME - 1, y + _FRAME - 1), _MISSING)
        draw.text((x + _GAP, y + _GAP), "no frame", _FAINT, font)
    else:
        picture = Image.open(io.BytesIO(jpeg)).resize((_FRAME, _FRAME), Image.Resampling.LANCZOS)
        tile.paste(picture, corner)
    under = y + _FRAME
    if is_inside and jpeg is not None:
        draw.rectangle((x, under, x + _FRAME - 1, under + _GAP - 1), _INSIDE)
    draw.text((x, under + _GAP), label, _INSIDE if is_inside else _FAINT, font)


def _times_inside(pair: Pair) -> set[float]:
    """Return the times within the node's span; the nearest one if the span lies between two."""
    inside = {time for time in pair.times if pair.node_start <= time <= pair.node_end}
    middle = (pair.node_start + pair.node_end) / 2
    return inside or {min(pair.times, key=lambda time: abs(time - middle))}


def _wrap(text: str, font: Any) -> Iterator[str]:
    """Yield the lines of a text, cut within words where one is too long, and after some lines."""
    lines = [""]
    for word in _pieces(text.split(), font):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= _LINE:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], lines[_MOST_LINES - 1] + " ..."]
    yield from lines


def _pieces(words: Iterable[str], font: Any) -> Iterator[str]:
    """Yield the words, those wider than a line in pieces."""
    for word in words:
        while font.getlength(word) > _LINE:
            lengths = range(1, len(word) + 1)
            fits = bisect.bisect(lengths, _LINE, key=lambda n, word=word: font.getlength(word[:n]))
            yield word[:fits]
            word = word[fits:]
        yield word
