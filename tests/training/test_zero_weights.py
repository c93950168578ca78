"""A loss of weight 0 leaves nothing in the step: no leaf, no read, no product, no random number."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from tests.tiny_aligner import HF_CONFIG, make_aligner, make_batch, make_config
from vtalign_jax import sharding
from vtalign_jax.config import MeshConfig
from vtalign_jax.training.state import init_state
from vtalign_jax.training.step import make_train_step


def trace(**weights):
    """Return (equations of a step, paths of the arguments it reads)."""
    config = make_config(tune={"dropout": 0.0}, objective=weights)
    bind, params, frozen = make_aligner(config)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = optax.sgd(0.1)
    step = make_train_step(bind, optimizer, lambda step: 0.1, config, mesh)
    batch = jax.tree.map(jnp.asarray, make_batch(8, has_captions=True))
    arguments = (init_state(params, optimizer, 0, mesh), frozen, batch)
    (call,) = jax.make_jaxpr(step)(*arguments).eqns
    inner = call.params["jaxpr"].jaxpr
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(arguments)]
    used = reads(inner)
    read = [path for path, x in zip(paths, inner.invars, strict=True) if id(x) in used]
    return list(equations(inner)), read


@pytest.mark.parametrize(
    ("itm_weight", "caption_weight"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.2)], ids=str
)
def test_a_step_holds_only_the_losses_that_have_a_weight(itm_weight, caption_weight):
    equations, read = trace(itm_weight=itm_weight, caption_weight=caption_weight)

    def is_read(name):
        return any(name in path for path in read)

    assert is_read("clip_ids")
    assert is_read("matching_head") == (itm_weight > 0)
    assert is_read("caption_mask") == is_read("lm_head") == (caption_weight > 0)
    words = HF_CONFIG["text_config"]["vocab_size"]
    products = [e for e in equations if e.primitive.name == "dot_general"]
    assert products
    assert any(words in e.outvars[0].aval.shape for e in products) == (caption_weight > 0)
    draws = [e for e in equations if "random" in e.primitive.name]
    assert bool(draws) == (itm_weight > 0)


def reads(jaxpr):
    """Return the ids of the variables that a jaxpr uses, inside what every device runs too."""
    used = {id(x) for x in jaxpr.outvars}
    for equation in jaxpr.eqns:
        taken = equation.invars
        if equation.primitive.name == "shard_map":
            (inner,) = jaxprs_in_params(equation.params)
            used_inside = reads(inner)
            pairs = zip(taken, inner.invars, strict=True)
            taken = [x for x, within in pairs if id(within) in used_inside]
        used |= {id(x) for x in taken}
    return used


def equations(jaxpr):
    """Yield the equations of a jaxpr and of all jaxprs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)
