import subprocess
import sys

import pytest

import vtalign_jax as vt


@pytest.mark.parametrize("name", ["Aligner", "ground", "load_smolvlm", "weighted_info_nce"])
def test_public_names_are_found_where_they_are_used(name):
    assert callable(getattr(vt, name))
    assert name in dir(vt)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vt.nothing


def test_importing_the_package_imports_no_jax():
    code = "import sys, vtalign_jax; sys.exit('jax' in sys.modules or 'flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
