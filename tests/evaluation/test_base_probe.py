import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluation.fake_split import BATCH, FakeSplit, padded_batches
from tests.tiny_aligner import make_aligner, make_config, relative_error
from vtalign_jax import sharding
from vtalign_jax.config import MeshConfig
from vtalign_jax.evaluation import embed
from vtalign_jax.evaluation.embed import Evaluator
from vtalign_jax.evaluation.probe import (
    POOLINGS,
    Choice,
    best_of,
    choices,
    format_probe,
    overrides,
    probe,
)
from vtalign_jax.evaluation.result import Evaluation
from vtalign_jax.models.aligner import normalise

CONFIG = make_config(train={"eval_batch": BATCH}, tune={"connector": "frozen", "text_blocks": 0})
BLOCKS = 3


def by_hand(states, mask):
    """Pooled states [2, len(POOLINGS), B, D] of [2, B, S, D], a row at a time in NumPy."""
    states, mask = np.asarray(states, np.float64), np.asarray(mask)
    last = [[x[np.flatnonzero(m)[-1]] for x, m in zip(each, mask, strict=True)] for each in states]
    mean = [[x[m].mean(axis=0) for x, m in zip(each, mask, strict=True)] for each in states]
    return np.stack([last, mean], axis=1)


def test_every_choice_is_scored_by_the_states_of_its_block_on_8_devices(monkeypatch):
    bind, params, frozen = make_aligner(CONFIG)
    split, wanted = FakeSplit(), choices(BLOCKS)
    monkeypatch.setattr(embed, "make_eval_loader", padded_batches)
    mesh = sharding.make_mesh(MeshConfig())
    evaluator = Evaluator(bind, mesh, split, tokenizer=None, config=CONFIG)
    scored, gathered = {}, []
    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "evaluated", lambda *z: gathered.append(z) or len(gathered))
        scored = probe(evaluator, params, frozen, wanted)
    assert list(scored) == wanted

    @jax.jit
    def layers(batch):
        base = bind(params | frozen).base
        found = []
        for ids, mask, frames in (
            (batch.clip_ids, batch.clip_mask, batch.frames),
            (batch.text_ids, batch.text_mask, None),
        ):
            features = None if frames is None else base.image_features(normalise(frames))
            each = base.text_model.every_layer(base.merge_inputs(ids, features), mask)
            found.append(jnp.stack([each, base.text_model.norm(each)], axis=1))
        return found

    masks = split.batch.clip_mask, split.batch.text_mask
    for side, (states, mask) in enumerate(zip(layers(split.batch), masks, strict=True)):
        for choice, z in zip(wanted, gathered, strict=True):
            pooled = by_hand(states[choice.block], mask)
            expected = pooled[int(choice.is_normed), POOLINGS.index(choice.pooling)]
            expected /= np.linalg.norm(expected, axis=1, keepdims=True)
            assert relative_error(z[side], expected) < 1e-4
    # What training pools.
    model, batch = bind(params | frozen), split.batch
    pooled = jax.jit(model.pooled_texts)(batch.text_ids, batch.text_mask)
    pooled /= jnp.linalg.norm(pooled, axis=1, keepdims=True)
    at = wanted.index(Choice(BLOCKS, True, CONFIG.model.pooling))
    assert relative_error(gathered[at][1], pooled) < 1e-4


@pytest.mark.parametrize(
    ("blocks", "depths"), [(24, [6, 12, 18, 24]), (3, [1, 2, 3]), (2, [1, 2]), (1, [1])]
)
def test_the_quarters_of_any_decoder_are_compared_each_once(blocks, depths):
    found = choices(blocks)
    assert len(set(found)) == len(found)
    assert sorted({choice.block for choice in found if not choice.is_normed}) == depths
    assert [choice for choice in found if choice.is_normed] == [
        Choice(blocks, True, "last"),
        Choice(blocks, True, "mean"),
    ]


def scored(recall, precision=0.5):
    values = {"recall@1": 0.125, "recall@5": recall, "mAP": precision, "margin": 0.25}
    return Evaluation(values | {"silhouette": float("nan")})


def test_the_table_marks_the_best_and_says_what_training_can_take_of_it():
    found = {
        Choice(2, False, "last"): scored(0.625),
        Choice(2, False, "mean"): scored(0.75),
        Choice(8, True, "last"): scored(0.5, 0.25),
        Choice(8, True, "mean"): scored(0.5, 0.375),
    }
    assert best_of(found) == Choice(2, False, "mean")
    assert overrides(found) == ["--config.model.pooling=mean"]
    chance = Evaluation({"recall@1": 0.0, "recall@5": 0.0625, "mAP": 0.1})
    lines = format_probe(found, chance, 8, overrides(found)).splitlines()
    assert lines[0].split() == ["R@1", "R@5", "mAP", "margin", "silhouette"]
    assert lines[2].split() == ["chance", "0.000", "0.062", "0.100", "-", "-"]
    (marked,) = [line for line in lines if "<- best" in line]
    assert marked.startswith("block 2 of 8, mean ")
    assert marked.split()[-7:-2] == ["0.125", "0.750", "0.500", "0.250", "-"]
    assert lines[6].startswith("block 8 of 8, last norm, mean ")
    assert lines[-2].endswith("--config.model.pooling=mean")
    assert "--config.tune.text_blocks=6 " in lines[-1]


def test_a_best_choice_at_the_top_asks_for_no_more_tuned_blocks():
    found = {Choice(8, False, "last"): scored(0.5), Choice(8, True, "last"): scored(0.75)}
    assert "text_blocks" not in format_probe(found, scored(0.1), 8, overrides(found))
