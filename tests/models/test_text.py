import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import filled
from flax import nnx

from vtalign_jax.errors import UserError
from vtalign_jax.models.configuration import TextConfig
from vtalign_jax.models.lora import AdapterConfig, Build
from vtalign_jax.models.text import TextModel, rotary_table, rotate

DEPTH, TUNED = 5, 2
CONFIG = TextConfig(
    vocab_size=30,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=DEPTH,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
    rope_theta=100.0,
)


def _decoder(tuned=TUNED, **options):
    adapters = AdapterConfig(text_blocks=tuned, rank=2, alpha=4.0, dropout=0.3)

    def make():
        build = Build(nnx.Rngs(0), jnp.float32, jnp.float32, adapters)
        return TextModel(CONFIG, build, **options)

    return filled(make)


@jax.jit
def _run(model, x, token_mask, keys=None):
    return model(x, token_mask, keys)


def _rows(count=2, length=6):
    return jax.random.normal(jax.random.key(5), (count, length, CONFIG.hidden_size))


def test_rotation_depends_on_the_distance_of_two_positions_only():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    table = rotary_table(20, 8, 100.0)
    turned_q, turned_k = (rotate(jnp.tile(x, (1, 20, 1, 1)), table)[0, :, 0] for x in (q, k))
    scores = np.asarray(turned_q @ turned_k.T)
    for distance in range(-19, 20):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=0, atol=1e-5 * np.abs(scores).max())
    np.testing.assert_allclose(rotate(q, rotary_table(1, 8, 100.0)), q, rtol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_valid_position(side):
    model, x = _decoder(), _rows()
    ones = jnp.ones(x.shape[:2], bool)
    expected = _run(model, x, ones)
    noise = 3.0 * jax.random.normal(jax.random.key(9), (2, 4, CONFIG.hidden_size))
    parts, masks = ([noise, x], [ones[:, :4] & False, ones])
    if side == "right":
        parts, masks = parts[::-1], masks[::-1]
    padded = _run(model, jnp.concatenate(parts, 1), jnp.concatenate(masks, 1))
    valid = padded[:, 4:] if side == "left" else padded[:, :-4]
    np.testing.assert_allclose(valid, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_position_sees_nothing_after_it():
    model, x = _decoder(), _rows()
    ones = jnp.ones(x.shape[:2], bool)
    changed = _run(model, x.at[:, 4:].set(7.0), ones)
    np.testing.assert_array_equal(changed[:, :4], _run(model, x, ones)[:, :4])


@pytest.mark.parametrize("tuned", [0, 1, DEPTH])
def test_how_many_blocks_are_tuned_moves_weights_between_the_stacks_and_changes_nothing(tuned):
    whole, split = _decoder(0), _decoder(tuned)
    if tuned:
        for name, leaf in vars(split.tuned_layers.self_attn).items():
            if name.endswith("_proj"):
                leaf.lora_b[...] *= 0.0
    assert (split.layers is None) == (tuned == DEPTH)
    assert (split.tuned_layers is None) == (tuned == 0)
    source = dict(nnx.to_flat_state(nnx.state(whole.layers)))
    places = {"layers": slice(0, DEPTH - tuned), "tuned_layers": slice(DEPTH - tuned, None)}
    for name, place in places.items():
        for path, leaf in nnx.to_flat_state(nnx.state(getattr(split, name) or nnx.Dict())):
            if path in source:
                leaf[...] = source[path][...][place]
    x = _rows()
    ones = jnp.ones(x.shape[:2], bool)
    expected, ours = _run(whole, x, ones), _run(split, x, ones)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    layers = jax.jit(lambda model: model.every_layer(x, ones))(split)
    assert layers.shape == (1 + DEPTH, *x.shape)
    np.testing.assert_allclose(split.norm(layers[-1]), ours, rtol=0, atol=1e-5)


def test_more_tuned_blocks_than_there_are_is_a_users_error():
    with pytest.raises(UserError, match="text_blocks is 6, but this decoder has 5"):
        _decoder(DEPTH + 1)


def _adapter_gradient(model, keys=None):
    """Return the gradient function of the adapters alone, and the adapters."""
    graphdef, adapters, rest = nnx.split(model, lambda path, _: "lora" in str(path[-1]), ...)
    x = _rows(3)

    def loss(adapters):
        hidden = nnx.merge(graphdef, adapters, rest)(x, jnp.ones(x.shape[:2], bool), keys)
        return jnp.sum(hidden[:, -1] ** 2)

    return jax.jit(jax.grad(loss)), adapters


def _scans(jaxpr):
    """Yield (length, is_reversed, number of outputs) of every scan in it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield (
                equation.params["length"],
                equation.params["reverse"],
                len(equation.outvars),
            )
        for value in equation.params.values():
            if hasattr(value, "jaxpr") or hasattr(value, "eqns"):
                yield from _scans(getattr(value, "jaxpr", value))


@pytest.mark.parametrize("remat", ["none", "norms", "mlp", "full"])
def test_no_backward_pass_is_built_below_the_first_tuned_block(remat):
    gradient, adapters = _adapter_gradient(_decoder(remat=remat))
    scans = list(_scans(jax.make_jaxpr(gradient)(adapters).jaxpr))
    lower = [scan for scan in scans if scan[0] == DEPTH - TUNED]
    assert lower == [(DEPTH - TUNED, False, 1)]  # forward, keeping nothing for a backward pass
    backward = [scan for scan in scans if scan[1]]
    assert [length for length, *_ in backward] == [TUNED]


def test_every_adapter_of_the_tuned_blocks_gets_a_gradient():
    gradient, adapters = _adapter_gradient(_decoder())
    found = jax.tree.leaves(gradient(adapters))
    assert len(found) == 2 * 4
    assert all(np.abs(leaf).max() > 0 for leaf in found)


def test_recomputing_blocks_changes_no_gradient_with_dropout_either():
    keys = jax.random.split(jax.random.key(2), 3)
    gradients = []
    for remat in ("none", "norms", "mlp", "full"):
        gradient, adapters = _adapter_gradient(_decoder(remat=remat), keys)
        gradients.append(jax.tree.leaves(gradient(adapters)))
    for plain, *recomputed in zip(*gradients, strict=True):
        for other in recomputed:
            np.testing.assert_allclose(plain, other, rtol=0, atol=1e-5 * np.abs(plain).max())


def test_a_row_with_dropout_is_the_same_alone_and_in_a_batch():
    model = _decoder()
    x, keys = _rows(3), jax.random.split(jax.random.key(2), 3)
    ones = jnp.ones(x.shape[:2], bool)
    together = _run(model, x, ones, keys)
    alone = _run(model, x[1:2], ones[1:2], keys[1:2])
    np.testing.assert_allclose(together[1:2], alone, rtol=0, atol=1e-5)
    assert np.abs(together - _run(model, x, ones)).max() > 1e-3
    assert np.abs(together - _run(model, x, ones, keys[::-1])).max() > 1e-3


@pytest.mark.parametrize(("heads", "size"), [(4, 64), (3, 64), (8, 16), (2, 8)])
def test_heads_are_turned_by_halves_exactly_whatever_fills_a_register(heads, size):
    x = np.random.default_rng(0).standard_normal((2, 5, heads, size)).astype(np.float32)
    table = rotary_table(5, size, 10_000.0)
    cos, sin = (part[:, None, :] for part in table)
    a, b = x[..., : size // 2], x[..., size // 2 :]
    expected = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    np.testing.assert_allclose(rotate(jnp.asarray(x), table), expected, rtol=0, atol=1e-6)
    half = jnp.asarray(x, jnp.bfloat16)
    np.testing.assert_array_equal(
        rotate(half, table), rotate(half.astype(jnp.float32), table).astype(jnp.bfloat16)
    )
