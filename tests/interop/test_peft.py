import json
import re
import shutil
import threading
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import vtalign_jax as vt
from tests.interop.checkpoints import export_unverified, make_config, write_base, write_checkpoint
from vtalign_jax import export
from vtalign_jax.config import TuneConfig, resolve
from vtalign_jax.errors import UserError
from vtalign_jax.interop import certificate, embedding_files, peft
from vtalign_jax.interop.folders import new_folder
from vtalign_jax.interop.forms import FORMS
from vtalign_jax.models import parameters
from vtalign_jax.models.aligner import AlignerModel
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.training import trainable
from vtalign_jax.training.trained import load_trained

KEYS_OF_PEFT_0_11_1 = (
    "peft_type auto_mapping base_model_name_or_path revision task_type inference_mode r "
    "target_modules lora_alpha lora_dropout fan_in_fan_out bias use_rslora modules_to_save "
    "init_lora_weights layers_to_transform layers_pattern rank_pattern alpha_pattern "
    "megatron_config megatron_core loftq_config use_dora layer_replication"
)


@pytest.fixture(autouse=True)
def without_pytorch(monkeypatch):
    """What PyTorch makes of the files is test_certificate.py's matter."""
    monkeypatch.setattr(certificate, "missing_packages", lambda needs: ["torch"])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"), "smolvlm")


@pytest.fixture(scope="module")
def workdir(base, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run"), make_config(base))


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    return export_unverified(workdir, tmp_path_factory.mktemp("exports") / "out")


def _parts(workdir):
    trained = load_trained(workdir)
    shapes = trained.assembly.trainable | trained.assembly.frozen
    keys = peft.adapter_keys(trained.params, shapes)
    adapter = peft.adapter_tensors(trained.params, keys)
    return trained, adapter, embedding_files.head_tensors(trained.params)


def test_the_22b_adapter_is_the_connector_and_the_top_blocks_in_peft_s_names(request):
    fixture = request.path.parent / "fixtures" / "smolvlm2_2b_instruct.json"
    sizes = SmolVLMConfig.from_hf(json.loads(fixture.read_text()))
    config = resolve({"tune": {"mlp": True}})
    adapters = trainable.adapter_config(config.tune)
    _, shapes = parameters.abstract(
        lambda: AlignerModel(config.model, sizes, adapters, rngs=nnx.Rngs(0))
    )
    trained, _ = trainable.split(shapes, config.model, config.tune)
    keys = peft.adapter_keys(trained, shapes)
    expected = {"base_model.model.model.connector.modality_projection.proj"} | {
        f"base_model.model.model.text_model.layers.{block}.{projection}"
        for block in range(16, 24)
        for projection in (
            *(f"self_attn.{x}_proj" for x in "qkvo"),
            *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
        )
    }
    names = {name for names in keys.values() for name in names}
    assert names == {f"{module}.lora_{x}.weight" for module in expected for x in "AB"}
    pattern = peft.adapter_config(names, config.tune, "base")["target_modules"]
    modules = {name.removeprefix("base_model.model.") for name in expected}
    assert all(re.fullmatch(pattern, module) for module in modules)
    for other in (
        "model.vision_model.encoder.layers.16.self_attn.q_proj",
        "model.text_model.layers.15.self_attn.q_proj",
        "model.text_model.layers.1.self_attn.q_proj",
        "model.text_model.layers.160.self_attn.q_proj",
        "xmodel.text_model.layers.16.self_attn.q_proj",
        "model.text_model.layers.16.self_attn.q_proj.base_layer",
        "lm_head",
    ):
        assert not re.fullmatch(pattern, other)


def test_the_config_has_only_keys_of_peft_0_11_1_and_our_scale():
    tune = TuneConfig(rank=4, alpha=6.0, dropout=0.1)
    keys = ["base_model.model.model.text_model.layers.3.self_attn.q_proj.lora_A.weight"]
    config = peft.adapter_config(keys, tune, "HuggingFaceTB/SmolVLM2-2.2B-Instruct")
    assert set(config) <= set(KEYS_OF_PEFT_0_11_1.split())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 6, False)
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolVLM2-2.2B-Instruct"
    assert config["modules_to_save"] is None
    tune = TuneConfig(rank=4, alpha=6.0, rank_stabilized=True)
    assert peft.adapter_config(keys, tune, "base")["use_rslora"] is True


def test_tensors_are_transposed_stacked_ones_taken_apart(workdir):
    trained, adapter, head = _parts(workdir)
    ours = trained.params["base.text_model.tuned_layers.self_attn.k_proj.lora_b"]
    theirs = adapter["base_model.model.model.text_model.layers.2.self_attn.k_proj.lora_B.weight"]
    np.testing.assert_array_equal(theirs, ours[1].T)  # 3 blocks, the top 2 stacked
    assert theirs.shape == (32, 3)  # [out, R]
    np.testing.assert_array_equal(head["head.fc2.weight"], trained.params["head.fc2.kernel"].T)


@pytest.mark.parametrize(
    ("tune", "head"),
    [({"connector": "full"}, "per_modality"), ({"connector": "frozen", "mlp": True}, "shared")],
)
def test_an_export_is_read_back_as_it_was_written(base, tmp_path, tune, head):
    config = make_config(base, tune=tune, model={"head": head})
    workdir = write_checkpoint(tmp_path / "run", config)
    export.export(workdir, tmp_path / "out", say=lambda line: None)
    before, after = load_trained(workdir), load_trained(tmp_path / "out")
    assert after.config == before.config
    assert after.facts == before.facts
    assert after.facts["step"] == 7
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)


def test_a_connector_tuned_in_full_goes_through_modules_to_save(base, tmp_path):
    config = make_config(base, tune={"connector": "full"})
    trained, adapter, _ = _parts(write_checkpoint(tmp_path / "run", config))
    settings = peft.adapter_config(adapter, config.tune, "base")
    assert settings["modules_to_save"] == ["model.connector.modality_projection.proj"]
    assert "connector" not in settings["target_modules"]
    theirs = adapter["base_model.model.model.connector.modality_projection.proj.weight"]
    ours = trained.params["base.connector.modality_projection.proj.kernel"]
    np.testing.assert_array_equal(theirs, ours.T)


def test_the_folder_holds_the_base_s_tokenizer_and_processor_byte_for_byte(base, exported):
    names = {file.name for file in exported.iterdir()}
    copied = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    copied |= {f"{x}_config.json" for x in ("preprocessor", "processor", "video_preprocessor")}
    for name in copied:
        assert (exported / name).read_bytes() == (base / name).read_bytes()
    written = {"README.md", "embed.py", "vtalign.json", "certificate.json"}
    written |= {"adapter_config.json", "adapter_model.safetensors", "head.safetensors"}
    assert names == copied | written | {"certificate.safetensors"}
    assert len((exported / "embed.py").read_text().splitlines()) <= 60


def test_a_base_of_the_hub_is_named_by_its_id(base, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(base))
    config = make_config("HuggingFaceTB/Small-VLM")
    export.export(write_checkpoint(tmp_path / "run", config), tmp_path / "out", say=str)
    settings, adapter = (
        json.loads((tmp_path / "out" / name).read_text())
        for name in ("vtalign.json", peft.ADAPTER_CONFIG)
    )
    assert settings["base"] == adapter["base_model_name_or_path"] == "HuggingFaceTB/Small-VLM"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "https://huggingface.co/HuggingFaceTB/Small-VLM" in card
    assert str(base) not in card


def test_an_untrained_adapter_is_refused_and_leaves_nothing(base, tmp_path):
    workdir = write_checkpoint(tmp_path / "run", make_config(base), lora_b=0.0)
    for form in FORMS:
        with pytest.raises(UserError, match=r"LoRA B is zero in 9 of 9 layers .*train longer"):
            export.export(workdir, tmp_path / "exports" / "out", form, say=lambda line: None)
        assert list((tmp_path / "exports").iterdir()) == []


def test_one_zero_lora_b_missing_head_and_nan_are_refused(base, workdir):
    _, adapter, head = _parts(workdir)
    peft.check(adapter, base)
    embedding_files.check_head(head)
    name = next(key for key in adapter if key.endswith("lora_B.weight"))
    with pytest.raises(UserError, match="LoRA B is zero in 1 of 9"):
        peft.check(adapter | {name: np.zeros_like(adapter[name])}, base)
    with pytest.raises(UserError, match="not finite"):
        peft.check(adapter | {name: np.full_like(adapter[name], np.nan)}, base)
    with pytest.raises(UserError, match="no projection head"):
        embedding_files.check_head({"log_temperature": head["log_temperature"]})


@pytest.mark.parametrize(
    "module",
    [
        "model.text_model.layers.9.self_attn.q_proj",  # the base has 3 blocks
        "model.vision_model.encoder.layers.1.self_attn.q_proj",
        "text_model.layers.1.self_attn.q_proj",
    ],
)
def test_a_key_of_the_tower_or_of_no_layer_is_refused(base, workdir, module):
    _, adapter, _ = _parts(workdir)
    wrong = {f"base_model.model.{module}.lora_{x}.weight": np.ones((3, 3)) for x in "AB"}
    with pytest.raises(UserError, match=re.escape(module)):
        peft.check(adapter | wrong, base)


def test_text_rules_that_match_the_tower_too_are_refused(base, workdir, monkeypatch, tmp_path):
    suffixes = r"^.*\.(q_proj|k_proj|v_proj|o_proj|proj)$"  # what PEFT's list of names would match
    monkeypatch.setattr(peft, "target_pattern", lambda modules: suffixes)
    with pytest.raises(UserError, match=r"placed in the vision tower, .*vision_model"):
        export.export(workdir, tmp_path / "out", say=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_a_key_matched_twice_is_refused(base, workdir):
    trained, adapter, _ = _parts(workdir)
    keys = peft.adapter_keys(trained.params, trained.assembly.trainable | trained.assembly.frozen)
    q, k = (f"base.text_model.tuned_layers.self_attn.{x}_proj.lora_a" for x in "qk")
    with pytest.raises(UserError, match=r"q_proj\.lora_A\.weight is matched by two trained leaves"):
        peft.adapter_tensors(trained.params, keys | {k: keys[q]})
    module = "base_model.model.model.connector.modality_projection.proj"
    shape = [adapter[f"{module}.lora_{x}.weight"].shape[i] for i, x in enumerate("BA")]
    with pytest.raises(UserError, match="both adapted and replaced"):
        peft.check(adapter | {f"{module}.weight": np.ones(shape)}, base)


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_without_a_head_is_refused(base, workdir, tmp_path, monkeypatch, form):
    whole = load_trained(workdir)
    params = {path: x for path, x in whole.params.items() if not path.startswith("head.")}
    monkeypatch.setattr(export, "load_trained", lambda *_, **__: whole._replace(params=params))
    with pytest.raises(UserError, match="no projection head"):
        export.export(workdir, tmp_path / "out", form, say=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_another_base_is_refused(base, workdir, tmp_path):
    other = write_base(tmp_path / "other", "smolvlm")
    weights = load_file(other / "model.safetensors")
    weights = {key: x + 1.0 for key, x in weights.items()}
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="trained on another base"):
        load_trained(workdir, str(other))


def test_the_matching_head_stays_behind_and_the_card_says_so(base, exported, tmp_path):
    config = make_config(base, objective={"itm_weight": 0.5, "caption_weight": 0.2})
    workdir = write_checkpoint(tmp_path / "run", config)
    export.export(workdir, tmp_path / "out", say=lambda line: None)
    names = load_file(tmp_path / "out" / embedding_files.HEAD).keys()
    assert names == load_file(exported / embedding_files.HEAD).keys()
    before, after = load_trained(workdir), load_trained(tmp_path / "out")
    assert {p for p in before.params if p not in after.params} == {
        f"matching_head.{layer}.{leaf}" for layer in ("fc1", "fc2") for leaf in ("kernel", "bias")
    }
    for path, value in after.params.items():
        np.testing.assert_array_equal(value, before.params[path])
    cards = [(folder / "README.md").read_text() for folder in (tmp_path / "out", exported)]
    assert ["matching head (`objective.itm_weight=0.5`) is left out" in c for c in cards] == [
        True,
        False,
    ]
    texts = ["attach wheel", "screw"]
    z = [vt.Aligner.load(path).encode_texts(texts) for path in (workdir, tmp_path / "out")]
    np.testing.assert_array_equal(*z)


def test_an_export_with_a_missing_or_foreign_key_is_refused(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "out")
    file = tmp_path / "out" / peft.ADAPTER
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file({k.replace(name, "other"): x for k, x in tensors.items()}, file)
    with pytest.raises(UserError, match=rf"{re.escape(name)} is missing; other is not expected"):
        load_trained(tmp_path / "out")


@pytest.mark.parametrize("name", [peft.ADAPTER, embedding_files.HEAD])
def test_an_export_with_a_file_cut_off_is_refused(exported, tmp_path, name):
    shutil.copytree(exported, tmp_path / "out")
    file = tmp_path / "out" / name
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=rf"cannot read .*{re.escape(name)} .*copy the export"):
        load_trained(tmp_path / "out")


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def write(marker, **options):
        with new_folder(tmp_path / "out", "marker", **options) as folder:
            (folder / "marker").write_text(marker)

    write("first")
    with pytest.raises(UserError, match=r"out exists; .*--overwrite"):
        write("second")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out", "marker", overwrite=True):
        raise ZeroDivisionError
    assert (tmp_path / "out" / "marker").read_text() == "first"
    write("second", overwrite=True)
    assert (tmp_path / "out" / "marker").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_is_removed_and_what_it_moved_aside_put_back(tmp_path):
    left, aside = (tmp_path / f".out.unfinished-{name}" for name in ("1", "2.replaced"))
    for folder in (left, aside):
        folder.mkdir()
        (folder / "marker").write_text(folder.name)
    with new_folder(tmp_path / "other", "marker"):
        assert left.exists()
    with pytest.raises(UserError, match="out exists"), new_folder(tmp_path / "out", "marker"):
        pass
    with new_folder(tmp_path / "out", "marker", overwrite=True) as first:
        assert not left.exists()
        assert (tmp_path / "out" / "marker").read_text() == aside.name
        with new_folder(tmp_path / "out", "marker", overwrite=True):
            assert first.exists()  # its process lives
            (first / "marker").write_text("first")
    assert (tmp_path / "out" / "marker").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_two_that_replace_one_folder_take_turns(tmp_path, monkeypatch):
    out, rename = tmp_path / "out", Path.rename

    def write(text):
        with new_folder(out, "marker", overwrite=True) as folder:
            (folder / "marker").write_text(text)

    other = threading.Thread(target=write, args=["third"])

    def meet(self, target):
        if target == out and other.ident is None:  # the first is moved aside
            other.start()
            other.join(0.2)
        return rename(self, target)

    write("first")
    monkeypatch.setattr(Path, "rename", meet)
    write("second")
    other.join()
    assert (out / "marker").read_text() == "third"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwrite_replaces_only_what_an_export_wrote(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="left alone"), new_folder(tmp_path, "m", overwrite=True):
        pass
    assert (tmp_path / "thesis.tex").exists()


def test_a_folder_in_a_bucket_appears_whole_or_not_at_all(bucket, cache):
    out = f"{bucket.url}/out"

    def write(text: str, overwrite: bool = False) -> None:
        with new_folder(out, "marker", overwrite=overwrite) as folder:
            for name in ("marker", text):
                (folder / name).write_text(text)

    with pytest.raises(ZeroDivisionError), new_folder(out, "marker"):
        raise ZeroDivisionError
    assert bucket.names() == []
    write("first")
    with pytest.raises(UserError, match="exists; choose another --out"):
        write("second")
    write("second", overwrite=True)
    assert bucket.names() == ["out/marker", "out/second"]
    assert bucket.read("out/marker") == b"second"
    bucket.put("out/.vtalign_uploading", b"")  # cut off before its end
    write("third")
    assert bucket.names() == ["out/marker", "out/third"]
    bucket.put("thesis/chapter", b"years of work")
    out = f"{bucket.url}/thesis"
    with pytest.raises(UserError, match="left alone"):
        write("fourth", overwrite=True)
    assert list(cache.glob("*")) == []  # nothing is left of what was made here


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_is_followed_and_stays(tmp_path, is_there):
    out, link = tmp_path / "disk" / "out", tmp_path / "link"
    if is_there:
        out.mkdir(parents=True)
        (out / "marker").write_text("first")
    link.symlink_to(out)
    with new_folder(link, "marker", overwrite=True) as folder:
        (folder / "marker").write_text("second")
    assert link.is_symlink()
    assert (out / "marker").read_text() == "second"
    assert sorted(tmp_path.iterdir()) == [tmp_path / "disk", link]
    assert list(out.parent.iterdir()) == [out]
