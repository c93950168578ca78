"""A dataset for runs that end within seconds."""

import pathlib

from tests import commands


def make_small_recordings(tmp: pathlib.Path) -> pathlib.Path:
    """Return a folder with videos and annotations of 1 training and 2 validation recordings."""
    recordings = tmp / "recordings"
    commands.run("data/demo/make_demo.py", f"--out={recordings}", "--train=1", "--val=2")
    return recordings


def prepare_arguments(recordings: object, out: object) -> list[str]:
    """Return the flags of `prepare` for them."""
    return [
        f"--annotations={recordings}/train.json,{recordings}/val.json",
        f"--videos={recordings}/videos",
        f"--out={out}",
        "--image_size=64",
        "--frames=4",
        "--fit=center_crop",
    ]


def make_small_dataset(tmp: pathlib.Path) -> pathlib.Path:
    """Return a dataset of these recordings: 24 clips to train on."""
    out = tmp / "dataset"
    commands.run("launch/prepare.py", *prepare_arguments(make_small_recordings(tmp), out))
    return out
