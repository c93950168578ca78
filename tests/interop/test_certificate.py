"""What PyTorch makes of an export. The second, older library environment: tests/old_libraries."""

import dataclasses
import functools
import json
import shutil
import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.commands import ROOT, one_error_line, run
from tests.hidden_packages import hiding
from tests.interop.checkpoints import make_config, write_base, write_checkpoint
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
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(certificate, "missing_packages", lambda needs: ["torch"])
            unverified = export.export(workdir, folder / "out", say=lambda line: None)
        assert "torch" in unverified
        return folder / "out"

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


@pytest.mark.parity
def test_export_then_verify_where_there_is_no_jax(smolvlm, tmp_path):
    workdir = smolvlm.parent / "run"
    out = tmp_path / "out"
    output = run(tmp_path, "launch/export.py", f"--checkpoint={workdir}", f"--out={out}")
    assert f"checkpoints/7 (the best of {workdir}: val/recall@5 0.7500)" in output
    assert "lowest cosine 1.00000" in output
    assert output.splitlines()[-1] == f"next: python launch/evaluate.py --checkpoint={out}"
    card = (out / "README.md").read_text()
    assert "| passed |" in card
    assert "UNVERIFIED" not in card
    assert "val/recall@5 0.7500" in card
    stored = certificate.results(out)
    script = f"""{hiding("jax", "flax", "orbax")}
import runpy
sys.argv = ["export.py", "--verify={out}"]
runpy.run_path("launch/export.py", run_name="__main__")
"""
    output = run(tmp_path, "-c", script, PYTHONPATH=str(ROOT))
    assert output.splitlines()[-1] == f"verified; the figures are in {out / 'README.md'}"
    assert certificate.results(out) == stored  # replaced, not added


def test_user_errors_end_with_one_line_and_code_2(tmp_path):
    for arguments, message in (
        ((), "--checkpoint is missing"),
        ((f"--checkpoint={tmp_path}",), "--out is missing"),
        ((f"--checkpoint={tmp_path}/no", f"--out={tmp_path}/out"), "no such checkpoint"),
        ((f"--checkpoint={tmp_path}", "--format=onnx"), "peft"),
    ):
        assert message in one_error_line(run(tmp_path, "launch/export.py", *arguments, code=2))
    with pytest.raises(UserError, match="not an export"):
        certificate.verify(tmp_path)
