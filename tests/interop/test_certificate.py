"""What PyTorch makes of an export. The second, older library environment: tests/old_libraries."""

import dataclasses
import functools
import json
import shutil
import sys
import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.commands import ROOT, one_error_line, run
from tests.fake_hub import TOKEN, fake_hub
from tests.hidden_packages import hiding
from tests.interop.checkpoints import export_unverified, make_config, write_base, write_checkpoint
from tests.pipeline.clip_fixtures import jpeg, make_clip, write_dataset
from vtalign_jax import export
from vtalign_jax.errors import UserError
from vtalign_jax.interop import certificate, embedding_files, forms, model_card, peft

CASES = {
    "smolvlm": {},
    "idefics3": {
        "model": {"head": "per_modality", "pooling": "mean"},
        "tune": {"connector": "full", "mlp": True},
    },
}


@pytest.fixture(scope="module")
def export_of(tmp_path_factory):
    """A function that exports a checkpoint of an architecture, once, and does not compare."""

    @functools.cache
    def make(architecture):
        folder = tmp_path_factory.mktemp(architecture)
        base = write_base(folder / "base", architecture)
        workdir = write_checkpoint(folder / "run", make_config(base, **CASES[architecture]))
        return export_unverified(workdir, folder / "out")

    return make


@pytest.fixture(params=CASES)
def exported(request, export_of):
    return export_of(request.param)


@pytest.fixture
def smolvlm(export_of):
    return export_of("smolvlm")


@pytest.mark.parity
def test_pytorch_gives_the_same_embeddings_and_loses_no_key(exported):
    from vtalign_jax.interop.torch_scripts import check

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*keys")
        result = check.compare(exported)
    assert certificate.is_passed(result), result
    assert result["missing"] == result["unexpected"] == []
    assert min(result["cosine_video"], result["cosine_text"]) > 0.999999
    assert max(result["max_error_video"], result["max_error_text"]) < 1e-5
    assert result["cosine_text_without_adapter"] < 0.99


def test_the_reference_tells_clips_texts_and_lost_frames_apart(exported):
    stored = load_file(exported / certificate.TENSORS)
    for name in ("z_video", "z_text"):
        cosines = stored[name] @ stored[name].T
        assert np.max(cosines - np.eye(len(cosines))) < 0.99
    inputs = json.loads((exported / certificate.INPUTS).read_text())
    assert [len(times) for times in inputs["times"]] == [4, 4, 2]
    assert len(inputs["texts"][-1].split()) > 32


@pytest.mark.parity
@pytest.mark.parametrize(
    "damage", [(peft.ADAPTER, "lora_A"), (embedding_files.HEAD, "head.fc1.weight")]
)
def test_damaged_files_do_not_pass(smolvlm, tmp_path, damage):
    from vtalign_jax.interop.torch_scripts import check

    name, part = damage
    copy = shutil.copytree(smolvlm, tmp_path / "copy")
    tensors = load_file(copy / name)
    hit = {key: np.ascontiguousarray(x[::-1]) for key, x in tensors.items() if part in key}
    save_file(tensors | hit, copy / name, metadata={"format": "pt"})
    assert hit
    assert not certificate.is_passed(check.compare(copy))


@pytest.mark.parametrize("kind", ["video", "text"])
def test_an_embedding_that_is_no_number_does_not_pass(kind):
    result = {"missing": [], "unexpected": [], "cosine_video": 1.0, "cosine_text": 1.0}
    assert certificate.is_passed(result)
    assert not certificate.is_passed(result | {f"cosine_{kind}": float("nan")})


def test_an_export_that_was_copied_in_part_is_named(smolvlm, tmp_path, monkeypatch):
    monkeypatch.setattr(certificate, "missing_packages", lambda needs: [])
    for name in (embedding_files.SETTINGS, certificate.INPUTS):
        for number, text in enumerate(("{", "[]", (smolvlm / name).read_text()[:300])):
            copy = shutil.copytree(smolvlm, tmp_path / f"{name}{number}")
            (copy / name).write_text(text)
            with pytest.raises(UserError, match=f"{name} .*; copy the export again"):
                certificate.held_out_facts(copy), certificate.check_verifiable(copy)
    copy = shutil.copytree(smolvlm, tmp_path / "without")
    (copy / embedding_files.SETTINGS).unlink()
    with pytest.raises(UserError, match=r"without has no vtalign\.json; copy the whole folder"):
        certificate.check_verifiable(copy)


def test_a_folder_that_may_not_be_written_is_named_before_the_work(smolvlm, monkeypatch):
    monkeypatch.setattr(certificate, "missing_packages", lambda needs: [])
    assert certificate.check_verifiable(smolvlm) is forms.FORMS["peft"]
    monkeypatch.setattr(certificate.os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"may not be written, .* verify a copy"):
        certificate.check_verifiable(smolvlm)


def test_an_export_that_differs_leaves_nothing(smolvlm, tmp_path, monkeypatch):
    result = dict.fromkeys(("torch", "transformers", "peft"), "1") | {
        "missing": [],
        "unexpected": ["some.key"],
        **dict.fromkeys(("cosine_video", "cosine_text"), 1.0),
        **dict.fromkeys(("max_error_video", "max_error_text"), 0.0),
    }
    monkeypatch.setattr(certificate, "missing_packages", lambda needs: [])
    monkeypatch.setattr(certificate, "verify", lambda folder, base, held_out: result)
    with pytest.raises(export.ExportDiffers, match="1 unexpected keys"):
        export.export(smolvlm, tmp_path / "out", say=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_a_pytorch_that_cannot_load_it_leaves_an_unverified_export(smolvlm, tmp_path, monkeypatch):
    monkeypatch.setattr(certificate, "missing_packages", lambda needs: [])
    broken = dataclasses.replace(forms.FORMS["peft"], check=tmp_path / "nothing.py")
    monkeypatch.setitem(forms.FORMS, "peft", broken)
    unverified = export.export(smolvlm, tmp_path / "out", say=lambda line: None)
    assert "nothing.py" in unverified
    assert f"**UNVERIFIED**: {unverified}" in (tmp_path / "out" / model_card.CARD).read_text()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Validation clips of one colour each, at the model's size."""
    folder, size = tmp_path_factory.mktemp("data"), 64
    clips = [
        make_clip(f"r{n}", "S1", 9.0, f"do {n}", frames=[jpeg((40 * n, 99, 9), size)] * 4)
        for n in range(6)
    ]
    write_dataset(folder, {"val": clips}, image_size=size)
    return folder


@pytest.mark.parity
def test_export_then_verify_where_there_is_no_jax_and_push(smolvlm, dataset, tmp_path):
    workdir = smolvlm.parent / "run"
    out = tmp_path / "out"
    arguments = (f"--checkpoint={workdir}", f"--out={out}", f"--dataset={dataset}")
    output = run("launch/export.py", *arguments)
    assert f"checkpoints/7 (the best of {workdir}: val/recall@5 0.7500)" in output
    assert "lowest cosine 1.00000" in output
    assert output.splitlines()[-1] == f"next: python launch/evaluate.py --checkpoint={out}"
    card = (out / "README.md").read_text()
    assert "| passed |" in card
    assert "UNVERIFIED" not in card
    assert "val/recall@5 0.7500" in card
    assert f"Recall on 6 clips of the validation split ({dataset}, val;" in card
    (stored,) = certificate.results(out)
    assert stored["recall"]["clips"] == 6
    assert stored["recall"]["jax"] == stored["recall"]["export"]
    held_out = {name for name in load_file(out / certificate.TENSORS) if "clip" in name}
    assert held_out == {"clip_0", "clip_1", "clip_2"}  # the fixed ones: no frames of the dataset
    without = {key: value for key, value in stored.items() if key != "recall"}
    certificate.record(out, without)
    assert certificate.results(out) == [stored]  # recall stays where a dataset is not at hand
    failed = without | {"cosine_text": 0.5}
    certificate.record(out, failed)
    assert certificate.results(out) == [failed]  # it is none of these embeddings
    certificate.record(out, stored)
    script = f"""{hiding("jax", "flax", "orbax")}
import runpy
sys.argv = ["export.py", "--verify={out}", "--push_to_hub=org/name", "--private"]
runpy.run_path("launch/export.py", run_name="__main__")
"""
    with fake_hub() as served:
        output = run("-c", script, PYTHONPATH=str(ROOT), **served.environment())
        assert f"comparing recall on the 6 clips of {dataset}" in output
        assert f"verified; the figures are in {out / 'README.md'}" in output
        assert output.splitlines()[-1] == f"pushed to {served.address}/org/name"
        assert TOKEN not in output
        pushed = served.repositories["org/name"]
        assert pushed["private"]
        assert pushed["files"] == {file.name: file.read_bytes() for file in out.iterdir()}
    assert certificate.results(out) == [stored]  # replaced, not added


def test_another_base_than_the_one_trained_on_is_refused_before_the_card_is_touched(
    export_of, smolvlm
):
    folder = export_of("idefics3")
    certificate.check_base(folder, json.loads((folder / forms.SETTINGS).read_text())["base"])
    certificate.check_base(folder, "")
    with pytest.raises(UserError, match="is not the base that"):
        certificate.check_base(folder, str(smolvlm.parent / "base"))


def test_what_the_model_says_is_compared_and_a_rise_of_the_loss_warned_of(export_of):
    from vtalign_jax.interop.torch_scripts import check

    spoken = check.compare(export_of("idefics3"))["language"]
    for side in ("base", "export"):
        assert len(spoken[side]["said"]) == 5
        assert 4.0 < spoken[side]["loss"] < 12.0  # log(1024) is 6.9
    assert spoken["base"]["loss"] != spoken["export"]["loss"]
    risen = {"base": {"loss": 2.0}, "export": {"loss": 2.3}}
    (line,) = certificate.warnings({"language": risen})
    assert "rose from 2.000 (base) to 2.300 (+15%)" in line
    for knob in ("learning_rate", "rank", "text_blocks"):
        assert knob in line
    risen["export"]["loss"] = 2.19
    assert certificate.warnings({"language": risen}) == []
    assert certificate.warnings({}) == []


def test_recall_is_left_out_where_the_dataset_cannot_be_read(tmp_path):
    facts = {"dataset": str(tmp_path / "moved"), "split": "val"}
    for dataset, named, expected in (
        (None, "--dataset=any", "was exported without validation clips"),
        (tmp_path / "moved", "", "moved is not here; name it with --dataset"),
        (tmp_path, "", "reading the dataset needs tensorflow_datasets"),
    ):
        held_out = facts | {"dataset": str(dataset)} if dataset else None
        (tmp_path / certificate.INPUTS).write_text(json.dumps({"held_out": held_out}))
        script = f"""{hiding("tensorflow_datasets")}
import runpy
from pathlib import Path
made = runpy.run_path("launch/export.py")
try:
    assert made["_held_out"](Path("{tmp_path}"), "{named}") is None
except made["UserError"] as error:
    print(error)
"""
        assert expected in run("-c", script, PYTHONPATH=str(ROOT))


def test_a_damaged_export_and_an_absent_base_are_told_apart():
    for raised, is_of_base in (
        ("OSError('no such model\\nIf it is private, log in')", True),
        ("ValueError('header too small')", False),
        ("FileNotFoundError('head.safetensors')", False),
    ):
        with pytest.raises(certificate.CheckFailed) as caught:
            certificate._run([sys.executable, "-c", f"raise {raised}"])
        assert caught.value.is_of_base == is_of_base
    assert str(caught.value) == "FileNotFoundError: head.safetensors"


def test_user_errors_end_with_one_line_and_code_2(tmp_path):
    for arguments, message in (
        ((), "--checkpoint is missing"),
        ((f"--checkpoint={tmp_path}",), "--out is missing"),
        ((f"--checkpoint={tmp_path}/no", f"--out={tmp_path}/out"), "no such checkpoint"),
        ((f"--checkpoint={tmp_path}", "--format=onnx"), "peft"),
        (("--push_to_hub=name",), "give organisation/name"),
        ((f"--verify={tmp_path}", f"--out={tmp_path}/out"), "--verify writes no export"),
    ):
        assert message in one_error_line(run("launch/export.py", *arguments, code=2))
    with pytest.raises(UserError, match="not an export"):
        certificate.verify(tmp_path)
