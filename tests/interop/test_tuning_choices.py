"""Every tuning choice is trained, exported and read back, each beside each value of the others."""

import importlib
import itertools

import jax
import numpy as np
import pytest

from tests.interop.checkpoints import make_config, write_base
from tests.interop.short_run import train_shortly
from vtalign_jax import export
from vtalign_jax.aligner import Aligner
from vtalign_jax.errors import UserError
from vtalign_jax.interop import certificate
from vtalign_jax.interop.forms import FORMS, PEFT
from vtalign_jax.training.assemble import assemble
from vtalign_jax.training.initial import read_initial
from vtalign_jax.training.trained import load_trained

CHOICES = {
    "architecture": ("smolvlm", "idefics3"),
    "connector": ("frozen", "lora", "full"),
    "text_blocks": (0, 1, 3),  # of 3
    "mlp": (False, True),
    "rank": (2, 5),
    "alpha": (4.0, 7.5),
    "rank_stabilized": (False, True),
    "dropout": (0.0, 0.1),
    "head": ("shared", "per_modality"),
    "embedding_dim": (512, 1000, 2048),
    "pooling": ("last", "mean"),
}
QUICK = (  # in `make test`
    ("smolvlm", "lora", 3, True, 2, 7.5, True, 0.1, "per_modality", 512, "last"),
    ("idefics3", "full", 1, True, 5, 4.0, False, 0.0, "per_modality", 2048, "last"),
)
MORE = (
    ("smolvlm", "frozen", 1, True, 2, 4.0, False, 0.0, "shared", 1000, "mean"),
    ("idefics3", "full", 1, False, 5, 7.5, True, 0.1, "shared", 512, "mean"),
    ("idefics3", "lora", 0, False, 5, 7.5, True, 0.0, "shared", 1000, "mean"),
    ("idefics3", "frozen", 3, False, 5, 7.5, False, 0.0, "shared", 512, "last"),
    ("idefics3", "lora", 0, True, 2, 7.5, True, 0.0, "shared", 2048, "last"),
    ("smolvlm", "full", 3, False, 2, 7.5, True, 0.1, "shared", 1000, "mean"),
    ("idefics3", "lora", 1, True, 2, 4.0, False, 0.1, "per_modality", 1000, "last"),
    ("idefics3", "frozen", 3, False, 5, 4.0, True, 0.1, "per_modality", 2048, "last"),
    ("smolvlm", "full", 0, True, 2, 4.0, False, 0.0, "per_modality", 512, "mean"),
    ("smolvlm", "frozen", 0, False, 5, 4.0, False, 0.1, "per_modality", 2048, "mean"),
)
OF_MODEL = ("head", "embedding_dim", "pooling")
ROWS = [*QUICK, *(pytest.param(row, marks=pytest.mark.slow) for row in MORE)]


def named(row):
    return dict(zip(CHOICES, row, strict=True))


def test_the_rows_hold_every_pair_of_values_of_every_two_choices():
    rows = [named(row) for row in (*QUICK, *MORE)]
    assert len(rows) <= 16
    for a, b in itertools.combinations(CHOICES, 2):
        expected = set(itertools.product(CHOICES[a], CHOICES[b]))
        assert {(row[a], row[b]) for row in rows} == expected, (a, b)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """By architecture."""
    folder = tmp_path_factory.mktemp("bases")
    return {name: write_base(folder / name, name) for name in CHOICES["architecture"]}


def config_of(base, row, **tune):
    choices = named(row)
    del choices["architecture"]
    model = {name: choices.pop(name) for name in OF_MODEL} | {"remat": "none"}
    return make_config(base, model=model, tune=choices | tune)


@pytest.fixture
def verified_here(monkeypatch):
    """Certificates are measured in this process: starting PyTorch takes seconds."""

    def verify(folder, base, held_out):
        name = certificate.form_of(folder).check.stem
        check = importlib.import_module(f"vtalign_jax.interop.torch_scripts.{name}")
        if hasattr(check, "NEW_TOKENS"):  # what the model says is no matter of these choices
            monkeypatch.setattr(check, "NEW_TOKENS", 1)
        result = check.compare(folder, base)
        certificate.record(folder, result)
        return result

    monkeypatch.setattr(certificate, "verify", verify)


@pytest.mark.parity
@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, row)))
def test_a_choice_trains_and_every_export_of_it_gives_its_embeddings(
    row, bases, tmp_path, verified_here, monkeypatch
):
    workdir, before = train_shortly(tmp_path / "run", config_of(bases[row[0]], row))
    trained = load_trained(workdir)
    for path, value in trained.params.items():
        assert not np.array_equal(value, before[path]), f"{path} was not trained"
    aligner = Aligner(trained, "float32")
    # Read and compiled once for all forms.
    monkeypatch.setattr(export, "load_trained", lambda *_, **__: trained)
    monkeypatch.setattr(export, "Aligner", lambda *_: aligner)
    for form in FORMS:
        if form == PEFT and not any("lora" in path for path in trained.params):
            with pytest.raises(UserError, match=r"no LoRA, .*merged or --format=sentence-t"):
                export.export(workdir, tmp_path / form, form, say=lambda line: None)
            continue
        unverified = export.export(workdir, tmp_path / form, form, say=lambda line: None)
        assert unverified == ""
        (result,) = certificate.results(tmp_path / form)
        assert min(result["cosine_video"], result["cosine_text"]) >= 0.9999
        assert "| passed |" in (tmp_path / form / "README.md").read_text()
        _check_our_own_reading(load_trained(tmp_path / form), trained)
    if (tmp_path / PEFT).exists():
        _check_the_way_back(tmp_path, row, trained)


def _check_our_own_reading(export, trained):
    """What an export holds of the trained leaves, it holds bit by bit."""
    held = {p: x for p, x in trained.params.items() if not (export.is_merged and "base." in p)}
    assert export.params.keys() == held.keys()
    jax.tree.map(np.testing.assert_array_equal, export.params, held)


def _check_the_way_back(folder, row, trained):
    """The export, and what PEFT makes of it, continue training with equal parameters."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    base = trained.assembly.directory
    model = AutoModelForImageTextToText.from_pretrained(base, dtype="float32")
    PeftModel.from_pretrained(model, folder / PEFT).save_pretrained(folder / "theirs")
    adapters = {path: x for path, x in trained.params.items() if path.startswith("base.")}
    for init, kept in ((PEFT, trained.params), ("theirs", adapters)):
        config = config_of(base, row, init=str(folder / init))
        initial = read_initial(config, assemble(config), say=lambda line: None)
        assert initial.params.keys() == kept.keys()
        jax.tree.map(np.testing.assert_array_equal, initial.params, kept)
