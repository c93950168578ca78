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


@pytest.fixture(scope="module")
def traced():
    """Return (jaxpr of a step without ITM and captions, paths of the arguments it reads)."""
    config = make_config(tune={"dropout": 0.0})
    bind, params, frozen = make_aligner(config)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = optax.sgd(0.1)
    step = make_train_step(bind, optimizer, lambda step: 0.1, config, mesh)
    batch = jax.tree.map(jnp.asarray, make_batch(8))
    arguments = (init_state(params, optimizer, 0, mesh), frozen, batch)
    (call,) = jax.make_jaxpr(step)(*arguments).eqns
    inner = call.params["jaxpr"].jaxpr
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(arguments)]
    used = {id(x) for x in inner.outvars} | {id(x) for e in inner.eqns for x in e.invars}
    return inner, {path for path, x in zip(paths, inner.invars, strict=True) if id(x) in used}


def test_neither_captions_nor_the_matrix_of_words_are_read(traced):
    _, read = traced
    assert any("clip_ids" in path for path in read)
    assert not any("caption_mask" in path for path in read)
    assert not any("lm_head" in path for path in read)
    assert not any("matching_head" in path for path in read)


def test_no_logits_of_words_are_computed_and_no_negative_is_drawn(traced):
    inner, _ = traced
    equations = list(_equations(inner))
    products = [e for e in equations if e.primitive.name == "dot_general"]
    assert products
    words = HF_CONFIG["text_config"]["vocab_size"]
    assert not any(words in e.outvars[0].aval.shape for e in products)
    assert not [e for e in equations if "random" in e.primitive.name]


def _equations(jaxpr):
    """Yield the equations of a jaxpr and of all jaxprs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner)
