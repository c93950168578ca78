import jax
import pytest

from tests.tiny_aligner import make_config
from vtalign_jax.interop import public_bases
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.training import remat

BASE = SmolVLMConfig.from_hf(public_bases.CONFIGS["HuggingFaceTB/SmolVLM2-2.2B-Instruct"])
TOKENS, GIB = 787, 2**30


def chosen(gibibytes, connector="lora", **train):
    tune = {"connector": connector, "text_blocks": 8}
    config = make_config(model={"remat": "auto"}, data={"frames": 8}, tune=tune, train=train)
    settled = remat.settle(config, BASE, TOKENS, 1, int(gibibytes * GIB))
    assert settled.train == config.train
    return settled.model.remat


@pytest.mark.parametrize(
    ("gibibytes", "level"),
    # Beside 4.4 GiB of model, 16 clips take 3.8 GiB more on a chip if all is computed again, 11
    # with attention kept (v5e has 11.4 left, and 16 clips were too many) and 19 with the MLPs.
    [(3, "full"), (11.4, "full"), (15, "mlp"), (27, "norms")],
)
def test_as_little_is_computed_again_as_the_free_memory_allows(gibibytes, level):
    assert chosen(gibibytes, contrastive_batch=16) == level


def test_blocks_that_nothing_goes_back_through_keep_nothing():
    assert chosen(14, contrastive_batch=16) == "mlp"
    assert chosen(14, "frozen", contrastive_batch=16) == "norms"


def test_a_streamed_step_leaves_the_memory_to_its_prefixes():
    assert chosen(60, contrastive_batch=64, microbatch=16) == "full"
    assert chosen(60, contrastive_batch=16, microbatch=16) == "norms"


def test_what_the_user_says_stands_and_asks_no_device(monkeypatch):
    monkeypatch.setattr(remat, "least_free_bytes", None)
    config = make_config(model={"remat": "mlp"})
    assert remat.settle(config, BASE, TOKENS, 1, 0) == config
    assembly = remat.assemble_of(BASE, config)
    assert remat.settled_bind(config, assembly, TOKENS, None, None) is assembly.bind


def test_the_model_of_a_run_is_bound_with_the_choice(monkeypatch):
    config = make_config(model={"remat": "auto"}, data={"frames": 2})
    assembly = remat.assemble_of(BASE, config)
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
    levels, said = [], []
    for free in (0, 2**40):
        monkeypatch.setattr(remat, "least_free_bytes", lambda device, free=free: (free, 0))
        bind = remat.settled_bind(config, assembly, TOKENS, mesh, said.append)
        model = bind(assembly.trainable | assembly.frozen)
        levels.append(model.base.text_model.remat)
    assert levels == ["full", "norms"]
    assert said[1] == "1024.0 GiB of a device are free: config.model.remat=norms"
