"""The report of a run on filmed recordings, as a reader opens it. A random base, a few steps."""

import json

import pytest

from tests import commands
from tests.browser import SECTIONS, WIDTHS, open_everywhere
from tests.samples import SAMPLES

RECORDINGS = SAMPLES / "sign_recordings"

pytestmark = pytest.mark.samples


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of an epoch of 15 steps, its 120 clips of ten recordings, 48 of four more to validate.

    Shapes are those of `test_train.py`, whose compiled programs serve here too.
    """
    tmp = tmp_path_factory.mktemp("sign_recordings")
    dataset, workdir = tmp / "dataset", tmp / "run"
    commands.run(
        "launch/prepare.py",
        f"--annotations={RECORDINGS}/train.json,{RECORDINGS}/val.json",
        f"--videos={RECORDINGS}/videos",
        f"--out={dataset}",
        "--image_size=64",
        "--frames=4",
    )
    commands.run(
        "launch/train.py",
        "--config=tests/launch/small_run.py",
        f"--config.data.dir={dataset}",
        f"--workdir={workdir}",
        "--config.train.epochs=1",
    )
    return workdir


def test_it_opens_from_disk_on_a_desktop_and_on_a_phone(workdir):
    page = workdir / "report.html"
    visits = open_everywhere([page])
    assert len(visits) == len(WIDTHS)
    for seen in visits:
        assert seen["ids"] == SECTIONS
        assert "after step 15" in seen["text"]
        assert "48 clips, 24 distinct texts" in seen["text"]
        assert "Make the sign for" in seen["text"].split("Gallery")[-1]
        assert "left out" not in seen["text"].split("Gallery")[-1].split("Embedding map")[0]
    assert page.read_text().count("image/jpeg;base64") >= 8  # frames of the queries


@pytest.mark.slow
def test_groundings_and_exports_join_it(workdir):
    texts = [
        *("--annotations", RECORDINGS / "val.json", "--videos", RECORDINGS / "videos"),
        "--levels=action",
        "--widths=2,4",
        "--limit_videos=2",
    ]
    commands.run("launch/ground.py", f"--checkpoint={workdir}", *texts)
    export = f"--out={workdir}/exports/peft"
    commands.run("launch/export.py", f"--checkpoint={workdir}", "--format=peft", export)
    commands.run("launch/report.py", f"--workdir={workdir}")
    found = json.loads((workdir / "grounding" / "summary.json").read_text())["metrics"]["all"]
    for seen in open_everywhere([workdir / "report.html"]):
        assert "None yet" not in seen["text"]
        assert "a window at random" in seen["text"]
        assert f"{found['model']['mean_iou']:.3f}" in seen["text"].split("Grounding")[-1]
        assert "passed" in seen["text"].split("Exports")[-1]
