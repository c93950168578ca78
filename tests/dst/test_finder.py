import pytest

from vtalign_jax.dst.finder import ASSUMED_FPS, Finder, check_roots
from vtalign_jax.dst.layouts import LAYOUTS, Naming, make_layout
from vtalign_jax.dst.nodes import Video
from vtalign_jax.errors import UserError

UID = "assembly_seq1__cam1"


def _touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"123")


def _find(root, uid=UID, fps=None, dataset="", layout="", custom=None, **flags):
    finder = Finder((str(root),), Naming(layout, custom), **flags)
    return finder.find(Video(uid, (), dataset, source_fps=fps))


def _reasons(remarks):
    return [remark.reason for remark in remarks]


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.webm", "v.avi", "v.mpeg", "v.MP4", "v.MOV"])
def test_video_files_are_found_under_the_uid(tmp_path, name):
    _touch(tmp_path, name)
    source, _, _ = _find(tmp_path, "v")
    assert (source.kind, source.name, source.size) == ("video", name, 3)
    assert (source.fit, source.rotate) == ("square", 0)


def test_arrow_frames_come_before_videos_and_in_a_frames_folder_too(tmp_path):
    _touch(tmp_path, "v.mp4", "frames/v.arrow")
    source, _, remarks = _find(tmp_path, "v")
    assert (source.kind, source.name) == ("arrow", "frames/v.arrow")
    assert source.video_path == str(tmp_path / "v.mp4")
    assert remarks == []


def test_folders_of_images_come_last(tmp_path):
    _touch(tmp_path, "v/frame_0.jpg", "v/frame_1.jpg", "v/notes.txt")
    source, _, remarks = _find(tmp_path, "v", source_fps=5.0)
    assert (source.kind, source.name, source.size) == ("images", "v", 2)
    assert (source.source_fps, remarks) == (5.0, [])
    _touch(tmp_path, "v.mp4")
    assert _find(tmp_path, "v", source_fps=5.0)[0].kind == "video"


def test_a_folder_without_numbered_images_is_none_of_frames(tmp_path):
    _touch(tmp_path, "v/notes.txt", "v/poster.jpg", "v/1.gif")
    assert _find(tmp_path, "v", source_fps=5.0)[0] is None


def test_the_rate_of_images_is_the_flags_then_the_annotations_with_a_warning(tmp_path):
    _touch(tmp_path, "v/000001.png")
    assert _find(tmp_path, "v", fps=30.0, source_fps=5.0)[0].source_fps == 5.0
    source, _, (remark,) = _find(tmp_path, "v", fps=30.0)
    assert source.source_fps == 30.0
    assert "--source_fps" in remark.reason
    assert _find(tmp_path, "v")[0].source_fps == 0.0


def test_images_numbered_from_elsewhere_are_warned_about(tmp_path):
    _touch(tmp_path, "v/5.png", "v/6.png")
    _, _, (remark,) = _find(tmp_path, "v", source_fps=5.0)
    assert "neither from 0 nor from 1" in remark.reason
    assert remark.detail == "5.png"


def test_all_roots_are_searched(tmp_path):
    _touch(tmp_path, "b/v.mp4")
    (tmp_path / "a").mkdir()
    roots = check_roots(f"{tmp_path}/a, {tmp_path}/b/")
    assert Finder(roots).find(Video("v", ()))[0].path == f"{tmp_path}/b/v.mp4"
    for missing in ("", f"{tmp_path}/c"):
        with pytest.raises(UserError, match="folder"):
            check_roots(missing)


FILES = {
    "assembly101": (UID, "seq1/cam1.mp4"),
    "ego4d": ("grp-a1", "a1.mp4"),
    "holoassist": ("R0027-12-GoPro", "R0027-12-GoPro/Export_py/Video_pitchshift.mp4"),
    "epickitchens": ("P01_11", "EK100/P01/videos/P01_11.MP4"),
    "egoexolearn": ("0a7c", "0a7c.mp4"),
    "wtag": ("T48", "T48/Video/Video.mpeg"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_raw_videos_are_found_by_the_flag_and_by_the_annotations_dataset(tmp_path, layout):
    uid, name = FILES[layout]
    _touch(tmp_path, name)
    by_flag, _, _ = _find(tmp_path, uid, layout=layout)
    by_dataset, _, _ = _find(tmp_path, uid, dataset=layout)
    assert by_flag.name == name
    assert by_dataset == by_flag
    assert (by_flag.fit, by_flag.rotate) == (LAYOUTS[layout].fit, LAYOUTS[layout].rotate)


def test_epic_kitchens_55_is_searched_through_its_folders(tmp_path):
    _touch(tmp_path, "EK55/videos/train/P01/P01_11.MP4", "EK55/videos/test/P02/P02_11.MP4")
    source, _, remarks = _find(tmp_path, "P01_11", layout="epickitchens")
    assert source.name == "EK55/videos/train/P01/P01_11.MP4"
    assert remarks == []


def test_several_files_that_a_star_fits_are_warned_about_and_the_first_is_taken(tmp_path):
    _touch(tmp_path, "EK55/videos/train/P01/P01_11.MP4", "EK55/videos/test/P01/P01_11.MP4")
    source, _, (remark,) = _find(tmp_path, "P01_11", layout="epickitchens")
    assert source.name == "EK55/videos/test/P01/P01_11.MP4"
    assert remark.reason == "several files for one uid"
    assert "train/P01" in remark.detail


def test_raw_videos_of_assembly101_are_cropped_and_turned_unless_flags_say_otherwise(tmp_path):
    _touch(tmp_path, "seq1/cam1.mp4")
    for uid in (UID, "disassembly_seq1__cam1"):
        source, _, _ = _find(tmp_path, uid, layout="assembly101")
        assert (source.name, source.fit, source.rotate) == ("seq1/cam1.mp4", "center_crop", 90)
    source, _, _ = _find(tmp_path, layout="assembly101", fit="square", rotate=0)
    assert (source.fit, source.rotate) == ("square", 0)


def test_files_named_after_the_uid_are_found_for_a_known_dataset_and_left_unturned(tmp_path):
    _touch(tmp_path, f"{UID}.mp4")
    source, _, _ = _find(tmp_path, dataset="assembly101")
    assert (source.name, source.fit, source.rotate) == (f"{UID}.mp4", "square", 0)
    assert _find(tmp_path, layout="assembly101")[0] is None


def test_assembly101_arrow_frames_are_taken_as_they_are(tmp_path):
    _touch(tmp_path, "seq1__cam1.arrow", "seq1/cam1.mp4")
    source, _, _ = _find(tmp_path, layout="assembly101")
    assert (source.kind, source.fit, source.rotate) == ("arrow", "square", 0)
    assert source.video_path.endswith("seq1/cam1.mp4")


def test_other_uids_are_untouched_by_a_layout(tmp_path):
    _touch(tmp_path, "P01_11.mp4")
    assert _find(tmp_path, "P01_11", layout="assembly101")[0].name == "P01_11.mp4"


def test_a_template_finds_each_kind_of_frames(tmp_path):
    custom = make_layout(r"(?P<seq>\w+)-(?P<cam>\w+)", "{dataset}/{seq}/*/{cam}", "")
    for name, kind in (("c/1.png", "images"), ("c.mkv", "video"), ("c.arrow", "arrow")):
        _touch(tmp_path, f"lab/s/any/{name}")
        source, _, _ = _find(tmp_path, "s-c", dataset="lab", custom=custom, source_fps=5.0)
        assert source.kind == kind
        assert source.name == f"lab/s/any/{name}".removesuffix("/1.png")
    _touch(tmp_path, "other.mp4")
    assert _find(tmp_path, "other", custom=custom)[0].name == "other.mp4"


def test_a_templates_own_ending_is_kept(tmp_path):
    _touch(tmp_path, "f/v.arrow", "r/v.Mp4", "i/v/7.jpg")
    arrow = make_layout("", "f/{uid}.arrow,r/{uid}.Mp4", "")
    source, _, _ = _find(tmp_path, "v", custom=arrow)
    assert (source.name, source.video_path) == ("f/v.arrow", str(tmp_path / "r/v.Mp4"))
    images = make_layout("", "i/{uid}", "")
    assert _find(tmp_path, "v", custom=images, source_fps=1.0)[0].name == "i/v"


def test_nothing_outside_the_folder_is_looked_at_through_a_uid(tmp_path):
    _touch(tmp_path, "out.mp4", "out.arrow", "out/1.jpg")
    (tmp_path / "in" / "deep").mkdir(parents=True)
    split = make_layout(r"(?P<a>.+?)-(?P<b>.+)", "{a}/{b}", "")
    plain = make_layout("", "{uid}.mp4,{dataset}/{uid}", "")
    root = tmp_path / "in"
    for custom, uid, dataset in (
        (None, "../out", ""),
        (None, str(tmp_path / "out"), ""),
        (split, "..-out", ""),
        (split, "deep-../../out", ""),
        (plain, "out", ".."),
        (plain, "out", str(tmp_path)),
        (plain, "../out", ""),
        (None, "../out", "egoexolearn"),
    ):
        source, tried, _ = _find(root, uid, dataset=dataset, custom=custom)
        assert source is None
        assert not any(str(path).startswith("..") for path in tried)
        assert any("part" in path or "slash" in path for path in tried)


def test_stars_in_a_uid_stand_for_themselves(tmp_path):
    _touch(tmp_path, "a/v1.mp4", "v1.mp4")
    custom = make_layout("", "*/{uid}.mp4", "")
    assert _find(tmp_path, "v*", custom=custom)[0] is None
    assert _find(tmp_path, "v[1]", custom=custom)[0] is None
    assert _find(tmp_path, "v*")[0] is None
    assert _find(tmp_path, "v1", custom=custom)[0].name == "a/v1.mp4"


def test_a_uid_too_long_for_a_file_name_has_no_frames(tmp_path):
    assert _find(tmp_path, "v" * 300)[0] is None
    assert _find(tmp_path, "v" * 300, custom=make_layout("", "*/{uid}", ""))[0] is None


def test_the_frame_rate_of_arrow_frames_is_the_annotations_then_the_flags_then_assumed(tmp_path):
    _touch(tmp_path, "v.arrow")
    assert _find(tmp_path, "v", fps=25.0, source_fps=60.0)[0].source_fps == 25.0
    assert _find(tmp_path, "v", source_fps=60.0)[0].source_fps == 60.0
    source, _, remarks = _find(tmp_path, "v")
    assert source.source_fps == ASSUMED_FPS
    assert _reasons(remarks) == ["frame rate taken to be 30 (--source_fps)"]


def test_missing_frames_name_what_was_tried(tmp_path):
    source, tried, _ = _find(tmp_path, "v")
    assert source is None
    assert tried == [
        f"{tmp_path}/v{{.arrow,/,.mp4,.mkv,...}}",
        f"{tmp_path}/frames/v{{.arrow,/}}",
    ]
    _, tried, _ = _find(tmp_path, "P01_11", layout="epickitchens")
    assert f"{tmp_path}/EK100/P01/videos/P01_11.MP4" in tried
    _, tried, _ = _find(tmp_path, "v", custom=make_layout("", "{dataset}/{uid}.mp4", ""))
    assert tried == ["{dataset}/{uid}.mp4 (an empty, . or .. part)"]


def _suggest(root, uid, dataset="", **naming):
    finder = Finder((str(root),), Naming(**naming))
    assert finder.find(Video(uid, (), dataset))[0] is None
    return finder.suggestion([Video("other", ()), Video(uid, (), dataset)])


@pytest.mark.parametrize("layout", ["assembly101", "ego4d", "holoassist", "epickitchens", "wtag"])
def test_the_layout_that_would_help_is_suggested(tmp_path, layout):
    uid, name = FILES[layout]
    _touch(tmp_path, name)
    assert _suggest(tmp_path, uid) == f"try --layout={layout}"
    other = "wtag" if layout == "holoassist" else "holoassist"
    assert _suggest(tmp_path, uid, layout=other) == f"try --layout={layout}"
    advice = _suggest(tmp_path, uid, custom=make_layout("", "x/{uid}", ""))
    assert advice == f"try --layout={layout} instead of --path_template"


def test_leaving_the_flags_out_is_suggested_where_it_helps(tmp_path):
    _touch(tmp_path, f"{UID}.mp4")
    assert _suggest(tmp_path, UID, layout="assembly101") == "leave --layout out"
    custom = make_layout("", "x/{uid}", "")
    advice = _suggest(tmp_path, UID, custom=custom)
    assert advice == "leave --uid_pattern and --path_template out"


def test_where_nothing_helps_the_folders_content_is_shown(tmp_path):
    assert f"{tmp_path} holds nothing: check --videos" in _suggest(tmp_path, "v")
    _touch(tmp_path, *(f"x{n}.mp4" for n in range(5)))
    advice = _suggest(tmp_path, "v")
    assert advice.startswith(f"{tmp_path} holds x0.mp4, x1.mp4, x2.mp4, ...: check --videos, or")
    assert "--path_template" in advice
