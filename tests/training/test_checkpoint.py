import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vtalign_jax.errors import UserError
from vtalign_jax.training.checkpoint import (
    METRIC,
    Checkpoints,
    find_checkpoint,
    read_extra,
    read_state,
)

ROOT = pathlib.Path(__file__).parents[2]


def _state(rows=16, value=0.0) -> dict:
    params = {
        "head.fc1.kernel": jnp.arange(rows * 8, dtype=jnp.float32).reshape(rows, 8) + value,
        "log_temperature": jnp.float32(value),
    }
    opt_state = optax.adamw(1e-3).init(params)
    key_data = jax.random.key_data(jax.random.key(3))
    return {"step": jnp.int32(1), "params": params, "opt_state": opt_state, "seed": key_data}


def _on(state, devices: int):
    """The state, its kernel split by rows over the first `devices` devices."""
    mesh = jax.make_mesh(
        (devices,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )

    def place(x):
        spec = PartitionSpec("fsdp") if x.ndim == 2 else PartitionSpec()
        return jax.device_put(x, NamedSharding(mesh, spec))

    return jax.tree.map(place, state)


def _abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def _assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "checkpoints")
    yield made
    made.close()


def test_state_comes_back_on_another_number_of_devices(checkpoints):
    state = _state(value=0.5)
    checkpoints.save(1, _on(state, 8), {})
    for devices in (1, 2, 8):
        abstract = _abstract(_on(state, devices))
        restored = checkpoints.restore(checkpoints.latest_step(), abstract)
        _assert_equal(restored.state, state)
        kernel = restored.state["params"]["head.fc1.kernel"]
        assert kernel.sharding == abstract["params"]["head.fc1.kernel"].sharding
        assert len(kernel.addressable_shards) == devices


def test_saving_and_restoring_warns_of_nothing(checkpoints, caplog):
    checkpoints.save(1, _state(), {})
    checkpoints.save(2, _state(), {}, {METRIC: 0.5})
    checkpoints.restore(checkpoints.latest_step(), _abstract(_state()))
    assert [r.getMessage() for r in caplog.records if r.levelname != "INFO"] == []


def test_extra_comes_back_as_it_was(checkpoints):
    extra = {"early_stop": {"best": 0.25, "best_step": None}, "config": {"train": {"seed": 3}}}
    checkpoints.save(7, _state(), extra)
    restored = checkpoints.restore(checkpoints.latest_step(), _abstract(_state()))
    assert (restored.step, restored.extra) == (7, extra)


def test_best_and_newest_are_kept_across_restarts(tmp_path):
    values = {10: 0.3, 20: 0.8, 30: None, 40: 0.5, 50: None, 60: 0.7, 70: None}
    for step, value in values.items():
        checkpoints = Checkpoints(tmp_path, keep_best=2, keep_latest=1)  # a restart at every step
        checkpoints.save(step, _state(value=step), {}, None if value is None else {METRIC: value})
        checkpoints.close()
    checkpoints = Checkpoints(tmp_path, keep_best=2, keep_latest=1)
    assert checkpoints.steps() == [20, 60, 70]
    assert checkpoints.best_step() == 20
    assert checkpoints.latest_step() == 70
    _assert_equal(checkpoints.restore(20, _abstract(_state())).state, _state(value=20))
    checkpoints.close()


def test_newest_is_restored_whether_it_was_evaluated_or_not(checkpoints):
    checkpoints.save(1, _state(value=1), {}, {METRIC: 0.9})
    checkpoints.save(2, _state(value=2), {})
    assert checkpoints.restore(checkpoints.latest_step(), _abstract(_state())).step == 2
    checkpoints.save(3, _state(value=3), {}, {METRIC: 0.1})
    assert checkpoints.restore(checkpoints.latest_step(), _abstract(_state())).step == 3
    checkpoints.wait()
    assert sorted(p.name for p in checkpoints.directory.iterdir()) == ["1", "3"]


def test_first_of_two_equal_evaluations_is_the_best(checkpoints):
    for step in (1, 2, 3):
        checkpoints.save(step, _state(), {}, {METRIC: 0.5})
    assert checkpoints.best_step() == 1
    assert checkpoints.steps() == [1, 3]


def test_a_saved_step_is_not_written_again(checkpoints):
    checkpoints.save(5, _state(), {"n": 1}, {METRIC: 0.5})
    checkpoints.wait()
    before = (checkpoints.path(5) / "state").stat().mtime
    checkpoints.save(5, _state(), {"n": 2})
    checkpoints.wait()
    assert (checkpoints.path(5) / "state").stat().mtime == before
    assert checkpoints.restore(checkpoints.latest_step(), _abstract(_state())).extra == {"n": 1}


def test_metrics_can_be_added_to_a_saved_step(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, _state(), {"evaluated": False})
    assert checkpoints.best_step() is None
    checkpoints.save(5, _state(), {"evaluated": True}, {METRIC: 0.5})
    assert checkpoints.best_step() == 5
    checkpoints.save(6, _state(), {})
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, _state(), {})
    assert checkpoints.steps() == [5, 7]
    assert checkpoints.restore(5, _abstract(_state())).extra == {"evaluated": True}
    checkpoints.close()


def test_donated_buffers_do_not_reach_the_file(checkpoints):
    count = jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)
    state = _on({"w": jnp.zeros((512, 512))}, 8)
    for step in range(1, 6):
        state = count(state)
        checkpoints.save(step, state, {})
        for _ in range(3):  # while the save is under way
            state = count(state)
        restored = checkpoints.restore(checkpoints.latest_step(), _abstract(state))
        assert np.unique(restored.state["w"]) == [4 * step - 3]


def test_checkpoint_of_another_shape_is_one_line_naming_the_leaves(checkpoints):
    checkpoints.save(1, _state(rows=16), {})
    with pytest.raises(UserError) as error:
        checkpoints.restore(checkpoints.latest_step(), _abstract(_state(rows=24)))
    line = "params/head.fc1.kernel is float32[16, 8], this run needs float32[24, 8]"
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_unexpected_leaves_are_named(checkpoints):
    checkpoints.save(1, {"a": jnp.zeros(2), "b": jnp.zeros(3)}, {})
    checkpoints.wait()
    wanted = {
        "b": jax.ShapeDtypeStruct((3,), jnp.float32),
        "c": jax.ShapeDtypeStruct((), jnp.int32),
    }
    with pytest.raises(UserError, match=r"a is not in this model; c is missing"):
        read_state(checkpoints.path(1), wanted)


def test_part_of_a_checkpoint_can_be_read(checkpoints):
    state = _state(value=2.0)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    wanted = {"params": _abstract(state["params"])}
    restored = read_state(checkpoints.path(1), wanted, partial=True)
    _assert_equal(restored["params"], state["params"])


def test_no_checkpoint_is_the_latest_of_none(checkpoints):
    assert checkpoints.latest_step() is None
    assert checkpoints.best_step() is None


def test_find_takes_the_best_of_a_workdir_and_names_it(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_latest=2)
    checkpoints.save(1, _state(), {})
    checkpoints.wait()
    path, line = find_checkpoint(tmp_path)
    assert path.name == "1"
    assert "none was evaluated" in line
    checkpoints.save(2, _state(), {}, {METRIC: 0.75})
    checkpoints.save(3, _state(), {}, {METRIC: 0.5})
    checkpoints.close()
    for given in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "2"):
        path, line = find_checkpoint(given)
        assert path == (tmp_path / "checkpoints" / "2").resolve()
    assert find_checkpoint(tmp_path)[1].endswith(f"(the best of {tmp_path}: {METRIC} 0.7500)")


def test_find_refuses_what_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        find_checkpoint(tmp_path / "absent")
    with pytest.raises(UserError, match="no finished checkpoint"):
        find_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json is a file; give a workdir"):
        find_checkpoint(tmp_path / "config.json")


def test_a_checkpoint_with_cut_off_arrays_is_named(checkpoints):
    checkpoints.save(1, _state(), {})
    checkpoints.wait()
    path = checkpoints.path(1)
    for file in pathlib.Path(path, "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(UserError, match=r"is damaged .*move it away"):
        read_state(path, _abstract(_state()))


def test_a_checkpoint_copied_in_part_is_refused(checkpoints):
    checkpoints.save(1, _state(), {})
    checkpoints.wait()
    path = checkpoints.path(1)
    extra = path / "extra" / "metadata"
    extra.write_text('{"config": ')
    with pytest.raises(UserError, match=r"cannot read .*extra/metadata .*copy the checkpoint"):
        read_extra(path)
    (path / "state").rename(path / "lost")
    with pytest.raises(UserError, match="has no state; copy the whole folder"):
        read_state(path, _abstract(_state()))
    with pytest.raises(UserError, match="no finished checkpoint"):
        find_checkpoint(path)


_KILLED = """
    import os, pathlib, signal, sys
    import numpy as np
    from vtalign_jax.training.checkpoint import Checkpoints
    folder = pathlib.Path(sys.argv[1])
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, {"w": np.full(4, 1.0, np.float32)}, {"n": 1})
    checkpoints.wait()
    big = np.random.default_rng(0).standard_normal(2**24).astype(np.float32)
    checkpoints.save(2, {"w": big}, {"n": 2})
    while not any(folder.glob("2.*")):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_during_a_save_leaves_the_one_before(tmp_path):
    script = [sys.executable, "-c", textwrap.dedent(_KILLED), str(tmp_path)]
    assert subprocess.run(script, cwd=ROOT).returncode == -signal.SIGKILL
    left = {p.name for p in tmp_path.iterdir()}
    assert "1" in left
    assert "2" not in left
    assert any(name.startswith("2.") for name in left)
    (partial,) = tmp_path.glob("2.*")
    with pytest.raises(UserError, match="no finished checkpoint"):
        find_checkpoint(partial)
    assert find_checkpoint(tmp_path)[0].name == "1"

    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(
        checkpoints.latest_step(), {"w": jax.ShapeDtypeStruct((4,), jnp.float32)}
    )
    assert (restored.step, restored.extra) == (1, {"n": 1})
    checkpoints.save(2, {"w": jnp.zeros(4)}, {"n": 2})
    checkpoints.close()
    assert [p.name for p in tmp_path.iterdir()] == ["2"]


_ONE_OF_TWO = """
    import sys
    import jax
    jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[3]))
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    from vtalign_jax.training.checkpoint import METRIC, Checkpoints
    mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    whole = np.arange(48, dtype=np.float32).reshape(16, 3)
    state = {"w": jax.make_array_from_callback(whole.shape, split, lambda i: whole[i])}
    checkpoints = Checkpoints(sys.argv[1])
    checkpoints.save(1, state, {"n": 1})
    checkpoints.save(1, state, {"n": 2}, {METRIC: 0.5})
    checkpoints.save(2, state, {"n": 3})
    checkpoints.save(3, state, {"n": 4})
    abstract = {"w": jax.ShapeDtypeStruct(whole.shape, whole.dtype, sharding=split)}
    restored = checkpoints.restore(checkpoints.latest_step(), abstract)
    for shard in restored.state["w"].addressable_shards:
        np.testing.assert_array_equal(shard.data, whole[shard.index])
    assert (restored.step, restored.extra) == (3, {"n": 4})
    assert (checkpoints.steps(), checkpoints.best_step()) == ([1, 3], 1)
    checkpoints.close()
"""


def test_two_processes_save_together_and_one_restores(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    script = [sys.executable, "-c", textwrap.dedent(_ONE_OF_TWO), str(tmp_path), port]
    both = [subprocess.Popen([*script, str(index)], cwd=ROOT) for index in range(2)]
    try:
        assert [process.wait(timeout=120) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
    path, line = find_checkpoint(tmp_path)
    assert "0.5000" in line
    state = read_state(path, {"w": jax.ShapeDtypeStruct((16, 3), jnp.float32)})
    np.testing.assert_array_equal(state["w"], np.arange(48).reshape(16, 3))


def test_what_a_killed_removal_left_is_cleared_and_none_looks_like_a_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints"
    made = Checkpoints(folder)
    for step in (1, 2, 3):
        made.save(step, _state(), {}, {METRIC: 1.0 / step})
    made.close()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "3"]
    shutil.copytree(folder / "3", folder / "4")
    (folder / "4" / "extra" / "metadata").unlink()  # half removed, as a bucket does it
    (folder / ".removed" / "2").mkdir(parents=True)
    again = Checkpoints(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "3"]
    assert (again.steps(), again.best_step()) == ([1, 3], 1)
    again.close()
