import types

import jax
import numpy as np

from tests.objectives.identities import make_identity
from tests.pipeline.clip_fixtures import FakeTokenizer
from tests.tiny_aligner import make_aligner, make_config
from vtalign_jax import sharding
from vtalign_jax.config import MeshConfig
from vtalign_jax.evaluation.embed import without_adapters
from vtalign_jax.training.signatures import (
    SIZE,
    make_text_embedder,
    record_signatures,
    signatures,
)

TEXTS = [f"do {'thing ' * (n % 4)}{n}" for n in range(37)]  # of 5 to 29 letters


class SmallTokenizer(FakeTokenizer):
    """Letters as token ids below the small model's vocabulary."""

    def encode_text(self, text, max_tokens):
        return super().encode_text(text, max_tokens) % 66 + 6


def embed_with(devices: int, said=None):
    """Return the embedding of `TEXTS` by the small model's base: float32[37, D]."""
    config = make_config(data={"max_text_tokens": 24})
    bind, params, frozen = make_aligner(config)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
    frozen = jax.device_put(frozen, sharding.frozen_shardings(frozen, mesh))
    say = (lambda line: None) if said is None else said.append
    embed = make_text_embedder(bind, params, frozen, SmallTokenizer(), config, mesh, say)
    return embed(TEXTS)


def test_texts_are_embedded_by_the_base_without_adapters_whatever_stands_beside_them():
    found = embed_with(1)
    config = make_config()
    bind, params, frozen = make_aligner(config)
    assert any(np.any(value) for path, value in params.items() if path.endswith("lora_b"))
    leaves = without_adapters(params) | frozen
    pooled = jax.jit(lambda leaves, *texts: bind(leaves).pooled_texts(*texts))
    for n in (0, 18, 36):  # of the first batch, a full one and the last
        ids = SmallTokenizer().encode_text(TEXTS[n], 24)[None]
        alone = pooled(leaves, ids, np.ones(ids.shape, bool))[0]
        np.testing.assert_allclose(found[n], alone, atol=1e-5 * np.abs(alone).max())


def test_every_number_of_devices_gives_the_same_signatures():
    expected = signatures(embed_with(1))
    for devices in (2, 8):
        np.testing.assert_array_equal(signatures(embed_with(devices)), expected)


def test_what_runs_is_said_before_it_runs():
    said = []
    embed_with(1, said)
    assert said[0] == "comparing 37 distinct texts by the base (compiling it first)"


def test_a_signature_keeps_the_angles_between_texts_around_their_mean():
    rng = np.random.default_rng(0)
    pooled = rng.normal(size=(6, 2, 500)).astype(np.float32)
    pooled[:, 1] = pooled[:, 0] + 0.3 * pooled[:, 1]  # twins, of a cosine of 0.96
    found = signatures(pooled.reshape(12, 500))
    assert found.shape == (12, SIZE)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=2e-3)
    np.testing.assert_array_equal(signatures(pooled.reshape(12, 500) + 40.0 * np.ones(500)), found)
    cosine = found @ found.T
    is_twin = np.kron(np.eye(6), np.ones((2, 2))) > 0
    assert cosine[is_twin].min() > 0.9
    assert cosine[~is_twin].max() < 0.6


def test_what_stands_at_the_mean_is_like_nothing():
    np.testing.assert_array_equal(signatures(np.ones((1, 9))), np.zeros((1, SIZE)))


def test_products_of_signatures_are_exact_in_any_order():
    found = signatures(np.random.default_rng(1).normal(size=(50, 90)))
    forth = sum(found[:, None, k] * found[None, :, k] for k in range(SIZE))
    back = sum(found[:, None, k] * found[None, :, k] for k in reversed(range(SIZE)))
    np.testing.assert_array_equal(forth, back)
    np.testing.assert_array_equal(forth, found.astype(np.float64) @ found.T.astype(np.float64))


def test_each_record_gets_the_signature_of_its_text():
    asked = []

    def embed_texts(texts):
        asked.extend(texts)
        return np.random.default_rng(2).normal(size=(len(texts), 30))

    split = types.SimpleNamespace(
        identity=make_identity(range(5), text=[7, 3, 7, 9, 3]),
        texts=["open it", "close it", "Open it.", "turn it", "close it"],
    )
    found = record_signatures(split, embed_texts)
    assert sorted(asked) == ["close it", "open it", "turn it"]
    assert found.shape == (5, SIZE)
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], found[4])
    assert len(np.unique(found, axis=0)) == 3
