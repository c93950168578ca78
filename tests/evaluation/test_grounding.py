import json
import pathlib

import numpy as np
import pytest
from etils import epath
from PIL import Image

import vtalign_jax as vt
from tests.index_video import constant_ticks, write_video
from tests.interop.checkpoints import make_config, write_base, write_checkpoint
from vtalign_jax.dst.finder import Source
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation import grounding_documents, grounding_files
from vtalign_jax.evaluation.grounding import ground
from vtalign_jax.evaluation.grounding_jobs import Job
from vtalign_jax.evaluation.questions import Question
from vtalign_jax.evaluation.spans import WindowGrid, interval_iou

TEXTS = ["attach the wheel", "screw"]
GRID = WindowGrid((2.0, 4.0), 0.5)


@pytest.fixture(scope="module")
def aligner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    float32 = {"compute_dtype": "float32", "frozen_dtype": "float32"}
    config = make_config(write_base(folder / "base", "smolvlm"), model=float32)
    return vt.Aligner.load(write_checkpoint(folder / "run", config))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    write_video(path, constant_ticks(73, 10), rate=10)
    return str(path)


@pytest.fixture(scope="module")
def found(aligner, video):
    return vt.ground(aligner, video, TEXTS, GRID.widths, stride=GRID.stride, keep=3)


def test_scores_are_the_cosines_of_each_window_embedded_on_its_own(aligner, video, found):
    assert found.seconds == pytest.approx(7.3)
    np.testing.assert_allclose(found.windows, GRID.over(found.seconds))
    spans = [(video, *window) for window in found.windows.tolist()]
    alone = aligner.encode_texts(TEXTS) @ aligner.encode_videos(spans).T
    np.testing.assert_allclose(found.scores, alone, atol=2e-6)
    assert np.ptp(found.scores) > 1e-3


def test_spans_are_the_best_windows_that_overlap_little(found):
    for row, spans in zip(found.scores, found.spans, strict=True):
        assert spans[0].score == row.max()
        assert [span.score for span in spans] == sorted((s.score for s in spans), reverse=True)
        overlaps = interval_iou(np.array(spans)[:, :2], np.array(spans)[:, :2])
        assert (overlaps - np.eye(len(spans)) <= 0.3).all()
    assert found.lost == {}
    assert len(found.sights) == 12


def test_a_document_says_what_was_found_and_how_good_it_is(found, tmp_path):
    best = found.spans[0][0]
    annotated = ((best.start, best.end), (6.0, 6.0))
    source = Source("video", "x", "x", 0, "square", 0)
    job = Job("a", source, [Question(TEXTS[0], "action", annotated), Question(TEXTS[1])])
    answers = grounding_documents.answers_of(job, found, 4.0)
    assert answers[1] is None
    asked = grounding_documents.settings_shown(GRID, "runs/x", 0.3, 4.0)
    document = grounding_documents.document(job, found, answers, asked)
    first, second = json.loads(json.dumps(document))["texts"]
    assert first["iou"] == 1.0
    assert first["annotated"] == [[best.start, best.end], [6.0, 6.0]]
    assert first["spans"][0]["score"] == pytest.approx(best.score, abs=1e-5)
    assert (second["iou"], second["level"], second["annotated"]) == (None, "", [])
    assert document["metrics"]["all"]["model"]["mean_iou"] == 1.0
    assert document["metrics"]["all"]["questions"] == 1
    assert document["windows"]["count"] == len(found.windows)
    whole = grounding_documents.summary([document, document], answers[:1] * 2, {"b": "gone"}, asked)
    assert (whole["video"], whole["failed"]) == ("2 videos", {"b": "gone"})
    assert set(document) <= set(whole)


def test_pages_keep_their_colours_and_those_of_a_longer_search_are_removed(tmp_path):
    page = Image.new("RGB", (90, 90), "#ffffff")
    page.paste((225, 60, 220), (0, 0, 3, 3))
    folder = epath.Path(tmp_path)
    mine = tmp_path / "a.page9.png"
    mine.write_text("of somebody else")
    written = grounding_files.write_video(folder, "a", {}, [page] * 3)
    assert written["pictures"] == ["a.png", "a.page2.png", "a.page3.png"]
    assert grounding_files.write_video(folder, "a", {}, [page]) == {
        "picture": "a.png",
        "pictures": ["a.png"],
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", mine.name, "a.png"]
    with Image.open(tmp_path / "a.png") as written:
        assert written.getpixel((1, 1)) == (225, 60, 220)
    assert grounding_files.write_video(folder, "a", {}, [])["picture"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", mine.name]


@pytest.mark.parametrize("named", ["../b.png", "b.png", 3, None])
def test_only_pictures_of_the_video_itself_are_removed(tmp_path, named):
    folder = tmp_path / "grounding"
    folder.mkdir()
    for path in (folder / "b.png", tmp_path / "b.png"):
        path.write_text("of another video")
    (folder / "a.json").write_text(json.dumps({"pictures": [named]}))
    grounding_files.write_video(epath.Path(folder), "a", {}, [])
    assert (folder / "b.png").exists()
    assert (tmp_path / "b.png").exists()


def test_a_search_of_one_video_removes_the_summary_of_several_and_no_other_file(tmp_path):
    folder, file = epath.Path(tmp_path), tmp_path / "summary.json"
    grounding_files.write_summary(folder, {"videos": ["a", "b"]})
    assert json.loads(file.read_text()) == {"videos": ["a", "b"]}
    grounding_files.write_summary(folder, {"videos": ["a"]})
    assert not file.exists()
    for text in ('{"title": "mine"}', "[1]", "no JSON"):
        file.write_text(text)
        grounding_files.write_summary(folder, {"videos": ["a"]})
        assert file.read_text() == text


def test_videos_and_documents_may_lie_in_a_bucket(aligner, video, found, bucket):
    bucket.put("videos/a.mp4", pathlib.Path(video).read_bytes())
    there = vt.ground(aligner, f"{bucket.url}/videos/a.mp4", TEXTS, (4.0,), stride=0.5)
    is_wide = np.isclose(np.ptp(found.windows, axis=1), 4.0)
    np.testing.assert_allclose(there.scores, found.scores[:, is_wide], atol=2e-6)
    with pytest.raises(UserError, match="no such video gs://"):
        vt.ground(aligner, f"{bucket.url}/videos/b.mp4", TEXTS)
    folder = epath.Path(f"{bucket.url}/run/grounding")
    grounding_files.make_folder("", folder)
    for pictures in ([Image.new("RGB", (2, 2))] * 2, [Image.new("RGB", (2, 2))]):
        grounding_files.write_video(folder, "a", {"video": "a"}, pictures)
    assert sorted(bucket.names("run/grounding")) == ["run/grounding/a.json", "run/grounding/a.png"]


def test_files_of_equally_named_videos_do_not_replace_each_other():
    names = grounding_files.file_names(["a", "A", "summary", "x/y", "a", "a.page2", "a.page2-2"])
    assert names == ["a", "A-2", "summary-2", "x_y", "a-3", "a.page2-2", "a.page2-2-2"]


def test_a_report_draws_the_folder_of_its_workdir_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside = tmp_path / "run" / "grounding"
    assert grounding_files.is_drawn(epath.Path("run/grounding/"), str(tmp_path / "run"))
    assert grounding_files.is_drawn(epath.Path(inside), "run")
    assert not grounding_files.is_drawn(epath.Path(inside), "other")
    assert not grounding_files.is_drawn(epath.Path("elsewhere"), "run")
    assert not grounding_files.is_drawn(epath.Path("grounding"), "")  # of an export


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"source": "absent.mp4"}, "no such video absent.mp4"),
        ({"texts": []}, "texts are missing"),
        ({"texts": "one string"}, "a list of texts, got one string; put it in a list"),
        ({"keep": 0}, "keep is how many"),
        ({"nms_iou": 1.5}, "nms_iou must lie"),
        ({"widths": (0.01,)}, "widths must lie"),
        ({"source_fps": -1.0}, "source_fps must be above 0"),
    ],
)
def test_a_mistake_is_named(aligner, video, arguments, expected):
    with pytest.raises(UserError, match=expected):
        ground(aligner, **({"source": video, "texts": TEXTS} | arguments))


@pytest.mark.parametrize("what", ["text", "window"])
def test_embeddings_that_are_no_numbers_are_no_answer(aligner, video, monkeypatch, what):
    name = {"text": "encode_texts", "window": "encode_squares"}[what]
    real = getattr(aligner, name)
    monkeypatch.setattr(aligner, name, lambda *given, **more: real(*given, **more) * np.nan)
    with pytest.raises(UserError, match=f"{what} embeddings are not finite"):
        ground(aligner, video, TEXTS, (4.0,))


def test_a_document_that_cannot_be_written_leaves_the_one_before(tmp_path):
    folder = epath.Path(tmp_path)
    before = grounding_files.write_video(folder, "a", {"video": "before"}, [])
    (tmp_path / "a.json.new").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*a\.json"):
        grounding_files.write_video(folder, "a", {"video": "after"}, [])
    assert json.loads((tmp_path / "a.json").read_text()) == before


def test_what_is_no_video_is_named(aligner, tmp_path):
    (tmp_path / "no.mp4").write_text("not a video")
    (tmp_path / "no.arrow").write_text("not Arrow")
    for name in ("no.mp4", "no.arrow"):
        with pytest.raises(UserError, match=f"cannot read .*{name}: unreadable"):
            ground(aligner, tmp_path / name, TEXTS)
    with pytest.raises(UserError, match="is a folder of videos; name the files"):
        ground(aligner, tmp_path, TEXTS, source_fps=2.0)
    (tmp_path / "no.mp4").unlink()
    with pytest.raises(UserError, match="is a folder of images"):
        ground(aligner, tmp_path, TEXTS)
    with pytest.raises(UserError, match="no numbered image"):
        ground(aligner, tmp_path, TEXTS, source_fps=2.0)
