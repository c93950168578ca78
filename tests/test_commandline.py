import os
import signal
import subprocess
import sys

import pytest
from absl import app, flags
from ml_collections import config_flags

from vtalign_jax import commandline

pytestmark = pytest.mark.filterwarnings(
    "ignore:the load_module:DeprecationWarning"
)  # ml_collections


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("def get_config(:", "invalid syntax"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("def get_config():\n    return missing", "name 'missing' is not defined"),
        (
            "def get_config():\n    open('a.json')",
            "No such file or directory: 'a.json' (FILE, line 2)",
        ),
        ("def get_config():\n    raise ValueError('bad')", ": ValueError: bad (FILE, line 2)"),
        ("def get_config():\n    return {}['NOPE']", ": KeyError: 'NOPE' (FILE, line 2)"),
        ("def get_config():\n    return None.no", "has no attribute 'no' (FILE, line 2)"),
        ("def get_config(size):\n    return {}", "TypeError: get_config() missing 1 required"),
        (None, "No such file or directory"),
    ],
)
def test_a_config_file_that_does_not_load_is_one_line(
    tmp_path, monkeypatch, capsys, content, reason
):
    file = tmp_path / "broken.py"
    assert _ended_with_file(monkeypatch, file, content) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cannot load the file of --config")
    assert reason.replace("FILE", str(file)) in line
    assert ("configs/pretrain.py" in line) == (content is None)


def test_a_config_file_without_get_config_is_told_so(tmp_path, monkeypatch, capsys):
    assert _ended_with_file(monkeypatch, tmp_path / "empty.py", "x = 1") == 2
    assert "has no get_config(); write one" in capsys.readouterr().err


def test_a_config_file_that_ends_the_program_ends_it_as_it_says(tmp_path, monkeypatch):
    content = "import sys\ndef get_config():\n    sys.exit('no GPU here')"
    assert _ended_with_file(monkeypatch, tmp_path / "ends.py", content) == "no GPU here"


def _ended_with_file(monkeypatch, file, content):
    """Return how a command ends whose --config has some content, None for no file."""
    if content:
        file.write_text(content)
    values = flags.FlagValues()
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # an earlier file
    monkeypatch.setattr(flags, "FLAGS", values)
    config_flags.DEFINE_config_file("config", flag_values=values)
    argv = ["train.py", f"--config={file}"]
    monkeypatch.setattr(app, "run", lambda _, flags_parser: flags_parser(argv))
    with pytest.raises(SystemExit) as end:
        commandline.run(lambda: None, required=("config",))
    return end.value.code


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            AttributeError("\"'nope'\""),
            "error: --config has no field nope; vtalign_jax/config.py lists the fields",
        ),
        (
            KeyError('\'rat\'\nDid you mean "rate" instead of "rat"?'),
            "error: --config has no field rat; did you mean rate?",
        ),
        (ValueError("cannot use\n 'nope'"), "error: cannot use 'nope'"),
    ],
)
def test_an_unknown_field_and_a_wrong_value_are_one_line(monkeypatch, capsys, error, line):
    def flags_that_fail(argv):
        raise error

    monkeypatch.setattr(flags, "FLAGS", flags_that_fail)
    monkeypatch.setattr(app, "run", lambda _, flags_parser: flags_parser(["train.py"]))
    with pytest.raises(SystemExit):
        commandline.run(lambda: None)
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("--frames=eight", "--frames=eight is no whole number"),
        ("--rate=fast", "--rate=fast is no number"),
        ("--form=nope", "--form=nope is none of peft|merged"),
        ("--push=maybe", "--push=maybe is neither true nor false"),
        ("--frames=-1", "--frames=-1: -1 is not a non-negative integer"),
        ("--framse=8", "no flag --framse; did you mean --frames?"),
        ("--x=8", "no flag --x; see --help"),
        ("--form", "--form has no value; a flag is --name=value"),
    ],
)
def test_a_wrong_flag_is_told_in_our_words(monkeypatch, capsys, argument, line):
    assert _ended(monkeypatch, argument) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_help_is_no_failure(monkeypatch, capsys):
    assert not _ended(monkeypatch, "--help")
    assert "--helpfull" in capsys.readouterr().out


def _ended(monkeypatch, argument):
    """Return how a command with some flags ends."""
    values = flags.FlagValues()
    flags.DEFINE_integer("frames", 8, "", 0, flag_values=values)
    flags.DEFINE_float("rate", 1.0, "", flag_values=values)
    flags.DEFINE_enum("form", "peft", ["peft", "merged"], "", flag_values=values)
    flags.DEFINE_bool("push", False, "", flag_values=values)
    flags.DEFINE_flag(app.HelpFlag(), values)
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setattr(app, "run", lambda _, flags_parser: flags_parser(["a.py", argument]))
    with pytest.raises(SystemExit) as end:
        commandline.run(lambda: None)
    return end.value.code


def test_ctrl_c_while_a_command_still_imports_is_one_line():
    theirs = "import sys; sys.excepthook = lambda kind, *_: print(kind, file=sys.stderr)"
    code = f"{theirs}; from vtalign_jax import commandline; raise {{}}"
    lines = {}
    for error in ("KeyboardInterrupt", "OSError"):
        command = [sys.executable, "-c", code.format(error)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines[error] = done.returncode, done.stderr
    assert lines["KeyboardInterrupt"] == (-signal.SIGINT, "interrupted\n")
    assert lines["OSError"] == (1, "<class 'OSError'>\n")  # told by the hook of before


@pytest.mark.parametrize("flag", ["--help", "--noverbose"])
def test_a_reader_that_goes_away_ends_nothing(tmp_path, flag):
    """As in `train | tee`, whose reader Ctrl-C ends first."""
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys\n"
        "from absl import flags\n"
        "from vtalign_jax import commandline\n"
        "flags.DEFINE_bool('verbose', True, '')\n"
        "def main():\n"
        "    for _ in range(3):\n"
        "        print('told', flush=True)\n"
        "    pathlib.Path(__file__).with_name('done').touch()\n"
        "commandline.run(main)\n"
    )
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, script, flag]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "done").exists() == (flag != "--help")


def test_another_error_of_the_system_keeps_its_traceback(monkeypatch):
    def main():
        raise ConnectionError("lost")

    monkeypatch.setattr(app, "run", lambda guarded, flags_parser: guarded(["train.py"]))
    with pytest.raises(ConnectionError):
        commandline.run(main)
