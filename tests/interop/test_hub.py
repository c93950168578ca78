"""Uploads, to a fake of the hub's HTTP interface: the client library is the real one."""

import json
import subprocess
import sys

import pytest

from tests.commands import ROOT, environment
from tests.fake_hub import TOKEN, fake_hub
from vtalign_jax.errors import UserError
from vtalign_jax.interop import hub

# The client reads its address when it is imported, hence a process; one for all cases.
_SCRIPT = """
import json, sys
from pathlib import Path
from vtalign_jax.errors import UserError
from vtalign_jax.interop import hub
for name, private, overwrite in json.loads(sys.argv[2]):
    try:
        hub.check(name)
        said = hub.push(Path(sys.argv[1]), name, private=private, overwrite=overwrite)
    except UserError as error:
        said = f"refused: {error}"
    print(json.dumps(said))
"""


@pytest.fixture
def exported(tmp_path):
    folder = tmp_path / "out"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "vtalign.json").write_text(json.dumps({"form": "merged", "base": "org/base"}))
    (folder / "README.md").write_text("# card")
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    return folder


def _push(served, tmp_path, folder, *pushes):
    command = [sys.executable, "-c", _SCRIPT, str(folder), json.dumps(pushes)]
    env = environment(PYTHONPATH=str(ROOT), **served.environment())
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert TOKEN not in done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_an_export_is_uploaded_whole_and_replaces_only_what_it_may(exported, tmp_path):
    files = {str(p.relative_to(exported)): p.read_bytes() for p in exported.rglob("*.*")}
    with fake_hub() as served:
        served.repositories = {
            "org/thesis": {"private": True, "files": {"thesis.tex": b"years of work"}},
            "org/older": {"private": True, "files": {"vtalign.json": b"{}", "stale.bin": b"x"}},
            "org/public": {"private": False, "files": {}},
        }
        said = _push(
            served,
            tmp_path,
            exported,
            ("org/new", True, False),
            ("org/new", False, False),
            ("org/thesis", True, True),
            ("org/older", True, True),
            ("org/public", True, False),
        )
        assert said[0] == f"{served.address}/org/new"
        assert served.repositories["org/new"] == {"private": True, "files": files}
        assert "replace it with --overwrite" in said[1]
        assert "no vtalign.json) and is left alone" in said[2]
        assert served.repositories["org/thesis"]["files"] == {"thesis.tex": b"years of work"}
        assert served.repositories["org/older"]["files"] == files
        assert "is public" in said[4]
        assert served.repositories["org/public"]["files"] == {}


def test_a_refusal_is_one_line_without_the_token(exported, tmp_path):
    with fake_hub() as served:
        served.refuses = "you may not write here,"
        (said,) = _push(served, tmp_path, exported, ("org/new", False, False))
        assert said.startswith("refused: cannot push to org/new on the hub (")
        assert f"--verify={exported} --push_to_hub=org/new" in said
        address = served.address
    served.address = address  # nobody answers there any more
    (said,) = _push(served, tmp_path, exported, ("org/new", False, False))
    assert said.startswith("refused: cannot push to org/new")


def test_names_and_tokens_are_looked_at_before_any_work(monkeypatch):
    with pytest.raises(UserError, match="give organisation/name"):
        hub.check("name")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match="needs a token"):
        hub.check("org/name")


def test_a_base_on_this_machine_is_warned_of(exported):
    assert hub.warnings(exported) == []
    (exported / "vtalign.json").write_text(json.dumps({"form": "peft", "base": "/home/me/base"}))
    assert "--base=organisation/name" in hub.warnings(exported)[0]
