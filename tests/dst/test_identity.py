import pytest

from vtalign_jax.dst.identity import is_safe_uid, normalise_text, recording_id, text_key


def test_cameras_and_task_parts_are_one_recording():
    seq = "nusar-2021_action_both_9011-c03f_9011_user_id_2021-02-01_160239"
    uids = [
        f"{task}_{seq}__{camera}"
        for task in ("assembly", "disassembly")
        for camera in ("C10095_rgb", "HMC_84355350_mono10bit")
    ]
    assert {recording_id(uid) for uid in uids} == {seq}


@pytest.mark.parametrize(
    ("uid", "recording"),
    [
        ("sign_rec_00__cam0", "sign_rec_00"),
        ("P01_11", "P01_11"),
        ("R0027-12-GoPro", "R0027-12-GoPro"),
        ("T48", "T48"),
        ("assembly_line_3", "assembly_line_3"),
        ("__cam0", "__cam0"),
    ],
)
def test_other_uids_lose_only_a_camera_part(uid, recording):
    assert recording_id(uid) == recording


def test_text_key_ignores_case_punctuation_articles_unicode_form_and_spaces():
    same = ["Open the cupboard.", "open cupboard", "  OPEN   a cupboard!", "open\u00a0cupboard"]
    assert len({text_key(text) for text in same}) == 1
    assert text_key("caf\u00e9") == text_key("cafe\u0301")
    assert text_key("\ufb01x it") == text_key("fix it")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("screw chassis", "unscrew chassis"),
        ("attach first wheel", "attach second wheel"),
        ("attach arm to chassis", "attach chassis to arm"),
        ("turn 1", "turn 2"),
    ],
)
def test_text_key_tells_different_actions_apart(one, other):
    assert text_key(one) != text_key(other)


def test_a_text_of_articles_only_keeps_them():
    assert normalise_text("The a") == "the a"


@pytest.mark.parametrize("uid", ["../../etc/passwd", "a/b", "a\\b", "..", "a\x00b", "", "~x", ".x"])
def test_uids_that_could_leave_the_folder_are_unsafe(uid):
    assert not is_safe_uid(uid)


def test_ordinary_uids_are_safe():
    for uid in ("P01_11", "grp-cec778f9-0000", "v1.2_take", "\u00fcbung 3"):
        assert is_safe_uid(uid)
