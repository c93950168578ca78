"""EPIC-KITCHENS-100's validation set as `prepare` makes it, of videos that show nothing."""

import base64
import csv

from data.dst_clips.write import Listeners, Machines, write_dataset
from tests.pipeline.clip_fixtures import jpeg
from tests.proassist_tree import write_arrow
from tests.samples import SAMPLES
from vtalign_jax.dst.plan import Settings, make_plan
from vtalign_jax.dst.tree import parse_seconds
from vtalign_jax.pipeline.dataset import ClipSplit, open_split

CSV = SAMPLES / "epic_kitchens_100" / "EPIC_100_validation.csv"
SIZE, FRAMES, SEGMENTS = 32, 2, 9668


def prepare_validation(root) -> ClipSplit:
    """Write all segments below `root`, with Arrow files of two frames a second, and open them."""
    (root / "frames").mkdir()
    with CSV.open(newline="") as file:
        ends = {}
        for row in csv.DictReader(file):
            seconds = parse_seconds(row["stop_timestamp"])
            ends[row["video_id"]] = max(ends.get(row["video_id"], 0.0), seconds)
    encoded = base64.b64encode(jpeg("gray", SIZE)).decode()
    for uid, seconds in ends.items():
        write_arrow(root / "frames" / f"{uid}.arrow", [encoded] * (int(2 * seconds) + 1))
    frames = str(root / "frames")
    settings = Settings(str(CSV), frames, image_size=SIZE, frames=FRAMES, source_fps=30.0)
    written = write_dataset(make_plan(settings), str(root / "out"), Machines(), Listeners())
    assert written.skips == []
    return open_split(str(root / "out"), "val")
