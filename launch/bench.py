r"""Measure parts of the system side by side in one run; prints a JSON object a line.

    python launch/bench.py prepare [--annotations=... --videos=...]

`prepare`: rendering clips against a loop that opens, seeks and decodes for each clip, by default on
a synthetic video of 10 minutes with 200 nodes, and a worker's memory for 1 and 10 minutes of video.

Seconds differ between machines; the ratios are what to compare.
"""

import json

from absl import flags

from vtalign_jax import commandline

_ANNOTATIONS = flags.DEFINE_string("annotations", "", "prepare: recordings to render instead")
_VIDEOS = flags.DEFINE_string("videos", "", "prepare: folder of those recordings")
_WORKERS = flags.DEFINE_integer("workers", 0, "prepare: processes; 0: one a core", lower_bound=0)
_REPEATS = flags.DEFINE_integer("repeats", 3, "counted runs of each way", lower_bound=1)


def main(part: str) -> None:
    """Measure one part."""
    for row in PARTS[part]():
        print(json.dumps(row), flush=True)


def _prepare():
    from benchmarks import prepare

    return prepare.measure(_ANNOTATIONS.value, _VIDEOS.value, _WORKERS.value, _REPEATS.value)


PARTS = {"prepare": _prepare}  # each imports what it alone needs


if __name__ == "__main__":
    commandline.run(main, parts=tuple(PARTS))
