import numpy as np
import pytest

from vtalign_jax.dst.pairs import frame_times
from vtalign_jax.pipeline.sampling import (
    choose_frames,
    frame_numbers,
    whole_seconds,
    window_lengths,
)

HOURS = [0.0, 3.7, 999.3, 36000.35, 64321.987]  # seconds; up to 18 hours into a video


def stored(start, length, frames):
    """Return (times, start, end) as the records hold them: in 32 bits."""
    times = np.float32(frame_times(start, start + length, frames))
    return times.tolist(), float(np.float32(start)), float(np.float32(start + length))


@pytest.mark.parametrize("start", HOURS)
@pytest.mark.parametrize(
    ("length", "frames"), [(4.0, 8), (4.0, 32), (0.08, 8), (2.996, 8), (7201.25, 5), (0.64, 64)]
)
def test_frame_numbers_and_lengths_read_back_the_same_anywhere_in_a_video(start, length, frames):
    length = round(length, 2)  # as prepare makes them
    times, window_start, window_end = stored(start, length, frames)
    assert window_lengths(window_start, window_end) == length
    found = frame_numbers(times, window_start, length, frames)
    assert found == tuple(range(frames))
    assert frame_numbers(times[2:-1], window_start, length, frames) == found[2:-1]


@pytest.mark.parametrize("times", [[9.9], [10.25, 14.1], [10.25, 10.25], [11.25, 10.25]])
def test_times_that_are_not_the_windows_are_refused(times):
    with pytest.raises(ValueError, match="not of 8 spread over 4 s from 10 s on"):
        frame_numbers(times, 10.0, 4.0, 8)


@pytest.mark.parametrize("sampled", [1, 3, 8, 13, 32])
def test_as_many_frames_as_stored_are_all_of_them(sampled):
    numbers = range(sampled)
    assert choose_frames(numbers, sampled, sampled) == list(numbers)
    assert choose_frames(numbers, sampled, sampled, lambda segment: 0.999) == list(numbers)


def test_each_segment_gives_the_frame_nearest_to_its_middle_and_of_two_the_earlier():
    assert choose_frames(range(8), 8, 4) == [0, 2, 4, 6]  # two frames, equally far
    assert choose_frames(range(9), 9, 3) == [1, 4, 7]
    assert choose_frames(range(8), 8, 1) == [3]
    assert choose_frames(range(5), 5, 2) == [1, 3]  # the one on the border is the later segment's


@pytest.mark.parametrize(("sampled", "frames"), [(8, 3), (16, 5), (30, 8), (7, 6), (64, 64)])
def test_every_segment_has_a_frame_and_the_choice_is_the_nearest(sampled, frames):
    chosen = choose_frames(range(sampled), sampled, frames)
    assert len(chosen) == frames
    times = np.array(frame_times(0.0, 1.0, sampled))
    for segment, place in enumerate(chosen):
        inside = times[(times >= segment / frames - 1e-9) & (times < (segment + 1) / frames - 1e-9)]
        nearest = np.abs(inside - (segment + 0.5) / frames).min()
        assert abs(times[place] - (segment + 0.5) / frames) == pytest.approx(nearest)


def test_choosing_again_among_the_chosen_changes_nothing():
    first = choose_frames(range(11), 11, 4)
    assert choose_frames(first, 11, 4) == list(range(4))


def test_a_segment_without_a_frame_gives_none_and_places_count_what_is_stored():
    late = range(11, 16)  # the window begins 11 sixteenths before the video does
    assert choose_frames(late, 16, 4) == [0, 2]  # 11 of segment 2, 13 of segment 3
    assert choose_frames(late, 16, 16) == [0, 1, 2, 3, 4]


def test_a_draw_picks_within_its_segment():
    asked = []

    def draw(segment):
        asked.append(segment)
        return [0.0, 0.24, 0.25, 0.999][segment]

    assert choose_frames(range(16), 16, 4, draw) == [0, 4, 9, 15]
    assert asked == [0, 1, 2, 3]


@pytest.mark.parametrize("start", HOURS)
def test_a_clip_has_the_same_seconds_wherever_in_the_video_it_lies(start):
    times, window_start, _ = stored(start, 8.0, 16)
    numbers = frame_numbers(times, window_start, 8.0, 16)
    assert whole_seconds(numbers, 8.0, 16) == tuple(k // 2 for k in range(16))
    assert whole_seconds((1, 4, 7), 6.0, 9) == (1, 3, 5)  # 1, 3 and 5 s sharp


def test_seconds_go_on_past_an_hour():
    assert whole_seconds((0, 7), 7200.0, 8) == (450, 6750)
