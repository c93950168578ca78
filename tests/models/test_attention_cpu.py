import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vtalign_jax.models.attention_cpu import attention_by_head

# rows, length, heads, key-value heads, head size: the towers' (a frame of 729 patches), decoders
# of a length that no span divides, and one that is a span alone.
SHAPES = {
    "large tower": (1, 729, 2, 2, 72),
    "decoder": (2, 293, 6, 2, 64),
    "text": (8, 21, 3, 1, 8),
}


def _inputs(shape):
    batch, length, heads, shared, size = shape
    rng = np.random.default_rng(0)
    q, slope = (rng.standard_normal((batch, length, heads, size)) for _ in range(2))
    k, v = (rng.standard_normal((batch, length, shared, size)) for _ in range(2))
    mask = rng.random((batch, length)) < 0.8
    mask[:, 0] = True  # each causal query sees a key
    return q, k, v, slope, mask


def _reference(q, k, v, slope, allowed):
    """Return the mixtures and the gradients to q, k and v, in float64; allowed bool[B, S, T]."""
    groups, scale = q.shape[2] // k.shape[2], q.shape[3] ** -0.5
    keys, values = (np.repeat(x, groups, axis=2) for x in (k, v))
    logits = np.einsum("bsnh,btnh->bnst", q, keys) * scale
    logits = np.where(allowed[:, None], logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    to_weights = np.einsum("bsnh,btnh->bnst", slope, values)
    to_logits = weights * (to_weights - (weights * to_weights).sum(-1, keepdims=True)) * scale
    to_q = np.einsum("bnst,btnh->bsnh", to_logits, keys)
    to_k = np.einsum("bnst,bsnh->btnh", to_logits, q)
    to_v = np.einsum("bnst,bsnh->btnh", weights, slope)
    to_k, to_v = (x.reshape(*k.shape[:3], groups, -1).sum(3) for x in (to_k, to_v))
    return np.einsum("bnst,btnh->bsnh", weights, values), to_q, to_k, to_v


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_mixtures_and_gradients_are_those_of_float64(shape, masked, causal):
    q, k, v, slope, mask = _inputs(shape)
    length = q.shape[1]
    allowed = np.tri(length, dtype=bool) if causal else np.ones((length, length), bool)
    allowed = np.broadcast_to(allowed, (len(q), length, length))
    if masked:
        allowed = allowed & mask[:, None]
    expected = _reference(q, k, v, slope, allowed)
    key_mask = jnp.asarray(mask) if masked else None

    @jax.jit
    def both(q, k, v, slope):
        def attend(*x):
            return attention_by_head(*x, key_mask=key_mask, causal=causal)

        mixed, pull = jax.vjp(attend, q, k, v)
        return mixed, *pull(slope)

    ours = both(*(x.astype(np.float32) for x in (q, k, v, slope)))
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_a_query_without_any_key_is_finite_and_moves_nothing_but_values():
    q, k, v, slope, _ = _inputs(SHAPES["text"])
    mask = jnp.zeros(q.shape[:2], bool)
    inputs = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    mixed, pull = jax.vjp(lambda *x: attention_by_head(*x, key_mask=mask, causal=True), *inputs)
    to_q, to_k, to_v = pull(jnp.asarray(slope, jnp.float32))
    assert np.isfinite(mixed).all()
    assert np.isfinite(to_v).all()
    assert not np.any(to_q)
    assert not np.any(to_k)


def test_bfloat16_inputs_get_float32_products_and_their_own_dtype_back():
    q, k, v, slope, _ = _inputs(SHAPES["text"])
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    mixed, pull = jax.vjp(lambda *x: attention_by_head(*x, causal=True), *inputs)
    gradient = pull(jnp.asarray(slope, jnp.bfloat16))
    assert {x.dtype for x in (mixed, *gradient)} == {jnp.dtype(jnp.bfloat16)}
    exact = [np.asarray(x, np.float64) for x in (*inputs, jnp.asarray(slope, jnp.bfloat16))]
    allowed = np.broadcast_to(np.tri(q.shape[1], dtype=bool), (len(q), *2 * (q.shape[1],)))
    for one, other in zip((mixed, *gradient), _reference(*exact, allowed), strict=True):
        # The result is rounded once, 2^-9; what is derived from the rounded mixture a little more.
        np.testing.assert_allclose(
            np.asarray(one, np.float64), other, rtol=0, atol=8e-3 * np.abs(other).max()
        )


def test_rows_stay_on_their_devices():
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("rows"))
    q, k, v, _, mask = _inputs(SHAPES["text"])
    q, k, v, mask = (
        jax.ShapeDtypeStruct((16, *x.shape[1:]), x.dtype, sharding=rows)
        for x in (jnp.float32(q), jnp.float32(k), jnp.float32(v), mask)
    )

    def total(q, k, v, mask):
        return attention_by_head(q, k, v, key_mask=mask, causal=True).sum()

    gradient = jax.grad(total, argnums=(0, 1, 2))
    compiled = jax.jit(gradient, out_shardings=rows).lower(q, k, v, mask).compile().as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in compiled
