import pytest

from tests.tiny_aligner import make_config
from vtalign_jax.planning import hints, programs, topology

MACHINE = topology.Topology("v5e:2x2", 1, [None] * 4, None, 4)
CONFIG = make_config(train={"contrastive_batch": 128}, model={"remat": "none"})
REPORT = {
    "remat": "none",
    "memory": {
        "hbm_bytes": 100,
        "total_bytes": 200,
        "parts": {"frozen": 40},
        "largest_temporaries": [{"shape": "f32[9,9]", "bytes": 2**31}],
    },
}


def test_what_the_compiler_says_of_too_large_a_program_is_read():
    message = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory \
space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.

  Largest program allocations in hbm:

  1. Size: 3.25G
     Operator: op_name="jit(train_step)/jvp()/dot_general"
     Shape: bf16[256,729,4304]{2,1,0:T(8,128)(2,1)}
     Unpadded size: 3.20G
     Allocation type: HLO temp
     ==========================
"""
    wanted, largest = programs.read_exhausted(message)
    assert wanted == int(20.5 * 2**30)
    assert largest == ["3.25G bf16[256,729,4304] jit(train_step)/jvp()/dot_general"]
    short = "Ran out of memory on HBM, the total memory required for HLO temporaries (800.00G) \
exceeds available HBM (15.75G)."
    assert programs.read_exhausted(short) == (800 * 2**30, [])


def test_candidates_change_remat_then_the_microbatch_then_the_mesh():
    flags = [hints.changes(CONFIG, x) for x in hints.candidates(REPORT, CONFIG, MACHINE)]
    assert flags == [
        "--config.model.remat=full",
        "--config.model.remat=full --config.train.microbatch=8",
        "--config.model.remat=full --config.train.microbatch=2",
        "--config.model.remat=full --config.train.microbatch=2 --config.mesh.fsdp=4",
    ]


@pytest.mark.parametrize(
    ("fitting", "tries", "said"),
    [
        (1, 2, "it fits with --config.model.remat=full: 64 B (compiled)"),
        (2, 2, "it fits with --config.model.remat=full --config.train.microbatch=8: 64 B"),
        (0, 0, "--tries=0 ended before --config.model.remat=full was compiled"),
        (0, 1, "microbatch=8 was compiled, after --config.model.remat=full did not fit"),
        (0, 9, "its largest buffer is f32[9,9], 2.00 GiB; take more chips"),
    ],
)
def test_a_setting_that_was_planned_and_fits_is_named_or_what_was_tried(fitting, tries, said):
    planned = []

    def plan(config):
        planned.append(config)
        return {"fits": len(planned) == fitting, "memory": {"total_bytes": 64}}

    assert said in hints.search(REPORT, CONFIG, MACHINE, plan, tries)
    assert len(planned) <= tries


def test_without_anything_left_to_turn_the_buffer_is_named():
    full = REPORT | {"remat": "full"}
    config = make_config(train={"contrastive_batch": 4})
    said = hints.search(full, config, MACHINE._replace(devices=[None]), None, 0)
    assert said.startswith("--tries=0 ended before --config.train.microbatch")
    config = make_config(train={"contrastive_batch": 4}, mesh={"fsdp": 4})
    said = hints.search(full, config, MACHINE, None, 2)
    assert said.startswith("no setting tried fits (there is none); its largest buffer is f32[9,9]")
