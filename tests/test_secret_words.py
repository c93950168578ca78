"""No token reaches a log, a manifest, an export or a report."""

import json
import sys

import pytest

from tests import commands
from tests.launch.small_dataset import make_small_dataset
from vtalign_jax import commandline, distributed
from vtalign_jax.secret_words import HIDDEN, redact
from vtalign_jax.training import manifest

_TOKEN, _KEY, _PASSWORD = "hf_AbCdEfGhIjKlMnOpQrSt", "wandb-0123456789", "correct-horse-battery"
_SECRETS = (_TOKEN, _KEY, _PASSWORD, "ya29.a0AfH6SMBxxxxxxxxxxxx", "private-key-of-a-service")
_ENVIRONMENT = {
    "HF_TOKEN": _TOKEN,
    "WANDB_API_KEY": _KEY,
    "AWS_SECRET_ACCESS_KEY": _PASSWORD,
    "GOOGLE_CLIENT_SECRET": _SECRETS[4],
}


@pytest.fixture
def planted(monkeypatch):
    for name, value in _ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"https://user:{_PASSWORD}@host/x", "https://"),
        (f"gs://a:{_PASSWORD}@b/c", "@b/c"),
        (f"Authorization: Bearer {_SECRETS[3]}", "Authorization: Bearer"),
        (f"--token={_TOKEN} --out=x", "--out=x"),
        (f"x?access_key={_PASSWORD}&y=1", "&y=1"),
        (f"the key is {_KEY}.", "the key is"),
        (f"{{'api_key': '{_PASSWORD}'}}", "'api_key'"),
    ],
)
def test_what_looks_like_a_secret_is_hidden_and_the_rest_stays(planted, text, kept):
    shown = redact(text)
    assert HIDDEN in shown
    assert kept in shown
    assert not any(secret in shown for secret in _SECRETS)


def test_plain_text_stays_as_it_is(planted):
    for text in (
        "config.data.max_text_tokens=64 is too small: a turn alone takes 9 tokens, not 4",
        "error: no folder /a/b; --videos takes the folder of videos or frames",
        "https://host/path gs://bucket/x@y",
    ):
        assert redact(text) == text


def test_errors_and_the_manifest_hide_them(planted, monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit):
        commandline._fail(f"no https://user:{_PASSWORD}@host/ with {_TOKEN}")
    error = capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["train.py", f"--workdir=https://u:{_PASSWORD}@h/", _KEY])
    command = json.dumps(manifest.describe_start(None))
    for shown in (error, command):
        assert HIDDEN in shown
        assert not any(secret in shown for secret in _SECRETS)


def test_errors_of_one_of_several_processes_hide_them(planted, monkeypatch):
    watch, told = distributed._Watch(), []
    monkeypatch.setattr(watch, "_end", lambda *given: told.extend(given))
    watch.fail(f"error: no https://user:{_PASSWORD}@host/ with {_TOKEN}", 1, f"Traceback: {_KEY}\n")
    shown, code, said = told
    assert code == 1
    for text in (shown, said):
        assert HIDDEN in text
        assert not any(secret in text for secret in _SECRETS)


@pytest.mark.slow
def test_no_file_and_no_line_of_a_whole_run_holds_one(tmp_path):
    """Prepare, train, evaluate, export and report with secrets all around them."""
    dataset, workdir, printed = make_small_dataset(tmp_path), tmp_path / "run", []
    credentials = tmp_path.parent / f"{tmp_path.name}.json"
    credentials.write_text(json.dumps({"private_key": _SECRETS[4]}))
    around = _ENVIRONMENT | {"GOOGLE_APPLICATION_CREDENTIALS": str(credentials)}
    run = f"--workdir={workdir}"
    train = ["--config=tests/launch/small_run.py", f"--config.data.dir={dataset}", run]
    template = f"--config.data.parent_text={{parent}} {_TOKEN}: {{name}}"
    for arguments, code in (
        (["launch/train.py", *train, "--config.train.epochs=1"], 0),
        (["launch/train.py", *train, f"--config.data.dir=https://u:{_PASSWORD}@h/x"], 2),
        (["launch/train.py", *train, "--config.train.epochs=1", template], 2),
        (["launch/evaluate.py", f"--checkpoint={workdir}"], 0),
        (["launch/evaluate.py", f"--checkpoint=https://u:{_PASSWORD}@h/x"], 2),
        (["launch/export.py", f"--checkpoint={workdir}", f"--out={tmp_path}/e"], 0),
        (["launch/report.py", run], 0),
    ):
        printed.append(commands.run(*arguments, code=code, **around))
    files = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 30
    for secret in _SECRETS:
        assert not any(secret in text for text in printed), secret
        assert not any(secret.encode() in data for data in files), secret
