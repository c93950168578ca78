import io

import numpy as np
import pytest
from PIL import Image

from tests.index_video import constant_ticks, decode_all, write_video
from vtalign_jax.clips import Square
from vtalign_jax.dst.faults import FrameFault
from vtalign_jax.dst.finder import Source
from vtalign_jax.dst.frames import open_source
from vtalign_jax.dst.images import encode_jpeg
from vtalign_jax.dst.nodes import Node, Video
from vtalign_jax.dst.pairs import make_pairs
from vtalign_jax.dst.records import make_jobs, render
from vtalign_jax.evaluation.spans import WindowGrid
from vtalign_jax.evaluation.window_frames import WindowPass

SIZE, FRAMES = 32, 4


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """One recording of 7 s as a video and as a folder of images."""
    folder = tmp_path_factory.mktemp("sources")
    write_video(folder / "a.mp4", constant_ticks(84, 12), rate=12)
    (folder / "images").mkdir()
    for number, picture in enumerate(decode_all(folder / "a.mp4")):
        picture.save(folder / "images" / f"{number}.png")
    return {
        "video": Source("video", str(folder / "a.mp4"), "a", 0, "center_crop", 90),
        "images": Source("images", str(folder / "images"), "a", 0, "square", 0, source_fps=12.0),
    }


def _read(source, windows, sights=()):
    opened = open_source(source)
    square = Square(SIZE, source.fit, source.rotate)
    reading = WindowPass(opened, windows, FRAMES, square, sights)
    clips = dict(reading.clips())
    opened.close()
    return clips, reading


def _prepared(source, windows):
    """What `prepare` stores of each window: (numbers of the frames, their JPEG bytes)."""
    stored = []
    for start, end in windows:
        node = Node("S1", "step", start, end, "do it")
        video = Video("u", (node,), split="val")
        pairs = make_pairs(video, ("all",), lambda v, n: (n.start, n.end), FRAMES)
        (job,) = make_jobs(pairs, source, SIZE)
        (record,) = render(job).records
        times = list(pairs[0].times)
        stored.append(([times.index(time) for time in record["frame_times"]], record["frames"]))
    return stored


@pytest.mark.parametrize("kind", ["video", "images"])
def test_one_pass_gives_each_window_the_frames_that_prepare_stores(sources, kind):
    windows = WindowGrid((0.5, 2.0, 4.0), 0.25).over(7.0)
    windows = np.concatenate([windows, [[-1.0, 1.0], [6.0, 9.0]]])  # past both ends
    clips, reading = _read(sources[kind], windows)
    assert sorted(clips) == list(range(len(windows)))
    assert reading.lost == {}
    for place, (numbers, jpegs) in enumerate(_prepared(sources[kind], windows)):
        clip = clips[place]
        assert clip.numbers == numbers
        assert (clip.sampled, clip.seconds) == (FRAMES, round(np.ptp(windows[place]), 6))
        made = [encode_jpeg(Image.fromarray(frame), SIZE, "square", 0) for frame in clip.frames]
        assert made == jpegs
    assert len(clips[len(windows) - 1].frames) < FRAMES


def test_a_picture_is_made_square_once_and_let_go_with_its_last_window(sources):
    class Squared(np.ndarray):
        alive = made = 0

        def __del__(self):
            Squared.alive -= 1

    def square(picture):
        Squared.alive, Squared.made = Squared.alive + 1, Squared.made + 1
        return np.asarray(picture.resize((8, 8))).view(Squared)

    square.rotate = 0
    source, most = open_source(sources["video"]), 0
    reading = WindowPass(source, WindowGrid((0.5, 1.0), 0.25).over(7.0), FRAMES, square)
    for _ in reading.clips():
        most = max(most, Squared.alive)
    source.close()
    assert Squared.made == 84  # every frame of the video is shown by some window
    assert most <= 24  # of a second and a step


def test_damaged_and_missing_frames_cost_the_windows_that_need_them():
    class Frames:
        duration = 4.0

        def frames_at(self, times):
            for time in times:
                if time < 1:
                    yield time, FrameFault("damaged video", "here")
                elif time < 2:
                    yield time, b"no picture"
                elif time < 3:
                    yield time, Image.new("RGB", (8, 6), (int(50 * time), 0, 0))

    windows = np.array([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [2.5, 3.5]])
    reading = WindowPass(Frames(), windows, 2, Square(4, "square", 0), (0.25, 2.25))
    clips = dict(reading.clips())
    assert sorted(clips) == [2, 4]
    assert clips[4].numbers == [0]
    assert set(reading.lost) == {0, 1, 3}
    assert reading.lost[0] == "damaged video: here"
    assert reading.lost[1].startswith("damaged picture: ")
    assert reading.lost[3] == "no frame"
    assert list(reading.sights) == [2.25]


def test_small_pictures_are_upright_and_keep_their_shape(sources):
    _, reading = _read(sources["video"], np.array([[0.0, 2.0]]), sights=(0.5, 6.5))
    assert list(reading.sights) == [0.5, 6.5]
    assert {sight.size for sight in reading.sights.values()} == {(96, 128)}  # turned by 90
    frame = decode_all(sources["video"].path)[78]
    buffer = io.BytesIO()
    frame.save(buffer, "PNG")
    expected = np.rot90(np.asarray(frame).astype(int))
    assert np.abs(np.asarray(reading.sights[6.5]).astype(int) - expected).mean() < 2
