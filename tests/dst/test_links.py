"""Links and pipes among the data: nothing outside the named folders is read, nothing waits."""

import json
import os

import pytest

from tests.index_video import constant_ticks, write_video
from vtalign_jax.dst.faults import FrameError, FrameFault
from vtalign_jax.dst.finder import Finder
from vtalign_jax.dst.image_folder import ImageFolder
from vtalign_jax.dst.nodes import Video
from vtalign_jax.dst.readers import expand_paths
from vtalign_jax.dst.video import VideoFile
from vtalign_jax.errors import UserError


@pytest.fixture
def folders(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    return inside, outside


@pytest.mark.parametrize("name", ["u.mp4", "u.arrow"])
def test_a_link_out_of_the_videos_folder_is_no_source(folders, name):
    inside, outside = folders
    (outside / name).write_bytes(b"x")
    (inside / name).symlink_to(outside / name)
    source, tried, _ = Finder((str(inside),)).find(Video("u", ()))
    assert source is None
    assert "a link that leads out of --videos" in tried[0]
    source, *_ = Finder((str(inside), str(outside))).find(Video("u", ()))
    assert source.path == str(inside / name)


def test_a_linked_folder_of_images_is_no_source(folders):
    inside, outside = folders
    (outside / "1.jpg").write_bytes(b"x")
    (inside / "u").symlink_to(outside)
    source, tried, _ = Finder((str(inside),)).find(Video("u", ()))
    assert source is None
    assert "leads out" in tried[0]


def test_the_videos_folder_itself_may_be_a_link(folders, tmp_path):
    inside, _ = folders
    (inside / "u.mp4").write_bytes(b"x")
    (tmp_path / "link").symlink_to(inside)
    assert Finder((str(tmp_path / "link"),)).find(Video("u", ()))[0] is not None


def test_a_picture_that_is_a_link_or_a_pipe_is_a_fault(folders):
    inside, outside = folders
    (outside / "secret").write_bytes(b"x")
    (inside / "0.jpg").symlink_to(outside / "secret")
    os.mkfifo(inside / "1.jpg")
    found = list(ImageFolder(str(inside), 1.0).frames_at([0.5, 1.5]))
    assert all(isinstance(picture, FrameFault) for _, picture in found)
    assert ["link" in found[0][1].detail, "no file" in found[1][1].detail] == [True, True]


def test_a_glob_follows_no_link_out_of_its_folder(folders):
    inside, outside = folders
    (outside / "b.json").write_text("[]")
    (inside / "a.json").symlink_to(outside / "b.json")
    with pytest.raises(UserError, match=r"a\.json is a link that leads out"):
        expand_paths(f"{inside}/*.json")
    assert expand_paths(f"{inside}/a.json") == [f"{inside}/a.json"]  # named: the user's own word


def test_pipes_named_like_data_are_not_opened(folders):
    inside, _ = folders
    os.mkfifo(inside / "u.mp4")
    os.mkfifo(inside / "a.json")
    assert Finder((str(inside),)).find(Video("u", ()))[0] is None
    with pytest.raises(UserError, match="no annotation file"):
        expand_paths(str(inside / "a.json"))


def test_a_playlist_named_like_a_video_opens_nothing(folders):
    inside, outside = folders
    write_video(outside / "secret.ts", constant_ticks(20, 10))
    listed = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2.0,\n{}\n#EXT-X-ENDLIST\n"
    (inside / "a.ts").write_text(listed.format(outside / "secret.ts"))
    (inside / "b.ts").write_text("ffconcat version 1.0\nfile secret.ts\n")
    (inside / "secret.ts").write_bytes((outside / "secret.ts").read_bytes())
    for name in ("a.ts", "b.ts"):
        with pytest.raises(FrameError):
            VideoFile(str(inside / name))


def test_a_key_written_twice_makes_that_row_or_node_unusable(tmp_path):
    from vtalign_jax.dst.json_readers import read_json

    good = {"video_uid": "a", "dst": [{"id": "S1", "start_ts": 0, "end_ts": 1, "name": "x"}]}
    twice = '{"video_uid": "b", "video_uid": "c", "dst": []}'
    videos, skips = read_json(f"[{json.dumps(good)}, {twice}]", "a.json")
    assert [video.uid for video in videos] == ["a"]
    assert "key 'video_uid' twice" in skips[0].detail
    assert skips[0].where == "a.json row 2"
