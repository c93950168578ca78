"""The TPU kernels, interpreted on the CPU, against float64; and lowered for a TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from vtalign_jax.models import attention_tpu
from vtalign_jax.models.attention import attention

CASES = {  # B, S, N, K, H, causal
    "tower": (1, 729, 2, 2, 72, False),
    "decoder": (2, 301, 4, 4, 64, True),  # ragged, two heads fill the lanes
    "grouped": (2, 37, 6, 2, 64, True),
    "one row": (1, 1, 2, 1, 8, True),
}


def _inputs(batch, length, heads, key_heads, size):
    rng = np.random.default_rng(0)
    shapes = [(batch, length, n, size) for n in (heads, key_heads, key_heads, heads)]
    return [rng.standard_normal(shape) for shape in shapes]


def _mask(batch, length):
    """Hide the last keys of the first row and, if there is one, the first of the second."""
    mask = np.ones((batch, length), bool)
    mask[0, length - length // 8 :] = False
    mask[1:, : length // 5] = False
    return mask


def _reference(q, k, v, slope, mask, causal):
    """Return attention and its gradients to q, k, v in float64; heads share keys in groups."""
    groups = q.shape[2] // k.shape[2]
    k, v = (np.repeat(x, groups, axis=2) for x in (k, v))
    size = q.shape[-1]
    logits = np.einsum("BSNH,BTNH->BNST", q, k) / np.sqrt(size)
    length = logits.shape[-1]
    allowed = np.tril(np.ones((length, length), bool)) if causal else np.ones((length, length))
    allowed = np.logical_and(allowed, mask[:, None, None, :])
    logits = np.where(allowed, logits, -np.inf)
    top = logits.max(-1, keepdims=True)
    weights = np.exp(logits - np.where(np.isfinite(top), top, 0.0))
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    out = np.einsum("BNST,BTNH->BSNH", weights, v)
    to_weights = np.einsum("BSNH,BTNH->BNST", slope, v)
    to_logits = weights * (to_weights - (to_weights * weights).sum(-1, keepdims=True))
    to_logits /= np.sqrt(size)
    gradients = [
        np.einsum("BNST,BTNH->BSNH", to_logits, k),
        np.einsum("BNST,BSNH->BTNH", to_logits, q),
        np.einsum("BNST,BSNH->BTNH", weights, slope),
    ]
    for i in (1, 2):
        shape = (*gradients[i].shape[:2], -1, groups, size)
        gradients[i] = gradients[i].reshape(shape).sum(3)
    return out, gradients


@pytest.mark.parametrize(
    ("case", "dtype", "tolerance"),
    [*((case, jnp.float32, 1e-5) for case in CASES), ("decoder", jnp.bfloat16, 2e-2)],
)
def test_kernels_agree_with_float64_forward_and_backward(case, dtype, tolerance):
    # bfloat16: weights and slopes are rounded to 2^-9 before their products.
    *shape, causal = CASES[case]
    batch, length = shape[:2]
    inputs = [np.asarray(jnp.asarray(x, dtype), np.float64) for x in _inputs(*shape)]
    mask = _mask(batch, length)
    # A query without any key is a finite mixture that nobody reads: no gradient comes from it.
    if causal:
        inputs[3] *= (np.cumsum(mask, axis=1) > 0)[:, :, None, None]
    out, gradients = _reference(*inputs, mask, causal)
    q, k, v, slope = (jnp.asarray(x, dtype) for x in inputs)
    with pltpu.force_tpu_interpret_mode():
        found = attention_tpu.attend(q, k, v, jnp.asarray(mask), causal=causal)
        slopes = attention_tpu.differentiate(q, k, v, jnp.asarray(mask), slope, causal=causal)
    seen = (np.cumsum(mask, axis=1) > 0) if causal else np.ones_like(mask)
    for ours, expected in zip((found, *slopes), (out, *gradients), strict=True):
        ours = np.asarray(ours, np.float64)
        assert np.isfinite(ours).all()
        if ours.shape == out.shape and expected is out:
            ours, expected = ours[seen], expected[seen]
        assert np.abs(ours - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("case", CASES)
def test_a_tpu_program_holds_the_kernels_and_no_logits(case):
    *shape, causal = CASES[case]
    q, k, v, _ = (jnp.asarray(x, jnp.bfloat16) for x in _inputs(*shape))
    mask = jnp.asarray(_mask(*shape[:2]))

    def loss(q, k, v):
        return attention(q, k, v, key_mask=mask, causal=causal).astype(jnp.float32).sum()

    text = jax.export.export(jax.jit(jax.grad(loss, (0, 1, 2))), platforms=["tpu"])(
        q, k, v
    ).mlir_module()
    assert "attention_gradient" in text
    assert "tpu_custom_call" in text
    if shape[1] > 1:
        assert f"x{shape[1]}x{shape[1]}x" not in text
