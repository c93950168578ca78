import dataclasses
import hashlib
import itertools
import json

import av
import numpy as np
import pytest

from data.demo import make_demo, scenes
from vtalign_jax.errors import UserError

COUNTS = {"train": 1, "val": 2}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "recordings"
    make_demo.make_demo(out, COUNTS, seed=3)
    return out


def first_frames(path, count):
    with av.open(str(path)) as container:
        frames = itertools.islice(container.decode(video=0), count)
        return [frame.to_ndarray(format="rgb24") for frame in frames]


def test_a_validation_split_holds_every_text_equally_often():
    trees = [scenes.annotation(r) for r in scenes.plan_split("val", 20, seed=0)]
    texts = [node["name"] for tree in trees for node in tree["dst"] if node["type"] == "action"]
    counts = np.unique(texts, return_counts=True)[1]
    assert len(counts) == 48
    assert set(counts) == {10}


def test_splits_share_no_recording_and_no_motion():
    train, val = (scenes.plan_split(split, 20, seed=0) for split in ("train", "val"))
    assert {r.uid for r in train}.isdisjoint(r.uid for r in val)
    paths = [{(a.centre, a.travel) for r in split for a in r.actions} for split in (train, val)]
    assert paths[0].isdisjoint(paths[1])


def test_actions_follow_one_another_inside_their_substep_and_step():
    tree = scenes.annotation(scenes.plan_split("train", 1, seed=0)[0])
    spans = {node["id"]: (node["start_ts"], node["end_ts"]) for node in tree["dst"]}
    assert len(spans) == len(tree["dst"])
    actions = [node for node in tree["dst"] if node["type"] == "action"]
    for before, after in itertools.pairwise(actions):
        assert before["end_ts"] < after["start_ts"]
    for node_id, (start, end) in spans.items():
        parent = spans.get(node_id.rpartition(".")[0], (start, end))
        assert parent[0] <= start < end <= parent[1]


def test_the_part_stays_in_the_picture():
    for recording in scenes.plan_split("train", 20, seed=1):
        for action in recording.actions:
            for time in (action.start, action.end):
                image = np.full((scenes.PIXELS, scenes.PIXELS, 3), -1.0, np.float32)
                scenes._draw_part(image, action, time)
                painted = image.max(-1) > 0
                edges = (painted[0], painted[-1], painted[:, 0], painted[:, -1])
                assert painted.sum() > 50
                assert not any(edge.any() for edge in edges), action


@pytest.mark.parametrize(("motion", "opposite"), [("left", "right"), ("up", "down")])
def test_opposite_motions_pass_through_the_same_pictures(motion, opposite):
    actions = [a for r in scenes.plan_split("train", 4, seed=0) for a in r.actions]
    action = next(a for a in actions if a.motion == motion and abs(a.drift) > 1)
    mirrored = dataclasses.replace(action, motion=opposite, drift=-action.drift)
    images = []
    for each, time in ((action, action.start + 0.7), (mirrored, action.end - 0.7)):
        image = np.zeros((scenes.PIXELS, scenes.PIXELS, 3), np.float32)
        scenes._draw_part(image, each, time)
        images.append(image)
    assert images[0].max() > 100
    np.testing.assert_allclose(images[0], images[1], atol=0.5)


def test_videos_show_the_planned_frames(demo):
    recording = scenes.plan_split("val", 2, seed=3)[1]
    shown = first_frames(demo / "videos" / f"{recording.uid}.mp4", 20)
    for image, planned in zip(shown, scenes.render(recording), strict=False):
        assert np.abs(image.astype(int) - planned).mean() < 6


def test_videos_are_h264_of_the_planned_length(demo):
    recording = scenes.plan_split("train", 1, seed=3)[0]
    with av.open(str(demo / "videos" / f"{recording.uid}.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert (stream.width, stream.height) == (scenes.PIXELS, scenes.PIXELS)
        assert stream.average_rate == scenes.FPS
        assert abs(float(stream.duration * stream.time_base) - recording.duration) < 0.2
        assert recording.actions[-1].end < recording.duration


def test_the_same_seed_gives_the_same_files(demo, tmp_path):
    make_demo.make_demo(tmp_path / "again", COUNTS, seed=3)
    files = sorted(path.relative_to(demo) for path in demo.rglob("*.*"))
    assert len(files) == 2 + sum(COUNTS.values())
    for file in files:
        hashes = [
            hashlib.sha256((root / file).read_bytes()).digest()
            for root in (demo, tmp_path / "again")
        ]
        assert hashes[0] == hashes[1], file


def test_annotations_name_the_videos(demo):
    for split, count in COUNTS.items():
        trees = json.loads((demo / f"{split}.json").read_text())
        assert len(trees) == count
        assert all((demo / "videos" / f"{tree['video_uid']}.mp4").exists() for tree in trees)


def test_an_existing_folder_is_not_overwritten(demo):
    with pytest.raises(UserError, match="exists"):
        make_demo.make_demo(demo, COUNTS, seed=0)
