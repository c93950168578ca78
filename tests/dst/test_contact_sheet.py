import collections
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image, ImageColor, features

from tests.index_video import constant_ticks, read_index, write_video
from vtalign_jax.dst.contact_sheet import (
    choose_clips,
    draw_sheet,
    render_clips,
)
from vtalign_jax.dst.finder import Source
from vtalign_jax.dst.nodes import Node, Skip, Video
from vtalign_jax.dst.pairs import make_pairs
from vtalign_jax.dst.records import make_jobs
from vtalign_jax.dst.typeface import Typeface, load_typeface
from vtalign_jax.dst.windows import window_chooser
from vtalign_jax.errors import UserError

GREEN = "#1a9641"


def _jobs(uid, clips, path="nowhere.mp4", frames=8, text="do it"):
    nodes = tuple(Node(f"S{n}", "step", n, n + 1, text) for n in range(clips))
    video = Video(uid, nodes, split="train")
    window_of = window_chooser(
        "center", [video], ("all",), window_seconds=4.0, pad_seconds=0.5, frames=frames
    )
    source = Source("video", str(path), "v.mp4", 1, "square", 0)
    return make_jobs(make_pairs(video, ("all",), window_of, frames), source, 96)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("sheet") / "v.mp4"
    write_video(path, constant_ticks(150, 25), rate=25, width=96, height=96)
    return path


def test_clips_are_spread_over_videos_and_a_seed_chooses_the_same_ones():
    jobs = {("train", uid): _jobs(uid, clips) for uid, clips in (("a", 200), ("b", 3), ("c", 70))}
    chosen = choose_clips(jobs, 12, seed=1)
    counts = collections.Counter(pair.uid for job in chosen for pair in job.pairs)
    assert counts == {"a": 5, "b": 3, "c": 4} or counts == {"a": 4, "b": 3, "c": 5}
    assert choose_clips(jobs, 12, seed=1) == chosen
    assert choose_clips(jobs, 12, seed=2) != chosen
    for job in chosen:
        starts = [pair.window_start for pair in job.pairs]
        assert starts == sorted(starts)
    everything = choose_clips({("val", "b"): _jobs("b", 3)}, 24, seed=0)
    assert [len(job.pairs) for job in everything] == [3]
    assert choose_clips({}, 24, seed=0) == []


def test_clips_hold_the_frames_that_prepare_would_store(video):
    (job,) = _jobs("v", 3, video)
    clips = render_clips(job)
    assert [clip.pair.node_id for clip in clips] == ["S0", "S1", "S2"]
    for clip in clips:
        assert list(clip.frames) == [time for time in clip.pair.times if time >= 0]
        for time, jpeg in clip.frames.items():
            assert read_index(Image.open(io.BytesIO(jpeg))) == int(time * 25 + 1e-6)
        assert clip.skip is None


def test_a_clip_without_frames_says_why(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"no video")
    (clip,) = render_clips(_jobs("v", 1, tmp_path / "v.mp4")[0])
    assert clip.frames == {}
    assert clip.skip.reason == "unreadable video"


def _frames_of(sheet, clip):
    """Return the numbers in the frames of a sheet of one clip, None where there is no frame."""
    numbers = []
    for number in range(len(clip.pair.times)):
        left = 24 + number % 8 * 132
        top = _first_frame_row(sheet)
        numbers.append(read_index(sheet.crop((left, top, left + 128, top + 128))))
    return numbers


def _first_frame_row(sheet):
    """Return the first row of the block of frames: no paper in the middle of the first frame."""
    column = np.asarray(sheet.convert("L"))[:, 24:152]
    is_full = (column == 255).mean(axis=1) < 0.9
    runs = np.flatnonzero(is_full[:-100] & is_full[100:])
    return int(next(row for row in runs if is_full[row : row + 120].all()))


def test_the_sheet_shows_each_frame_at_its_place_and_green_under_the_nodes_span(video):
    clip = render_clips(_jobs("v", 3, video)[0])[2]  # node 2 to 3 s, clip 0.5 to 4.5 s
    sheet = draw_sheet([clip], "title", Typeface())
    expected = [int(time * 25 + 1e-6) for time in clip.pair.times]
    assert _frames_of(sheet, clip) == expected
    under = _first_frame_row(sheet) + 128 + 1
    green = [sheet.getpixel((24 + 132 * n + 60, under)) == (0x1A, 0x96, 0x41) for n in range(8)]
    assert green == [2 <= time <= 3 for time in clip.pair.times]
    assert sum(green) == 2


def _count(sheet, colour):
    return (np.asarray(sheet) == ImageColor.getrgb(colour)).all(axis=2).sum()


def test_a_node_between_two_frames_is_marked_at_the_nearest(video):
    clip = render_clips(_jobs("v", 3, video)[0])[2]
    pair = dataclasses.replace(clip.pair, node_start=2.3, node_end=2.3)
    sheet = draw_sheet([dataclasses.replace(clip, pair=pair)], "title", Typeface())
    left = 24 + 132 * min(range(8), key=lambda n: abs(pair.times[n] - 2.3))
    under = _first_frame_row(sheet) + 128
    assert _count(sheet.crop((left, under, left + 128, under + 4)), GREEN) == 128 * 4
    assert _count(sheet.crop((0, under, sheet.width, under + 4)), GREEN) == 128 * 4


def test_only_frames_that_are_there_are_marked(video):
    clip = render_clips(_jobs("v", 1, video)[0])[0]  # node 0 to 1 s
    inside = [time for time in clip.pair.times if 0 <= time <= 1]
    frames = {time: frame for time, frame in clip.frames.items() if time != inside[0]}
    bars = [
        _count(draw_sheet([c], "title", Typeface()), GREEN)
        for c in (clip, dataclasses.replace(clip, frames=frames))
    ]
    assert bars[0] - bars[1] == 128 * 4


def test_the_reason_stands_in_place_of_the_frames_of_a_clip_that_is_left_out(video):
    clip = render_clips(_jobs("v", 1, video)[0])[0]
    lost = dataclasses.replace(clip, frames={}, skip=Skip("v", "S0", "damaged video", "at 3 s"))
    sheet = draw_sheet([lost], "title", Typeface())
    assert _count(sheet, "#c0392b") > 100
    assert _count(sheet, "#e4e4e4") < 128  # pixels of letters, no grey square


def test_frames_outside_the_video_are_grey_and_never_black(video):
    clip = render_clips(_jobs("v", 1, video)[0])[0]  # clip -1.5 to 2.5 s
    missing = sum(time < 0 for time in clip.pair.times)
    sheet = np.asarray(draw_sheet([clip], "title", Typeface()))
    assert missing == 3
    grey = (sheet == 0xE4).all(axis=2).sum()
    assert grey == pytest.approx(missing * 128 * 128, rel=0.05)


@pytest.mark.parametrize(
    "text",
    [
        "attach the wheel " * 60,
        "x" * 1000,
        "\u628a\u8f6e\u5b50\u88c5\u5230\u5e95\u76d8\u4e0a",
        "\u0645\u0631\u062d\u0628\u0627 \U0001f600 \u200b",
        "\u00c7a va\u2026",
    ],
)
def test_texts_of_any_length_and_script_are_drawn(text, video):
    clip = render_clips(_jobs("v", 1, video)[0])[0]
    other = dataclasses.replace(clip, pair=dataclasses.replace(clip.pair, text=text))
    plain = draw_sheet([clip], "title", Typeface())
    sheet = draw_sheet([other], "title", Typeface())
    assert sheet.width == plain.width
    assert plain.height <= sheet.height <= plain.height + 100
    assert sheet.tobytes() != plain.tobytes()


def test_accents_that_pillows_own_letters_lack_are_left_out():
    assert Typeface().letters("\u00c7a o\u00f9") == "Ca ou"
    assert Typeface(b"font").letters("\u00c7a") == "\u00c7a"


def test_more_than_eight_frames_take_several_rows_and_many_clips_two_columns(video):
    clips = render_clips(_jobs("v", 5, video, frames=20)[0])
    one = draw_sheet(clips[:1], "title", Typeface())
    five = draw_sheet(clips, "title", Typeface())
    assert one.height > 3 * 128
    assert five.width > 1.9 * one.width
    assert five.height > 2.5 * (one.height - 100)


def test_a_font_file_is_used_and_what_is_none_refused(tmp_path, video):
    assert features.check("freetype2")
    (tmp_path / "none.ttf").write_bytes(b"no font")
    for path in (tmp_path / "none.ttf", tmp_path / "absent.ttf"):
        with pytest.raises(UserError, match=r"cannot read the font .*give a .ttf"):
            load_typeface(str(path))
    font = Typeface().font(20).font_bytes
    (tmp_path / "good.ttf").write_bytes(font)
    assert load_typeface(str(tmp_path / "good.ttf")).font(20).getlength("a") > 0
    assert load_typeface("") == Typeface()
