import base64
import io

import pytest
from PIL import Image

from tests.index_video import constant_ticks, write_video
from tests.proassist_tree import write_arrow
from vtalign_jax.dst import probe as probe_module
from vtalign_jax.dst.finder import Finder
from vtalign_jax.dst.nodes import Node, Skip, Video
from vtalign_jax.dst.pairs import make_pairs
from vtalign_jax.dst.probe import Probe, check_frames, decode, probe
from vtalign_jax.dst.records import make_jobs
from vtalign_jax.dst.video import VideoFile
from vtalign_jax.dst.windows import window_chooser


def _node(node_id, start, end, level="action", ancestors=()):
    return Node(node_id, level, start, end, f"do {node_id}", ancestors, where="a row 1")


def _jobs(folder, video, source_fps=None):
    source, tried, _ = Finder((str(folder),), source_fps=source_fps).find(video)
    assert source, tried
    levels = ("all",)
    window_of = window_chooser(
        "center", [video], levels, window_seconds=4.0, pad_seconds=0.5, frames=8
    )
    return make_jobs(make_pairs(video, levels, window_of, 8), source, 32)


def _look(folder, *nodes, fps=None, **flags):
    video = Video("v", nodes, source_fps=fps)
    jobs = _jobs(folder, video, **flags)
    found = probe(jobs)
    return found, list(check_frames(video, jobs[0].source, found))


def _write_rows(path, rows, **options):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "JPEG")
    write_arrow(path, [base64.b64encode(buffer.getvalue()).decode()] * rows, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("probe")
    write_video(root / "v.mp4", constant_ticks(150, 25), rate=25)  # 6 s
    return root


def test_a_sound_video_has_its_duration_and_rate_and_no_findings(folder):
    nodes = (_node("S1", 0, 6.3, "step"), _node("S1.a", 5.5, 6.05, ancestors=("S1",)))
    found, findings = _look(folder, *nodes, fps=25.0)
    assert (found.duration, found.fps, found.skips) == (6.0, 25.0, ())
    assert findings == []


def test_nodes_that_end_past_the_end_are_found_deepest_only(folder):
    above = ("S1", "S1.1")
    found, findings = _look(
        folder,
        _node("S1", 0, 9, "step"),
        _node("S1.1", 0, 9, "substep", above[:1]),
        _node("S1.1.a", 0, 2, ancestors=above),
        _node("S1.1.b", 5, 9, ancestors=above),
        _node("S2", 2, 8, "step"),
    )
    assert found.skips == ()
    check = "annotation past the end of the video"
    assert [(f.check, f.node_id, f.where) for f in findings] == [
        (check, "S1.1.b", "a row 1"),
        (check, "S2", "a row 1"),
    ]
    assert findings[0].detail == "5.00 to 9.00 s of 6.00 s (v.mp4)"


def test_nodes_that_are_left_out_explain_their_parents(folder):
    found, findings = _look(
        folder, _node("S1", 0, 9, "step"), _node("S1.a", 7, 9, ancestors=("S1",))
    )
    assert [(s.node_id, s.reason) for s in found.skips] == [("S1.a", "span outside the video")]
    assert findings == []


def test_a_node_whose_middle_lies_past_the_end_is_left_out_though_it_starts_before(folder):
    found, _ = _look(folder, _node("S1", 5, 30, "step"), _node("S2", 0, 1, "step"))
    assert [s.node_id for s in found.skips] == ["S1"]


def test_a_node_that_starts_past_the_end_is_left_out_though_its_window_begins_before(folder):
    found, findings = _look(folder, _node("S1", 6.2, 6.4, "step"))
    assert [s.reason for s in found.skips] == ["span outside the video"]
    assert findings == []
    video = Video("v", (_node("S1", 6.2, 6.4, "step"), _node("S2", 6.05, 6.4, "step")))
    source = _jobs(folder, video)[0].source
    (of_no_clip,) = check_frames(video, source, Probe(6.0))
    assert of_no_clip.node_id == "S1"


def test_damage_of_a_child_does_not_hide_that_its_parent_ends_late(folder):
    video = Video("v", (_node("S1", 0, 9, "step"), _node("S1.a", 1, 2, ancestors=("S1",))))
    source = _jobs(folder, video)[0].source
    (found,) = check_frames(video, source, Probe(6.0, skips=(Skip("v", "S1.a", "damaged video"),)))
    assert found.node_id == "S1"


def test_windows_that_the_end_of_a_video_cuts_are_not_decoded(folder, monkeypatch):
    decoded = []
    monkeypatch.setattr(probe_module, "decode", lambda job: decoded.extend(job.pairs) or [])
    _look(folder, _node("S1", 0, 1, "step"), _node("S2", 5, 6, "step"))
    assert decoded == []
    _look(folder, _node("S1", 0, 1, "step"), _node("S2", 8, 9, "step"))
    assert [pair.node_id for pair in decoded] == ["S2"]


@pytest.mark.parametrize(("fps", "is_drift"), [(25.0, False), (24.0, False), (30.0, True)])
def test_an_annotated_rate_counts_by_the_seconds_it_is_off_at_the_end(folder, fps, is_drift):
    _, findings = _look(folder, _node("S1", 0, 6, "step"), fps=fps)
    assert [f.check for f in findings] == ["frame rate drift"] * is_drift
    if is_drift:
        assert "annotated 30" in findings[0].detail
        assert "has 25 frames a second: 1.2 s apart at 6.0 s" in findings[0].detail


def test_rows_that_do_not_last_as_long_as_their_video_are_found(folder, tmp_path):
    (tmp_path / "v.mp4").write_bytes((folder / "v.mp4").read_bytes())
    step = 12  # of 25 frames a second
    _write_rows(tmp_path / "v.arrow", -(-150 // step))
    found, findings = _look(tmp_path, _node("S1", 0, 5, "step"))
    assert (found.fps, found.video_duration) == (25.0, 6.0)
    assert findings == []
    _write_rows(tmp_path / "v.arrow", 10)  # 4.8 s
    _, findings = _look(tmp_path, _node("S1", 0, 4, "step"))
    assert [f.check for f in findings] == ["Arrow rows unlike the video"]
    assert "last 4.8 s at 25 frames a second" in findings[0].detail


def test_rows_without_a_video_beside_them_have_no_rate_to_compare(tmp_path):
    _write_rows(tmp_path / "v.arrow", 12)
    found, findings = _look(tmp_path, _node("S1", 0, 5, "step"), source_fps=30.0)
    assert (found.duration, found.fps, findings) == (6.0, 0.0, [])


def test_rows_lost_at_the_end_of_a_cut_file_are_found_without_decoding_all(tmp_path):
    _write_rows(tmp_path / "v.arrow", 12, rows_a_batch=2)
    whole = (tmp_path / "v.arrow").read_bytes()
    (tmp_path / "v.arrow").write_bytes(whole[: len(whole) // 2])
    nodes = [_node(f"S{n}", n, n + 1, "step") for n in range(6)]
    found, _ = _look(tmp_path, *nodes, source_fps=30.0)
    assert 1.0 <= found.duration <= 3.0
    assert {skip.reason for skip in found.skips} == {"Arrow file cut off"}
    assert found.skips == tuple(
        skip
        for job in _jobs(tmp_path, Video("v", tuple(nodes)), source_fps=30.0)
        for skip in decode(job)
    )


def test_past_the_last_row_the_rate_that_was_taken_is_named(tmp_path):
    _write_rows(tmp_path / "v.arrow", 12)
    _, (found,) = _look(tmp_path, _node("S1", 0, 8, "step"), source_fps=30.0)
    assert found.detail == "0.00 to 8.00 s of 6.00 s (v.arrow, of 30 frames a second)"


def test_an_unreadable_file_costs_all_clips_and_is_no_further_finding(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"no video")
    found, findings = _look(tmp_path, _node("S1", 0, 1, "step"), _node("S2", 90, 91, "step"))
    assert found.duration is None
    assert [skip.reason for skip in found.skips] == ["unreadable video"] * 2
    assert findings == []


def test_a_file_that_was_cut_off_is_seen_by_its_index_and_decoded(tmp_path):
    options = {"movflags": "faststart"}
    ticks = constant_ticks(300, 25)
    write_video(tmp_path / "v.mp4", ticks, rate=25, container_options=options)
    whole = (tmp_path / "v.mp4").read_bytes()
    video = VideoFile(str(tmp_path / "v.mp4"))
    assert not video.lacks_its_end()
    video.close()
    (tmp_path / "v.mp4").write_bytes(whole[: len(whole) // 2])
    video = VideoFile(str(tmp_path / "v.mp4"))
    assert video.lacks_its_end()
    video.close()
    nodes = [_node(f"S{n}", n, n + 1, "step") for n in range(11)]
    found, _ = _look(tmp_path, *nodes)
    assert 0 < len(found.skips) < len(nodes)
    assert list(found.skips) == [
        skip for job in _jobs(tmp_path, Video("v", tuple(nodes))) for skip in decode(job)
    ]
