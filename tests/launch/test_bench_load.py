import json

import pytest

from benchmarks import random_model
from tests.commands import one_error_line, run
from tests.interop import hf_models
from vtalign_jax.interop.tiny import write_tiny_checkpoint
from vtalign_jax.models.configuration import SmolVLMConfig

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    write_tiny_checkpoint(directory)
    return directory


def _row(tmp_path, *flags):
    return json.loads(run("launch/bench.py", "load", *flags).splitlines()[-1])


@pytest.mark.slow
def test_three_ways_of_loading_are_measured_and_the_scratch_folder_is_emptied(base, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    row = _row(tmp_path, f"--base={base}", f"--scratch={scratch}", "--repeats=1")
    ways = {"here", "converted", "peer"}
    assert row["seconds"].keys() == row["peak_to_weights"].keys() == ways
    assert all(peak > 0.01 for peak in row["peak_anonymous_gib"].values())
    ratio = row["seconds"]["here"] / row["seconds"]["peer"]
    assert row["ratio_to_peer"] == pytest.approx(ratio, rel=0.5, abs=0.1)
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_forward_passes_are_compared_layer_by_layer(base, tmp_path):
    row = _row(tmp_path, f"--base={base}", "--forward")
    for name in ("clip", "text"):
        assert 0 < row[f"{name}_worst_layer_error"] < 1e-4
        assert row[f"{name}_cosine_distance"] < 1e-6
        assert row[f"{name}_largest_state"] > 0.1


def test_a_scratch_folder_that_is_none_is_one_line(tmp_path):
    said = one_error_line(run("launch/bench.py", "load", "--scratch=/nowhere", code=2))
    assert "--scratch=/nowhere is no folder" in said


def test_the_random_checkpoint_has_the_numbers_of_the_2_2b_model():
    public = SmolVLMConfig.from_hf(hf_models.public_config("smolvlm2_2b_instruct"))
    assert SmolVLMConfig.from_hf(random_model.FULL_SIZE) == public
