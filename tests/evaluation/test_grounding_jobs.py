import json

import pytest

from tests.index_video import constant_ticks, write_video
from vtalign_jax.dst.finder import Source
from vtalign_jax.dst.layouts import LAYOUTS, PLAIN
from vtalign_jax.dst.plan import Settings
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.grounding_jobs import Frames, jobs_of_annotations, jobs_of_files

PLAIN_FRAMES = Frames(("square", 0))
CROPPED = ("center_crop", 90)  # as the raw videos of Assembly101


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Annotations of three videos, one of which is there, and a folder of images."""
    folder = tmp_path_factory.mktemp("tree")
    (folder / "videos").mkdir()
    write_video(folder / "videos" / "a.mp4", constant_ticks(6, 6), rate=6)
    (folder / "images").mkdir()
    node = {"type": "step", "id": "S1", "start_ts": 0, "end_ts": 1, "name": "do it"}
    rows = [{"video_uid": uid, "dst": [node]} for uid in ("gone", "a", "b")]
    (folder / "val.json").write_text(json.dumps(rows))
    (folder / "one.json").write_text(json.dumps(rows[:1]))
    (folder / "empty.json").write_text(json.dumps([{"video_uid": "a", "dst": []}]))
    return folder


def _settings(tree, name="val.json", **fields):
    return Settings(str(tree / name), "", levels="all", **fields)


def test_videos_beside_the_annotations_are_found_and_the_others_have_failed(tree):
    found = jobs_of_annotations(_settings(tree), (), (), PLAIN_FRAMES)
    assert [(job.name, [q.text for q in job.questions]) for job in found.jobs] == [("a", ["do it"])]
    assert list(found.failed) == ["gone", "b"]
    assert "tried" in found.failed["b"]


def test_given_texts_replace_the_names(tree):
    found = jobs_of_annotations(_settings(tree), (), ("do the it", "paint"), PLAIN_FRAMES)
    asked = [(q.text, q.annotated) for q in found.jobs[0].questions]
    assert asked == [("do the it", ((0, 1),)), ("paint", ())]


def test_a_given_file_is_the_video_that_it_is_named_after_or_the_only_one(tree):
    file = str(tree / "videos" / "a.mp4")
    (job,) = jobs_of_annotations(_settings(tree), (file,), (), PLAIN_FRAMES).jobs
    assert (job.name, job.source.path) == ("a", file)
    (job,) = jobs_of_annotations(_settings(tree, "one.json"), (file,), (), PLAIN_FRAMES).jobs
    assert (job.name, job.source.path) == ("gone", file)
    other = str(tree / "val.json")
    failed = jobs_of_annotations(_settings(tree), (other,), (), PLAIN_FRAMES).failed
    assert "no annotated video is called val" in failed[other]


def test_files_are_asked_all_texts_and_an_absent_one_has_failed(tree):
    file = str(tree / "videos" / "a.mp4")
    found = jobs_of_files(
        (file, "absent.mp4", str(tree / "images")), ("a", "b"), PLAIN_FRAMES, None
    )
    assert [(job.name, len(job.questions)) for job in found.jobs] == [("a", 2)]
    assert "no such video absent.mp4" in found.failed["absent.mp4"]
    assert "--source_fps" in found.failed[str(tree / "images")]
    videos = str(tree / "videos")
    said = jobs_of_files((videos,), ("a",), PLAIN_FRAMES, None).failed[videos]
    assert said == f"{videos} is a folder of videos; name the files, such as {file}"
    images = jobs_of_files((str(tree / "images"),), ("a",), PLAIN_FRAMES, 5.0).jobs[0].source
    assert (images.kind, images.source_fps) == ("images", 5.0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("empty.json", r"no usable node in .*empty.json at --levels=all \(no "),
        ("one.json", "no frames for uid gone; tried"),
        ("absent.json", "no annotation file"),
    ],
)
def test_nothing_to_search_is_one_line(tree, name, expected):
    with pytest.raises(UserError, match=expected):
        jobs_of_annotations(_settings(tree, name), (), (), PLAIN_FRAMES)
    with pytest.raises(UserError, match="no text to look for"):
        jobs_of_files(("a.mp4",), (), PLAIN_FRAMES, None)


@pytest.mark.parametrize(
    ("kind", "trained", "row", "expected"),
    [
        ("video", ("center_crop", 180), None, ("center_crop", 180)),  # a file: as the checkpoint
        ("video", ("center_crop", 0), PLAIN, ("center_crop", 0)),
        ("video", ("square", 0), LAYOUTS["assembly101"], CROPPED),  # trained on made frames
        ("arrow", CROPPED, LAYOUTS["assembly101"], ("square", 0)),  # trained on raw videos
        ("arrow", ("square", 90), LAYOUTS["assembly101"], ("square", 90)),  # on made ones, turned
        ("arrow", ("square", 90), PLAIN, ("square", 90)),
    ],
)
def test_frames_become_squares_as_in_training(kind, trained, row, expected):
    source = Source(kind, "x", "x", 0, "square", 0)
    found = Frames(trained).of(source, row)
    assert (found.fit, found.rotate) == expected
    flagged = Frames(trained, "square", 270).of(source, row)
    assert (flagged.fit, flagged.rotate) == ("square", 270)
