"""Plans and renders the demo's recordings: coloured parts being assembled on a grey bench.

An action is one motion of one coloured part. Motions come in opposite pairs (left and right, up and
down, closer and away) whose frames are the same in reverse order, so that no single frame tells
them apart. Position, size, shape, speed, path, bench and camera differ between actions or between
recordings.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

COLOURS = {  # RGB
    "red": (225, 40, 40),
    "orange": (245, 145, 20),
    "yellow": (240, 230, 50),
    "green": (40, 190, 60),
    "cyan": (50, 220, 225),
    "blue": (50, 80, 235),
    "magenta": (225, 60, 220),
    "white": (250, 250, 250),
}
MOTIONS = {  # name: text, direction of travel (x right, y down), direction of growth
    "left": ("slide the {colour} part left", (-1, 0), 0),
    "right": ("slide the {colour} part right", (1, 0), 0),
    "up": ("lift the {colour} part", (0, -1), 0),
    "down": ("lower the {colour} part", (0, 1), 0),
    "closer": ("bring the {colour} part closer", (0, 0), 1),
    "away": ("push the {colour} part away", (0, 0), -1),
}
TEXTS = [(motion, colour) for motion in MOTIONS for colour in COLOURS]
SHAPES = ("disc", "block", "diamond")
PRODUCTS = ("tower", "bridge", "engine", "lamp", "robot", "crane")

PIXELS = 96
FPS = 10
SWAY_PIXELS = 4  # how far the camera wanders
_MAX_DRIFT = 8.0  # pixels
_EXTENT = 1.3  # half a diamond's diagonal over its radius, and a little
ACTIONS_PER_SUBSTEP = 6
SUBSTEPS_PER_STEP = 2
STEPS = 2
ACTIONS = STEPS * SUBSTEPS_PER_STEP * ACTIONS_PER_SUBSTEP  # a recording's


@dataclasses.dataclass(frozen=True)
class Action:
    """One motion of one part.

    Attributes:
      motion: a key of `MOTIONS`.
      colour: a key of `COLOURS`.
      start: seconds.
      end: seconds.
      shape: one of `SHAPES`.
      centre: pixels (x, y) of the middle of the path.
      travel: pixels from one end of the path to the other.
      drift: pixels of travel across the path.
      radius: pixels, in the middle of the path.
      growth: ratio of the largest radius to the smallest, for closer and away.
    """

    motion: str
    colour: str
    start: float
    end: float
    shape: str
    centre: tuple[float, float]
    travel: float
    drift: float
    radius: float
    growth: float

    @property
    def text(self) -> str:
        """The action's name in the annotation."""
        return MOTIONS[self.motion][0].format(colour=self.colour)


@dataclasses.dataclass(frozen=True)
class Recording:
    """One video and its tree of actions."""

    uid: str
    product: str
    actions: tuple[Action, ...]
    duration: float  # seconds
    seed: tuple[int, ...]


def plan_split(split: str, count: int, seed: int) -> list[Recording]:
    """Return `count` recordings; every two of them hold each of the 48 texts once.

    Args:
      split: "train" or "val"; the two share no random number.
      count: recordings.
      seed: of the whole demo.
    """
    stream = (seed, ("train", "val").index(split))
    rng = np.random.default_rng(stream)
    cycles = -(-count * ACTIONS // len(TEXTS))
    order = np.concatenate([rng.permutation(len(TEXTS)) for _ in range(cycles)])
    return [
        _plan_recording(
            f"demo_{split}_{index:03d}",
            [TEXTS[text] for text in order[index * ACTIONS : (index + 1) * ACTIONS]],
            (*stream, index),
        )
        for index in range(count)
    ]


def _plan_recording(
    uid: str, texts: list[tuple[str, str]], seed: tuple[int, int, int]
) -> Recording:
    rng = np.random.default_rng(seed)
    product = PRODUCTS[rng.integers(len(PRODUCTS))]
    time, actions = 0.5, []
    for motion, colour in texts:
        duration = rng.uniform(3.2, 4.4)
        actions.append(_plan_action(motion, colour, time, duration, rng))
        time += duration + rng.uniform(0.2, 0.6)
    return Recording(uid, product, tuple(actions), time + 0.5, seed)


def _plan_action(
    motion: str, colour: str, start: float, duration: float, rng: np.random.Generator
) -> Action:
    travel = rng.uniform(0.33, 0.55) * PIXELS
    radius = rng.uniform(0.08, 0.14) * PIXELS
    growth = rng.uniform(2.2, 3.2)
    is_moving = any(MOTIONS[motion][1])
    extent = _EXTENT * radius * (1 if is_moving else np.sqrt(growth)) + 1
    reach = extent + (travel if is_moving else _MAX_DRIFT) / 2
    side = extent + _MAX_DRIFT / 2  # room across the path
    along, across = (rng.uniform(room, PIXELS - room) for room in (reach, side))
    is_vertical = MOTIONS[motion][1][1] != 0
    return Action(
        motion=motion,
        colour=colour,
        start=round(start, 2),
        end=round(start + duration, 2),
        shape=SHAPES[rng.integers(len(SHAPES))],
        centre=(across, along) if is_vertical else (along, across),
        travel=travel,
        drift=rng.uniform(-_MAX_DRIFT, _MAX_DRIFT),
        radius=radius,
        growth=growth,
    )


def annotation(recording: Recording) -> dict:
    """Return the recording's dialog state tree in the flat JSON form."""
    nodes = []
    for step in range(STEPS):
        nodes.append(_node(recording, "step", f"S{step + 1}", step, SUBSTEPS_PER_STEP))
        for part in range(SUBSTEPS_PER_STEP):
            place = step * SUBSTEPS_PER_STEP + part
            substep = f"S{step + 1}.{part + 1}"
            nodes.append(_node(recording, "substep", substep, place, 1))
            first = place * ACTIONS_PER_SUBSTEP
            for k, action in enumerate(recording.actions[first : first + ACTIONS_PER_SUBSTEP]):
                nodes.append(
                    {
                        "type": "action",
                        "id": f"{substep}.{chr(ord('a') + k)}",
                        "start_ts": action.start,
                        "end_ts": action.end,
                        "name": action.text,
                    }
                )
    return {
        "video_uid": recording.uid,
        "inferred_goal": f"Assemble the {recording.product}",
        "inferred_knowledge": f"Assemble the {recording.product} from {ACTIONS} parts.",
        "dst": nodes,
        "conversation": [],
    }


def _node(recording: Recording, level: str, node_id: str, place: int, substeps: int) -> dict:
    """Return a step or substep that spans its actions."""
    count = substeps * ACTIONS_PER_SUBSTEP
    actions = recording.actions[place * count : (place + 1) * count]
    part = ("lower", "upper")[place % 2] if level == "step" else ("left", "right")[place % 2]
    return {
        "type": level,
        "id": node_id,
        "start_ts": actions[0].start,
        "end_ts": actions[-1].end,
        "name": f"assemble the {part} half of the {recording.product}",
    }


def render(recording: Recording) -> Iterator[np.ndarray]:
    """Yield the recording's frames, uint8[PIXELS, PIXELS, 3] RGB, `FPS` a second."""
    rng = np.random.default_rng((*recording.seed, 1))
    bench = _bench(rng)
    slots = rng.integers(SWAY_PIXELS, PIXELS - SWAY_PIXELS, size=(ACTIONS, 2))
    phase = rng.uniform(0, 2 * np.pi, size=2)
    current = 0
    for frame in range(round(recording.duration * FPS)):
        time = frame / FPS
        while current + 1 < ACTIONS and time > _handover(recording, current):
            _fix_part(bench, slots[current], rng)
            current += 1
        sway = np.rint((1 + np.sin(0.7 * time + phase)) * SWAY_PIXELS).astype(int)
        image = bench[sway[1] : sway[1] + PIXELS, sway[0] : sway[0] + PIXELS].copy()
        _draw_part(image, recording.actions[current], time)
        yield np.clip(image, 0, 255).astype(np.uint8)


def _handover(recording: Recording, current: int) -> float:
    """Return the time at which the next part takes the place of the current one."""
    return (recording.actions[current].end + recording.actions[current + 1].start) / 2


def _bench(rng: np.random.Generator) -> np.ndarray:
    """Return the grey background, a little larger than a frame: float32[., ., 3]."""
    side = PIXELS + 2 * SWAY_PIXELS
    tint = rng.uniform(35, 95) + rng.uniform(-10, 10, size=3)
    slope = rng.uniform(-20, 20, size=2)
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    bench = (tint + (slope[0] * x + slope[1] * y)[..., None]).astype(np.float32)
    for _ in range(rng.integers(2, 6)):
        top, left = rng.integers(0, side - 12, size=2)
        height, width = rng.integers(6, 40, size=2)
        bench[top : top + height, left : left + width] += rng.uniform(-22, 22)
    return bench


def _fix_part(bench: np.ndarray, slot: np.ndarray, rng: np.random.Generator) -> None:
    """Leave a small grey piece where a finished part was built in."""
    x, y = slot
    bench[y : y + 5, x : x + 5] = rng.uniform(60, 130)


def _draw_part(image: np.ndarray, action: Action, time: float) -> None:
    """Paint the part where it stands at `time`, with a soft edge."""
    _, (dx, dy), growth = MOTIONS[action.motion]
    done = min(max((time - action.start) / (action.end - action.start), 0.0), 1.0) - 0.5
    centre_x = action.centre[0] + done * (action.travel * dx + action.drift * (dx == 0))
    centre_y = action.centre[1] + done * (action.travel * dy + action.drift * (dy == 0))
    radius = action.radius * action.growth ** (done * growth)
    reach = radius * _EXTENT + 1
    top, bottom = _clamped(centre_y - reach), _clamped(centre_y + reach + 1)
    left, right = _clamped(centre_x - reach), _clamped(centre_x + reach + 1)
    y, x = np.ogrid[top:bottom, left:right]
    across, down = np.abs(x - centre_x), np.abs(y - centre_y)
    if action.shape == "disc":
        distance = np.hypot(across, down)
    elif action.shape == "block":
        distance = np.maximum(across, down) * 1.13  # areas about equal
    else:
        distance = (across + down) * 0.8
    alpha = np.clip(radius - distance + 0.5, 0, 1)[..., None].astype(np.float32)
    box = image[top:bottom, left:right]
    box += alpha * (np.float32(COLOURS[action.colour]) - box)


def _clamped(position: float) -> int:
    return min(max(round(position), 0), PIXELS)
