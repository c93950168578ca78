"""Two cameras x assembly and disassembly of one Assembly101 recording, from files to weights."""

import base64
import collections
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests import commands
from tests.index_video import draw_index
from tests.proassist_tree import SEQUENCE, write_arrow
from vtalign_jax.config import ObjectiveConfig
from vtalign_jax.dst.plan import Settings, make_plan
from vtalign_jax.errors import UserError
from vtalign_jax.objectives.negatives import log_weights
from vtalign_jax.pipeline.dataset import open_split

CAMERAS = ("C10095_rgb", "HMC_84355350_mono10bit")
SHARED, OTHER = SEQUENCE.format(0), SEQUENCE.format(1)
PART_SECONDS = 40.0
LAMBDA = ObjectiveConfig().same_recording_weight

# id, start, end, the verb of each camera's own wording; leaves of S1.1 are 2 s apart (their windows
# of 4 s overlap), those of S1.2 7 s (they do not).
TREE = [
    ("S1", 0.0, 30.0, ("work on", "busy with")),
    ("S1.1", 0.0, 6.0, ("prepare", "ready")),
    ("S1.1.a", 0.5, 1.5, ("grab", "take")),
    ("S1.1.b", 2.5, 3.5, ("turn", "rotate")),
    ("S1.2", 6.0, 30.0, ("join", "connect")),
    ("S1.2.a", 8.0, 9.0, ("attach", "fix")),
    ("S1.2.b", 15.0, 16.0, ("screw", "tighten")),
    ("S1.2.c", 22.0, 23.0, ("inspect", "inspect")),  # the one text that both cameras share
    ("S2", 32.0, 39.0, ("show", "demonstrate")),
]
LEVELS = ("step", "substep", "action")
ORDER = {"S1": 0, "S2": 1, "S1.1": 0, "S1.2": 1} | {
    node_id: rank for rank, node_id in enumerate(["S1.1.a", "S1.1.b", "S1.2.a", "S1.2.b", "S1.2.c"])
}


def _row(task, sequence, camera):
    """Return one flat-JSON row; the disassembly follows the assembly on the same clock."""
    offset = PART_SECONDS * (task == "disassembly")
    thing = f"{task} {'chassis' if sequence == SHARED else 'roller'}"
    nodes = [
        {
            "type": LEVELS[node_id.count(".")],
            "id": node_id,
            "start_ts": offset + start,
            "end_ts": offset + end,
            "name": f"{verbs[CAMERAS.index(camera)]} {thing} {node_id.replace('.', '')}",
        }
        for node_id, start, end, verbs in reversed(TREE)
    ]
    uid = f"{task}_{sequence}__{camera}"
    return {"video_uid": uid, "dataset": "assembly101", "dst": nodes}


ROWS = [
    _row(task, sequence, camera)
    for sequence in (SHARED, OTHER)
    for camera in CAMERAS
    for task in ("assembly", "disassembly")
]


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Write the four Arrow files: the two tasks of a camera are one video."""
    root = tmp_path_factory.mktemp("frames")
    buffer = io.BytesIO()
    Image.fromarray(draw_index(5, 32, 32)).save(buffer, "JPEG")
    encoded = [base64.b64encode(buffer.getvalue()).decode()] * int(2 * 2 * PART_SECONDS)
    for sequence in (SHARED, OTHER):
        for camera in CAMERAS:
            write_arrow(root / f"{sequence}__{camera}.arrow", encoded)
    return root


@pytest.fixture(scope="module")
def split(frames, tmp_path_factory):
    root = tmp_path_factory.mktemp("dataset")
    (root / "train.json").write_text(json.dumps(ROWS))
    commands.run(
        "launch/prepare.py",
        f"--annotations={root}/train.json",
        f"--videos={frames}",
        "--levels=all",
        "--image_size=32",
        "--frames=4",
        "--source_fps=30",
        f"--out={root}/out",
    )
    return open_split(str(root / "out"), "train")


def test_all_eight_videos_are_two_recordings(split):
    rows = split.table.to_pylist()
    assert len(rows) == len(ROWS) * len(TREE)
    recordings = collections.defaultdict(set)
    for row in rows:
        recordings[row["recording_id"]].add(row["uid"])
    assert {name: len(uids) for name, uids in recordings.items()} == {SHARED: 4, OTHER: 4}
    for name, field in (("recording_id", "recording"), ("uid", "uid")):
        dense = dict(zip([row[name] for row in rows], getattr(split.identity, field), strict=True))
        assert len(set(dense.values())) == len(dense) == len({row[name] for row in rows})


def test_order_is_the_rank_by_time_within_uid_and_level(split):
    for row, order in zip(split.table.to_pylist(), split.identity.order, strict=True):
        assert order == row["order"] == ORDER[row["node_id"]]


def _expected_weight(one, other):
    """Return the weight of a pair of rows, by the words of the plan."""
    if one["clip_id"] == other["clip_id"]:
        return 1.0
    if one["text_key"] == other["text_key"]:
        return 0.0
    if one["recording_id"] != other["recording_id"]:
        return 1.0
    if max(one["window_start"], other["window_start"]) < min(
        one["window_end"], other["window_end"]
    ):
        return 0.0
    if one["uid"] == other["uid"]:
        is_ancestor = one["node_id"] in other["ancestor_ids"]
        is_descendant = other["node_id"] in one["ancestor_ids"]
        is_near = one["level"] == other["level"] and abs(one["order"] - other["order"]) <= 1
        if is_ancestor or is_descendant or is_near:
            return 0.0
    return LAMBDA


@pytest.fixture(scope="module")
def weights(split):
    return np.exp(np.asarray(log_weights(split.identity, split.identity, ObjectiveConfig())))


def test_every_pair_of_clips_weighs_what_the_design_says(split, weights):
    rows = split.table.to_pylist()
    expected = [[_expected_weight(one, other) for other in rows] for one in rows]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert set(np.ravel(expected)) == {0.0, LAMBDA, 1.0}


def _weight_of(split, weights, one, other):
    """Return the weight of two clips; each is (task, camera number, node) of the recording."""
    ids = [f"{task}_{SHARED}__{CAMERAS[camera]}/{node}" for task, camera, node in (one, other)]
    rows = split.table["clip_id"].to_pylist()
    return weights[rows.index(ids[0]), rows.index(ids[1])]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        # one video: neighbours in order however far apart, then lambda
        (("assembly", 0, "S1.2.a"), ("assembly", 0, "S1.2.b"), 0.0),
        (("assembly", 0, "S1.2.a"), ("assembly", 0, "S1.2.c"), LAMBDA),
        # another camera: the same moment is no negative, and order says nothing
        (("assembly", 0, "S1.2.a"), ("assembly", 1, "S1.2.a"), 0.0),
        (("assembly", 0, "S1.1.a"), ("assembly", 1, "S1.1.b"), 0.0),
        (("assembly", 0, "S1.2.a"), ("assembly", 1, "S1.2.b"), LAMBDA),
        # the tree of another camera gives no ancestors: S1's window is 13 to 17 s
        (("assembly", 0, "S1"), ("assembly", 0, "S1.1.a"), 0.0),
        (("assembly", 0, "S1"), ("assembly", 1, "S1.1.a"), LAMBDA),
        (("assembly", 0, "S1"), ("assembly", 1, "S1.2.b"), 0.0),
        # the other task is another time of the same recording, whatever its ids and order
        (("assembly", 0, "S1.2.a"), ("disassembly", 0, "S1.2.a"), LAMBDA),
        (("assembly", 1, "S2"), ("disassembly", 0, "S1.1.a"), LAMBDA),
        # equal text
        (("assembly", 0, "S1.2.c"), ("assembly", 1, "S1.2.c"), 0.0),
    ],
)
def test_between_the_uids_of_a_recording_only_time_decides(split, weights, one, other, expected):
    assert _weight_of(split, weights, one, other) == pytest.approx(expected)
    assert _weight_of(split, weights, other, one) == pytest.approx(expected)


def _plan(root, frames, on_leakage="error", **splits):
    for split, numbers in splits.items():
        (root / f"{split}.json").write_text(json.dumps([ROWS[number] for number in numbers]))
    annotations = ",".join(f"{root}/{split}.json" for split in splits)
    return make_plan(Settings(annotations, str(frames), source_fps=30.0, on_leakage=on_leakage))


@pytest.mark.parametrize("side", ["val", "test"])
@pytest.mark.parametrize("moved", [1, 2, 3])  # the other task, the other camera, or both
def test_a_part_of_a_training_recording_in_val_or_test_is_leakage(tmp_path, frames, side, moved):
    with pytest.raises(UserError, match=rf"e\.g\. {SHARED};.*--on_leakage=drop"):
        _plan(tmp_path, frames, train=[0, 4, 5], **{side: [moved]})
    plan = _plan(tmp_path, frames, "drop", train=[0, 4, 5], **{side: [moved]})
    uids = {split: {job.pairs[0].uid for job in jobs} for split, jobs in plan.jobs.items()}
    assert uids == {
        "train": {ROWS[n]["video_uid"] for n in (4, 5)},
        side: {ROWS[moved]["video_uid"]},
    }
    leaves = sum(node_id.count(".") == 2 or node_id == "S2" for node_id, *_ in TREE)
    assert plan.dropped == leaves


def test_val_and_test_may_share_a_recording_and_a_warning_counts_it(tmp_path, frames):
    plan = _plan(tmp_path, frames, train=[4, 5, 6, 7], val=[0, 1], test=[2, 3])
    assert {split: len(jobs) for split, jobs in plan.jobs.items()} == {
        "train": 4,
        "val": 2,
        "test": 2,
    }
    assert [(warning.reason, warning.detail) for warning in plan.warnings] == [
        ("recording(s) stand in val and in test", "1")
    ]


def test_parts_without_a_given_split_stay_together(tmp_path, frames):
    (tmp_path / "all.json").write_text(json.dumps(ROWS))
    plan = make_plan(Settings(f"{tmp_path}/all.json", str(frames), source_fps=30.0))
    recordings = {
        split: {pair.recording_id for job in jobs for pair in job.pairs}
        for split, jobs in plan.jobs.items()
    }
    assert len(recordings["train"]) == len(recordings["val"]) == 1
    assert recordings["train"] != recordings["val"]
