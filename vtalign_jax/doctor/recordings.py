"""Procedures that nobody filmed: annotated nodes, and a split of clips of them held in memory.

Everything after the annotation is the package's own: pairs, windows, JPEGs, identities, rows.
"""

import dataclasses
import fractions
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from PIL import Image

from vtalign_jax.doctor.slow_rule import HALF_WINDOW, Annotated, ranked
from vtalign_jax.dst.images import encode_jpeg
from vtalign_jax.dst.nodes import LEVELS, Node, Video
from vtalign_jax.dst.pairs import Pair, make_pairs
from vtalign_jax.dst.windows import window_chooser
from vtalign_jax.pipeline.dataset import ClipSplit, Record

STORED_A_FRAME = 3  # stored frames for each one shown; the one in the middle is
_VERBS = ("attach", "Attach the", "detach", "screw,", "unscrew", "show", "inspect")
_THINGS = ("wheel", "the wheel", "chassis", "arm", "first wheel", "second wheel")
_CAMERAS = ("front", "side")
_SECONDS = (24, 12, 2)  # of a node, by depth
_PLACES = {"S1": 0, "S1.1": 0, "S1.1.a": 1, "S1.1.b": 7, "S1.2": 12, "S1.2.a": 13, "S1.2.b": 19}
_PLACES |= {node_id.replace("S1", "S2"): 24 + at for node_id, at in _PLACES.items()}  # seconds


def make_nodes(count: int, recordings: int) -> list[Annotated]:
    """Return `count` nodes of recordings with two cameras and three levels.

    At most 28 a recording. No node comes without those above it. Windows of one recording overlap
    or not; texts repeat within recordings and between them.
    """
    rng = np.random.default_rng(0)
    uids = [(f"procedure{n}", camera) for n in range(recordings) for camera in _CAMERAS]
    trees = [_tree(rng, *uid) for uid in uids]
    return ranked([tree[place] for place in range(len(trees[0])) for tree in trees][:count])


def _tree(rng: np.random.Generator, recording: str, camera: str) -> list[Annotated]:
    """Return two steps of two substeps of two actions, each after what it belongs to."""
    nodes = []
    for node_id, at in _PLACES.items():
        depth = node_id.count(".")
        start = fractions.Fraction(10 * at + int(rng.integers(0, 20)), 10)
        nodes.append(
            Annotated(
                uid=f"{recording}__{camera}",
                recording=recording,
                node_id=node_id,
                level=LEVELS[depth],
                start=start,
                end=start + _SECONDS[depth],
                name=f"{rng.choice(_VERBS)} {rng.choice(_THINGS)}",
            )
        )
    return nodes


def make_split(nodes: Sequence[Annotated], image_size: int, frames: int) -> ClipSplit:
    """Return a split with a clip of each node, in some order.

    Args:
      nodes: whole videos, or parts of them.
      image_size: pixels, edge of the frames as the model takes them; larger ones are stored.
      frames: that a clip shows.
    """
    pairs = [pair for video in _videos(nodes) for pair in _pairs(video, frames)]
    return ClipSplit("doctor", ["doctor"], {"doctor": InMemory(pairs, image_size, frames)})


def _videos(nodes: Sequence[Annotated]) -> Iterator[Video]:
    for uid, of_uid in itertools.groupby(sorted(nodes, key=lambda n: n.uid), lambda n: n.uid):
        yield Video(uid, tuple(map(_node, of_uid)))


def _node(node: Annotated) -> Node:
    parts = node.node_id.split(".")
    above = tuple(".".join(parts[:depth]) for depth in range(1, len(parts)))
    return Node(node.node_id, node.level, float(node.start), float(node.end), node.name, above)


def _pairs(video: Video, frames: int) -> list[Pair]:
    stored = STORED_A_FRAME * frames
    settings = {"window_seconds": float(2 * HALF_WINDOW), "pad_seconds": 0.0, "frames": stored}
    window_of = window_chooser("center", [video], ("all",), **settings)
    return make_pairs(video, ("all",), window_of, stored)


class InMemory:
    """Stands for `StoredSplit`: the same fields and records, no files.

    Attributes:
      See `StoredSplit`.
    """

    def __init__(self, pairs: list[Pair], image_size: int, frames: int) -> None:
        self.data_dir = "memory"
        self.image_size = image_size + image_size // 2
        self.frames = STORED_A_FRAME * frames
        self.squares = {("square", 0)}
        self._pairs = pairs
        self.table = pa.Table.from_pylist([dataclasses.asdict(pair) for pair in pairs])

    def __len__(self) -> int:
        return len(self._pairs)

    def record(self, index: int) -> Record:
        """Return a record; every fourth shows the last third of its window no more."""
        pair = self._pairs[index]
        count = self.frames - self.frames // STORED_A_FRAME * (index % 4 == 3)
        return Record(
            clip_id=pair.clip_id,
            frames=[self._jpeg(index * self.frames + k) for k in range(count)],
            frame_times=list(pair.times[:count]),
            window_start=pair.window_start,
            window_end=pair.window_end,
            text=pair.text,
            parent_text=pair.parent_text,
        )

    def _jpeg(self, seed: int) -> bytes:
        return encode_jpeg(draw(seed, self.image_size), self.image_size, "square", 0)

    def file(self, index: int) -> str:
        """Return where a record is, for messages."""
        return f"memory:{index}"


def draw(seed: int, width: int, height: int = 0) -> Image.Image:
    """Return a picture of coarse blocks and fine grain, which every filter shows differently."""
    height = height or width
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 7, 3))
    rows, columns = np.arange(height) * 5 // height, np.arange(width) * 7 // width
    grain = rng.integers(-40, 41, (height, width, 3))
    return Image.fromarray(np.clip(coarse[rows][:, columns] + grain, 0, 255).astype(np.uint8))
