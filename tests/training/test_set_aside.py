"""A damaged checkpoint is found, moved away and said; the run goes on from the one before."""

import errno
import gc
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from tests.training.test_session import evaluate, fresh_state, open_session
from vtalign_jax.errors import UserError
from vtalign_jax.training.checkpoint import METRIC, Checkpoints, read_metrics, read_state
from vtalign_jax.training.set_aside import set_damaged_aside
from vtalign_jax.training.soundness import Damaged


def _save(folder, steps=(1, 2)):
    checkpoints = Checkpoints(folder, keep_best=2, keep_latest=2)
    for step in steps:
        state = {"params": {"w": jnp.arange(4096, dtype=jnp.float32) * step}}
        checkpoints.save(step, state, {"n": step}, {METRIC: step / 10})
    checkpoints.wait()
    checkpoints.close()
    return folder


@pytest.fixture(autouse=True)
def hooks(monkeypatch):
    """Those of this module's tests are put back: reading a damaged checkpoint changes them."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)


def _files(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


def test_every_flipped_byte_of_the_arrays_is_found_or_changes_nothing(tmp_path):
    path = _save(tmp_path / "checkpoints", [1]) / "1"
    wanted = {"params": {"w": jnp.zeros(4096)}}
    expected, found = np.arange(4096, dtype=np.float32), 0
    rng = np.random.default_rng(0)
    for file in _files(path / "state"):
        sound = file.read_bytes()
        for place in rng.integers(0, len(sound), 6) if sound else ():
            damaged = bytearray(sound)
            damaged[place] ^= 1 << rng.integers(8)
            file.write_bytes(damaged)
            try:
                read = read_state(path, wanted)["params"]["w"]
            except UserError:
                found += 1
                continue
            np.testing.assert_array_equal(read, expected)
        file.write_bytes(sound)
    assert found


def _flip(path):
    """Flip a byte in the largest file of the arrays."""
    file = max(_files(path / "state"), key=lambda file: file.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_the_run_goes_on_from_the_checkpoint_before(tmp_path, capsys):
    session, config = open_session(tmp_path)
    state = session.start(fresh_state(config))
    session.save(1, state)
    session.save(2, state._replace(step=state.step + 2), {METRIC: 0.5})
    session.save(3, state._replace(step=state.step + 3))
    session.close()
    _flip(tmp_path / "checkpoints" / "3")
    capsys.readouterr()
    session, config = open_session(tmp_path)
    said = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(said) == 1
    assert said[0].startswith(f"warning: checkpoint {tmp_path}/checkpoints/3 is damaged")
    assert said[0].endswith(f"it now lies in {tmp_path}/damaged")
    assert session.step == 2
    state = session.start(fresh_state(config))
    assert int(state.step) == 2
    session.save(3, state)  # its place is free
    session.close()
    assert (tmp_path / "damaged" / "3").is_dir()
    assert set_damaged_aside(tmp_path / "checkpoints") == (3, [])


def test_the_end_of_the_run_names_no_checkpoint_that_was_moved_away(tmp_path):
    session, config = open_session(tmp_path)
    state = session.start(fresh_state(config))
    evaluate(session, state, 1, 0.5)
    evaluate(session, state, 2, 0.4)
    session.close()
    (tmp_path / "checkpoints" / "3" / "extra" / "metadata").write_text("{")
    session, config = open_session(tmp_path)
    state = session.start(fresh_state(config))
    assert not evaluate(session, state, 3, 0.45)
    assert evaluate(session, state, 4, 0.3)
    session.close()
    line = session.summary().splitlines()[1]
    assert line.endswith("0.5000, after step 3, whose checkpoint is gone; the best left is taken")


def test_damaged_json_of_an_older_one_is_found_too(tmp_path):
    folder = _save(tmp_path / "checkpoints")
    file = folder / "1" / "metrics" / "metrics"
    file.write_text(json.dumps(json.loads(file.read_text()) | {METRIC: 0.9}))
    with pytest.raises(UserError, match="is not what was saved"):
        read_metrics(folder / "1")
    newest, said = set_damaged_aside(folder)
    assert (newest, len(said)) == (2, 1)
    assert "metrics is not what was saved" in said[0]
    assert [path.name for path in folder.iterdir() if path.name.isdigit()] == ["2"]


def test_without_a_sound_one_nothing_is_moved(tmp_path):
    folder = _save(tmp_path / "checkpoints")
    _flip(folder / "2")
    (folder / "1" / "extra" / "metadata").unlink()
    with pytest.raises(UserError, match=r"checkpoints/2 .*no other one is left: put a copy back"):
        set_damaged_aside(folder)
    assert {path.name for path in folder.iterdir()} >= {"1", "2"}


def test_a_checkpoint_that_lacks_parts_is_kept_and_said(tmp_path):
    folder = _save(tmp_path / "checkpoints")
    (folder / "2" / "extra" / "metadata").unlink()
    newest, (said,) = set_damaged_aside(folder)
    assert newest == 1
    assert f"checkpoint {folder}/2 is not whole; it now lies in {tmp_path}/damaged" in said
    assert _files(tmp_path / "damaged" / "2" / "state")
    assert [path.name for path in folder.iterdir() if path.name.isdigit()] == ["1"]


def test_what_the_system_refuses_to_open_is_not_moved(tmp_path):
    folder = _save(tmp_path / "checkpoints")
    file = max(_files(folder / "2" / "state"), key=lambda file: file.stat().st_size)
    file.unlink()
    file.symlink_to(file.name)  # opened, it is a loop
    with pytest.raises(UserError, match=r"checkpoints/2 cannot be read .*; try again"):
        set_damaged_aside(folder)
    assert (folder / "2").is_dir()


def test_json_that_the_system_refuses_to_read_is_not_moved(tmp_path, monkeypatch):
    folder = _save(tmp_path / "checkpoints")

    def refuse(path, *mode):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(type(epath.Path(folder)), "open", refuse)
    with pytest.raises(UserError, match=r"checkpoints/2 cannot be read .*; try again") as raised:
        set_damaged_aside(folder)
    assert not isinstance(raised.value, Damaged)
    assert (folder / "2").is_dir()


def test_nan_in_what_was_saved_is_no_state_to_go_on_from(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    state = {"opt_state": {"mu": jnp.array([0.0, jnp.nan])}}
    checkpoints.save(1, state, {})
    checkpoints.wait()
    with pytest.raises(UserError, match="opt_state/mu is not finite"):
        read_state(checkpoints.path(1), state)
    checkpoints.close()


def test_of_many_arrays_that_cannot_be_read_one_is_told(tmp_path, capfd):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_best=2, keep_latest=2)
    for step in (1, 2):
        arrays = {f"w{n}": jnp.arange(4096, dtype=jnp.float32) * n for n in range(12)}
        checkpoints.save(step, {"params": arrays}, {"n": step}, {METRIC: step / 10})
    checkpoints.close()
    for file in _files(tmp_path / "checkpoints" / "2" / "state"):
        if (size := file.stat().st_size) > 3000:
            file.write_bytes(file.read_bytes()[: size // 3] + bytes(size - size // 3))
    newest, said = set_damaged_aside(tmp_path / "checkpoints")
    gc.collect()
    assert (newest, len(said)) == (1, 1)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("what", "told"), [("sums", "is not what was saved"), ("crc32", "has no checksum")]
)
def test_a_checkpoint_without_its_checksums_is_damaged(tmp_path, what, told):
    folder = _save(tmp_path / "checkpoints")
    file = folder / "2" / "extra" / "metadata"
    extra = json.loads(file.read_text())
    del extra[what]
    file.write_text(json.dumps(extra))
    newest, (said,) = set_damaged_aside(folder)
    assert newest == 1
    assert told in said
