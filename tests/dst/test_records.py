import dataclasses
import io

import pytest
from PIL import Image

from tests.index_video import constant_ticks, read_index, write_video
from vtalign_jax.dst import records
from vtalign_jax.dst.finder import Finder
from vtalign_jax.dst.nodes import Node, Video
from vtalign_jax.dst.pairs import make_pairs
from vtalign_jax.dst.records import PAIRS_A_JOB, Job, make_jobs, render
from vtalign_jax.dst.windows import window_chooser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "v.mp4", constant_ticks(300, 30))  # 10 s
    return root


def _job(folder, *spans, uid="v", window_seconds=4.0, **flags):
    nodes = tuple(
        Node(f"S{n}", "step", start, end, f"text {n}", where=f"a.json row 1 node {n}")
        for n, (start, end) in enumerate(spans)
    )
    video = Video(uid, nodes)
    source, _, _ = Finder((str(folder),), **flags).find(video)
    levels = ("leaves",)
    window_of = window_chooser(
        "center", [video], levels, window_seconds=window_seconds, pad_seconds=0.5, frames=8
    )
    pairs = make_pairs(video, levels, window_of, 8)
    return Job(tuple(pairs), source, 96)


def _indices(record):
    pictures = [Image.open(io.BytesIO(data)) for data in record["frames"]]
    assert {picture.size for picture in pictures} == {(96, 96)}
    return [read_index(picture, squashed_from=(128, 96)) for picture in pictures]


def test_a_record_holds_the_frames_shown_at_its_times(folder):
    rendered = render(_job(folder, (4.0, 6.0)))
    (record,) = rendered.records
    assert rendered.skips == []
    assert record["frame_times"] == [3.25 + 0.5 * k for k in range(8)]
    assert _indices(record) == [int(time * 30 + 1e-6) for time in record["frame_times"]]
    assert record["video_duration"] == pytest.approx(10.0)
    assert record["clip_id"] == "v/S0"
    assert "times" not in record


def test_frames_outside_the_video_are_dropped_and_the_rest_keep_their_times(folder):
    early, late = render(_job(folder, (0.0, 1.0), (9.0, 9.8))).records
    assert early["window_start"] == -1.5
    assert early["frame_times"] == [0.25, 0.75, 1.25, 1.75, 2.25]
    assert _indices(early) == [7, 22, 37, 52, 67]
    assert late["frame_times"] == pytest.approx([7.65, 8.15, 8.65, 9.15, 9.65])
    assert _indices(late) == [229, 244, 259, 274, 289]


def test_a_point_action_gets_a_whole_window(folder):
    (record,) = render(_job(folder, (5.0, 5.0))).records
    assert len(record["frames"]) == 8


def test_a_span_outside_the_video_is_left_out_with_a_reason(folder):
    rendered = render(_job(folder, (4.0, 6.0), (10.5, 11.0), (50.0, 60.0), (10.05, 10.05)))
    assert [record["clip_id"] for record in rendered.records] == ["v/S0", "v/S3"]
    assert [(skip.node_id, skip.reason) for skip in rendered.skips] == [
        ("S1", "span outside the video"),
        ("S2", "span outside the video"),
    ]
    assert "50.00 to 60.00 s of 10.00 s" in rendered.skips[1].detail


def test_an_unreadable_video_costs_its_own_pairs_only(folder):
    (folder / "bad.mp4").write_bytes(b"no video")
    rendered = render(_job(folder, (1.0, 2.0), (3.0, 4.0), uid="bad"))
    assert rendered.records == []
    assert [skip.reason for skip in rendered.skips] == ["unreadable video"] * 2


def test_a_clip_left_out_is_named_with_its_place_in_the_annotations(folder):
    job = _job(folder, (4.0, 6.0), (90.0, 91.0))
    (skip,) = render(job).skips
    assert skip.where == "a.json row 1 node 1"
    (folder / "gone.mp4").write_bytes(b"no video")
    gone = render(_job(folder, (4.0, 6.0), uid="gone"))
    assert [skip.where for skip in gone.skips] == ["a.json row 1 node 0"]
    moved = tuple(dataclasses.replace(pair, where="b.json row 9") for pair in job.pairs)
    assert dataclasses.replace(job, pairs=moved).key() == job.key()  # what is rendered stays


def test_a_damaged_stretch_costs_the_clips_that_need_it(folder):
    write_video(folder / "cut.mkv", constant_ticks(300, 30), options={"g": "30"})
    data = bytearray((folder / "cut.mkv").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    (folder / "cut.mkv").write_bytes(data)
    rendered = render(_job(folder, (0.4, 0.6), (4.9, 5.1), uid="cut", window_seconds=1.0))
    assert [record["node_id"] for record in rendered.records] == ["S0"]
    assert [skip.node_id for skip in rendered.skips] == ["S1"]


def test_layout_flags_reach_the_pictures(folder):
    (record,) = render(_job(folder, (4.0, 6.0), fit="center_crop", rotate=90)).records
    picture = Image.open(io.BytesIO(record["frames"][0]))
    assert read_index(picture.rotate(-90)) == 97


def test_a_picture_shown_twice_is_encoded_once(folder, monkeypatch):
    encoded = []
    real = records.encode_jpeg
    monkeypatch.setattr(records, "encode_jpeg", lambda *a: encoded.append(1) or real(*a))
    (record,) = render(_job(folder, (5.0, 5.0), window_seconds=0.1)).records
    assert len(record["frames"]) == 8
    assert len(encoded) <= 4


def test_jobs_are_bounded_whatever_the_length_of_the_video(folder):
    job = _job(folder, *[(n / 100, n / 100) for n in range(2 * PAIRS_A_JOB + 3)])
    jobs = make_jobs(list(job.pairs), job.source, 96)
    assert [len(job.pairs) for job in jobs] == [PAIRS_A_JOB, PAIRS_A_JOB, 3]
    assert sum((job.pairs for job in jobs), ()) == job.pairs
