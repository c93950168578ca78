import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtalign_jax.models import attention_gpu
from vtalign_jax.models.attention import attention, plain_attention

# length, heads, key-value heads, head size: a frame's patches, a clip's turn, short texts.
SHAPES = {"tower": (729, 2, 2, 72), "decoder": (851, 6, 2, 64), "text": (22, 4, 4, 64)}
SHORT = {"odd": (25, 2, 2, 72), "even, shared": (22, 4, 2, 64)}


def _inputs(shape):
    length, heads, shared, size = shape
    rng = np.random.default_rng(0)
    q, slope = (rng.standard_normal((2, length, heads, size)) for _ in range(2))
    k, v = (rng.standard_normal((2, length, shared, size)) for _ in range(2))
    mask = np.ones((2, length), bool)
    mask[0, -5:], mask[1, :7] = False, False  # padding on the right and on the left
    return [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v, slope)], jnp.asarray(mask)


def _both(attend, q, k, v, slope, shown):
    """Return the mixtures of the queries shown and the gradients to q, k and v."""
    mixed, pull = jax.vjp(attend, q, k, v)
    shown = 1 if shown is None else shown[..., None, None].astype(mixed.dtype)
    return mixed * shown, *pull(slope * shown)


def _check(attend, shape, masked, causal):
    (q, k, v, slope), mask = _inputs(shape)
    mask = mask if masked else None
    plain = functools.partial(plain_attention, key_mask=mask, causal=causal)
    # A padding position may mix what it likes, as long as it is finite: nothing reads it.
    found, known = (
        jax.jit(functools.partial(_both, form))(q, k, v, slope, mask)
        for form in (functools.partial(attend, mask, causal), plain)
    )
    for ours, expected in zip(found, known, strict=True):
        ours, expected = (np.asarray(x, np.float32) for x in (ours, expected))
        assert np.isfinite(ours).all()
        assert np.abs(ours - expected).max() < 2e-2 * np.abs(expected).max()


@pytest.mark.parametrize(("masked", "causal"), [(False, False), (True, True), (False, True)])
@pytest.mark.parametrize("shape", SHORT.values(), ids=SHORT)
def test_what_cudnn_is_asked_for_is_attention(monkeypatch, shape, masked, causal):
    """XLA answers in cuDNN's place: the same function of `jax.nn`, without its limits."""
    called = jax.nn.dot_product_attention

    def answer(q, k, v, *, implementation, **arguments):
        assert implementation == "cudnn"
        assert q.shape[1] % 2 == 0  # or cuDNN has no gradient
        return called(q, k, v, implementation="xla", **arguments)

    monkeypatch.setattr(jax.nn, "dot_product_attention", answer)
    _check(
        lambda mask, causal, *qkv: attention_gpu.attend(*qkv, mask, causal=causal),
        shape,
        masked,
        causal,
    )


@pytest.mark.parametrize(
    ("dtype", "size", "cudnn", "possible"),
    [
        (jnp.bfloat16, 72, True, True),
        (jnp.float32, 72, True, False),
        (jnp.bfloat16, 60, True, False),
        (jnp.bfloat16, 256, True, False),
        (jnp.bfloat16, 64, False, False),
    ],
)
def test_cudnn_is_taken_for_what_it_computes_alone(monkeypatch, dtype, size, cudnn, possible):
    monkeypatch.setattr(attention_gpu, "_has_cudnn", lambda: cudnn)
    assert attention_gpu.is_possible(jax.ShapeDtypeStruct((1, 4, 2, size), dtype)) is possible


@pytest.mark.parametrize(
    ("platform", "capability", "has"),
    [("cuda 12090", "7.5", False), ("cuda 12090", "8.0", True), ("cuda 13000", "12.0", True)],
)
def test_cudnn_has_flash_attention_from_ampere_on(monkeypatch, platform, capability, has):
    card = types.SimpleNamespace(compute_capability=capability)
    backend = types.SimpleNamespace(platform_version=platform, local_devices=lambda: [card])
    monkeypatch.setattr(jax.extend.backend, "get_backend", lambda: backend)
    assert attention_gpu._has_cudnn() is has


@pytest.mark.accelerator
@pytest.mark.parametrize(("masked", "causal"), [(False, False), (True, True), (False, True)])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_devices_own_attention_is_attention(shape, masked, causal):
    assert jax.default_backend() in ("gpu", "tpu")
    _check(
        lambda mask, causal, *qkv: attention(*qkv, key_mask=mask, causal=causal),
        shape,
        masked,
        causal,
    )
