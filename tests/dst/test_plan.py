import json

import pytest

from vtalign_jax.dst.nodes import Remark
from vtalign_jax.dst.plan import Settings, make_plan
from vtalign_jax.errors import UserError


def _row(uid, *names, start=1.0):
    nodes = [
        {"type": "step", "id": f"S{n}", "start_ts": start, "end_ts": start + 2, "name": name}
        for n, name in enumerate(names or ("do it",))
    ]
    return {"video_uid": uid, "dst": nodes}


@pytest.fixture
def make(tmp_path):
    """Write annotation files and empty video files, and plan."""

    def plan(files, videos=(), **flags):
        for name, rows in files.items():
            (tmp_path / name).write_text(rows if isinstance(rows, str) else json.dumps(rows))
        folder = tmp_path / "videos"
        folder.mkdir(exist_ok=True)
        for uid in videos:
            (folder / f"{uid}.mp4").write_bytes(b"12345")
        annotations = ",".join(str(tmp_path / name) for name in files)
        return make_plan(Settings(annotations, str(folder), **flags))

    return plan


def _jobs(plan):
    return [job for jobs in plan.jobs.values() for job in jobs]


def _uids(plan):
    return {s: [job.pairs[0].uid for job in jobs] for s, jobs in plan.jobs.items()}


def test_files_named_after_splits_give_the_splits(make):
    files = {"val.json": [_row("b")], "train_filtered.json": [_row("a")]}
    plan = make(files, "ab")
    assert _uids(plan) == {"train": ["a"], "val": ["b"]}
    assert list(plan.jobs) == ["train", "val"]
    assert plan.num_clips == 2


def test_a_csv_of_segments_is_planned_by_its_columns(make):
    segments = "uid,from,to,what,key\na,1,2,do it,k1\nb,00:00:03,4,undo it,k2\n"
    with pytest.raises(UserError, match=r"has uid, from, to, what, key; .*--uid_column"):
        make({"train.csv": segments}, "ab")
    columns = {"uid": "uid", "start": "from", "end": "to", "text": "what", "id": "key"}
    plan = make({"train.csv": segments}, **{f"{k}_column": v for k, v in columns.items()})
    (first,), (second,) = (job.pairs for job in plan.jobs["train"])
    assert (first.clip_id, first.text, second.node_start) == ("a/k1", "do it", 3.0)


def test_a_forced_format_decides_and_asides_are_counted(make):
    text = '[1.0s-2.0s] one\n - [1.0s] assistant: "Go"\n[2.0s-3.0s] two\nSummary: done'
    files = {"train.json": [_row("a") | {"all_step_descriptions": text}]}
    by_tree, by_text = make(files, "a"), make(files, "a", format="step_text")
    assert (by_tree.num_clips, by_tree.asides) == (1, {})
    assert (by_text.num_clips, by_text.asides) == (2, {"dialogue": 1, "summary": 1})


def test_some_missing_videos_are_skipped_with_the_clips_they_cost(make):
    plan = make({"train.json": [_row("a"), _row("b", "x", "y")], "val.json": [_row("c")]}, "ac")
    assert [(skip.uid, skip.reason, skip.clips) for skip in plan.skips] == [("b", "no frames", 2)]
    assert "tried" in plan.skips[0].detail


def test_no_frames_at_all_is_one_clear_error(make, tmp_path):
    with pytest.raises(
        UserError, match=r"no frames for uid a; tried .*/a{\.arrow.*; .* holds noth"
    ):
        make({"train.json": [_row("a")]})
    (tmp_path / "videos" / "s__c.arrow").write_bytes(b"1")
    with pytest.raises(UserError, match=r"try --layout=assembly101$"):
        make({"train.json": [_row("assembly_s__c")]})


def test_a_template_names_the_files_and_the_recordings(make, tmp_path):
    (tmp_path / "videos" / "lab" / "a").mkdir(parents=True)
    for camera in ("1", "2"):
        (tmp_path / "videos" / "lab" / "a" / f"{camera}.mp4").write_bytes(b"12345")
    rows = [{**_row(f"a-{camera}"), "dataset": "lab"} for camera in ("1", "2")]
    plan = make(
        {"train.json": rows},
        uid_pattern=r"(?P<seq>\w+)-(?P<cam>\w+)",
        path_template="{dataset}/{seq}/{cam}.mp4",
        recording_template="{seq}",
    )
    assert [job.source.name for job in plan.jobs["train"]] == ["lab/a/1.mp4", "lab/a/2.mp4"]
    pairs = [pair for job in plan.jobs["train"] for pair in job.pairs]
    assert {pair.recording_id for pair in pairs} == {"a"}


def test_splits_and_leakage_go_by_the_recordings_of_the_layout(make):
    files = {"train.json": [_row("grp-r"), _row("s")], "val.json": [_row("r")]}
    videos = ["r", "s", "grp-r"]
    assert len(make(files, videos).jobs["train"]) == 2
    with pytest.raises(UserError, match=r"e\.g\. r;"):
        make(files, videos, layout="ego4d")
    rows = {name: [{**row, "dataset": "ego4d"} for row in part] for name, part in files.items()}
    with pytest.raises(UserError, match=r"e\.g\. r;"):
        make(rows, videos)


def test_a_layout_and_a_pattern_exclude_each_other(make):
    with pytest.raises(UserError, match=r"--layout=wtag and --uid_pattern"):
        make({"train.json": [_row("a")]}, "a", layout="wtag", path_template="{uid}.mp4")
    with pytest.raises(UserError, match="--uid_pattern"):
        make({"train.json": [_row("a")]}, "a", uid_pattern="(", path_template="{uid}.mp4")


def test_images_without_a_rate_are_one_error_naming_the_flag(make, tmp_path):
    (tmp_path / "videos" / "b").mkdir(parents=True)
    (tmp_path / "videos" / "b" / "1.png").write_bytes(b"1")
    files = {"train.json": [_row("a"), _row("b")]}
    with pytest.raises(UserError, match=r"videos/b is a folder of images; .*--source_fps"):
        make(files, "a")
    kinds = {job.pairs[0].uid: job.source.kind for job in _jobs(make(files, "a", source_fps=1.0))}
    assert kinds == {"a": "video", "b": "images"}


def test_leakage_is_an_error_or_dropped_and_counted(make):
    files = {"train.json": [_row("r__1", "x", "y"), _row("s")], "val.json": [_row("r__2")]}
    videos = ["r__1", "r__2", "s"]
    with pytest.raises(UserError, match="--on_leakage=drop"):
        make(files, videos)
    plan = make(files, videos, on_leakage="drop")
    assert _uids(plan) == {"train": ["s"], "val": ["r__2"]}
    assert plan.dropped == 2
    assert plan.skips == []


def test_val_and_test_may_share_a_recording_with_a_warning(make):
    files = {"val.json": [_row("r__1")], "test.json": [_row("r__2")], "train.json": [_row("s")]}
    plan = make(files, ["r__1", "r__2", "s"])
    assert plan.warnings == [Remark("", "", "recording(s) stand in val and in test", "1")]


def test_limit_videos_takes_from_each_split_in_turn_those_that_have_frames(make):
    files = {
        "train.json": [_row(f"a{n}") for n in range(9)] + [_row("bad", "")],
        "val.json": [_row(f"b{n}") for n in range(9)],
        "test.json": [],
    }
    videos = [f"a{n}" for n in range(2, 9)] + ["b0", "b1"]
    plan = make(files, videos, limit_videos=3)
    assert _uids(plan) == {"train": ["a2"], "val": ["b0", "b1"]}
    assert [(skip.reason, skip.where) for skip in plan.skips] == [("no recordings", "test.json")]
    reason = "--limit_videos passed over uid(s) without frames"
    assert plan.warnings == [Remark("", "", reason, "2")]


def test_the_fingerprint_follows_what_decides_the_records(make, tmp_path):
    files = {"train.json": [_row("a"), _row("c")], "val.json": [_row("b")]}
    base = make(files, "abc").fingerprint
    assert make(files).fingerprint == base
    changed = [
        make(files, image_size=96),
        make(files, frames=4),
        make(files, window_seconds=2.0),
        make(files, strategy="span"),
        make(files, strategy="span", pad_seconds=0.25),
        make(files, fit="center_crop"),
        make(files, rotate=90),
        make(files, limit_videos=2),
        make({**files, "val.json": [_row("b", "other")]}),
        make({**files, "val.json": [_row("b", start=1.5)]}),
    ]
    assert len({base, *[plan.fingerprint for plan in changed]}) == len(changed) + 1
    (tmp_path / "videos" / "a.mp4").write_bytes(b"another")
    assert make(files).fingerprint != base


def test_adaptive_windows_compare_all_annotated_recordings_at_hand_or_not(make):
    files = {"train.json": [_row("a", "x", "y")], "val.json": [_row("b", "x"), _row("c", "y")]}
    for row, seconds in zip([*files["train.json"], *files["val.json"]], (2, 4, 6), strict=True):
        last = row["dst"][0] | {"id": "S9", "start_ts": 1 + seconds, "end_ts": 3 + seconds}
        row["dst"] = [row["dst"][0], last]  # gaps of 2, 4 and 6 s
    whole = make(files, "abc", strategy="adaptive", window_seconds=8.0)
    lengths = {
        job.pairs[0].uid: job.pairs[0].window_end - job.pairs[0].window_start
        for jobs in whole.jobs.values()
        for job in jobs
    }
    assert lengths == pytest.approx({"a": 4.0, "b": 8.0, "c": 12.0})
    one = make(files, strategy="adaptive", window_seconds=8.0, limit_videos=1)
    assert [job.key() for job in one.jobs["train"]] == [job.key() for job in whole.jobs["train"]]
    assert make(files, window_seconds=8.0).fingerprint != whole.fingerprint


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("layout", "nowhere"),
        ("fit", "stretch"),
        ("rotate", 45),
        ("on_leakage", "ignore"),
        ("levels", "scene"),
        ("format", "xml"),
        ("limit_videos", -1),
        ("image_size", 0),
        ("frames", 0),
        ("window_seconds", 0.0),
        ("window_seconds", 0.07),  # less than a hundredth of a second a frame
        ("strategy", "whole"),
        ("pad_seconds", 0.0),
        ("val_fraction", 1.0),
        ("source_fps", -1.0),
    ],
)
def test_a_wrong_flag_is_named(make, flag, value):
    with pytest.raises(UserError, match=f"--{flag}"):
        make({"train.json": [_row("a")]}, "a", **{flag: value})
