"""Plans of a small model, compiled for TPUs that are not here."""

import importlib.metadata

import jax
import pytest

from tests.tiny_aligner import HF_CONFIG, make_config
from vtalign_jax import sharding
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.planning import memory, programs, report, table, topology
from vtalign_jax.planning.abstract import Base, make_given
from vtalign_jax.training.assemble import assemble_of

BASE = Base(SmolVLMConfig.from_hf(HF_CONFIG), "the test", 14)
SMALL = {"tune": {"dropout": 0.0}, "data": {"frames": 2, "max_text_tokens": 8}}
ASKED = report.Asked(1000, 1.5)


def plan(name, slices=1, **sections):
    config = make_config(**SMALL, **sections)
    return report.make_report(BASE, config, topology.describe(name, slices), ASKED)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in topology.ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def direct():
    return plan("v5e:2x2", train={"contrastive_batch": 8})


def test_the_memory_of_a_direct_step_is_the_compilers(direct):
    found = direct["memory"]
    assert sum(found["parts"].values()) == found["compiler_bytes"]
    assert found["total_bytes"] == found["compiler_bytes"] + sum(found["beside"].values())
    assert "other" not in found["parts"]  # every argument is known by its name
    assert {"trainable", "optimizer", "frozen", "batch", "code"} < found["parts"].keys()
    assert direct["fits"]
    assert found["programs"][0]["unread_loops"] == []


def test_leaves_that_the_step_does_not_take_lie_beside_it(direct):
    beside = direct["memory"]["beside"]
    assert beside["unused leaves"] == 32 * 72 * 4  # lm_head: no captions are learnt
    assert beside["next batch"] == direct["memory"]["parts"]["batch"]


def test_the_loss_gathers_embeddings_and_the_gradient_is_reduced_once(direct):
    gathered = [row for row in direct["loss"]["collectives"] if row["kind"] == "all-gather"]
    assert max(row["bytes"] for row in gathered) >= 8 * 20 * 4
    reduced = [row for row in direct["collectives"] if row["kind"] == "all-reduce"]
    assert max(row["bytes"] for row in reduced) >= 4 * 32 * 32  # head.fc1's gradient
    assert {row["net"] for row in direct["collectives"]} == {"ICI"}


def test_time_and_cost_follow_from_the_cycles_and_the_kernels(direct):
    assert direct["cycles"] > 1000
    assert direct["kernel_seconds"] > 0  # attention
    computing = direct["cycles"] / 1.5e9 + direct["kernel_seconds"]
    assert direct["compute_seconds"] == pytest.approx(computing)
    assert direct["step_seconds"] == direct["compute_seconds"] + direct["ici_seconds"]
    assert direct["pairs_per_second"] == pytest.approx(8 / direct["step_seconds"])
    assert direct["frames_per_second"] == pytest.approx(16 / direct["step_seconds"])
    assert direct["epoch_steps"] == 125
    assert direct["epoch_hours"] == pytest.approx(125 * direct["step_seconds"] / 3600)
    assert direct["epoch_usd"] == pytest.approx(direct["epoch_hours"] * 4 * 1.5)
    assert direct["cache_bytes_per_clip"] == 2 * 16 * 24 * 2
    work = direct["flops_per_pair"]["weights"] * 8
    assert direct["mfu"] == pytest.approx(work / direct["compute_seconds"] / (4 * 197e12))


def test_the_table_says_what_the_report_holds(direct):
    shown = "\n".join(table.lines(direct))
    assert f"libtpu {importlib.metadata.version('libtpu')}" in shown
    for part in ("v5e:2x2 (4 chips, data 4 x fsdp 1)", "of 15.75 GiB, fits", "MFU", "125 steps"):
        assert part in shown


def test_a_streamed_step_counts_what_waits_beside_each_program():
    found = plan("v5e:2x2", train={"contrastive_batch": 24, "microbatch": 2})
    assert found["step"]["way"] == "streamed"
    assert (found["step"]["microbatches"], found["step"]["keep_prefix"]) == (3, "device")
    times = {program["name"]: program["times"] for program in found["memory"]["programs"]}
    assert times == {"embed": 3, "loss": 1, "accumulate": 3, "update": 1}
    per_program = [each["total_bytes"] for each in found["memory"]["programs"]]
    assert found["memory"]["total_bytes"] == max(per_program)
    cycles = sum(each["cycles"] * each["times"] for each in found["memory"]["programs"])
    assert found["cycles"] == cycles
    # Gradients add up device by device: nothing is exchanged between the microbatches.
    exchanging = {row["program"] for row in found["collectives"]}
    assert exchanging == {"loss", "update"}


def test_between_two_slices_only_embeddings_and_gradients_go_over_dcn():
    found = plan("v5p:2x2x1", 2, train={"contrastive_batch": 8}, mesh={"fsdp": 1})
    assert found["topology"]["chips"] == 8
    assert {row["net"] for row in found["collectives"]} == {"ICI", "DCN"}
    assert found["dcn_seconds"] > 0
    over_dcn = sum(row["bytes"] for row in found["collectives"] if row["net"] == "DCN")
    leaves = assemble_of(BASE.config, make_config(**SMALL)).trainable
    gradient = sum(4 * leaf.size for leaf in leaves.values())
    assert over_dcn < 2 * gradient


def test_abstract_arguments_are_those_that_a_step_is_given():
    config = make_config(**SMALL, train={"contrastive_batch": 8})
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:4])
    given = make_given(assemble_of(BASE.config, config), BASE, config, mesh)
    assert memory.device_bytes(given.batch.frames) == 2 * 2 * 16 * 16 * 3
    assert given.batch.clip_ids.shape == (8, 14)
    assert given.state.params.keys() == assemble_of(BASE.config, config).trainable.keys()
    assert all(x.sharding.mesh == mesh for x in jax.tree.leaves(given))


def test_a_cached_step_computes_nothing_below_its_features():
    sections = SMALL | {"tune": {"dropout": 0.0, "connector": "frozen"}}
    sections["train"] = {"contrastive_batch": 8, "microbatch": 4}
    cached = sections | {"data": SMALL["data"] | {"feature_cache": "features"}}
    machine = topology.describe("v5e:1x1", 1)
    reports = [
        report.make_report(BASE, make_config(**each), machine, ASKED) for each in (sections, cached)
    ]
    before, after = reports
    assert after["cycles"] < before["cycles"]
    assert after["pairs_per_second"] > before["pairs_per_second"]
    for kind in ("weights", "attention"):
        assert after["flops_per_pair"][kind] < before["flops_per_pair"][kind]
    assert after["read_bytes_per_clip"] == 2 * (14 + 8) * 32  # bfloat16, of clip and text
    assert "MB/s of features (depth decoder, bfloat16)" in "\n".join(table.lines(after))


def test_a_kernel_takes_its_operations_or_its_bytes_the_longer():
    chip = topology.chip_of("TPU v5 lite")
    computing = programs.Kernel(3, flops=197 * 10**9, bytes=1).seconds(chip, 1)
    assert computing == pytest.approx(3 * 1e-3 / 0.6)
    moving = programs.Kernel(2, flops=1, bytes=82 * 10**7).seconds(chip, 2)
    assert moving == pytest.approx(2 * 2 * 1e-3)
