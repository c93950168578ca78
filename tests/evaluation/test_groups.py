import numpy as np
import pyarrow as pa
import pytest

from tests.evaluation.ranked import make_ranked
from vtalign_jax.evaluation.groups import group_names, group_recalls
from vtalign_jax.evaluation.retrieval import summary


@pytest.mark.parametrize("seed", range(3))
def test_recalls_of_groups_equal_a_plain_reference(seed):
    ranked = make_ranked(seed)
    random = np.random.default_rng(seed)
    names = {
        "dataset": np.array(["b", "a", "c"])[random.integers(0, 3, 40)],
        "recording": ranked.identity.recording.astype(str),
    }
    found = group_recalls(ranked, names)
    pairs = list(zip(ranked.answers.query, ranked.answers.candidate, strict=True))
    for kind, name in names.items():
        assert list(found[kind]) == sorted(set(name.tolist()))
        for group, recalls in found[kind].items():
            clips = [c for c in range(40) if name[c] == group]
            texts = sorted({t for c, t in pairs if name[c] == group})
            assert (recalls["clips"], recalls["texts"]) == (len(clips), len(texts))
            for k in (1, 5, 10):
                each = [
                    np.mean([ranks.rank[q] <= k for q in asked])
                    for ranks, asked in zip(ranked.multi, (clips, texts), strict=True)
                ]
                assert recalls[f"recall@{k}"] == pytest.approx(sum(each) / 2)


def test_the_one_group_of_all_has_the_recall_of_the_split():
    ranked = make_ranked(0)
    (found,) = group_recalls(ranked, {"level": np.full(40, "action")})["level"].values()
    metrics = summary(ranked)
    assert found == {
        name: pytest.approx(metrics[name])
        for name in ("clips", "texts", "recall@1", "recall@5", "recall@10")
    }
    assert isinstance(found["clips"], int)


class Part:
    def __init__(self, data_dir, size):
        self.data_dir, self._size = data_dir, size

    def __len__(self):
        return self._size


def test_names_are_the_records_own_and_the_folders_where_annotations_name_no_dataset():
    class Split:
        parts = (Part("datasets/first/", 2), Part("gs://bucket/second", 1))
        table = pa.table(
            {
                "dataset": ["wtag", "", ""],
                "level": ["step", "step", "action"],
                "recording_id": ["r", "s", "s"],
            }
        )

    names = group_names(Split())
    assert {kind: name.tolist() for kind, name in names.items()} == {
        "dataset": ["wtag", "first", "second"],
        "level": ["step", "step", "action"],
        "recording": ["r", "s", "s"],
    }


def test_datasets_whose_folders_are_called_alike_are_told_apart():
    class Split:
        parts = tuple(Part(path, 1) for path in ("a/x", "b/x", "b/y", "c/wtag", "d"))
        table = pa.table(
            {
                "dataset": ["", "", "", "", "wtag"],
                "level": ["step"] * 5,
                "recording_id": ["r"] * 5,
            }
        )

    assert group_names(Split())["dataset"].tolist() == ["a/x", "b/x", "y", "c/wtag", "wtag"]
