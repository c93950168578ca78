"""Lint against prepare on small recordings of our own, with mistakes of every kind in them."""

import collections
import json

import pytest

from tests.index_video import constant_ticks, write_video
from tests.proassist_tree import make_proassist_tree
from vtalign_jax.dst.lint import Options, lint, with_skips
from vtalign_jax.dst.nodes import Skip
from vtalign_jax.dst.plan import Settings, make_plan
from vtalign_jax.dst.records import render
from vtalign_jax.errors import UserError

SECONDS = 6


def _node(node_id, start, end, name="", level="action"):
    name = name or f"do {node_id}"
    return {"type": level, "id": node_id, "start_ts": start, "end_ts": end, "name": name}


def _fine(count=4):
    return [_node(f"S{n}", n, n + 0.9, level="step") for n in range(count)]


BAD = [
    _node("S1", 3.0, 1.0),
    _node("S2", float("nan"), 4.0),
    _node("S3", 1.0, 4.0, "  "),
    _node("S4", 80.0, 81.0),
    _node("S5", "00:00:01.50", "2.5"),
    _node("S5", 3.0, 4.0),
    _node("S6", 4.0, 5.0, "<b>turn</b>"),
    _node("S6.1", 1.0, 2.0),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos and annotations; every mistake that prepare can meet but leakage."""
    root = tmp_path_factory.mktemp("lint")
    ticks = constant_ticks(SECONDS * 25, 25)
    for uid in ("v", "w"):
        write_video(root / f"{uid}.mp4", ticks, rate=25)
    options = {"movflags": "faststart"}
    write_video(root / "cut.mp4", ticks, rate=25, container_options=options)
    whole = (root / "cut.mp4").read_bytes()
    (root / "cut.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    write_video(root / "inside.mp4", ticks, rate=25)
    content = bytearray((root / "inside.mp4").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(400)
    (root / "inside.mp4").write_bytes(content)
    (root / "broken.mp4").write_bytes(b"no video")
    rows = [
        {"video_uid": "v", "dst": BAD},
        {"video_uid": "v", "dst": [_node("S5", 1.6, 2.5)]},
        *({"video_uid": uid, "dst": _fine(6)} for uid in ("cut", "inside", "broken", "absent")),
        {"video_uid": "../../etc/passwd", "dst": _fine()},
        {"video_uid": "empty", "dst": []},
        {"video_uid": 7.5, "dst": _fine()},
    ]
    (root / "train.json").write_text(json.dumps(rows))
    (root / "val.json").write_text(json.dumps([{"video_uid": "w", "dst": _fine()}]))
    return root


def _settings(root, **flags):
    return Settings(f"{root}/train.json,{root}/val.json", str(root), image_size=32, **flags)


def _errors(linted):
    return collections.Counter(
        (found.uid, found.node_id, found.check, found.clips)
        for found in linted.findings
        if found.severity == "error"
    )


def _of(linted, check):
    return [found for found in linted.findings if found.check == check]


@pytest.mark.parametrize("flags", [{}, {"levels": "all", "strategy": "span"}, {"frames": 3}])
def test_errors_are_exactly_what_prepare_leaves_out_and_warnings_what_it_warns_of(folder, flags):
    settings = _settings(folder, **flags)
    plan = make_plan(settings)
    skips, taken = list(plan.skips), 0
    for jobs in plan.jobs.values():
        for job in jobs:
            rendered = render(job)
            skips += rendered.skips
            taken += len(rendered.records)
    linted = lint(settings, Options(decode=True))
    left_out = collections.Counter((s.uid, s.node_id, s.reason, s.clips) for s in skips)
    assert _errors(linted) == left_out
    assert linted.taken == taken
    warned = {(remark.uid, remark.node_id, remark.reason) for remark in plan.warnings}
    assert len(warned) >= 2
    assert warned <= {(f.uid, f.node_id, f.check) for f in linted.findings}


def test_without_decoding_only_damage_inside_files_escapes(folder):
    quick = _errors(lint(_settings(folder), Options()))
    whole = _errors(lint(_settings(folder), Options(decode=True, workers=2)))
    assert {uid for uid, *_ in (whole - quick).elements()} == {"inside"}
    assert quick - whole == collections.Counter()
    assert any(uid == "cut" for uid, *_ in quick)


def test_lint_without_videos_finds_what_is_wrong_in_the_files(folder):
    settings = Settings(f"{folder}/*.json", "")
    found = lint(settings, Options())
    with_videos = lint(_settings(folder), Options(decode=True))
    of_frames = {"no frames", "unreadable video", "damaged video", "span outside the video"}
    expected = {error for error in _errors(with_videos) if error[2] not in of_frames}
    assert set(_errors(found)) == expected
    assert found.jobs == {}
    assert found.durations == {}


def test_findings_say_the_place_in_the_file(folder):
    linted = lint(_settings(folder), Options())
    (found,) = _of(linted, "reversed times")
    assert (found.where, found.detail) == ("train.json row 1 node 1", "3.0 to 1.0")
    (found,) = _of(linted, "child outside its parent")
    assert found.where == "train.json row 1 node 8"
    (found,) = _of(linted, "span outside the video")
    assert found.where == "train.json row 1 node 4"
    assert found.detail == "80.00 to 81.00 s of 6.00 s"
    (found,) = _of(linted, "rows of one video disagree")
    assert found.where == "train.json row 2 node 1"


def test_uids_without_files_say_what_was_tried_and_which_layout_finds_them(folder, tmp_path):
    (found,) = _of(lint(_settings(folder), Options()), "no frames")
    assert (found.uid, found.clips) == ("absent", 6)
    assert f"tried {folder}/absent" in found.detail
    assert "--path_template" in found.detail
    write_video(tmp_path / "id-1.mp4", constant_ticks(50, 25), rate=25)
    rows = [{"video_uid": "grp-id-1", "dst": _fine(2)}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    (found,) = _of(lint(Settings(f"{tmp_path}/train.json", str(tmp_path)), Options()), "no frames")
    assert found.detail.endswith("try --layout=ego4d")


def test_a_file_that_cannot_be_read_is_a_finding_beside_others_and_an_error_alone(tmp_path):
    (tmp_path / "broken.json").write_text('[{"video_uid": ')
    (tmp_path / "train.json").write_text(json.dumps([{"video_uid": "v", "dst": _fine()}]))
    linted = lint(Settings(f"{tmp_path}/*.json", ""), Options())
    (found,) = linted.findings
    assert (found.severity, found.check) == ("error", "unreadable annotation file")
    assert "broken.json is not JSON" in found.detail
    with pytest.raises(UserError, match=r"broken.json is not JSON"):
        lint(Settings(f"{tmp_path}/broken.json", ""), Options())


def test_what_ends_prepare_is_an_error(tmp_path):
    write_video(tmp_path / "r__1.mp4", constant_ticks(150, 25), rate=25)
    write_video(tmp_path / "r__2.mp4", constant_ticks(150, 25), rate=25)
    for split, uid in (("train", "r__1"), ("val", "r__2")):
        rows = [{"video_uid": uid, "dst": _fine()}]
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    settings = _settings(tmp_path)
    with pytest.raises(UserError, match="recording"):
        make_plan(settings)
    (found,) = lint(settings, Options()).findings
    assert (found.severity, found.check) == ("error", "recording in train and in val or test")

    dropped = _settings(tmp_path, on_leakage="drop")
    assert make_plan(dropped).num_clips == 4
    linted = lint(dropped, Options())
    assert [found.severity for found in linted.findings] == ["warning"]
    assert linted.taken == 4


def test_levels_that_choose_nothing_are_an_error(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps([{"video_uid": "v", "dst": _fine()}]))
    (found,) = lint(Settings(f"{tmp_path}/train.json", "", levels="action"), Options()).findings
    assert (found.severity, found.check) == ("error", "no node at these levels")
    assert found.detail == "--levels=action; there are 4 step(s)"
    (tmp_path / "train.json").write_text(json.dumps([{"video_uid": "v", "dst": BAD[:1]}]))
    (found,) = lint(Settings(f"{tmp_path}/train.json", ""), Options()).findings
    assert found.check == "reversed times"
    (tmp_path / "train.json").write_text("[]")
    (found,) = lint(Settings(f"{tmp_path}/train.json", ""), Options()).findings
    assert (found.check, found.where, found.clips) == ("no recordings", "train.json", 0)
    limited = lint(Settings(f"{tmp_path}/train.json", "", limit_videos=1), Options())
    assert limited.findings == [found]


def test_limit_videos_takes_the_videos_that_prepare_takes(folder):
    settings = _settings(folder, limit_videos=2)
    taken = {job.pairs[0].uid for jobs in make_plan(settings).jobs.values() for job in jobs}
    linted = lint(settings, Options())
    assert {video.uid for video in linted.videos} == taken == {"v", "w"}
    assert {found.uid for found in linted.findings} <= {"v", ""}
    without = lint(Settings(f"{folder}/*.json", "", limit_videos=2), Options())
    assert len(without.videos) == 2


def test_clips_that_fail_later_on_join_the_findings_once(folder):
    quick = lint(_settings(folder), Options())
    (lost,) = {f.node_id for f in _of(quick, "span outside the video")}
    later = [
        Skip("v", lost, "span outside the video"),
        Skip("inside", "S3", "damaged video", "at 3 s"),
    ]
    linted = with_skips(quick, later)
    (added,) = linted.findings[len(quick.findings) :]
    assert (added.severity, added.uid, added.check) == ("error", "inside", "damaged video")
    assert added.where == "train.json row 4 node 4"
    assert linted.taken == quick.taken - 1


def test_folders_of_images_without_a_rate_are_errors_one_by_one(tmp_path):
    uids = ("a", "b")
    for uid in uids:
        (tmp_path / uid).mkdir()
        (tmp_path / uid / "1.png").write_bytes(b"x")
    rows = [{"video_uid": uid, "dst": _fine()} for uid in uids]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    linted = lint(Settings(f"{tmp_path}/train.json", str(tmp_path)), Options())
    assert [(f.severity, f.uid) for f in _of(linted, "no frame rate")] == [
        ("error", "a"),
        ("error", "b"),
    ]


def test_wrong_flags_are_refused_before_anything_is_read(tmp_path):
    for flags in ({"levels": "scene"}, {"rotate": 45}, {"uid_pattern": "("}):
        with pytest.raises(UserError, match=next(iter(flags))):
            lint(Settings("nowhere.json", "", **flags), Options())
    with pytest.raises(UserError, match="no annotation file"):
        lint(Settings("nowhere.json", ""), Options())


def test_a_sound_proassist_tree_is_clean(tmp_path):
    tree = make_proassist_tree(tmp_path, train=1, val=1, seconds=8, size=32, keep_videos=True)
    settings = Settings(tree.annotations, f"{tree.frames},{tree.videos}", layout="assembly101")
    linted = lint(settings, Options(decode=True))
    assert linted.findings == []
    assert linted.taken == sum(tree.clips.values())
    assert all(duration == pytest.approx(8, abs=0.5) for duration in linted.durations.values())
