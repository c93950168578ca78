import pytest

from vtalign_jax.dst.layouts import BY_DATASET, LAYOUTS, Naming, make_layout
from vtalign_jax.dst.nodes import Video
from vtalign_jax.dst.templates import fill_path
from vtalign_jax.errors import UserError

UID = "assembly_seq1__cam1"
SAMPLE = "nusar-2021_action_both_9011-c03f_9011_user_id_2021-02-01_160239"


def _names(layout, uid):
    """Return the Arrow name, the raw videos, and the recording of a uid."""
    video = Video(uid, ())
    ((row, values),) = Naming(layout).rows(video)
    return (
        fill_path(row.frames[0], values),
        [fill_path(template, values) for template in row.videos],
        Naming(layout).name_recording(video).recording_id,
    )


@pytest.mark.parametrize(
    ("layout", "uid", "arrow", "videos", "recording"),
    [
        ("assembly101", f"assembly_{SAMPLE}__C1_rgb", f"{SAMPLE}__C1_rgb", "C1_rgb.mp4", SAMPLE),
        ("assembly101", f"disassembly_{SAMPLE}__C1", f"{SAMPLE}__C1", "C1.mp4", SAMPLE),
        ("ego4d", "grp-cec778f9-00", "cec778f9-00", "cec778f9-00.mp4", "cec778f9-00"),
        ("ego4d", "cec778f9-00", "cec778f9-00", "cec778f9-00.mp4", "cec778f9-00"),
        (
            "holoassist",
            "R0027-12-GoPro",
            "R0027-12-GoPro",
            "R0027-12-GoPro/Export_py/Video_pitchshift.mp4",
            "R0027-12-GoPro",
        ),
        ("egoexolearn", "0a7c-4b", "0a7c-4b", "0a7c-4b.mp4", "0a7c-4b"),
        ("wtag", "T48", "T48", "T48/Video/Video.mpeg", "T48"),
    ],
)
def test_each_layout_names_files_and_recordings_as_its_dataset_does(
    layout, uid, arrow, videos, recording
):
    if layout == "assembly101":
        videos = f"{SAMPLE}/{videos}"
    assert _names(layout, uid) == (arrow, [videos], recording)


def test_epic_kitchens_videos_lie_in_two_trees():
    videos = ["EK100/P01/videos/P01_11.MP4", "EK55/videos/*/*/P01_11.MP4"]
    assert _names("epickitchens", "P01_11") == ("P01_11", videos, "P01_11")
    assert _names("epickitchens", "P22_117")[1][0] == "EK100/P22/videos/P22_117.MP4"


def test_only_assembly101_crops_and_turns_its_raw_videos():
    turned = {name: (row.fit, row.rotate) for name, row in LAYOUTS.items()}
    assert turned.pop("assembly101") == ("center_crop", 90)
    assert set(turned.values()) == {("square", 0)}


def _recording(naming, uid, dataset=""):
    return naming.name_recording(Video(uid, (), dataset)).recording_id


def test_without_a_layout_the_recording_is_that_of_the_annotations_dataset():
    assert _recording(BY_DATASET, "grp-x", "ego4d") == "x"
    assert _recording(BY_DATASET, "grp-x", "Ego4D") == "x"
    assert _recording(BY_DATASET, "T48__2", "wtag") == "T48__2"
    assert _recording(BY_DATASET, "grp-x__2", "unknown") == "grp-x"
    assert _recording(BY_DATASET, UID) == "seq1"


def test_a_layout_leaves_other_uids_to_their_dataset_and_the_common_rule():
    assert _recording(Naming("assembly101"), "sign_rec_00__cam0") == "sign_rec_00"
    assert _recording(Naming("assembly101"), "grp-x", "ego4d") == "x"


def test_a_pattern_names_recordings_by_its_groups():
    layout = make_layout(r"(?P<day>\d+)-(?P<take>\w+)", "", "{dataset}:{day}")
    naming = Naming(custom=layout)
    assert _recording(naming, "12-a", "lab") == _recording(naming, "12-b", "lab") == "lab:12"
    assert _recording(naming, "other__cam") == "other"


def test_a_pattern_without_a_recording_template_changes_no_recording():
    naming = Naming(custom=make_layout("(?P<a>.+)", "{a}.mp4", ""))
    assert _recording(naming, UID) == "seq1"
    assert _recording(naming, "grp-x", "ego4d") == "x"


def test_a_group_that_took_no_part_is_empty():
    layout = make_layout(r"(?P<a>\w+)(?:-(?P<b>\w+))?", "{a}/x{b}.mp4", "")
    assert layout.match(Video("u", ()))["b"] == ""


def test_what_ends_as_a_video_is_a_raw_video_and_the_rest_are_frames():
    layout = make_layout("", "raw/{uid}.MP4, frames/{uid}.arrow,any/{uid}", "")
    assert layout.frames == ("frames/{uid}.arrow", "any/{uid}")
    assert layout.videos == ("raw/{uid}.MP4", "any/{uid}")
    assert make_layout("", "", "") is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("(?P<a>", "{a}.mp4", ""), r"--uid_pattern=\(\?P<a> is no regular expression"),
        (("(?P<a>.+)", "", ""), "--uid_pattern alone changes nothing"),
        (("", "{seq}.mp4", ""), r"--path_template={seq}.mp4 holds {seq}, but {dataset}, {uid} are"),
        (("", "", "{seq}"), "--recording_template={seq} holds {seq}"),
        (("", "{uid.mp4", ""), "--path_template={uid.mp4 is no template"),
        (("", "{}.mp4", ""), "holds {}"),
        (("", "{uid.name}.mp4", ""), "holds {uid.name}"),
        (("", "{uid!r}.mp4", ""), "--path_template"),
        (("", "{uid:>9}.mp4", ""), "--path_template"),
        (("", "/data/{uid}.mp4", ""), "--path_template=/data/{uid}.mp4 must be a path below"),
        (("", "~/{uid}.mp4", ""), "must be a path below"),
        (("", "gs://bucket/{uid}.mp4", ""), "must be a path below"),
        (("", "../{uid}.mp4", ""), r"--path_template=../{uid}.mp4 has an empty, . or .. part"),
        (("", "a//{uid}.mp4", ""), "empty"),
        (("", "a\\{uid}.mp4", ""), "part"),
        (("", "**/{uid}.mp4", ""), r"has \*\*"),
        (("", "{uid}.mp4,,", ""), "must be a path below"),
    ],
)
def test_a_wrong_pattern_or_template_is_named(flags, said):
    with pytest.raises(UserError, match=said):
        make_layout(*flags)
