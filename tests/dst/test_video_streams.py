"""What real files bring along: open GOPs, edit lists, offsets, no durations, cut-off ends."""

import struct

import av
import pytest

from tests.index_video import ask_video, constant_ticks, shown_index, write_video
from tests.samples import SAMPLES
from vtalign_jax.dst.faults import FrameError, FrameFault
from vtalign_jax.dst.video import VideoFile

RATE = 25
TICKS = constant_ticks(150, RATE)


def _check_exact(path, first=0):
    """Check a pass over all frames, and a jump to each frame around two keyframes."""
    times = [tick + 0.004 for tick in TICKS[: len(TICKS) - first]]
    expected = [(time, first + shown_index(TICKS, time)) for time in times]
    assert ask_video(path, times) == expected
    for position in (*range(42, 56), *range(68, 80)):
        position -= first
        assert ask_video(path, [times[position]]) == [expected[position]]


def _leading_frames(path):
    """Return how many packets are shown before the keyframe that they follow."""
    keyframe, leading = 0, 0
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.pts is not None:
                keyframe = packet.pts if packet.is_keyframe else keyframe
                leading += packet.pts < keyframe
    return leading


X264 = "open-gop=1:keyint=24:min-keyint=1:scenecut=0:b-adapt=0"
X265 = "open-gop=1:keyint=25:min-keyint=25:scenecut=0:bframes=4:b-adapt=0:log-level=none"
OPEN_GOPS = {
    "libx264": {"flags": "-cgop", "bf": "3", "x264opts": X264},
    "libx265": {"x265-params": X265},
    "mpeg2video": {"g": "12", "bf": "2"},
}


@pytest.mark.parametrize("extension", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("codec", OPEN_GOPS)
def test_frames_before_the_keyframe_they_follow_are_exact(tmp_path, codec, extension):
    path = tmp_path / f"v.{extension}"
    write_video(path, TICKS, rate=RATE, codec=codec, options=OPEN_GOPS[codec])
    assert _leading_frames(path) > 5
    _check_exact(path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"movflags": "negative_cts_offsets"},
        {"use_editlist": "0"},
        {"movflags": "frag_keyframe+empty_moov"},
        {"movflags": "faststart"},
    ],
    ids=["first dts below 0", "negative offsets", "late first frame", "fragments", "faststart"],
)
def test_every_way_of_writing_b_frames_into_mp4_is_exact(tmp_path, options):
    path = tmp_path / "v.mp4"
    encoder = {"g": "24", "bf": "3"}
    write_video(path, TICKS, rate=RATE, options=encoder, container_options=options)
    _check_exact(path)


@pytest.mark.parametrize("cut", [10, 24, 31])
def test_time_0_is_the_first_frame_that_an_edit_list_lets_through(tmp_path, cut):
    path = tmp_path / "v.mp4"
    write_video(path, TICKS, rate=RATE, options={"g": "24"})
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12  # ISO/IEC 14496-12, 8.6.6: milliseconds, media ticks
    duration, start = struct.unpack_from(">Ii", data, entry)
    struct.pack_into(
        ">Ii", data, entry, duration - cut * 1000 // RATE, start + cut * 120000 // RATE
    )
    path.write_bytes(data)
    _check_exact(path, first=cut)
    assert VideoFile(str(path)).duration == pytest.approx((150 - cut) / RATE)


@pytest.mark.parametrize("extension", ["mkv", "webm", "ts", "mpeg", "mp4"])
@pytest.mark.parametrize("late", [0.0, 7.0])
def test_duration_is_that_of_the_pictures_wherever_they_start(tmp_path, extension, late):
    path = tmp_path / f"v.{extension}"
    codec = {"mpeg": "mpeg2video", "webm": "libvpx"}.get(extension, "libx264")
    options = {"bf": "0", "g": "12"} if extension == "mpeg" else {}
    write_video(path, [late + tick for tick in TICKS], rate=RATE, codec=codec, options=options)
    assert VideoFile(str(path)).duration == pytest.approx(6.0, abs=0.021)


def test_an_mp4_cut_in_the_middle_gives_faults_from_the_cut_on_and_nothing_wrong(tmp_path):
    path = tmp_path / "v.mp4"
    encoder, container = {"g": "24", "bf": "2"}, {"movflags": "faststart"}
    write_video(path, TICKS, rate=RATE, options=encoder, container_options=container)
    whole = path.read_bytes()
    details = []
    for share in (0.5, 0.6, 0.7, 0.8, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        found = [index for _, index in ask_video(path, [tick + 0.004 for tick in TICKS])]
        good = [index for index in found if not isinstance(index, FrameFault)]
        assert good == list(range(len(good)))
        assert 0 < len(good) < len(found) == len(TICKS)
        details += [fault.detail for fault in found[len(good) :]]
    assert any("ends early" in detail for detail in details)


def test_empty_files_of_every_kind_are_refused_with_a_reason(tmp_path):
    for extension in ("mp4", "mkv", "webm", "avi", "mpeg", "ts"):
        path = tmp_path / f"v.{extension}"
        path.write_bytes(b"")
        with pytest.raises(FrameError, match="unreadable video"):
            VideoFile(str(path))


@pytest.mark.samples
def test_a_real_matroska_file_without_stream_duration_ends_with_its_pictures():
    path = str(SAMPLES / "flipping_a_pancake.mkv")
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert stream.duration is None
        times = [float(frame.pts * stream.time_base) for frame in container.decode(stream)]
        longest = container.duration / av.time_base
    video = VideoFile(path)
    assert video.duration == pytest.approx(times[-1] + 1 / 30, abs=2e-3)
    assert video.duration < longest - 0.04  # the sound is longer
    found = [time for time, _ in video.frames_at([0.0, times[-1], video.duration + 0.01])]
    assert found == [0.0, times[-1]]


@pytest.mark.samples
def test_the_frames_of_real_files_are_those_of_plain_decoding():
    names = ["flipping_a_pancake.mkv", "sign_recordings/videos/sign_rec_00__cam0.mp4"]
    for path in (str(SAMPLES / name) for name in names):
        with av.open(path) as container:
            stream = container.streams.video[0]
            shown = {
                float(frame.pts * stream.time_base): frame.to_image()
                for number, frame in enumerate(container.decode(stream))
                if number % 23 == 0
            }
        video = VideoFile(path)
        found = dict(video.frames_at([time + 0.001 for time in shown]))
        for time, picture in shown.items():
            assert found[time + 0.001].tobytes() == picture.tobytes()


@pytest.mark.samples
def test_a_real_file_that_fails_in_the_middle_gives_what_comes_before():
    video = VideoFile(str(SAMPLES / "corrupted.mp4"))
    found = [picture for _, picture in video.frames_at([n / 10 + 0.01 for n in range(50)])]
    faults = [n for n, picture in enumerate(found) if isinstance(picture, FrameFault)]
    assert 0 < faults[0] < 50
    assert faults == list(range(faults[0], 50))
