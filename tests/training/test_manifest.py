import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from vtalign_jax import config as config_lib
from vtalign_jax.errors import UserError
from vtalign_jax.training import manifest
from vtalign_jax.training.manifest import Fingerprints

PRINTS = Fingerprints(base="b" * 8, data="d" * 8)


def _extra(config=None) -> dict:
    config = config_lib.to_dict(config or config_lib.Config())
    extra = {"config": config, "fingerprints": PRINTS.to_json()}
    return json.loads(json.dumps(extra))


def _changed(**sections) -> config_lib.Config:
    return config_lib.resolve(sections)


def test_config_comes_back_as_it_was(tmp_path):
    config = _changed(optim={"learning_rate": 3e-5}, model={"base": "tiny"})
    manifest.write_config(tmp_path / "run", config)
    assert manifest.read_config(tmp_path / "run") == config


def test_folder_without_config_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json in"):
        manifest.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*config\.json"):
        manifest.read_config(tmp_path)


def test_manifest_says_what_the_run_was_made_from(tmp_path):
    config = _changed(train={"seed": 7})
    manifest.write_manifest(tmp_path, config, PRINTS, parameters={"trainable": 5})
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert written["seeds"] == {"train.seed": 7}
    assert written["fingerprints"] == {"base": PRINTS.base, "data": PRINTS.data}
    assert written["parameters"] == {"trainable": 5}
    (start,) = written["starts"]
    assert start["restored_step"] is None
    assert start["command"][1:] == sys.argv
    assert start["versions"]["jax"] == jax.__version__
    assert start["versions"]["numpy"] == np.__version__
    assert start["devices"]["platform"] == "cpu"
    assert start["devices"]["count"] == 8


def test_manifest_names_the_git_revision():
    root = manifest.pathlib.Path(manifest.__file__).parents[2]
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True)
    found = manifest.git_revision()
    assert (found and found["revision"]) == (head.stdout.strip() or None)


def test_each_resumed_start_is_added(tmp_path):
    for restored_step in (None, 40, 80):
        manifest.write_manifest(tmp_path, config_lib.Config(), PRINTS, restored_step)
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert [start["restored_step"] for start in written["starts"]] == [None, 40, 80]
    manifest.write_manifest(tmp_path, config_lib.Config(), PRINTS)  # killed before any checkpoint
    assert len(json.loads((tmp_path / "manifest.json").read_text())["starts"]) == 1


def test_same_run_resumes_on_another_machine():
    config = _changed(
        mesh={"data": 2}, train={"log_every_steps": 1}, data={"dir": "/elsewhere", "workers": 8}
    )
    manifest.check_resume(_extra(), config, PRINTS, "runs/x")


def test_another_configuration_does_not_resume():
    config = _changed(optim={"learning_rate": 3e-5}, tune={"rank": 8})
    with pytest.raises(UserError) as error:
        manifest.check_resume(_extra(), config, PRINTS, "runs/x")
    line = str(error.value)
    assert "config.optim.learning_rate was 0.0001 and is now 3e-05" in line
    assert "config.tune.rank was 16 and is now 8" in line
    assert "another --workdir" in line


def test_a_run_of_a_version_that_lacked_a_field_resumes_with_its_default():
    extra = _extra()
    del extra["config"]["tune"]["rank_stabilized"]
    manifest.check_resume(extra, config_lib.Config(), PRINTS, "runs/x")
    with pytest.raises(UserError, match="rank_stabilized was False and is now True"):
        manifest.check_resume(extra, _changed(tune={"rank_stabilized": True}), PRINTS, "runs/x")


@pytest.mark.parametrize(
    ("name", "field"),
    [("base", "model.base"), ("data", "data.dir"), ("features", "data.feature_cache")],
)
def test_other_files_do_not_resume(name, field):
    others = Fingerprints(**(PRINTS.to_json() | {name: "other"}))
    with pytest.raises(UserError, match=f"the files of config.{field} are others"):
        manifest.check_resume(_extra(), config_lib.Config(), others, "runs/x")


def test_fields_free_to_change_exist():
    fields = manifest.flat(config_lib.to_dict(config_lib.Config()))
    assert set(manifest._FREE) <= set(fields)
