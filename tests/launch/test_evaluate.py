import json
import math
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from tests.commands import run_apart
from tests.pipeline.clip_fixtures import FRAMES, jpeg, make_clips, write_dataset
from vtalign_jax import config as config_lib
from vtalign_jax import export
from vtalign_jax.evaluation.choice import choice_chance, make_questions
from vtalign_jax.evaluation.probe import choices
from vtalign_jax.evaluation.retrieval import chance_metrics
from vtalign_jax.interop.base_files import base_fingerprint
from vtalign_jax.interop.tiny import write_tiny_checkpoint
from vtalign_jax.pipeline.dataset import open_split
from vtalign_jax.pipeline.texts import evaluation_identity
from vtalign_jax.training.assemble import assemble
from vtalign_jax.training.checkpoint import METRIC, Checkpoints
from vtalign_jax.training.trained import load_trained

SIZE = 64  # pixels, of the tiny base


def _evaluate(*arguments):
    return run_apart("launch/evaluate.py", *arguments)


def _chance(identity):
    """As JSON has it: null for what is no number."""
    values = chance_metrics(identity) | choice_chance(make_questions(identity))
    return {k: None if math.isnan(v) else pytest.approx(v) for k, v in values.items()}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run whose checkpoint 20 is its best and 30 its newest."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_tiny_checkpoint(folder / "base")
    clips = make_clips(recordings=4, nodes=4, cameras=1)
    for number, clip in enumerate(clips):
        clip["frames"] = [jpeg((9 * number, 7 * k, 99), SIZE) for k in range(FRAMES)]
        clip["parent_text"] = f"part {number % 3}"
    write_dataset(folder / "data", {"val": clips}, image_size=SIZE)
    write_dataset(folder / "more", {"val": clips[:3]}, image_size=SIZE, fingerprint="e" * 64)
    config = config_lib.resolve(
        {
            "model": {"base": str(folder / "base"), "embedding_dim": 16},
            "tune": {"text_blocks": 1, "rank": 2},
            "data": {"dir": str(folder / "data"), "frames": FRAMES},
            "train": {"eval_batch": 6},
        }
    )
    shapes = assemble(config).trainable
    extra = {
        "config": config_lib.to_dict(config),
        "fingerprints": {"base": base_fingerprint(folder / "base"), "data": "f" * 64},
    }
    checkpoints = Checkpoints(folder / "run" / "checkpoints")
    for step, recall in ((20, 0.75), (30, 0.5)):
        rng = np.random.default_rng(step)
        params = {p: jnp.asarray(rng.normal(size=x.shape), x.dtype) for p, x in shapes.items()}
        state = {"params": params, "step": jnp.int32(step)}
        checkpoints.save(step, state, extra, {METRIC: recall})
    checkpoints.close()
    return folder / "run"


def test_table_has_chance_zero_shot_and_the_best_checkpoint(workdir, tmp_path):
    """So has the page, if one is asked for."""
    page = tmp_path / "evaluation.html"
    done = _evaluate(f"--checkpoint={workdir}", f"--report={page}")
    assert done.returncode == 0, done.stderr
    assert f"checkpoints/20 (the best of {workdir}" in done.stdout
    lines = done.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if "multi-instance" in line)
    assert [
        next(word for word in line.split() if word in ("chance", "zero_shot", "checkpoint"))
        for line in lines[start : start + 3]
    ] == ["chance", "zero_shot", "checkpoint"]
    assert "16 clips, 4 distinct texts" in done.stdout
    assert lines[-2] == f"report: {page}"
    drawn = page.read_text()
    assert "16 clips, 4 distinct texts" in drawn
    assert "after step 20" in drawn
    assert f"--report={page}" in drawn
    assert drawn.count("image/jpeg;base64") >= 8
    assert lines[-1] == f"next: python launch/export.py --checkpoint={workdir} --format=peft"


def test_json_holds_the_same_numbers_for_any_checkpoint_and_dataset(workdir, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(workdir / "checkpoints" / "30", moved)
    data = workdir.parent / "data"
    done = _evaluate(f"--checkpoint={moved}", f"--dataset={data}", "--split=val", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["source"].startswith(f"checkpoint {moved}")
    assert (found["dataset"], found["split"]) == (str(data), "val")
    assert found["rows"]["chance"] == _chance(open_split(str(data), "val").identity)
    assert not found["parent_text"]
    assert found["rows"]["zero_shot"].keys() == found["rows"]["checkpoint"].keys()
    assert found["rows"]["zero_shot"] != found["rows"]["checkpoint"]
    low, high = found["intervals"]["checkpoint"]["recall@5"]
    assert 0 <= low <= found["rows"]["checkpoint"]["recall@5"] <= high <= 1
    assert found["groups"]["checkpoint"].keys() == {"dataset", "level", "recording"}
    assert found["groups"]["checkpoint"]["recording"].keys() == {"r0", "r1", "r2", "r3"}
    assert found["intervals"]["chance"] == found["groups"]["chance"] == {}


def test_a_merged_export_is_scored_and_has_no_base_to_compare_with(workdir, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    export.write(out, load_trained(workdir), "merged")
    done = _evaluate(f"--checkpoint={out}", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["source"] == f"export {out}"
    assert found["rows"].keys() == {"chance", "checkpoint"}
    assert found["rows"]["checkpoint"]["clips"] == 16
    assert "the export has no base for zero_shot" in done.stderr


def test_several_datasets_with_parent_texts_are_scored_by_the_texts_shown(workdir):
    both = f"{workdir.parent / 'data'},{workdir.parent / 'more'}"
    done = _evaluate(f"--checkpoint={workdir}", f"--dataset={both}", "--parent_text", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["parent_text"]
    split = open_split(both, "val")
    identity = evaluation_identity(split, config_lib.DataConfig(eval_parent_text=True))
    assert found["rows"]["chance"] == _chance(identity)
    for row in ("chance", "zero_shot", "checkpoint"):
        assert (found["rows"][row]["clips"], found["rows"][row]["texts"]) == (19, 12)
    assert f"evaluating on 16 clips of {workdir.parent}/data, 3 clips of" in done.stderr


def test_the_base_alone_is_probed_by_block_and_pooling(workdir):
    base, data = workdir.parent / "base", workdir.parent / "data"
    done = _evaluate("--probe", f"--base={base}", f"--dataset={data}", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = [(row["block"], row["is_normed"], row["pooling"]) for row in found["rows"]]
    assert rows == [tuple(choice) for choice in choices(found["blocks"])]
    assert all(row["metrics"]["clips"] == 16 for row in found["rows"])
    assert found["chance"] == _chance(open_split(str(data), "val").identity)
    (pooling,) = found["overrides"]
    assert done.stderr.splitlines()[-1] == (
        f"next: python launch/train.py --config=configs/tiny.py --config.model.base={base} "
        f"--config.data.dir={data} {pooling}"
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--checkpoint is missing"),
        (
            ["--probe", "--checkpoint={workdir}"],
            "leave --checkpoint, --feature_cache and --report out",
        ),
        (["--checkpoint=runs/absent"], "no such checkpoint or workdir runs/absent"),
        (["--checkpoint={workdir}", "--dataset=absent"], "/absent; name the folder of one"),
        (["--checkpoint={workdir}", "--report={workdir}"], "Is a directory"),
        (["--checkpoint={workdir}", "--report=/dev/null/page.html"], "name another file"),
    ],
)
def test_user_error_is_one_line_and_code_2(workdir, arguments, expected):
    done = _evaluate(*(argument.format(workdir=workdir) for argument in arguments))
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert expected in line
    assert "evaluating" not in done.stdout  # it is found before the work
    assert "Traceback" not in done.stderr
