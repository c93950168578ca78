"""Every kind of frames through the whole of `prepare`, down to the pictures in the records."""

import base64
import io
import json

import av
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tests import commands
from tests.index_video import NTSC, constant_ticks, draw_index, read_index, write_video
from tests.proassist_tree import write_arrow
from vtalign_jax.dst.arrow import row_step

SECONDS, EDGE = 10, 96


def _square(index):
    return Image.fromarray(draw_index(index, EDGE, EDGE))


def _write_sources(root):
    """Write one source of each kind; frame n shows the number n."""
    write_video(root / "long.mkv", constant_ticks(round(SECONDS * NTSC), NTSC), rate=NTSC)
    with av.open(str(root / "long.mkv")) as container:
        assert container.streams.video[0].duration is None
    images = root / "lab" / "session" / "left"
    images.mkdir(parents=True)
    for number in range(1, 5 * SECONDS + 1):
        _square(number).save(images / f"frame_{number:010d}.jpg", quality=95)
    rows = []
    for index in range(0, 25 * SECONDS, row_step(25.0)):
        buffer = io.BytesIO()
        _square(index).save(buffer, "JPEG", quality=95)
        rows.append(base64.b64encode(buffer.getvalue()).decode())
    (root / "frames").mkdir()
    write_arrow(root / "frames" / "rows.arrow", rows)


EXPECTED = {  # of a time, per uid
    "long": lambda time: int(time * 30000 / 1001 + 1e-6),
    "session-left": lambda time: 1 + int(time * 5 + 1e-6),
    "rows": lambda time: 12 * int(time * 25 / 12 + 1e-6),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    (root / "videos").mkdir()
    _write_sources(root / "videos")
    nodes = [
        {"type": "step", "id": f"S{n}", "start_ts": n + 0.13, "end_ts": n + 0.9, "name": f"do {n}"}
        for n in range(SECONDS)
    ]
    rows = [{"video_uid": uid, "dst": nodes} for uid in EXPECTED]
    rows[1]["dataset"] = "lab"
    rows[2]["parsed_video_anns"] = {"fps": 25}
    (root / "train.json").write_text(json.dumps(rows))
    output = commands.run(
        "launch/prepare.py",
        f"--annotations={root}/train.json",
        f"--videos={root}/videos",
        r"--uid_pattern=(?P<day>\w+)-(?P<cam>\w+)",
        "--path_template={dataset}/{day}/{cam}",
        "--recording_template={day}",
        "--source_fps=5",
        f"--image_size={EDGE}",
        f"--out={root}/out",
        "--workers=1",
    )
    records = tfds.builder_from_directory(f"{root}/out/dst_clips/1.0.0").as_data_source("train")
    return root, output, list(records)


@pytest.mark.parametrize("uid", EXPECTED)
def test_the_pictures_of_the_records_are_those_shown_at_their_times(prepared, uid):
    _, _, records = prepared
    mine = [record for record in records if record["uid"].decode() == uid]
    assert len(mine) == SECONDS
    squashed_from = (128, 96) if uid == "long" else None
    for record in mine:
        pictures = [Image.fromarray(frame) for frame in record["frames"]]
        shown = [read_index(picture, squashed_from=squashed_from) for picture in pictures]
        assert shown == [EXPECTED[uid](time) for time in record["frame_times"]]
        assert record["video_duration"] == pytest.approx(SECONDS, abs=0.2)


def test_images_of_the_right_size_are_stored_byte_for_byte(prepared):
    root, _, records = prepared
    source = tfds.builder_from_directory(f"{root}/out/dst_clips/1.0.0").as_data_source("train")
    at = next(n for n, record in enumerate(records) if record["uid"] == b"session-left")
    files = (root / "videos" / "lab" / "session" / "left").iterdir()
    assert sum(path.read_bytes() in source.data_source[at] for path in files) == len(
        records[at]["frames"]
    )


def test_recordings_follow_the_template_and_nothing_is_left_out(prepared):
    root, output, records = prepared
    recordings = {record["uid"].decode(): record["recording_id"].decode() for record in records}
    assert recordings == {"long": "long", "session-left": "session", "rows": "rows"}
    assert (root / "out" / "skipped.jsonl").read_text() == ""
    assert "warning" not in output


def test_limit_videos_takes_image_folders_too(prepared, tmp_path):
    root, _, _ = prepared
    output = commands.run(
        "launch/prepare.py",
        f"--annotations={root}/train.json",
        f"--videos={root}/videos/lab/session",
        "--uid_pattern=session-(?P<camera>.+)",
        "--path_template={camera}",
        "--source_fps=5",
        "--fit=center_crop",
        "--rotate=90",
        "--limit_videos=1",
        f"--image_size={EDGE}",
        f"--out={tmp_path}/out",
        "--workers=1",
    )
    assert "--limit_videos passed over" in output
    records = tfds.builder_from_directory(f"{tmp_path}/out/dst_clips/1.0.0").as_data_source("train")
    assert {record["uid"] for record in records} == {b"session-left"}
    picture = Image.fromarray(records[0]["frames"][0])
    assert read_index(picture) == -1
    assert read_index(picture.rotate(-90)) > 0


def test_images_without_a_rate_are_one_error_that_names_the_flag(prepared, tmp_path):
    root, _, _ = prepared
    output = commands.run(
        "launch/prepare.py",
        f"--annotations={root}/train.json",
        f"--videos={root}/videos",
        "--path_template={dataset}/session/left",
        f"--out={tmp_path}/out",
        code=2,
    )
    assert "--source_fps" in commands.one_error_line(output)
    assert list(tmp_path.iterdir()) == []
