import json

import numpy as np
import pytest

from benchmarks.similar_texts import DIFFERENT, PARAPHRASES
from benchmarks.similarity import TEXTS, judge
from tests.commands import one_error_line, run
from vtalign_jax.dst.identity import text_key


def test_the_lists_are_long_enough_and_hold_no_pair_twice():
    pairs = [frozenset(map(text_key, pair)) for pair in DIFFERENT + PARAPHRASES]
    assert min(len(DIFFERENT), len(PARAPHRASES)) >= 15
    assert len(set(pairs)) == len(pairs)
    assert {len(pair) for pair in pairs} == {2}  # equal texts would prove nothing


def test_a_signature_that_knows_every_meaning_gets_both_lists_right():
    meaning = {text: n for n, text in enumerate(TEXTS)}
    for first, second in PARAPHRASES * 9:
        meaning[first] = meaning[second] = min(meaning[first], meaning[second])
    found = judge("perfect", np.eye(len(TEXTS))[[meaning[text] for text in TEXTS]])
    assert (found["different_kept"], found["paraphrases_found"]) == (25, 25)
    assert found["threshold"] == pytest.approx(1.0)
    assert found["paraphrases_found_keeping_all_different"] == 25
    assert found["paraphrase_is_closer"] == 1.0
    assert found["by_threshold"]["0.50"] == (25, 25)


def test_a_signature_that_tells_nothing_gets_one_list_right():
    found = judge("blind", np.ones((len(TEXTS), 3)))
    assert found["threshold"] is None
    assert (found["different_kept"], found["paraphrases_found"]) == (25, 0)
    assert found["paraphrase_is_closer"] == 0.5


@pytest.mark.slow
def test_similarity_is_measured_for_lexical_signatures_and_a_base(tmp_path):
    printed = run("launch/bench.py", "similarity", "--base=tiny")
    rows = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert [row["signature"] for row in rows][-2:] == ["base, pooled", "base, signature"]
    assert len(rows) == 7
    # Overlap of letters or words is no measure of meaning.
    assert all(row["paraphrase_is_closer"] < 0.5 for row in rows[:5])
    said = one_error_line(run("launch/bench.py", "similarity", "--sentence_model=nowhere", code=2))
    assert "--sentence_model" in said
