import fcntl
import os

from vtalign_jax.interop.folders import new_folder


def test_who_waits_for_another_says_so(tmp_path, monkeypatch, capsys):
    """Of two exports that take turns, see test_peft.py."""
    other, flock = os.open(tmp_path, os.O_RDONLY), fcntl.flock
    flock(other, fcntl.LOCK_EX)

    def let_go(descriptor, how):
        if how == fcntl.LOCK_EX:  # it waits
            flock(other, fcntl.LOCK_UN)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", let_go)
    with new_folder(tmp_path / "out", "marker"):
        assert capsys.readouterr().err == f"waiting for another that writes into {tmp_path}\n"
    os.close(other)
    assert capsys.readouterr().err == ""
