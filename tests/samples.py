"""Where the public sample data lie: beside the repository, since their licences differ from ours.

Tests that read them are marked `samples`; where the folder is absent they are deselected, and the
head of pytest's output says so.
"""

import pathlib

SAMPLES = pathlib.Path(__file__).parents[2] / "shared" / "data"
