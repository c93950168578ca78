import jax.numpy as jnp
import numpy as np
import pytest

from vtalign_jax.models.attention import attention

B, S, N, K, H = 2, 5, 6, 2, 4


def _inputs():
    rng = np.random.default_rng(0)
    shapes = ((B, S, N, H), (B, S, K, H), (B, S, K, H))
    return [rng.standard_normal(shape) for shape in shapes]


def _reference(q, k, v, allowed):
    """Return attention in float64, one head and one query at a time."""
    out = np.zeros((B, S, N, H))
    for b, head, i in np.ndindex(B, N, S):
        keys = [j for j in range(S) if allowed(b, i, j)]
        group = head // (N // K)
        logits = np.array([q[b, i, head] @ k[b, j, group] for j in keys]) / np.sqrt(H)
        weights = np.exp(logits - logits.max())
        out[b, i, head] = (weights / weights.sum()) @ v[b, keys, group]
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_heads_share_keys_and_masks_hide_them(causal, masked):
    q, k, v = _inputs()
    mask = np.ones((B, S), bool)
    if masked:
        mask[0, 3:], mask[1, 1] = False, False
    expected = _reference(q, k, v, lambda b, i, j: mask[b, j] and (j <= i or not causal))
    ours = attention(
        *(x.astype(np.float32) for x in (q, k, v)),
        key_mask=jnp.asarray(mask) if masked else None,
        causal=causal,
    )
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_query_without_any_key_is_finite():
    mask = jnp.zeros((B, S), bool).at[:, 3:].set(True)
    q, k, v = (jnp.asarray(x, jnp.float32) for x in _inputs())
    assert np.isfinite(attention(q, k, v, key_mask=mask, causal=True)).all()


def test_bfloat16_inputs_get_a_float32_softmax():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in _inputs())
    ours = attention(q * 8, k * 8, v, causal=True)
    assert ours.dtype == jnp.bfloat16
    q64, k64, v64 = (np.asarray(x, np.float64) for x in (q * 8, k * 8, v))
    expected = _reference(q64, k64, v64, lambda b, i, j: j <= i)
    # One rounding of the weights and one of the result, 2^-9 each.
    assert np.abs(np.asarray(ours, np.float64) - expected).max() < 8e-3 * np.abs(expected).max()
