"""Sets the platform, the device count and the offline switches before anything imports JAX.

Tests of the sample data are left out where there are none, and said to be.
"""

import atexit
import os
import shutil
import tempfile

from tests.quick_compilation import XLA_FLAGS
from tests.samples import SAMPLES

DEVICES = 8
# Folders of files that take longest begin first, so that all test processes end together.
LONGEST = ("campaigns", "launch", "training", "planning", "feature_cache", "interop", "pipeline")

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        *os.environ.get("XLA_FLAGS", "").split(),
        f"--xla_force_host_platform_device_count={DEVICES}",
        XLA_FLAGS,
    ]
)
# What one test has compiled, another test, worker or command reads.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="vtalign_jax_compiled_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that would download must fail instead
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # torch beside JAX, in two test processes
    os.environ[name] = "1"

import jax  # noqa: E402  (the variables above are read when JAX is imported)
import pytest  # noqa: E402

from tests import fake_gcs  # noqa: E402

assert jax.device_count() == DEVICES, f"expected {DEVICES} CPU devices, got {jax.devices()}"


@pytest.fixture(scope="session")
def gcs():
    """A server that speaks Cloud Storage; clients read where it is once, when they are imported."""
    with fake_gcs.serve() as server:
        os.environ.update(server.environment())
        yield server


@pytest.fixture
def bucket(gcs):
    """An empty bucket."""
    yield gcs.make_bucket()
    gcs.refuse = lambda method, name: 0


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vtalign_jax"


def pytest_report_header():
    found = "" if SAMPLES.is_dir() else " is absent, its tests are left out"
    return f"sample data: {SAMPLES}{found}"


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.parent.name not in LONGEST)
    if SAMPLES.is_dir():
        return
    left_out = [item for item in items if item.get_closest_marker("samples")]
    items[:] = [item for item in items if not item.get_closest_marker("samples")]
    config.hook.pytest_deselected(items=left_out)
