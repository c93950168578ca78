import pathlib
import zlib

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from tests.training.test_session import open_session
from vtalign_jax.errors import UserError
from vtalign_jax.training import compiled


@pytest.fixture
def program(tmp_path):
    """The file that JAX keeps of a program; what was set before comes back."""
    before = {
        name: jax.config.values[name]
        for name in (
            "jax_compilation_cache_dir",
            "jax_persistent_cache_min_compile_time_secs",
            "jax_persistent_cache_min_entry_size_bytes",
        )
    }
    jax.config.update("jax_compilation_cache_dir", "")
    compilation_cache.reset_cache()
    compiled.keep(str(tmp_path))
    jax.jit(lambda x: jnp.tanh(x) * 3.0)(jnp.ones(7)).block_until_ready()
    yield next((tmp_path / compiled.FOLDER).glob("jit__lambda*-cache"))
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def keep_again(program: pathlib.Path) -> bool:
    """Return whether the file is there after another start."""
    jax.config.update("jax_compilation_cache_dir", "")
    compiled.keep(str(program.parents[1]))
    return program.exists()


def test_a_program_cut_off_by_a_kill_is_removed_and_a_whole_one_stays(program):
    content = program.read_bytes()
    assert keep_again(program)
    for cut in (0, 3, len(content) // 2, len(content) - 1):
        program.write_bytes(content[:cut])
        assert not keep_again(program), cut


def test_so_is_one_packed_by_zlib(program):
    packed = zlib.compress(bytes(range(256)) * 9)
    program.write_bytes(packed)
    assert keep_again(program)
    program.write_bytes(packed[:-1])
    assert not keep_again(program)


def test_only_the_holder_of_the_workdir_and_its_first_process_remove(program, monkeypatch):
    workdir = program.parents[1]
    session, _ = open_session(workdir)
    program.write_bytes(b"cut")
    jax.config.update("jax_compilation_cache_dir", "")
    with pytest.raises(UserError, match="is being written by process"):
        open_session(workdir)
    assert program.exists()
    session._lock.close()
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_index", lambda: 1)
        assert keep_again(program)
    jax.config.update("jax_compilation_cache_dir", "")
    open_session(workdir)[0]._lock.close()
    assert not program.exists()
    assert jax.config.jax_compilation_cache_dir == str(program.parent)
