import errno
import os

import pytest
from absl import app, flags

from vtalign_jax import commandline, system_faults
from vtalign_jax.errors import UserError

FULL = "No space left on device"


def chained(first: Exception, then: Exception) -> Exception:
    try:
        raise then from first
    except Exception as error:
        return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, FULL), f"{FULL}: make room there (--out=x)"),
        (OSError(errno.ENOSPC, FULL, "/a/b"), f"{FULL}: make room there (/a/b)"),
        (ValueError(f"RESOURCE_EXHAUSTED: writing: {FULL}"), f"{FULL}: make room there (--out=x)"),
        (chained(OSError(errno.EMFILE, "many", "/a"), RuntimeError("lost")), "Too many open files"),
        (OSError(errno.EROFS, "read-only", "/a"), "Read-only file system: name a folder that can"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_its_place(error, line):
    assert system_faults.told(error, "--out=x").startswith(line)


@pytest.mark.parametrize("error", [ValueError("bad value"), OSError(errno.ENOENT, "none", "/a")])
def test_other_errors_are_not_told_as_such(error):
    assert system_faults.told(error, "--out=x") is None


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.EACCES])
def test_a_path_at_fault_is_one_line_that_is_not_too_long(number):
    error = OSError(number, os.strerror(number), "x" * 3000)
    line = system_faults.told(error, "--out=x")
    assert line.startswith(f"{os.strerror(number)}: xxx")
    assert line.endswith("x; name another path, or mend that one")
    assert len(line) < 300
    assert system_faults.told(chained(error, KeyError("a bug")), "--out=x") is None


def test_every_sentence_says_how_to_mend_it():
    for number in system_faults.MENDS:
        line = system_faults.told(OSError(number, os.strerror(number), "/a"), "--out=x")
        assert line.endswith("the same command then goes on")


@pytest.mark.parametrize(
    ("error", "code"),
    [(OSError(28, FULL), 2), (UserError("wrong"), 2), (ZeroDivisionError(), None)],
)
def test_a_command_ends_with_that_line_and_code_2(monkeypatch, capsys, error, code):
    def main():
        raise error

    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "runs/a", "of the test", flag_values=values)
    flags.DEFINE_integer("verbosity", 0, "of absl", flag_values=values)
    values(["train.py"])
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setattr(app, "run", lambda guarded, flags_parser: guarded(["train.py"]))
    with pytest.raises(SystemExit if code else ZeroDivisionError) as end:
        commandline.run(main)
    if code:
        assert end.value.code == code
        (line,) = capsys.readouterr().err.splitlines()
        wanted = "wrong" if isinstance(error, UserError) else "make room there (--workdir=runs/a)"
        assert line.startswith("error: ")
        assert wanted in line
