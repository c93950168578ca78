import io

import numpy as np
import pytest
from PIL import Image

from tests.index_video import draw_index, read_index
from vtalign_jax.dst import image_folder
from vtalign_jax.dst.faults import FrameError, FrameFault
from vtalign_jax.dst.image_folder import ImageFolder


def _write(folder, template, numbers):
    folder.mkdir(exist_ok=True)
    for number in numbers:
        path = folder / template.format(number)
        Image.fromarray(draw_index(number, 96, 96)).save(path)


def _ask(folder, fps, times):
    return [
        (time, found if isinstance(found, FrameFault) else read_index(_open(found)))
        for time, found in ImageFolder(str(folder), fps).frames_at(times)
    ]


def _open(data):
    return Image.open(io.BytesIO(data))


NAMES = ["frame_{:010d}.jpg", "{:06d}.JPEG", "img{}.png", "cam2_{:d}.webp", "a.b-{:03d}.PNG"]


@pytest.mark.parametrize("template", NAMES)
@pytest.mark.parametrize("first", [0, 1])
def test_a_picture_is_shown_from_its_number_on_whether_counted_from_0_or_1(
    tmp_path, template, first
):
    _write(tmp_path, template, range(first, first + 120))
    fps = 12.5
    asked = [0.0, *np.random.default_rng(0).uniform(0, 120 / fps, 30), *np.arange(0, 120, 7) / fps]
    expected = [(time, first + int(time * fps + 1e-6)) for time in sorted(asked)]
    assert _ask(tmp_path, fps, asked) == expected
    assert ImageFolder(str(tmp_path), fps).duration == pytest.approx(120 / fps)


def test_numbers_are_numbers_and_not_names(tmp_path):
    _write(tmp_path, "img{}.png", range(8, 13))
    assert _ask(tmp_path, 1.0, [0.5, 1.5, 2.5, 4.5]) == [(0.5, 8), (1.5, 9), (2.5, 10), (4.5, 12)]


def test_the_smallest_number_is_time_0_whatever_it_is(tmp_path):
    _write(tmp_path, "{:05d}.png", range(300, 310))
    assert _ask(tmp_path, 10.0, [0.0, 0.55]) == [(0.0, 300), (0.55, 305)]


def test_times_outside_the_folder_give_nothing(tmp_path):
    _write(tmp_path, "{}.png", range(4))
    assert _ask(tmp_path, 2.0, [-0.1, 0.0, 1.99, 2.0, 50.0]) == [(0.0, 0), (1.99, 3)]


def test_a_missing_picture_is_a_fault_and_no_other_is_shown_in_its_place(tmp_path):
    _write(tmp_path, "{:03d}.png", [1, 2, 3, 5, 6])
    found = dict(_ask(tmp_path, 10.0, [0.25, 0.35, 0.45]))
    assert (found[0.25], found[0.45]) == (3, 5)
    assert found[0.35].reason == "missing picture"
    assert "numbered 4" in found[0.35].detail


def test_every_sth_number_shows_each_picture_for_s_of_them(tmp_path):
    _write(tmp_path, "{:05d}.png", [n for n in range(0, 151, 15) if n != 45])
    found = dict(_ask(tmp_path, 30.0, [0.49, 0.51, 1.4, 1.6, 2.1, 5.4, 5.6]))
    assert (found[0.49], found[0.51], found[1.4], found[2.1]) == (0, 15, 30, 60)
    assert isinstance(found[1.6], FrameFault)
    assert found[5.4] == 150
    assert 5.6 not in found
    assert ImageFolder(str(tmp_path), 30.0).duration == pytest.approx(5.5)


def test_the_bytes_of_the_file_come_back_once_a_picture(tmp_path):
    _write(tmp_path, "{}.jpg", range(3))
    (_, one), (_, same), (_, other) = ImageFolder(str(tmp_path), 1.0).frames_at([0.1, 0.9, 1.1])
    assert one == (tmp_path / "0.jpg").read_bytes()
    assert one is same
    assert other == (tmp_path / "1.jpg").read_bytes()


def test_only_the_pictures_asked_for_are_read(tmp_path):
    _write(tmp_path, "{}.jpg", range(3))
    frames = ImageFolder(str(tmp_path), 1.0)
    for name in ("0.jpg", "1.jpg"):
        (tmp_path / name).unlink()
    ((_, found),) = frames.frames_at([2.5])
    assert read_index(_open(found)) == 2


def test_other_files_and_hidden_ones_do_not_count(tmp_path):
    _write(tmp_path, "frame_{:03d}.jpg", range(3))
    for name in ("._frame_001.jpg", "cover.jpg", "thumbs.db", "frame_9.txt"):
        (tmp_path / name).write_bytes(b"1")
    assert _ask(tmp_path, 1.0, [2.5]) == [(2.5, 2)]


@pytest.mark.parametrize(
    "names", [("rgb_1.jpg", "depth_1.png"), ("1.jpg", "1.png"), ("1.jpg", "01.jpg")]
)
def test_two_series_in_one_folder_are_refused_with_an_example_of_each(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"1")
    with pytest.raises(FrameError, match="different series") as refusal:
        ImageFolder(str(tmp_path), 1.0)
    assert all(name in refusal.value.detail for name in names)


def test_folders_without_pictures_or_rate_are_refused_with_a_reason(tmp_path):
    with pytest.raises(FrameError, match="no numbered image"):
        ImageFolder(str(tmp_path), 1.0)
    with pytest.raises(FrameError, match="unreadable folder"):
        ImageFolder(str(tmp_path / "missing"), 1.0)
    _write(tmp_path, "{}.jpg", range(3))
    with pytest.raises(FrameError, match=r"no frame rate.*--source_fps"):
        ImageFolder(str(tmp_path), 0.0)


def test_files_that_are_too_large_or_gone_are_faults(tmp_path, monkeypatch):
    _write(tmp_path, "{}.jpg", range(3))
    frames = ImageFolder(str(tmp_path), 1.0)
    (tmp_path / "1.jpg").unlink()
    (tmp_path / "2.jpg").write_bytes(bytes(5000))
    monkeypatch.setattr(image_folder, "MAX_BYTES", 4000)
    found = dict(frames.frames_at([0.5, 1.5, 2.5]))
    assert isinstance(found[0.5], bytes)
    assert isinstance(found[1.5], FrameFault)
    assert "5000 bytes are too many" in found[2.5].detail
