"""A small ProAssist tree of Assembly101: Arrow frames, flat JSON, and raw videos if asked for.

The frames are written by the users' own rule: every `step`-th frame of a 29.97 fps video with
`step = int((int(fps) + 0.5) // 2)`, covered and centre-cropped to a square, turned 90 degrees
counter-clockwise, base64 JPEG, an Arrow IPC stream of record batches.
"""

import base64
import dataclasses
import io
import json
import pathlib

import pyarrow as pa
from PIL import Image

from tests.index_video import NTSC, constant_ticks, decode_all, write_video

FPS = float(NTSC)
STEP = int((int(FPS) + 0.5) // 2)
CAMERAS = ("C10095_rgb", "HMC_84355350_mono10bit")
SEQUENCE = "nusar-2021_action_both_90{0:02d}-c03f_90{0:02d}_user_id_2021-02-01_160239"

_ACTIONS = (
    ("attach", "detach", "screw", "unscrew", "pick up", "put down", "turn", "inspect"),
    ("chassis", "first wheel", "second wheel", "cabin", "arm", "body"),
)


@dataclasses.dataclass(frozen=True)
class Tree:
    """What was written.

    Attributes:
      annotations: the value of `--annotations`.
      frames: folder of the Arrow frames.
      videos: folder of the raw videos, laid out as Assembly101, "" if none were kept.
      uids: by split.
      clips: leaves by split.
    """

    annotations: str
    frames: str
    videos: str
    uids: dict[str, list[str]]
    clips: dict[str, int]


def make_proassist_tree(
    root, *, train=3, val=1, cameras=CAMERAS, seconds=30, size=384, keep_videos=False
):
    """Write a tree below `root`.

    Args:
      root: an existing folder.
      train: number of recordings, each with every camera and an assembly and a disassembly part.
      val: the same for validation.
      cameras: names.
      seconds: length of each video.
      size: pixels of the Arrow frames.
      keep_videos: whether the raw videos stay, as `videos/{seq}/{cam}.mp4`.

    Returns:
      A `Tree`.
    """
    root = pathlib.Path(root)
    (root / "frames").mkdir()
    source = root / "source.mp4"
    write_video(source, constant_ticks(round(seconds * FPS), NTSC), rate=NTSC, width=160, height=96)
    encoded = [_encode(frame, size) for frame in decode_all(source)[::STEP]]
    uids, clips = {}, {}
    for split, numbers in (("train", range(train)), ("val", range(train, train + val))):
        rows = []
        for number in numbers:
            for camera in cameras:
                sequence = SEQUENCE.format(number)
                write_arrow(root / "frames" / f"{sequence}__{camera}.arrow", encoded)
                if keep_videos:
                    video = root / "videos" / sequence / f"{camera}.mp4"
                    video.parent.mkdir(parents=True, exist_ok=True)
                    video.write_bytes(source.read_bytes())
                for part, task in enumerate(("assembly", "disassembly")):
                    uid = f"{task}_{sequence}__{camera}"
                    rows.append(_row(uid, number, part, seconds))
        (root / f"{split}.json").write_text(json.dumps(rows))
        uids[split] = [row["video_uid"] for row in rows]
        clips[split] = sum(node["type"] == "action" for row in rows for node in row["dst"])
    source.unlink()
    annotations = f"{root}/train.json,{root}/val.json"
    videos = str(root / "videos") if keep_videos else ""
    return Tree(annotations, str(root / "frames"), videos, uids, clips)


def write_arrow(path, encoded, column="frame", rows_a_batch=1000):
    """Write base64 JPEGs as an Arrow IPC stream (not the file format)."""
    schema = pa.schema([(column, pa.string())])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for start in range(0, len(encoded), rows_a_batch):
            rows = pa.array(encoded[start : start + rows_a_batch], pa.string())
            writer.write_batch(pa.record_batch([rows], schema=schema))


def _encode(frame, size):
    scale = size / min(frame.size)
    width, height = (max(size, round(edge * scale)) for edge in frame.size)
    left, top = (width - size) // 2, (height - size) // 2
    square = frame.resize((width, height)).crop((left, top, left + size, top + size))
    buffer = io.BytesIO()
    square.transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", quality=90)
    return base64.b64encode(buffer.getvalue()).decode()


def _row(uid, number, part, seconds):
    """Return one flat-JSON row: two steps of one substep each, leaves two seconds apart."""
    verbs, objects = _ACTIONS
    half = seconds / 2
    nodes = []
    for step in (1, 2):
        start = part * half + (step - 1) * half / 2
        end = start + half / 2
        thing = objects[(number + 2 * part + step) % len(objects)]
        for kind, node_id in (("step", f"S{step}"), ("substep", f"S{step}.1")):
            name = f"Work on the {thing}" if kind == "step" else f"Handling the {thing}"
            nodes.append(_node(kind, node_id, start, end, name))
        for leaf in range(int((end - start) // 2)):
            verb = verbs[(leaf + step + number) % len(verbs)]
            at = start + 2 * leaf
            node_id = f"S{step}.1.{chr(ord('a') + leaf)}"
            nodes.append(_node("action", node_id, at, at + 1.5, f"{verb} {thing}"))
    parsed = {"dataset": "assembly101", "fps": FPS, "video_start_time": 120.0}
    return {"video_uid": uid, "parsed_video_anns": parsed, "dst": nodes, "conversation": []}


def _node(kind, node_id, start, end, name):
    return {"type": kind, "id": node_id, "start_ts": start, "end_ts": end, "name": name}
