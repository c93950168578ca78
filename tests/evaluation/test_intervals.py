"""Intervals against a plain bootstrap that copies the queries of each recording drawn."""

import time

import numpy as np
import pytest

from tests.evaluation.ranked import make_ranked
from vtalign_jax.evaluation import intervals as intervals_lib
from vtalign_jax.evaluation.intervals import RESAMPLES, bootstrap_intervals
from vtalign_jax.evaluation.ranking import Answers, Ranks
from vtalign_jax.evaluation.retrieval import summary

PREFIXES = ("", "video_to_text/", "text_to_video/")
METRICS = ("recall@1", "recall@5", "recall@10", "mAP")


def plain_bootstrap(ranked, seed):
    """Draw recordings, list their queries with the share that is theirs, take weighted means."""
    random = np.random.default_rng(seed)
    recording = ranked.identity.recording
    recordings = np.unique(recording)
    clips = {r: np.flatnonzero(recording == r) for r in recordings}
    owners = [set() for _ in range(ranked.answers.candidates)]
    for clip, text in zip(ranked.answers.query, ranked.answers.candidate, strict=True):
        owners[text].add(recording[clip])
    texts = {r: [t for t, own in enumerate(owners) if r in own] for r in recordings}
    share = np.array([1 / len(own) for own in owners])
    found = {name: [] for name in ("recall@1", "mAP")}
    values = {"recall@1": [r.rank <= 1 for r in ranked.multi]}
    values["mAP"] = [r.precision for r in ranked.multi]
    for _ in range(4000):
        drawn = random.choice(recordings, len(recordings))
        asked = np.concatenate([clips[r] for r in drawn])
        told = np.concatenate([texts[r] for r in drawn]).astype(int)
        for name, (of_clip, of_text) in values.items():
            both = of_clip[asked].mean(), np.average(of_text[told], weights=share[told])
            found[name].append((sum(both) / 2, *both))
    return {name: np.percentile(each, [2.5, 97.5], axis=0).T for name, each in found.items()}


def test_intervals_are_those_of_a_plain_bootstrap():
    ranked = make_ranked(1, rows=60, recordings=8, texts=25)
    found = bootstrap_intervals(ranked)
    for name, expected in plain_bootstrap(ranked, seed=7).items():
        for prefix, (low, high) in zip(PREFIXES, expected, strict=True):
            # Other draws: the ends are off by a few hundredths of the width.
            atol = 0.12 * (high - low)
            np.testing.assert_allclose(found[prefix + name], (low, high), rtol=0, atol=atol)


def test_every_metric_has_an_interval_around_its_value_and_it_is_the_same_each_time():
    ranked = make_ranked(2, rows=80, recordings=10, texts=30)
    found, metrics = bootstrap_intervals(ranked), summary(ranked)
    assert list(found) == [prefix + metric for prefix in PREFIXES for metric in METRICS]
    for name, (low, high) in found.items():
        assert low <= metrics[name] <= high
    assert found["recall@1"][0] < found["recall@1"][1]
    assert bootstrap_intervals(ranked) == found


def test_resamples_drawn_in_parts_are_as_many_and_as_large(monkeypatch):
    monkeypatch.setattr(intervals_lib, "_DRAWN", 64)
    drawn = intervals_lib._resamples(7)
    assert iter(drawn) is drawn  # one part after the other: thousands of recordings fit
    parts = list(drawn)
    assert len(parts) > 1
    assert sum(map(len, parts)) == RESAMPLES
    assert all((part.sum(axis=1) == 7).all() for part in parts)
    assert np.concatenate(parts).mean(axis=0) == pytest.approx(1.0, abs=0.15)


def test_one_recording_says_nothing_of_others():
    assert bootstrap_intervals(make_ranked(3, recordings=1)) == {}


def test_queries_of_one_recording_stand_or_fall_together():
    """All of a recording is found or nothing: the interval is as wide as for 4 queries, not 40."""
    ranked = make_ranked(4, rows=40, recordings=4, texts=40)
    of_half = (ranked.identity.recording % 2).astype(np.int64) * 99 + 1
    _, first = np.unique(ranked.identity.text, return_index=True)
    multi = tuple(
        ranks._replace(rank=of_half[rows])
        for ranks, rows in zip(ranked.multi, (np.arange(40), first), strict=True)
    )
    low, high = bootstrap_intervals(ranked._replace(multi=multi))["video_to_text/recall@1"]
    assert low < 0.1
    assert high > 0.9


def test_ten_thousand_queries_cost_little():
    rows = 10_000
    ranked = make_ranked(5, rows=200, recordings=20, texts=100)
    index = np.arange(rows)
    ranks = Ranks(1 + index % 13, 1.0 / (1 + index % 13))
    identity = ranked.identity._replace(recording=(index // 10).astype(np.int32))
    large = ranked._replace(
        identity=identity, answers=Answers(index, index, rows, rows), multi=(ranks, ranks)
    )
    began = time.process_time()
    assert bootstrap_intervals(large)["recall@5"][0] < 5 / 13
    assert time.process_time() - began < 1.0  # 0.1 to 0.2 s: a generous bound for slow machines
