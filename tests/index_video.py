"""Videos whose every frame carries its own number in the picture, to prove which frame was read."""

from fractions import Fraction

import av
import numpy as np
from PIL import Image

from vtalign_jax.dst.faults import FrameFault
from vtalign_jax.dst.video import VideoFile

NTSC = Fraction(30000, 1001)

_CELLS = 4  # a grid of 4 x 4 black or white cells in the centre square
_CORNERS = (0, 3, 12, 15)  # white, white, black, white: tells how the picture lies
_BITS = tuple(cell for cell in range(_CELLS**2) if cell not in _CORNERS)


def draw_index(index, width=128, height=96):
    """Return uint8[height, width, 3], grey with the number's grid in the centre square."""
    assert 0 <= index < 2 ** len(_BITS)
    cells = np.zeros(_CELLS**2, np.uint8)
    cells[[0, 3, 15]] = 255
    for bit, cell in enumerate(_BITS):
        cells[cell] = 255 * (index >> bit & 1)
    edge = min(width, height) // _CELLS * _CELLS
    square = np.kron(cells.reshape(_CELLS, _CELLS), np.ones((edge // _CELLS,) * 2, np.uint8))
    picture = np.full((height, width), 128, np.uint8)
    left, top = (width - edge) // 2, (height - edge) // 2
    picture[top : top + edge, left : left + edge] = square
    return np.repeat(picture[..., None], 3, axis=2)


def read_index(picture, squashed_from=None):
    """Return the number in a picture, -1 if it lies on its side or its head.

    Args:
      picture: PIL image.
      squashed_from: (width, height) before the picture was squashed to a square.
    """
    if squashed_from:
        picture = picture.resize(squashed_from)
    grey = np.asarray(picture.convert("L"))
    height, width = grey.shape
    edge = min(width, height)
    centres = (np.arange(_CELLS) + 0.5) * edge / _CELLS
    rows = ((height - edge) / 2 + centres).astype(int)
    columns = ((width - edge) / 2 + centres).astype(int)
    cells = (grey[np.ix_(rows, columns)] > 127).ravel()
    if [bool(cells[corner]) for corner in _CORNERS] != [True, True, False, True]:
        return -1
    return sum(int(cells[cell]) << bit for bit, cell in enumerate(_BITS))


def constant_ticks(frames, rate):
    """Return the presentation times of a constant frame rate, in seconds."""
    return [float(n / Fraction(rate)) for n in range(frames)]


def write_video(
    path,
    times,
    *,
    rate=30,
    codec="libx264",
    options=None,
    container_options=None,
    width=128,
    height=96,
):
    """Write a video whose frame n shows the number n from `times[n]` on.

    Args:
      path: the container follows from the extension.
      times: seconds, ascending.
      rate: nominal frames a second; also the time base where the codec wants one.
      codec: an encoder's name.
      options: the encoder's, e.g. {"g": "30", "bf": "2"}.
      container_options: the muxer's, e.g. {"movflags": "faststart"}.
      width: pixels.
      height: pixels.
    """
    constant = codec in ("mpeg4", "mpeg2video")
    base = 1 / Fraction(rate) if constant else Fraction(1, 120000)
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"g": "48", "bf": "2"} | (options or {})
        stream.codec_context.time_base = base
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(draw_index(index, width, height), format="rgb24")
            frame.pts, frame.time_base = round(time / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def shown_index(times, time):
    """Return the number of the frame that a player shows at `time`: the last one begun."""
    return int(np.searchsorted(times, time + 1e-6, side="right")) - 1


def decode_all(path):
    """Return every frame of a video as PIL images, in order, by plain decoding."""
    with av.open(str(path)) as container:
        frames = container.decode(container.streams.video[0])
        return [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in frames]


def ask_video(path, times):
    """Return (time, the number in the picture shown then, or the fault), as `VideoFile` gives."""
    video = VideoFile(str(path))
    try:
        return [
            (time, found if isinstance(found, FrameFault) else read_index(found))
            for time, found in video.frames_at(times)
        ]
    finally:
        video.close()
