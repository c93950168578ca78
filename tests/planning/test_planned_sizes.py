"""The 2.2B model, compiled for TPUs that are not here: minutes each."""

import pytest

from vtalign_jax import sharding
from vtalign_jax.config import resolve
from vtalign_jax.planning import collectives, programs, report, topology
from vtalign_jax.planning.abstract import find_base, make_given
from vtalign_jax.training.assemble import assemble_of

pytestmark = pytest.mark.slow
NAME = "HuggingFaceTB/SmolVLM2-2.2B-Instruct"
PLAN = {"itm_weight": 0.5, "caption_weight": 0.2}
GATHERED = 32_768 * 1024 * 4  # bytes of the embeddings of one modality, float32


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    for name, value in topology.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def loss_of(name, pairs, **objective):
    config = resolve({"objective": objective, "train": {"contrastive_batch": pairs}})
    machine = topology.describe(name)
    mesh = sharding.make_mesh(config.mesh, machine.devices)
    base = find_base(NAME, config.data.frames, 4.0)
    assembly = assemble_of(base.config, config)
    given = make_given(assembly, base, config, mesh)
    program = programs.compile_loss(assembly, given, config, mesh)
    return program, collectives.find(program.module, len(machine.devices), 1)


def test_the_loss_of_32768_pairs_on_256_chips_takes_two_percent_of_their_memory():
    program, exchanges = loss_of("v5e:16x16", 32_768)
    assert program.memory["temp"] <= 328 * 2**20
    large = {(x.kind, x.bytes): times for x, times in exchanges.items() if x.bytes > 2**24}
    assert large == {("all-gather", GATHERED): 1, ("all-reduce", GATHERED): 1}


def test_matching_adds_one_gathering_of_each_modality_and_one_way_back():
    _, exchanges = loss_of("v5e:16x16", 32_768, itm_weight=0.5)
    large = {(x.kind, x.bytes): times for x, times in exchanges.items() if x.bytes > 2**24}
    assert large == {("all-gather", GATHERED): 2, ("all-reduce", GATHERED): 3}


def test_what_the_loss_exchanges_grows_with_the_global_batch_alone():
    payloads = []
    for name in ("v5e:2x2", "v5e:4x4"):
        _, exchanges = loss_of(name, 4096, itm_weight=0.5)
        payloads.append(sum(x.bytes * n for x, n in exchanges.items() if x.bytes > 2**20))
    # Sixteen chips, not four. The compiler pads what four reduce, 4,096 rows, by 32.
    assert payloads[0] == pytest.approx(payloads[1], rel=0.01)


def test_32_clips_of_8_frames_fit_on_one_v5e_chip():
    config = resolve({"objective": PLAN})
    base = find_base(NAME, config.data.frames, 4.0)
    machine = topology.describe("v5e:1x1")
    found = report.make_report(base, config, machine, report.Asked(0, 0.0))
    assert found["fits"]
    assert found["memory"]["programs"][0]["unread_loops"] == []
    assert 0.1 < found["mfu"] < 1
