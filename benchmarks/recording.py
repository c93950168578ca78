"""A synthetic recording for measurements, as long as one likes."""

import json
import pathlib

import av
import numpy as np
from PIL import Image

from vtalign_jax.dst.plan import Settings

_FPS, _WIDTH, _HEIGHT = 30, 640, 360
_SECONDS_A_NODE = 3
_WORLD = 2  # edge of the picture that the camera moves over, in frames


def write_recording(folder: pathlib.Path, minutes: int) -> Settings:
    """Write a video of a camera that wanders over a still picture, with a node each 3 seconds.

    Args:
      folder: gets a folder of its own for the recording.
      minutes: length of the video; 20 nodes a minute.

    Returns:
      What `prepare` needs to read it.
    """
    folder = folder / f"{minutes}min"
    folder.mkdir()
    small = np.random.default_rng(0).integers(0, 255, (36, 64, 3), np.uint8)
    world = np.asarray(Image.fromarray(small).resize((_WORLD * _WIDTH, _WORLD * _HEIGHT)))
    with av.open(str(folder / "video.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=_FPS)
        stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
        stream.options = {"preset": "superfast"}
        for index in range(minutes * 60 * _FPS):
            left = int((1 + np.sin(index / 97)) / 2 * (world.shape[1] - _WIDTH))
            top = int((1 + np.cos(index / 131)) / 2 * (world.shape[0] - _HEIGHT))
            view = np.ascontiguousarray(world[top : top + _HEIGHT, left : left + _WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        container.mux(stream.encode())
    nodes = [
        {"type": "action", "id": f"S{n}", "start_ts": start, "end_ts": start + 2, "name": f"do {n}"}
        for n, start in enumerate(range(0, minutes * 60, _SECONDS_A_NODE))
    ]
    annotations = folder / "train.json"
    annotations.write_text(json.dumps([{"video_uid": "video", "dst": nodes}]))
    return Settings(str(annotations), str(folder))
