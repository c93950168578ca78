import jax
import jax.numpy as jnp
import pytest

from vtalign_jax.errors import UserError
from vtalign_jax.training.profile import Profile


def _run(steps, tmp_path, made):
    """Return what was said by a run that makes these steps, and the files of its traces."""
    said = []
    profile = Profile(steps, said.append)
    double = jax.jit(lambda x: 2 * x)
    for step in made:
        profile.before(step, str(tmp_path))
        profile.after(step, {"loss": double(jnp.float32(step))})
    profile.close()
    return said, list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))


@pytest.mark.parametrize("made", [range(1, 6), range(3, 9), range(1, 4)], ids=str)
def test_one_trace_lies_where_tensorboard_looks(tmp_path, made):
    said, (trace,) = _run("2:4", tmp_path, made)  # whole, resumed inside, ended inside
    assert trace.stat().st_size > 0
    assert said == [
        f"profile of the steps up to 4 in {tmp_path}/plugins/profile: "
        f"tensorboard --logdir={tmp_path}"
    ]


def test_steps_that_are_not_made_are_said(tmp_path):
    said, traces = _run("8:9", tmp_path, range(1, 4))
    assert said == ["warning: --profile_steps=8:9 are none of the steps made"]
    assert not traces


def test_nothing_is_traced_unless_asked_for(tmp_path):
    assert _run("", tmp_path, range(1, 4)) == ([], [])


@pytest.mark.parametrize("steps", ["10", "5:4", "0:3", "a:b", "1:2:3", "-1:4"])
def test_what_is_no_span_of_steps_is_refused(steps):
    with pytest.raises(UserError, match="10:15"):
        Profile(steps)
