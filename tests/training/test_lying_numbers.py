"""NaN and infinity planted in what is read, and a base swapped under an adapter."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file, save_file

from tests.interop import checkpoints
from tests.pipeline.clip_fixtures import make_clip, make_clips, write_dataset
from vtalign_jax import sharding
from vtalign_jax.config import resolve, to_dict
from vtalign_jax.errors import UserError
from vtalign_jax.interop import certificate, peft
from vtalign_jax.interop.base_files import base_fingerprint
from vtalign_jax.interop.embedding_files import HEAD
from vtalign_jax.pipeline.dataset import open_split
from vtalign_jax.training.assemble import assemble, load
from vtalign_jax.training.checkpoint import FOLDER, read_extra
from vtalign_jax.training.initial import read_initial
from vtalign_jax.training.manifest import Fingerprints, check_resume
from vtalign_jax.training.trained import load_trained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, configuration): a base, a run on it and its export."""
    folder = tmp_path_factory.mktemp("lying")
    config = checkpoints.make_config(checkpoints.write_base(folder / "base", "smolvlm"))
    checkpoints.write_checkpoint(folder / "run", config)
    checkpoints.export_unverified(folder / "run", folder / "export")
    return folder, config


def _plant(source, target, value):
    """Copy a safetensors file, one number of its largest tensor replaced."""
    tensors = {key: np.array(x) for key, x in load_file(source).items()}
    floats = [key for key, x in tensors.items() if x.dtype.kind == "f"]
    name = max(floats, key=lambda key: tensors[key].size)
    tensors[name].reshape(-1)[-1] = value
    save_file(tensors, target, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_in_the_base(run, tmp_path, value):
    folder, config = run
    base = shutil.copytree(folder / "base", tmp_path / "base")
    _plant(folder / "base" / "model.safetensors", base / "model.safetensors", value)
    assembly = assemble(checkpoints.make_config(base))
    with pytest.raises(UserError, match=r"not finite: .*; download"):
        load(assembly, sharding.make_mesh(config.mesh))


@pytest.mark.parametrize("name", [peft.ADAPTER, HEAD])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_in_an_export(run, tmp_path, name, value):
    folder, _ = run
    export = shutil.copytree(folder / "export", tmp_path / "export")
    _plant(folder / "export" / name, export / name, value)
    with pytest.raises(UserError, match="is not finite; copy the export again"):
        load_trained(export)


def test_in_a_foreign_adapter(run, tmp_path):
    folder, config = run
    shutil.copyfile(folder / "export" / peft.ADAPTER_CONFIG, tmp_path / peft.ADAPTER_CONFIG)
    _plant(folder / "export" / peft.ADAPTER, tmp_path / peft.ADAPTER, np.nan)
    tune = dataclasses.replace(config.tune, init=str(tmp_path))
    with pytest.raises(UserError, match="is not finite; take another adapter"):
        read_initial(dataclasses.replace(config, tune=tune), assemble(config), print)


@pytest.mark.parametrize(
    "changes",
    [
        {"window_start": float("nan")},
        {"node_end": float("inf")},
        {"frame_times": [0.5, float("nan"), 1.5, 2.5]},
        {"window_end": -100.0},
        {"video_duration": 1e300},
    ],
)
def test_in_the_times_of_a_dataset(tmp_path, changes):
    clips = [*make_clips(1, 2, 1), make_clip("rx", "S9", 50.0, "lies", **changes)]
    write_dataset(tmp_path, {"train": clips})
    with pytest.raises(UserError, match=r"clips-train\.arrow .*; prepare the dataset again"):
        open_split(str(tmp_path), "train")


def test_a_missing_value_or_another_type_in_the_table(tmp_path):
    written = write_dataset(tmp_path, {"train": make_clips(1, 2, 1)})
    file = written / "clips-train.arrow"
    table = pa.ipc.open_file(file).read_all()
    for column in (pa.nulls(len(table), pa.string()), pa.array([1] * len(table))):
        changed = table.set_column(table.schema.get_field_index("text"), "text", column)
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, changed.schema) as writer:
            writer.write_table(changed)
        with pytest.raises(UserError, match=r"column text (lacks values|is int64)"):
            open_split(str(tmp_path), "train")


def test_a_swapped_base_is_refused_wherever_it_counts(run, tmp_path):
    folder, config = run
    other = shutil.copytree(folder / "base", tmp_path / "other")
    tuned = {key: x + 0.01 for key, x in load_file(folder / "base" / "model.safetensors").items()}
    save_file(tuned, other / "model.safetensors", metadata={"format": "pt"})
    for trained in (folder / "run", folder / "export"):  # evaluate, export, ground, Aligner.load
        with pytest.raises(UserError, match="was trained on another base model"):
            load_trained(trained, str(other))
    values = to_dict(config)
    values["tune"]["init"] = str(folder / "export")  # trained on
    values["model"]["base"] = str(other)
    swapped = resolve(values)
    with pytest.raises(UserError, match="was trained on another base model"):
        read_initial(swapped, assemble(swapped), print)
    with pytest.raises(UserError, match="is not the base"):  # export --verify
        certificate.check_base(folder / "export", str(other))
    extra = read_extra(folder / "run" / FOLDER / str(checkpoints.STEP))
    prints = Fingerprints(base_fingerprint(other), "none")
    with pytest.raises(UserError, match=r"files of config\.model\.base are others"):  # resumed
        check_resume(extra, config, prints, folder / "run")


def test_json_numbers_that_no_config_has(run, tmp_path):
    folder, _ = run
    base = shutil.copytree(folder / "base", tmp_path / "base")
    sound = json.loads((base / "config.json").read_text())
    for section, field, value in (
        ("text_config", "hidden_size", 10**12),
        ("text_config", "num_hidden_layers", 0),
        ("vision_config", "layer_norm_eps", float("nan")),
        ("vision_config", "patch_size", -1),
        ("text_config", "rope_theta", 1e400),
        ("text_config", "vocab_size", "many"),
        ("text_config", "rope_parameters", {"rope_theta": [1]}),
    ):
        changed = json.loads(json.dumps(sound))
        changed[section][field] = value
        (base / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r"config\.json"):
            assemble(checkpoints.make_config(base))
