import os
import pickle
import shutil

import numpy as np
import pytest

from tests.pipeline.clip_fixtures import make_clip, make_clips, write_dataset
from vtalign_jax.errors import UserError
from vtalign_jax.pipeline.clip_cache import ClipCache, DecodedClip
from vtalign_jax.pipeline.dataset import check_leakage, open_split

CLIPS = [
    make_clip("assembly_r1__c1", "S1", 10.0, "build", recording_id="r1"),
    make_clip("assembly_r1__c1", "S1.1", 8.0, "attach wheel", recording_id="r1"),
    make_clip("assembly_r1__c1", "S1.1.a", 7.5, "pick wheel", recording_id="r1"),
    make_clip("assembly_r1__c1", "S1.1.b", 8.5, "push wheel", recording_id="r1"),
    make_clip("assembly_r1__c2", "S1.1.a", 7.5, "grab wheel", recording_id="r1"),
    make_clip("r2__c1", "S1.1.a", 1.25, "pick wheel", recording_id="r2", parent_text="fix é"),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    write_dataset(directory, {"train": CLIPS, "val": make_clips(2, 2, 1)}, shards=2)
    return directory


@pytest.fixture(scope="module")
def split(prepared):
    return open_split(str(prepared), "train")


@pytest.fixture
def copy(prepared, tmp_path):
    """The dataset, to be damaged."""
    shutil.copytree(prepared / "dst_clips", tmp_path / "dst_clips")
    return tmp_path, tmp_path / "dst_clips" / "1.0.0"


def by_clip(split, values):
    """Return {clip_id: value} as plain Python."""
    return dict(zip(split.table["clip_id"].to_pylist(), np.asarray(values).tolist(), strict=True))


def test_every_record_reads_back_as_written_and_matches_its_row_in_the_table(split):
    assert len(split) == len(CLIPS)
    written = {clip["clip_id"]: clip for clip in CLIPS}
    for index, clip_id in enumerate(split.table["clip_id"].to_pylist()):
        record = split.record(index)
        assert record.clip_id == clip_id
        for field, value in record._asdict().items():
            assert value == written[clip_id][field]
    assert sorted(split.texts) == sorted(clip["text"] for clip in CLIPS)


def test_the_settings_of_prepare_are_the_splits_attributes(split):
    assert (split.name, split.image_size, split.frames, split.window_seconds) == (
        "train",
        24,
        4,
        4.0,
    )
    assert split.fingerprint == "f" * 64


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ([{}], ("square", 0)),  # of a version that did not say
        ([{"fit": ["center_crop"], "rotate": [90]}], ("center_crop", 90)),
        ([{"fit": ["center_crop", "square"], "rotate": [0]}], None),
        ([{"fit": ["square"], "rotate": [0]}, {"fit": ["square"], "rotate": [180]}], None),
        (
            [{"fit": ["square"], "rotate": [90]}, {"fit": ["square"], "rotate": [90]}],
            ("square", 90),
        ),
    ],
)
def test_how_pictures_were_made_square_is_known_where_it_is_one_way(described, expected, tmp_path):
    for number, values in enumerate(described):
        folder, own = tmp_path / str(number), {"fingerprint": str(number) * 64}
        write_dataset(folder, {"train": CLIPS[:1]}, **own, **values)
    split = open_split(",".join(str(tmp_path / str(n)) for n in range(len(described))), "train")
    assert split.square == expected


def test_a_record_names_the_file_that_holds_it(split):
    files = [split.file(index) for index in range(len(split))]
    assert [file[-14:] for file in files] == ["00000-of-00002"] * 3 + ["00001-of-00002"] * 3


def test_cameras_and_parts_of_a_recording_are_one_recording_and_several_uids(split):
    recording, uid = by_clip(split, split.identity.recording), by_clip(split, split.identity.uid)
    first, second, other = "assembly_r1__c1/S1", "assembly_r1__c2/S1.1.a", "r2__c1/S1.1.a"
    assert recording[first] == recording[second] != recording[other]
    assert len({uid[first], uid[second], uid[other]}) == 3
    assert set(recording.values()) == {0, 1}
    assert set(uid.values()) == {0, 1, 2}


def test_equal_texts_are_equal_integers_in_any_video(split):
    text = by_clip(split, split.identity.text)
    assert text["assembly_r1__c1/S1.1.a"] == text["r2__c1/S1.1.a"]
    assert len(set(text.values())) == 5


def test_nodes_of_different_videos_differ_though_their_ids_are_equal(split):
    assert len(set(split.identity.node.tolist())) == len(CLIPS)


def test_ancestors_are_the_nodes_of_the_same_video(split):
    node, ancestors = by_clip(split, split.identity.node), by_clip(split, split.identity.ancestors)
    step, substep = node["assembly_r1__c1/S1"], node["assembly_r1__c1/S1.1"]
    assert ancestors["assembly_r1__c1/S1"] == [-1, -1, -1]
    assert ancestors["assembly_r1__c1/S1.1"] == [step, -1, -1]
    assert ancestors["assembly_r1__c1/S1.1.b"] == [step, substep, -1]
    elsewhere = ancestors["assembly_r1__c2/S1.1.a"]  # no clips themselves
    assert elsewhere[2] == -1
    assert not set(elsewhere[:2]) & set(node.values())
    assert not set(elsewhere[:2]) & set(ancestors["r2__c1/S1.1.a"])


def test_level_order_window_and_span_are_those_of_the_node(split):
    identity = split.identity
    level = by_clip(split, identity.level)
    assert level["r2__c1/S1.1.a"] == level["assembly_r1__c1/S1.1.a"]
    assert len(set(level.values())) == 3
    assert by_clip(split, identity.order)["assembly_r1__c1/S1"] == 1
    assert by_clip(split, identity.window)["r2__c1/S1.1.a"] == [-0.75, 3.25]  # not clipped
    assert by_clip(split, identity.span)["r2__c1/S1.1.a"] == [0.25, 2.25]
    assert identity.row_mask.all()
    np.testing.assert_array_equal(identity.record, np.arange(len(CLIPS)))
    kinds = {name: str(values.dtype) for name, values in identity._asdict().items()}
    floats = dict.fromkeys(("window", "span", "signature"), "float32") | {"row_mask": "bool"}
    assert kinds == dict.fromkeys(kinds, "int32") | floats


def test_a_split_travels_to_another_process_without_its_table(split):
    assert split.identity is split.identity
    data = pickle.dumps(split)
    assert len(data) < 4000
    assert pickle.loads(data).record(1) == split.record(1)
    assert pickle.loads(data).texts == split.texts


def test_a_tree_deeper_than_the_identity_holds_is_named(tmp_path):
    deep = make_clip("u", "S1", 5.0, "x", ancestor_ids=["a", "b", "c", "d"])
    write_dataset(tmp_path, {"train": [deep]})
    with pytest.raises(UserError, match=r"clip u/S1 .* more than 3 levels"):
        _ = open_split(str(tmp_path), "train").identity


def test_a_missing_dataset_names_the_command_that_makes_it_or_the_folder(tmp_path, prepared):
    with pytest.raises(UserError, match=r"no dataset in .*launch/prepare\.py .*--out="):
        open_split(str(tmp_path / "nowhere"), "train")
    with pytest.raises(UserError, match=f"inside of a dataset; give {prepared} instead"):
        open_split(f"{prepared}/dst_clips/1.0.0", "train")


def test_a_missing_or_empty_split_names_those_that_exist(prepared):
    with pytest.raises(UserError, match=r"no clips of split 'test' in .* has train, val"):
        open_split(str(prepared), "test")


@pytest.mark.parametrize(
    "name",
    [
        "prepare.json",
        "dataset_info.json",
        "clips-train.arrow",
        "dst_clips-train.array_record-00001-of-00002",
    ],
)
def test_a_file_that_is_missing_is_named(copy, name):
    data_dir, written = copy
    (written / name).unlink()
    with pytest.raises(UserError, match=rf"incomplete, {name} is missing; run .*prepare\.py"):
        open_split(str(data_dir), "train")


def test_settings_that_are_missing_are_named(copy):
    data_dir, written = copy
    (written / "prepare.json").write_text('{"frames": 4}')
    with pytest.raises(UserError, match=r"fingerprint, image_size in prepare.json"):
        open_split(str(data_dir), "train")


@pytest.mark.parametrize("content", ['{"fingerprint": "f', "null", "[1]"])
def test_settings_that_are_damaged_are_named(copy, content):
    data_dir, written = copy
    (written / "prepare.json").write_text(content)
    with pytest.raises(UserError, match=r"cannot read .*prepare\.json .*prepare the dataset again"):
        open_split(str(data_dir), "train")


def test_a_table_of_another_length_or_cut_off_is_refused(copy):
    data_dir, written = copy
    table = written / "clips-train.arrow"
    shutil.copy(written / "clips-val.arrow", table)
    with pytest.raises(UserError, match="has 4 rows for 6 records"):
        open_split(str(data_dir), "train")
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"cannot read .*clips-train.arrow"):
        open_split(str(data_dir), "train")


def test_a_table_cut_off_after_it_was_opened_is_whole_in_memory(copy):
    data_dir, written = copy
    split = open_split(str(data_dir), "train")
    os.truncate(written / "clips-train.arrow", 10)
    assert len(split.texts) == 6  # of a mapped file, the system would end this process


def test_a_file_of_records_cut_off_or_removed_after_it_was_opened_is_named(copy):
    data_dir, written = copy
    split = open_split(str(data_dir), "train")
    first, second = sorted(written.glob("dst_clips-train.array_record-*"))
    os.truncate(first, 100)
    second.unlink()
    for record, file in ((0, first), (5, second)):
        with pytest.raises(UserError, match=f"cannot read clip .* from {file}.*prepare the"):
            split.record(record)


def test_a_damaged_record_names_its_clip_and_its_file(copy):
    data_dir, written = copy
    file = written / "dst_clips-train.array_record-00001-of-00002"
    content = bytearray(file.read_bytes())
    for place in range(100, len(content) - 100, 7):
        content[place] ^= 0xFF
    file.write_bytes(bytes(content))
    split = open_split(str(data_dir), "train")
    clip_id = split.table["clip_id"][5].as_py()
    with pytest.raises(UserError, match=f"cannot read clip {clip_id} from .*00001-of-00002"):
        split.record(5)
    assert split.record(0).frames


def test_the_cache_stops_at_its_limit_and_what_it_holds_is_read_only():
    def clip(frames=1):
        pictures = [np.zeros((8, 8, 3), np.uint8) for _ in range(frames)]
        return DecodedClip(pictures, (0,), 4, 4.0, "text", "")

    cache = ClipCache(3 * 192 + 100)
    cache.offer((9, 8), clip(frames=2))  # counts twice
    for index in range(3):
        cache.offer((index, 8), clip())
    assert [cache.get((index, 8)) is not None for index in range(3)] == [True, False, False]
    assert cache.get((0, 4)) is None  # another size
    with pytest.raises(ValueError, match="read-only"):
        cache.get((0, 8)).frames[0][:] = 1
    half = cache.share(2)
    half.offer((0, 8), clip())
    half.offer((1, 8), clip())
    assert half.get((0, 8))
    assert not half.get((1, 8))
    assert pickle.loads(pickle.dumps(cache)).get((0, 8)) is None


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Two datasets that share a recording, a uid of other recordings, and texts."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    shared = {"recording_id": "r7"}
    write_dataset(
        one,
        {
            "train": [
                make_clip("assembly_r7__c1", "S1", 5.0, "pick wheel", **shared),
                make_clip("take1", "S1", 5.0, "push wheel", recording_id="one-1"),
            ]
        },
        fingerprint="1" * 64,
    )
    write_dataset(
        two,
        {
            "train": [
                make_clip("disassembly_r7__c2", "S1", 5.0, "drop wheel", **shared),
                make_clip("assembly_r7__c1", "S2", 9.0, "pick wheel", **shared),
                make_clip("take1", "S1", 5.0, "push wheel", recording_id="two-1"),
            ],
            "val": [make_clip("v", "S1", 5.0, "x")],
        },
        fingerprint="2" * 64,
        image_size=16,
        frames=8,
    )
    return str(one), str(two)


def test_several_datasets_are_one_split_record_after_record(several):
    both = open_split(", ".join(several), "train")
    alone = [open_split(data_dir, "train") for data_dir in several]
    assert both.sizes == dict(zip(several, (2, 3), strict=True))
    assert len(both) == 5
    records = [split.record(index) for split in alone for index in range(len(split))]
    assert [both.record(index) for index in range(5)] == records
    files = [split.file(index) for split in alone for index in range(len(split))]
    assert [both.file(index) for index in range(5)] == files
    assert both.texts == alone[0].texts + alone[1].texts
    assert pickle.loads(pickle.dumps(both)).record(3) == records[3]
    assert (both.image_size, both.frames) == (16, 4)


def by_owner(split, values):
    names = ("recording_id", "uid", "node_id")
    keys = zip(*(split.table[name].to_pylist() for name in names), strict=True)
    return dict(zip(keys, values.tolist(), strict=True))


def test_over_datasets_a_recording_is_its_id_and_uids_belong_to_their_recording(several):
    both = open_split(",".join(several), "train")
    recording, uid, node = (
        by_owner(both, getattr(both.identity, field)) for field in ("recording", "uid", "node")
    )
    camera, later = ("r7", "assembly_r7__c1", "S1"), ("r7", "assembly_r7__c1", "S2")
    other = ("r7", "disassembly_r7__c2", "S1")
    first, second = ("one-1", "take1", "S1"), ("two-1", "take1", "S1")
    assert recording[camera] == recording[later] == recording[other]
    assert len(set(recording.values())) == 3
    assert uid[camera] == uid[later] != uid[other]
    assert uid[first] != uid[second]
    assert len(set(node.values())) == 5
    text = by_owner(both, both.identity.text)
    assert text[camera] == text[later]
    assert text[first] == text[second]
    np.testing.assert_array_equal(both.identity.record, np.arange(5))


def test_the_fingerprint_is_over_all_datasets_in_their_order(several):
    one, two = several
    found = {open_split(names, "train").fingerprint for names in (one, two, f"{one},{two}")}
    assert {"1" * 64, "2" * 64} < found
    assert open_split(f"{two},{one}", "train").fingerprint not in found
    assert open_split(f"{one},{two}", "train").fingerprint in found
    assert open_split(f"{one},{two}", "val").fingerprint in found  # though the first has none


def test_of_several_datasets_those_that_have_the_split_are_taken(several):
    split = open_split(",".join(several), "val")
    assert split.sizes == dict(zip(several, (0, 1), strict=True))
    assert len(split) == 1
    with pytest.raises(UserError, match=r"split 'test' in .*one.* has train; .*two.* train, val"):
        open_split(",".join(several), "test")


def test_a_dataset_of_several_that_cannot_be_opened_is_named(several, tmp_path):
    with pytest.raises(UserError, match=f"no dataset in {tmp_path}/nowhere;"):
        open_split(f"{several[0]},{tmp_path}/nowhere", "train")
    with pytest.raises(UserError, match="no dataset is named"):
        open_split(" , ", "train")


def test_the_same_dataset_twice_is_refused(several, tmp_path):
    shutil.copytree(several[0], tmp_path / "copy")
    for names in (f"{several[0]},{several[0]}", f"{several[0]},{tmp_path}/copy"):
        with pytest.raises(UserError, match=r"same dataset .*config\.data\.weights"):
            open_split(names, "train")


def test_a_dataset_in_a_bucket_is_the_one_on_a_disk(prepared, split, bucket, cache):
    bucket.put_folder(prepared, "a")
    bucket.put("a/videos/large", b"not for training")
    there = open_split(f"{bucket.url}/a", "train")
    assert there.fingerprint == split.fingerprint
    assert there.texts == split.texts
    assert [there.record(i) for i in range(len(there))] == [split.record(i) for i in range(6)]
    assert there.file(0).startswith(str(cache))
    assert not list(cache.glob("*/videos"))
    with pytest.raises(UserError, match=f"{prepared} and {bucket.url}/a are the same dataset"):
        open_split(f"{prepared},{bucket.url}/a", "train")


def test_a_dataset_that_was_not_uploaded_whole_is_refused_before_it_is_copied(
    prepared, bucket, cache
):
    bucket.put_folder(prepared / "dst_clips", "a/dst_clips")
    del bucket.server.buckets[bucket.name]["a/dst_clips/1.0.0/prepare.json"]
    with pytest.raises(UserError, match=r"a is incomplete, prepare\.json is missing"):
        open_split(f"{bucket.url}/a", "train")
    assert not cache.exists()


def test_training_and_validating_on_one_recording_is_refused_over_datasets(several, tmp_path):
    write_dataset(
        tmp_path,
        {"val": [make_clip("r7__c3", "S1", 5.0, "x", recording_id="r7")], "test": CLIPS[:1]},
        fingerprint="3" * 64,
    )
    names = ",".join([*several, str(tmp_path)])
    train, val, test = (open_split(names, split) for split in ("train", "val", "test"))
    with pytest.raises(UserError, match=rf"recording r7 is trained on in .*two.* in {tmp_path}"):
        check_leakage(train, val)
    check_leakage(train, open_split(several[1], "val"))
    check_leakage(train, train)
    check_leakage(train, test)
