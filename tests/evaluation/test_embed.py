import jax
import numpy as np
import pytest

from tests.tiny_aligner import make_aligner, make_batch, make_config, relative_error
from vtalign_jax import sharding
from vtalign_jax.array_types import Batch
from vtalign_jax.config import MeshConfig
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation import embed
from vtalign_jax.evaluation.embed import Embeddings, Evaluator, collect, without_adapters
from vtalign_jax.evaluation.retrieval import chance_metrics, retrieval_metrics

CLIPS, BATCH = 21, 8
CONFIG = make_config(train={"eval_batch": BATCH})


class FakeSplit:
    """Clips of a random batch."""

    name = "val"

    def __init__(self):
        self.batch = make_batch(CLIPS)
        self.identity = self.batch.identity

    def __len__(self):
        return CLIPS

    def padded(self, records) -> Batch:
        rows = jax.tree.map(lambda x: x[np.maximum(records, 0)], self.batch)
        identity = rows.identity._replace(record=records, row_mask=records >= 0)
        return rows._replace(identity=identity)


def _padded_batches(split, tokenizer, config, **processes):
    for step, begin in enumerate(range(0, CLIPS, BATCH)):
        records = np.arange(begin, begin + BATCH, dtype=np.int32)
        yield step, split.padded(np.where(records < CLIPS, records, -1))


@pytest.fixture
def split(monkeypatch):
    monkeypatch.setattr(embed, "make_eval_loader", _padded_batches)
    return FakeSplit()


def _make_evaluator(bind, split, devices=8, **options):
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
    return Evaluator(bind, mesh, split, tokenizer=None, config=CONFIG, **options)


def _pooled(bind, params, frozen, batch):
    """The model's own pooled states, all rows at once on one device."""

    @jax.jit
    def pooled(values):
        model = bind(values)
        return (
            model.pooled_clips(batch.clip_ids, batch.clip_mask, batch.frames),
            model.pooled_texts(batch.text_ids, batch.text_mask),
        )

    return pooled(params | frozen)


def _unit(x):
    return np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True)


def test_embeddings_are_the_models_row_by_row_on_any_number_of_devices(split):
    bind, params, frozen = make_aligner(CONFIG)
    clips, texts = _pooled(bind, params, frozen, split.batch)
    model = bind(params | frozen)
    expected = Embeddings(
        model.project_clips(clips), model.project_texts(texts), _unit(clips), _unit(texts)
    )
    for devices in (1, 8):
        found = _make_evaluator(bind, split, devices).embeddings(params, frozen)
        for ours, reference in zip(found, expected, strict=True):
            assert ours.shape == reference.shape
            assert relative_error(ours, reference) < 1e-4


def test_rows_are_placed_by_record_and_padding_is_dropped():
    def rows(*records):
        record = np.array(records, np.int32)
        return record, Embeddings(*(record[:, None].astype(np.float32) * k for k in range(1, 5)))

    found = collect([rows(2, 0, -1), rows(-1, 3, 1)], count=4)
    np.testing.assert_array_equal(found.z_video[:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(found.pooled_text[:, 0], [0, 4, 8, 12])
    with pytest.raises(ValueError, match="1 of 4 records"):
        collect([rows(2, 0, 1)], count=4)


def test_scores_are_those_of_the_embeddings(split):
    bind, params, frozen = make_aligner(CONFIG)
    evaluator = _make_evaluator(bind, split)
    found = evaluator.embeddings(params, frozen)
    expected = retrieval_metrics(found.z_video, found.z_text, split.identity)
    assert evaluator.score(params, frozen) == pytest.approx(expected, rel=1e-12)
    assert evaluator.chance() == chance_metrics(split.identity)


def test_zero_shot_is_the_base_without_adapters_and_head(split):
    bind, params, frozen = make_aligner(CONFIG)  # with adapters alive
    evaluator = _make_evaluator(bind, split)
    zero_shot, untrained = evaluator.score_untrained(params, frozen)

    other = {path: 2.0 * value if ".fc" in path else value for path, value in params.items()}
    others = {path: value + 1.0 if "lora_" in path else value for path, value in other.items()}
    again, changed = evaluator.score_untrained(others, frozen)
    assert again == zero_shot
    assert changed != untrained

    z = [_unit(x) for x in _pooled(bind, without_adapters(params), frozen, split.batch)]
    expected = retrieval_metrics(*z, split.identity)
    assert zero_shot["margin"] == pytest.approx(expected["margin"], abs=1e-5)
    assert zero_shot["recall@5"] == expected["recall@5"]


def test_evaluating_twice_traces_once(split):
    bind, params, frozen = make_aligner(CONFIG)
    traces = []

    def counted(values):
        traces.append(1)
        return bind(values)

    evaluator = _make_evaluator(counted, split)
    evaluator.score(params, frozen)
    evaluator.score(params, frozen)
    assert len(traces) == 1


def test_long_evaluation_says_how_long_it_takes(split, monkeypatch):
    monkeypatch.setattr(embed, "_QUIET_SECONDS", -1.0)
    bind, params, frozen = make_aligner(CONFIG)
    said = []
    _make_evaluator(bind, split, say=said.append).score(params, frozen)
    assert len(said) == 1
    assert said[0].startswith("evaluating 21 clips of val, ")


def test_batch_that_does_not_divide_is_a_user_error(split):
    bind, _, _ = make_aligner(CONFIG)
    with pytest.raises(UserError, match=r"train\.eval_batch=8"):
        _make_evaluator(bind, split, devices=3)
