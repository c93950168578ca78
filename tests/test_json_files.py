import os

import pytest

from vtalign_jax import json_files
from vtalign_jax.errors import UserError


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "Expecting"),
        (b"\xff\xfe{", "decode"),
        (b"[1, 2]", "holds no JSON object"),
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b" " * (json_files.MAX_BYTES + 1), "more than 32 MiB"),
    ],
)
def test_a_file_that_is_no_object_is_named_with_what_to_do(tmp_path, content, why):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"cannot read .*a\.json .*{why}.*; copy it again$"):
        json_files.read_object(tmp_path / "a.json", "copy it again")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(UserError, match="it is no file"):
        json_files.read_object(tmp_path / "a.json", "copy it again")
    with pytest.raises(FileNotFoundError):
        json_files.read_object(tmp_path / "b.json", "copy it again")


@pytest.mark.parametrize(
    ("value", "kind", "is_right"),
    [
        ("a", str, True),
        (1, str, False),
        (3, int, True),
        (True, int, False),
        (3, float, True),
        (float("nan"), float, False),
        (1e400, float, False),
        (10**400, float, False),
        ({}, dict, True),
        ([], dict, False),
        (None, list, False),
    ],
)
def test_fields_must_be_of_their_kind(value, kind, is_right):
    values, kinds = {"outer": {"inner": value}}, {"outer.inner": kind}
    if is_right:
        json_files.require(values, kinds, "a.json", "copy it again")
        return
    with pytest.raises(UserError, match=r"a\.json: outer\.inner is (missing|not ).*; copy it"):
        json_files.require(values, kinds, "a.json", "copy it again")
