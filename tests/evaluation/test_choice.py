"""Five-way choice against plain Python, a query at a time."""

import itertools

import numpy as np
import pytest

from tests.objectives.identities import make_identity
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation import choice
from vtalign_jax.evaluation.choice import KINDS, choice_chance, choice_metrics, make_questions


def _random_dataset(seed, rows=60, recordings=4, texts=14, seconds=80):
    """Few recordings, cameras, texts and instants, with parents, so that every rule is met."""
    rng = np.random.default_rng(seed)
    start = rng.integers(0, seconds, rows).astype(np.float32)
    span = np.stack([start, start + rng.integers(0, 9, rows)], axis=1)
    middle = span.mean(axis=1)
    ancestors = np.full((rows, 3), -1)
    ancestors[:, 0] = rng.integers(-1, rows, rows)
    return make_identity(
        rng.integers(0, recordings, rows),
        uid=rng.integers(0, 9, rows),
        text=rng.integers(100, 100 + texts, rows),
        span=span,
        window=np.stack([middle - 2, middle + 2], axis=1),
        ancestors=ancestors,
    )


def _may_stand_beside(identity, kind, i, j) -> bool:
    """Whether clip j is a distractor for the text of record i, word by word."""
    if identity.text[i] == identity.text[j]:
        return False
    same_recording = identity.recording[i] == identity.recording[j]
    if kind == "inter":
        return not same_recording
    ours = [identity.window[i].tolist(), identity.span[i].tolist()]
    theirs = [identity.window[j].tolist(), identity.span[j].tolist()]
    apart = all(a[1] <= b[0] or b[1] <= a[0] for a, b in itertools.product(ours, theirs))
    related = identity.node[i] in identity.ancestors[j] or identity.node[j] in identity.ancestors[i]
    return bool(same_recording and apart and not related)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("seed", "shape"), [(0, {}), (1, {"texts": 6}), (2, {"seconds": 15}), (3, {"recordings": 1})]
)
def test_questions_are_those_the_definition_allows(seed, shape, kind):
    identity = _random_dataset(seed, **shape)
    asked = make_questions(identity)[kind]
    rows = range(len(identity.text))
    allowed = {i: [j for j in rows if _may_stand_beside(identity, kind, i, j)] for i in rows}
    texts = {i: {int(identity.text[j]) for j in allowed[i]} for i in rows}
    assert asked.row.tolist() == [i for i in rows if len(texts[i]) >= 4]
    assert asked.left_out == len(rows) - len(asked.row)
    for i, wrong in zip(asked.row, asked.wrong, strict=True):
        assert set(wrong.tolist()) <= set(allowed[i])
        assert len({int(identity.text[j]) for j in [i, *wrong]}) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_other_clips_are_drawn_with_equal_chances_of_every_text_and_of_each_of_its_clips(kind):
    """2,000 questions of one text beside 8 others: text 0 has 3 clips, text 7 just one."""
    others = [0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7]
    asking = 2000
    identity = make_identity(
        [1] * len(others) + [1 if kind == "intra" else 0] * asking,
        text=[*others, *[9] * asking],
        window=[[10 * n, 10 * n + 4] for n in range(len(others))] + [[900, 904]] * asking,
        span=[[10 * n, 10 * n + 4] for n in range(len(others))] + [[900, 904]] * asking,
    )
    asked = make_questions(identity)[kind]
    wrong = asked.wrong[asked.row >= len(others)]
    assert len(wrong) == asking
    drawn = np.bincount(wrong.ravel(), minlength=len(others))
    by_text = np.bincount(others, weights=drawn)
    # Each text in half of the questions, 1,000 +- 22; a clip of text 0 in 333 +- 17.
    np.testing.assert_allclose(by_text, asking / 2, atol=100)
    np.testing.assert_allclose(drawn[:3], asking / 6, atol=80)
    first = np.bincount(np.array(others)[wrong[:, 0]], minlength=8)
    np.testing.assert_allclose(first, asking / 8, atol=70)


def test_questions_are_the_same_each_time_and_in_parts_or_whole(monkeypatch):
    identity = _random_dataset(5)
    first, again = make_questions(identity), make_questions(identity)
    monkeypatch.setattr(choice, "_CHUNK", 100)
    parts = make_questions(identity)
    for kind in KINDS:
        for ours, theirs in zip(first[kind], again[kind], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(first[kind].row, parts[kind].row)


def test_cameras_of_the_same_moment_and_padding_are_no_choices():
    """Two cameras; each action of the one stands at the same time as that of the other."""
    moments = [[20 * n, 20 * n + 4] for n in range(4)]
    identity = make_identity(
        [0] * 8 + [1, 1],
        uid=[0] * 4 + [1] * 4 + [2, 2],
        text=range(10),
        window=[*moments, *moments, [0, 4], [9, 13]],
        span=[*moments, *moments, [0, 4], [9, 13]],
        real=9,
    )
    found = make_questions(identity)
    assert found["intra"].row.tolist() == list(range(8))
    for i, wrong in zip(found["intra"].row, found["intra"].wrong, strict=True):
        assert not {i, (i + 4) % 8} & set(wrong.tolist())
    assert found["intra"].left_out == 1  # the one real clip of the other recording
    assert found["inter"].row.tolist() == [8]
    assert found["inter"].left_out == 8


def _five_strangers():
    """One question a clip in each kind: five clips of five texts, far apart, and five more."""
    identity = make_identity([0] * 5 + [1] * 5, text=[*range(5), *range(5)])
    return make_questions(identity)


def test_accuracy_counts_the_texts_whose_own_clip_wins():
    questions = _five_strangers()
    z_text = np.eye(10, dtype=np.float32)
    z_video = z_text.copy()
    z_video[5:] = z_text[:5] * 0.5  # the other recording's clips look like the first's texts
    found = choice_metrics(z_video, z_text, questions)
    assert found["choice_intra"] == 0.5  # texts 5 to 9 find no clip at all: ties
    assert found["choice_intra_queries"] == 10
    assert found["choice_intra_left_out"] == 0


def test_a_tie_is_wrong_and_a_better_clip_too():
    questions = _five_strangers()
    z = np.ones((10, 4), np.float32) / 2
    assert choice_metrics(z, z, questions)["choice_inter"] == 0.0
    best = np.eye(10, dtype=np.float32)
    assert choice_metrics(best, best, questions)["choice_inter"] == 1.0
    # Clip 3 answers every text better than its own clip does.
    loud = best.copy()
    loud[3] = 2.0
    found = choice_metrics(loud, best, questions)["choice_intra"]
    beaten = [3 in wrong for wrong in questions["intra"].wrong]
    assert found == 1 - np.mean(beaten)
    assert sum(beaten) == 4


def test_random_embeddings_score_chance():
    identity = _random_dataset(7, rows=3000, recordings=30, texts=400, seconds=900)
    questions = make_questions(identity)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 3000, 8)).astype(np.float32)
    found, chance = choice_metrics(*z, questions), choice_chance(questions)
    assert found.keys() == chance.keys()
    for kind in KINDS:
        assert chance[f"choice_{kind}"] == 0.2
        assert found[f"choice_{kind}"] == pytest.approx(0.2, abs=0.03)
        assert chance[f"choice_{kind}_queries"] == found[f"choice_{kind}_queries"] > 2500


def test_scores_do_not_depend_on_how_many_questions_are_scored_together(monkeypatch):
    identity = _random_dataset(8)
    questions = make_questions(identity)
    z = np.random.default_rng(1).normal(size=(2, 60, 8)).astype(np.float32)
    whole = choice_metrics(*z, questions)
    monkeypatch.setattr(choice, "_SCORED", 7)
    assert choice_metrics(*z, questions) == whole


def test_no_question_is_no_number():
    questions = make_questions(make_identity([0, 1, 2]))
    z = np.eye(3, dtype=np.float32)
    for found in (choice_metrics(z, z, questions), choice_chance(questions)):
        assert np.isnan(found["choice_intra"])
        assert np.isnan(found["choice_inter"])
        assert found["choice_intra_left_out"] == found["choice_inter_left_out"] == 3


def test_an_embedding_that_is_not_finite_is_an_error():
    questions = _five_strangers()
    z = np.eye(10, dtype=np.float32)
    z[2, 0] = np.nan
    with pytest.raises(UserError, match="clip embeddings are not finite"):
        choice_metrics(z, np.eye(10, dtype=np.float32), questions)
