import pytest

from vtalign_jax.dst.layouts import ASSUMED_FPS, Finder, check_roots
from vtalign_jax.dst.nodes import Video
from vtalign_jax.errors import UserError

UID = "assembly_seq1__cam1"


def _touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"123")


def _find(root, uid=UID, fps=None, **flags):
    return Finder((str(root),), **flags).find(Video(uid, (), source_fps=fps))


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.webm", "v.avi", "v.mpeg", "v.MP4"])
def test_video_files_are_found_under_the_uid(tmp_path, name):
    _touch(tmp_path, name)
    source, _, _ = _find(tmp_path, "v")
    assert (source.kind, source.name, source.num_bytes) == ("video", name, 3)
    assert (source.fit, source.rotate) == ("square", 0)


def test_arrow_frames_come_before_videos_and_in_a_frames_folder_too(tmp_path):
    _touch(tmp_path, "v.mp4", "frames/v.arrow")
    source, _, warning = _find(tmp_path, "v")
    assert (source.kind, source.name) == ("arrow", "frames/v.arrow")
    assert source.video_path == str(tmp_path / "v.mp4")
    assert warning == ""


def test_all_roots_are_searched(tmp_path):
    _touch(tmp_path, "b/v.mp4")
    (tmp_path / "a").mkdir()
    roots = check_roots(f"{tmp_path}/a, {tmp_path}/b/")
    assert Finder(roots).find(Video("v", ()))[0].path == f"{tmp_path}/b/v.mp4"
    for missing in ("", f"{tmp_path}/c"):
        with pytest.raises(UserError, match="folder"):
            check_roots(missing)


def test_assembly101_knows_its_names_and_its_raw_videos_are_cropped_and_turned(tmp_path):
    _touch(tmp_path, "seq1/cam1.mp4")
    for uid in (UID, "disassembly_seq1__cam1"):
        source, _, _ = _find(tmp_path, uid, layout="assembly101")
        assert (source.name, source.fit, source.rotate) == ("seq1/cam1.mp4", "center_crop", 90)
    flags = {"layout": "assembly101", "fit": "square", "rotate": 0}
    source, _, _ = _find(tmp_path, **flags)
    assert (source.fit, source.rotate) == ("square", 0)


def test_assembly101_arrow_frames_are_taken_as_they_are(tmp_path):
    _touch(tmp_path, "seq1__cam1.arrow", "seq1/cam1.mp4")
    source, _, _ = _find(tmp_path, layout="assembly101")
    assert (source.kind, source.fit, source.rotate) == ("arrow", "square", 0)
    assert source.video_path.endswith("seq1/cam1.mp4")


def test_other_uids_are_untouched_by_a_layout(tmp_path):
    _touch(tmp_path, "P01_11.mp4")
    assert _find(tmp_path, "P01_11", layout="assembly101")[0].name == "P01_11.mp4"


def test_the_frame_rate_comes_from_the_annotation_then_the_flag_then_is_assumed(tmp_path):
    _touch(tmp_path, "v.arrow")
    assert _find(tmp_path, "v", fps=25.0, source_fps=60.0)[0].source_fps == 25.0
    assert _find(tmp_path, "v", source_fps=60.0)[0].source_fps == 60.0
    source, _, warning = _find(tmp_path, "v")
    assert source.source_fps == ASSUMED_FPS
    assert "taken to be 30" in warning


def test_missing_frames_name_what_was_tried_and_the_layout_that_would_help(tmp_path):
    _touch(tmp_path, "seq1__cam1.arrow")
    source, tried, _ = _find(tmp_path)
    assert source is None
    assert tried == [f"{tmp_path}/{UID}.arrow", f"{tmp_path}/{UID}.{{mp4,mkv,...}}"]
    finder = Finder((str(tmp_path),))
    assert finder.suggestion([Video(UID, ())]) == "try --layout=assembly101"
    assert finder.suggestion([Video("other", ())]).startswith("check --videos, or try --layout=")
    known = Finder((str(tmp_path),), layout="assembly101")
    assert known.suggestion([Video("other", ())]) == "check --videos"
