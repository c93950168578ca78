"""A ProAssist tree (Arrow frames, uids of task and camera) through the README's four commands."""

import json

import numpy as np
import pytest

import vtalign_jax as vt
from tests import commands
from tests.proassist_tree import make_proassist_tree
from vtalign_jax.pipeline.dataset import open_split


@pytest.mark.parity
def test_four_commands_take_a_proassist_tree_to_a_verified_adapter(tmp_path):
    tree = make_proassist_tree(tmp_path, train=1, val=1, seconds=20)
    dataset, workdir, export = tmp_path / "dataset", tmp_path / "run", tmp_path / "export"

    output = commands.run(
        "launch/prepare.py",
        f"--annotations={tree.annotations}",
        f"--videos={tree.frames}",
        "--layout=assembly101",
        f"--out={dataset}",
        "--frames=4",
    )
    assert "launch/train.py" in output
    train = open_split(str(dataset), "train")
    assert len(train) == tree.clips["train"]
    # Two cameras, each with an assembly and a disassembly part, are one recording.
    assert len(np.unique(train.identity.uid)) == 4
    assert len(np.unique(train.identity.recording)) == 1

    output = commands.run(
        "launch/train.py",
        "--config=tests/launch/small_run.py",
        f"--config.data.dir={dataset}",
        f"--workdir={workdir}",
        "--config.train.epochs=2",
    )
    assert f"launch/evaluate.py --checkpoint={workdir}" in output

    output = commands.run(
        "launch/evaluate.py", f"--checkpoint={workdir}", f"--dataset={dataset}", "--json"
    )
    rows = json.loads(output[output.index("{\n") : output.rindex("}") + 1])["rows"]
    assert list(rows)[:2] == ["chance", "zero_shot"]

    output = commands.run(
        "launch/export.py", f"--checkpoint={workdir}", "--format=peft", f"--out={export}"
    )
    assert "UNVERIFIED" not in output

    texts = ["attach chassis to chassis", "screw first wheel"]
    ours = vt.Aligner.load(workdir).encode_texts(texts)
    exported = vt.Aligner.load(export).encode_texts(texts)
    np.testing.assert_allclose(exported, ours, atol=1e-5)
