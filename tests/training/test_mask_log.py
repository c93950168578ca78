import json

import jax
import numpy as np
import pyarrow as pa
import pytest

from tests.objectives.identities import make_identity
from vtalign_jax import sharding
from vtalign_jax.config import MeshConfig, ObjectiveConfig, resolve
from vtalign_jax.objectives import negatives
from vtalign_jax.objectives.mask_report import PAIRED, MaskReport
from vtalign_jax.training.mask_log import MaskLog, confused_pairs, summary_line
from vtalign_jax.training.metrics import MetricsWriter, read_rows
from vtalign_jax.training.step import Embedded


class FakeSplit:
    texts = ("attach wheel", "detach wheel", "attach arm")
    table = pa.table({"clip_id": ["a/1", "a/2", "b/1"]})


def make_report(clips=(2, 0), texts=(1, 2), kinds=("cross_recording", "same_recording"), **values):
    scalars = {f"pairs/{name}": 0.0 for name in PAIRED} | {"effective_negatives": 0.0} | values
    return MaskReport(
        scalars={name: np.float32(value) for name, value in scalars.items()},
        clips=np.array(clips, np.int32),
        texts=np.array(texts, np.int32),
        classes=np.array([negatives.CLASSES.index(kind) for kind in kinds], np.int32),
        probability=np.linspace(0.75, 0.25, len(clips), dtype=np.float32),
    )


def open_log(workdir, restored_step=None, rows=32, **options):
    config = resolve({"train": {"contrastive_batch": rows}})
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:2])
    return MaskLog(workdir, restored_step, config, FakeSplit(), mesh, **options)


def test_confused_pairs_are_named():
    assert confused_pairs(make_report(), FakeSplit()) == [
        {
            "clip": "b/1",
            "clip_text": "attach arm",
            "text": "detach wheel",
            "text_clip": "a/2",
            "class": "cross_recording",
            "probability": 0.75,
        },
        {
            "clip": "a/1",
            "clip_text": "attach wheel",
            "text": "attach arm",
            "text_clip": "b/1",
            "class": "same_recording",
            "probability": 0.25,
        },
    ]


def test_rows_without_a_negative_and_lost_batches_name_nobody():
    report = make_report(texts=(-1, 2))
    assert [pair["clip"] for pair in confused_pairs(report, FakeSplit())] == ["a/1"]
    lost = report._replace(texts=report.clips, probability=np.full(2, np.nan, np.float32))
    assert confused_pairs(lost, FakeSplit()) == []


def test_a_report_becomes_scalars_and_a_row(tmp_path):
    log = open_log(tmp_path)
    scalars = log.write(7, make_report(**{"loss/cross_recording": 0.25}))
    log.close()
    assert scalars["train/loss/cross_recording"] == 0.25
    assert scalars["train/effective_negatives"] == 0.0
    (row,) = read_rows(tmp_path / "confused.jsonl")
    assert row["step"] == 7
    assert row["pairs"] == confused_pairs(make_report(), FakeSplit())


def test_a_resumed_run_writes_what_an_undisturbed_one_does(tmp_path):
    def run(workdir, steps, restored_step=None):
        log = open_log(workdir, restored_step)
        for step in steps:
            log.write(step, make_report(clips=(step % 3, 0)))
        log.close()
        return (workdir / "confused.jsonl").read_text()

    whole = run(tmp_path / "whole", range(1, 9))
    run(tmp_path / "killed", range(1, 7))  # checkpoint at 4
    with (tmp_path / "killed" / "confused.jsonl").open("a") as file:
        file.write('{"step": 7, "pai')
    assert run(tmp_path / "killed", range(5, 9), restored_step=4) == whole


def test_only_the_primary_process_writes(tmp_path):
    log = open_log(tmp_path / "other", is_primary=False)
    assert "train/effective_negatives" in log.write(1, make_report())
    log.close()
    assert not (tmp_path / "other").exists()


def test_the_line_groups_pairs_by_weight(tmp_path):
    log = open_log(tmp_path)
    assert "no step was logged yet" in log.line()
    values = {
        "pairs/cross_recording": 0.5,
        "pairs/same_recording": 0.25,
        "pairs/neighbour": 0.125,
        "pairs/same_text": 0.125,
        "gradient/cross_recording": 0.75,
        "gradient/same_recording": 0.25,
        "effective_negatives": 19.25,
    }
    log.write(1, make_report(**values))
    log.close()
    assert log.line() == (
        "negatives: of the pairs 25.0% weigh 0, 25.0% weigh 0.4, 50.0% weigh 1; "
        "19.2 effective a row; 25.0% of the gradient from pairs of one recording"
    )


@pytest.mark.parametrize(
    ("preset", "told"),
    [
        ("infonce", "of the pairs 0.0% weigh 0, 100.0% weigh 1"),
        ("egonce", "of the pairs 90.0% weigh 1, 10.0% are right answers"),
    ],
)
def test_the_line_says_what_a_preset_makes_of_equal_texts(preset, told):
    values = {"pairs/cross_recording": 0.9, "pairs/same_text": 0.1}
    if preset == "infonce":
        values = {"pairs/cross_recording": 1.0}
    scalars = make_report(**values).scalars
    assert told in summary_line(scalars, ObjectiveConfig(preset=preset))


def test_a_real_report_passes_through_to_metrics_and_names(tmp_path):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 4, 6)).astype(np.float32)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    identity = make_identity([0, 0, 1, -1], real=3)
    log, writer = open_log(tmp_path), MetricsWriter(tmp_path)
    writer.write(3, log.record(3, Embedded(*z), np.float32(0.1), identity))
    log.close()
    writer.close()
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert row["train/pairs/same_recording"] == pytest.approx(1 / 3)
    assert row["train/effective_negatives"] == pytest.approx((1.4 + 1.4 + 2) / 3)
    (line,) = (tmp_path / "confused.jsonl").read_text().splitlines()
    assert len(json.loads(line)["pairs"]) == 3
    assert "33.3% weigh 0.4" in log.line()


def test_a_batch_with_few_effective_negatives_is_warned_of_once(tmp_path):
    log = open_log(tmp_path, rows=32)
    assert log.warnings() == []  # nothing reported yet
    half = {"pairs/cross_recording": 0.46, "pairs/same_recording": 0.1, "pairs/neighbour": 0.44}
    log.write(1, make_report(**half, effective_negatives=15.5))
    assert log.warnings() == []
    less = half | {"pairs/cross_recording": 0.44, "pairs/neighbour": 0.46}
    log.write(2, make_report(**less, effective_negatives=14.9))
    (told,) = log.warnings()
    assert "14.9 effective negatives, 48% of the batch's other rows" in told
    assert "config.train.contrastive_batch=32" in told
    assert log.warnings() == []


@pytest.mark.parametrize(
    ("identity", "is_warned"),
    [
        (make_identity(range(8), real=3), False),
        (make_identity([0] * 8, order=range(8), real=3), True),
        (make_identity(range(8), real=1), False),
    ],
    ids=["strangers", "neighbours", "alone"],
)
def test_padding_is_no_reason_for_a_warning(identity, is_warned, tmp_path):
    log = open_log(tmp_path, rows=8)
    log.record(1, Embedded(*np.ones((2, 8, 6), np.float32)), np.float32(0.1), identity)
    assert bool(log.warnings()) == is_warned
    log.close()
