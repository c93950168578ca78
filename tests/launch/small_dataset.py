"""A dataset for runs that end within seconds."""

import pathlib

from tests import commands


def make_small_dataset(tmp: pathlib.Path) -> pathlib.Path:
    """Return a dataset of 1 training and 2 validation recordings: 24 clips to train on."""
    recordings, out = tmp / "recordings", tmp / "dataset"
    commands.run(tmp, "data/demo/make_demo.py", f"--out={recordings}", "--train=1", "--val=2")
    commands.run(
        tmp,
        "launch/prepare.py",
        f"--annotations={recordings}/train.json,{recordings}/val.json",
        f"--videos={recordings}/videos",
        f"--out={out}",
        "--image_size=64",
        "--frames=4",
        "--fit=center_crop",
    )
    return out
