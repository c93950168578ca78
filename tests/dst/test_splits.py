import pytest

from vtalign_jax.dst.nodes import Video
from vtalign_jax.dst.splits import assign_splits, settle_leakage
from vtalign_jax.errors import UserError


def _videos(*named):
    return [Video(uid, (), split=split) for uid, split in named]


def _splits(videos):
    return {video.uid: video.split for video in videos}


def test_given_splits_are_kept():
    videos = _videos(("a__c1", "train"), ("b__c1", "val"), ("c__c1", "test"))
    assert assign_splits(videos, 0.5) == videos


def test_the_rest_is_divided_by_recording_and_never_within_one():
    free = _videos(*[(f"r{n:03d}__cam{c}", "") for n in range(100) for c in range(2)])
    splits = _splits(assign_splits(free, 0.1))
    assert sum(split == "val" for split in splits.values()) == 20
    assert all(splits[f"r{n:03d}__cam0"] == splits[f"r{n:03d}__cam1"] for n in range(100))


def test_the_division_does_not_depend_on_the_order_of_the_files():
    free = _videos(*[(f"r{n}", "") for n in range(20)])
    assert _splits(assign_splits(free, 0.2)) == _splits(assign_splits(free[::-1], 0.2))


def test_few_recordings_still_give_one_to_val_and_a_fraction_of_zero_none():
    free = _videos(("a", ""), ("b", ""), ("c", ""))
    assert sorted(_splits(assign_splits(free, 0.1)).values()) == ["train", "train", "val"]
    assert set(_splits(assign_splits(free, 0.0)).values()) == {"train"}
    assert _splits(assign_splits(free[:1], 0.1)) == {"a": "train"}


def test_another_camera_of_a_placed_recording_joins_it():
    videos = _videos(("assembly_r__c1", "val"), ("disassembly_r__c2", ""))
    assert set(_splits(assign_splits(videos, 0.0)).values()) == {"val"}


LEAKY = (("assembly_r__c1", "train"), ("disassembly_r__c2", "val"), ("s", "train"), ("t", "val"))


def test_a_recording_in_train_and_val_or_test_is_an_error():
    for side in ("val", "test"):
        with pytest.raises(UserError, match=r"recording\(s\).*e\.g\. r;.*--on_leakage=drop"):
            settle_leakage(_videos(("r__c1", "train"), ("r__c2", side)), "error")
    with pytest.raises(UserError, match="1 recording"):
        settle_leakage(_videos(*LEAKY), "error")


def test_drop_removes_it_from_train():
    kept, dropped, shared = settle_leakage(_videos(*LEAKY), "drop")
    assert [video.uid for video in dropped] == ["assembly_r__c1"]
    assert _splits(kept) == {"disassembly_r__c2": "val", "s": "train", "t": "val"}
    assert shared == 0


def test_between_val_and_test_it_is_counted():
    kept, dropped, shared = settle_leakage(_videos(("r__1", "val"), ("r__2", "test")), "error")
    assert (len(kept), dropped, shared) == (2, [], 1)
