"""w on the device equals the rule in plain Python, from annotation files to weights of batches."""

import base64
import collections
import csv
import dataclasses
import fractions
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.dst_clips.write import Listeners, Machines, write_dataset
from tests.epic_kitchens import CSV, FRAMES, SIZE, prepare_validation
from tests.pipeline.clip_fixtures import FakeTokenizer, jpeg
from tests.proassist_tree import CAMERAS, SEQUENCE, write_arrow
from vtalign_jax.config import ObjectiveConfig, resolve
from vtalign_jax.doctor.slow_rule import Annotated, is_right, ranked, relations, weight
from vtalign_jax.dst.plan import Settings, make_plan
from vtalign_jax.objectives import negatives
from vtalign_jax.pipeline.dataset import open_split
from vtalign_jax.pipeline.loader import make_loader

POLICIES = ("preset", "ignore", "multi_positive", "negative")


@functools.partial(jax.jit, static_argnums=1)
def on_device(identity, objective):
    """Return w and the right answers of a batch."""
    w = jnp.exp(negatives.log_weights(identity, identity, objective))
    return w, negatives.is_positive(identity, identity, objective)


def check(batches, nodes, radius=1, threshold=0.0):
    """Compare every pair of each batch under every preset and policy; return the relations met.

    Args:
      batches: (identity, clip ids with None in padding rows) each.
      nodes: `Annotated` by clip id.
      radius: of neighbours.
      threshold: of similar texts.
    """
    met = collections.Counter()
    for identity, clip_ids in batches:
        items = [None if clip_id is None else nodes[clip_id] for clip_id in clip_ids]
        found = [[relations(a, b, radius, threshold) for b in items] for a in items]
        kinds = collections.Counter(kind for row in found for kind in row)
        index = {kind: n for n, kind in enumerate(kinds)}
        which = np.array([[index[kind] for kind in row] for row in found])
        for preset in negatives.PRESETS:
            for policy in POLICIES:
                objective = ObjectiveConfig(
                    preset=preset,
                    same_text=policy,
                    same_recording_weight=0.3,
                    neighbour_radius=radius,
                    similar_text_threshold=threshold,
                )
                expected = np.array([weight(kind, preset, policy, 0.3) for kind in index])
                right = np.array([is_right(kind, preset, policy) for kind in index])
                w, is_positive = (np.asarray(x) for x in on_device(identity, objective))
                np.testing.assert_allclose(w, expected[which], rtol=1e-6, atol=0)
                np.testing.assert_array_equal(is_positive, right[which])
        met += kinds
    return met


def batches_of(split, size, steps):
    """Yield (identity, clip ids) of training batches as the loader makes them."""
    config = resolve(
        {"data": {"frames": FRAMES, "max_text_tokens": 256}, "train": {"contrastive_batch": size}}
    )
    clip_ids = split.table["clip_id"].to_pylist()
    for step in steps:
        arguments = {"start_step": step, "num_steps": 1, "process_index": 0, "process_count": 1}
        ((_, batch),) = make_loader(split, FakeTokenizer(SIZE), config, train=True, **arguments)
        records = batch.identity.record.tolist()
        yield batch.identity, [None if n < 0 else clip_ids[n] for n in records]


def taken(split, records):
    """Return (identity, clip ids) of some records."""
    clip_ids = split.table["clip_id"].to_pylist()
    identity = jax.tree.map(lambda values: values[np.asarray(records)], split.identity)
    return identity, [clip_ids[n] for n in records]


@pytest.mark.slow
@pytest.mark.samples
def test_w_of_500_epic_nodes_equals_the_slow_rule(tmp_path):
    split = prepare_validation(tmp_path)
    nodes = {f"{node.uid}/{node.node_id}": node for node in _epic_nodes()}
    rng = np.random.default_rng(0)
    random = rng.permutation(len(split))[:500]
    recordings = rng.permutation(split.identity.recording.max() + 1)
    in_few = np.concatenate([np.flatnonzero(split.identity.recording == n) for n in recordings])
    met = check([taken(split, random), taken(split, in_few[:500])], nodes)
    met += check(batches_of(split, 500, [0, len(split) // 500]), nodes)
    of_pairs = collections.Counter(
        name for kind, n in met.items() for name in kind for _ in range(n)
    )
    for name in ("same recording", "neighbours", "overlapping windows", "equal text", "padding"):
        assert of_pairs[name] > 500, name
    for decisive in ((), ("neighbours",), ("overlapping windows",)):
        assert met[frozenset({"same recording", *decisive})], decisive
    assert met[frozenset({"equal text"})]


def _epic_nodes():
    with CSV.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return ranked(
        Annotated(
            uid=row["video_id"],
            recording=row["video_id"],
            node_id=row["narration_id"],
            level="any",  # without a hierarchy there is one
            start=_seconds(row["start_timestamp"]),
            end=_seconds(row["stop_timestamp"]),
            name=row["narration"],
        )
        for row in rows
    )


def _seconds(clock):
    hours, minutes, seconds = clock.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + fractions.Fraction(seconds)


def _by_word(met):
    """Return how many pairs each word was said of."""
    counts = collections.Counter()
    for kind, pairs in met.items():
        counts.update(dict.fromkeys(kind, pairs))
    return counts


LEVELS = ("step", "substep", "action")
SECONDS = 120


def _tree(rng, start):
    """Return nodes of three levels in no order, at tenths of a second: (id, start, end, name)."""
    verbs = ("attach", "Attach the", "detach", "screw", "screw,", "unscrew", "show")
    things = ("wheel", "the wheel", "chassis", "arm", "first wheel", "second wheel")
    nodes = []
    for step in range(1, 4):
        first = start + 15 * (step - 1) + rng.integers(0, 3)
        spans = {f"S{step}": (first, first + 15)}
        for substep in range(1, 3):
            begin = first + 7 * (substep - 1)
            spans[f"S{step}.{substep}"] = (begin, begin + 7)
            for action in "abc":
                at = begin + rng.integers(0, 60) / 10
                length = rng.choice([0.0, 0.4, 1.0])  # two may share start and end
                spans[f"S{step}.{substep}.{action}"] = (at, at + length)
        for node_id, (begin, end) in spans.items():
            name = f"{rng.choice(verbs)} {rng.choice(things)}"
            nodes.append((node_id, f"{begin:.1f}", f"{end:.1f}", name))
    return [nodes[n] for n in rng.permutation(len(nodes))]


def _write_recordings(root):
    """Write two recordings of two cameras with both tasks each; return all nodes by clip id."""
    rng = np.random.default_rng(3)
    rows, nodes = [], []
    encoded = [base64.b64encode(jpeg("gray", SIZE)).decode()] * (2 * SECONDS)
    for sequence in (SEQUENCE.format(0), SEQUENCE.format(1)):
        for camera in CAMERAS:
            write_arrow(root / f"{sequence}__{camera}.arrow", encoded)
            for start, task in ((3, "assembly"), (48, "disassembly")):  # they meet in the middle
                uid = f"{task}_{sequence}__{camera}"
                tree = _tree(rng, start)
                keys = ("id", "start_ts", "end_ts", "name")
                dst = [
                    {"type": LEVELS[node[0].count(".")], **dict(zip(keys, node, strict=True))}
                    for node in tree
                ]
                rows.append({"video_uid": uid, "dataset": "assembly101", "dst": dst})
                nodes += [
                    Annotated(
                        uid=uid,
                        recording=sequence,
                        node_id=node_id,
                        level=LEVELS[node_id.count(".")],
                        start=fractions.Fraction(begin),
                        end=fractions.Fraction(end),
                        name=name,
                    )
                    for node_id, begin, end, name in tree
                ]
    (root / "train.json").write_text(json.dumps(rows))
    return {f"{node.uid}/{node.node_id}": node for node in ranked(nodes)}


def test_w_of_two_cameras_and_two_tasks_with_three_levels_equals_the_slow_rule(tmp_path):
    nodes = _write_recordings(tmp_path)
    settings = Settings(
        f"{tmp_path}/train.json",
        str(tmp_path),
        layout="assembly101",
        levels="all",
        image_size=SIZE,
        frames=FRAMES,
        source_fps=30.0,
        val_fraction=0.0,
    )
    written = write_dataset(make_plan(settings), str(tmp_path / "out"), Machines(), Listeners())
    assert written.skips == []
    split = open_split(str(tmp_path / "out"), "train")
    assert len(split) == len(nodes) == 8 * 27
    everything = taken(split, np.random.default_rng(4).permutation(len(split)))
    met = check([everything, *batches_of(split, 150, [0, 1])], nodes)
    for name in ("same recording", "neighbours", "ancestors", "overlapping windows", "equal text"):
        assert _by_word(met)[name] > 200, name
    for decisive in ((), ("neighbours",), ("ancestors",), ("overlapping windows",)):
        assert met[frozenset({"same recording", *decisive})], decisive
    assert met[frozenset({"equal text"})]
    assert met[frozenset({"padding"})]
    for radius in (0, 3):
        check([everything], nodes, radius)
    identity, clip_ids = everything
    signature = _signatures(identity.text)
    for row, clip_id in zip(signature.tolist(), clip_ids, strict=True):
        nodes[clip_id] = dataclasses.replace(nodes[clip_id], signature=tuple(row))
    similar = check([(identity._replace(signature=signature), clip_ids)], nodes, threshold=0.25)
    assert _by_word(similar)["similar text"] > 200
    assert similar[frozenset({"similar text"})]


def _signatures(text):
    """Return float32[N, 8] of whole eighths, a row a text: every product is exact."""
    rows = np.random.default_rng(5).integers(-3, 4, (text.max() + 1, 8)) / 8
    return rows[text].astype(np.float32)
