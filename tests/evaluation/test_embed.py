from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluation.fake_split import BATCH, FakeSplit, padded_batches
from tests.tiny_aligner import make_aligner, make_config, relative_error
from vtalign_jax import sharding
from vtalign_jax.config import MeshConfig
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation import embed
from vtalign_jax.evaluation.choice import choice_chance, choice_metrics, make_questions
from vtalign_jax.evaluation.embed import Embeddings, Evaluator, collect, without_adapters
from vtalign_jax.evaluation.groups import group_names, group_recalls
from vtalign_jax.evaluation.intervals import bootstrap_intervals
from vtalign_jax.evaluation.retrieval import chance_metrics, rank_queries, retrieval_metrics
from vtalign_jax.evaluation.silhouette import silhouette
from vtalign_jax.models.aligner import unit_norm

CONFIG = make_config(train={"eval_batch": BATCH})


class Shared(NamedTuple):
    """One evaluator for all tests of this file, since each one compiles the model anew."""

    split: FakeSplit
    bind: Callable
    params: dict
    frozen: dict
    traces: list
    said: list
    evaluator: Evaluator


def _make_evaluator(bind, split, devices, say=print):
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
    return Evaluator(bind, mesh, split, tokenizer=None, config=CONFIG, say=say)


@pytest.fixture(scope="module")
def shared():
    bind, params, frozen = make_aligner(CONFIG)  # with adapters alive
    split, traces, said = FakeSplit(), [], []

    def counted(*values):
        traces.append(1)
        return bind(*values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "make_eval_loader", padded_batches)
        evaluator = _make_evaluator(counted, split, 8, said.append)
        yield Shared(split, bind, params, frozen, traces, said, evaluator)


@pytest.fixture(scope="module")
def reference(shared):
    """Embeddings by the model's own methods, all rows at once on one device, for any parameters."""

    @jax.jit
    def embedded(params):
        model, batch = shared.bind(params | shared.frozen), shared.split.batch
        clips = model.pooled_clips(batch.clip_ids, batch.clip_mask, batch.frames)
        texts = model.pooled_texts(batch.text_ids, batch.text_mask)
        units = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (clips, texts)]
        return Embeddings(model.project_clips(clips), model.project_texts(texts), *units)

    return lambda params: Embeddings(*map(np.asarray, embedded(params)))


class LinearModel(NamedTuple):
    """Embeds seven pixels of a clip and the ids of a text as they are: compiles in no time."""

    head: jax.Array

    def pooled_clips(self, ids, mask, frames, prefix, depth):
        return frames[:, 0, 0, :7, 0].astype(jnp.float32) - 128

    def pooled_texts(self, ids, mask, prefix):
        return ids.astype(jnp.float32) - 128

    def _project(self, pooled):
        return unit_norm(pooled @ self.head)

    project_clips = project_texts = _project


def _is_slow(devices):
    return pytest.param(devices, marks=pytest.mark.slow)


@pytest.mark.parametrize("devices", [1, _is_slow(2), _is_slow(4), 8])
def test_embeddings_are_the_models_row_by_row_on_any_number_of_devices(shared, reference, devices):
    expected = reference(shared.params)
    evaluator = shared.evaluator
    if devices != 8:
        evaluator = _make_evaluator(shared.bind, shared.split, devices)
    found = evaluator.embeddings(shared.params, shared.frozen)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert relative_error(ours, theirs) < 1e-4


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_recalls_of_21_clips_are_the_same_on_any_number_of_devices(shared, devices):
    rng, split = np.random.default_rng(0), FakeSplit()
    pixels = split.batch.frames[:, 0, 0, :7, 0].astype(np.int32)
    text_ids = pixels + rng.integers(-90, 90, pixels.shape, np.int32)
    split.batch = split.batch._replace(text_ids=text_ids)
    head = rng.normal(size=(7, 5)).astype(np.float32)
    evaluator = _make_evaluator(lambda values, _: LinearModel(values["head"]), split, devices)
    found = evaluator.score({"head": head}, {})
    z_video, z_text = (
        side / np.linalg.norm(side, axis=1, keepdims=True)
        for side in ((pixels - 128) @ head, (text_ids - 128) @ head)
    )
    expected = retrieval_metrics(z_video, z_text, split.identity)
    assert 0.2 < expected["recall@1"] < expected["recall@5"] < 1
    names = [name for name in expected if "recall@" in name]
    assert [found.metrics[name] for name in names] == [expected[name] for name in names]
    whole = rank_queries(z_video, z_text, split.identity)
    assert found.intervals == bootstrap_intervals(whole)
    assert found.groups == group_recalls(whole, group_names(split))


def test_rows_are_placed_by_record_and_padding_is_dropped():
    def rows(*records):
        record = np.array(records, np.int32)
        return record, Embeddings(*(record[:, None].astype(np.float32) * k for k in range(1, 5)))

    found = collect([rows(2, 0, -1), rows(-1, 3, 1)], count=4)
    np.testing.assert_array_equal(found.z_video[:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(found.pooled_text[:, 0], [0, 4, 8, 12])
    with pytest.raises(ValueError, match="1 of 4 records"):
        collect([rows(2, 0, 1)], count=4)


def test_scores_are_those_of_the_embeddings(shared):
    evaluator, identity = shared.evaluator, shared.split.identity
    found = evaluator.embeddings(shared.params, shared.frozen)
    questions = make_questions(identity)
    expected = retrieval_metrics(found.z_video, found.z_text, identity)
    expected |= choice_metrics(found.z_video, found.z_text, questions)
    expected["silhouette"] = silhouette(found.z_video, identity.text)
    assert expected["choice_inter_queries"] > 0
    scored = evaluator.score(shared.params, shared.frozen)
    assert scored.metrics == pytest.approx(expected, rel=1e-12, nan_ok=True)
    ranked = rank_queries(found.z_video, found.z_text, identity)
    assert scored.intervals == bootstrap_intervals(ranked) != {}
    assert scored.groups == group_recalls(ranked, group_names(shared.split))
    assert list(scored.groups["dataset"]) == ["small"]
    sample = evaluator.sample(found, 7)
    assert (sample.step, sample.total, len(sample.records)) == (7, 21, 21)
    np.testing.assert_array_equal(sample.z_video, found.z_video[sample.records])
    chance = chance_metrics(identity) | choice_chance(questions)
    assert evaluator.chance().metrics == pytest.approx(chance, nan_ok=True)


def test_zero_shot_is_the_base_without_adapters_and_head(shared, reference):
    params, evaluator = shared.params, shared.evaluator
    zero_shot, untrained = evaluator.score_untrained(params, shared.frozen)

    other = {path: 2.0 * value if ".fc" in path else value for path, value in params.items()}
    others = {path: value + 1.0 if "lora_" in path else value for path, value in other.items()}
    again, changed = evaluator.score_untrained(others, shared.frozen)
    assert again == zero_shot
    assert changed != untrained

    base = reference(without_adapters(params))
    expected = retrieval_metrics(base.pooled_video, base.pooled_text, shared.split.identity)
    zero_shot = zero_shot.metrics
    assert zero_shot["margin"] == pytest.approx(expected["margin"], abs=1e-5)
    assert zero_shot["recall@5"] == expected["recall@5"]


def test_evaluating_twice_traces_once(shared):
    for _ in range(2):
        shared.evaluator.embeddings(shared.params, shared.frozen)
    assert len(shared.traces) == 1


def test_long_evaluation_says_how_long_it_takes(shared, monkeypatch):
    monkeypatch.setattr(embed, "_QUIET_SECONDS", -1.0)
    shared.said.clear()
    shared.evaluator.embeddings(shared.params, shared.frozen)
    assert len(shared.said) == 1
    assert shared.said[0].startswith("evaluating 21 clips of val, ")


def test_batch_that_does_not_divide_is_a_user_error(shared):
    with pytest.raises(UserError, match=r"train\.eval_batch=8"):
        _make_evaluator(shared.bind, shared.split, devices=3)
