"""Renders the demo's videos and their annotations.

python data/demo/make_demo.py --out=demo_run/recordings --seed=0

Writes `videos/<uid>.mp4` (H.264, 96 pixels, 10 frames a second), `train.json` and `val.json`. The
same seed gives the same recordings. 120 + 20 recordings take about half a minute on two cores.
"""

import json
import os
import pathlib
import shutil

import av
import numpy as np
from absl import flags

from data.demo import scenes
from vtalign_jax import commandline
from vtalign_jax.errors import UserError
from vtalign_jax.processes import make_pool, map_in_order
from vtalign_jax.wording import typed_command


def make_demo(out: pathlib.Path, counts: dict[str, int], seed: int) -> None:
    """Render every recording into `out`, which appears only when it is complete.

    Args:
      out: folder to write.
      counts: recordings of each split, by its name.
      seed: of the whole demo.

    Raises:
      UserError: `out` exists, or a process that encodes was ended from outside.
    """
    if out.exists():
        raise UserError(f"{out} exists; remove it or choose another --out")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "videos").mkdir(parents=True)
    jobs = []
    for split, count in counts.items():
        recordings = scenes.plan_split(split, count, seed)
        trees = [scenes.annotation(recording) for recording in recordings]
        (partial / f"{split}.json").write_text(json.dumps(trees, indent=1))
        jobs += [
            (recording, partial / "videos" / f"{recording.uid}.mp4") for recording in recordings
        ]
    with make_pool(min(len(jobs), os.cpu_count() or 1)) as pool:
        for _ in map_in_order(_write, jobs, pool):
            pass
    partial.rename(out)


def _write(job: tuple[scenes.Recording, pathlib.Path]) -> None:
    write_video(*job)


def write_video(recording: scenes.Recording, path: pathlib.Path) -> None:
    """Encode one recording as H.264 in MP4."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=scenes.FPS)
        stream.width = stream.height = scenes.PIXELS
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # the same bytes whatever the machine
        stream.options = {"preset": "superfast", "crf": "20"}
        for image in scenes.render(recording):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def main() -> None:
    """Render the recordings the flags ask for."""
    out = pathlib.Path(flags.FLAGS.out)
    counts = {"train": flags.FLAGS.train, "val": flags.FLAGS.val}
    print(f"rendering {sum(counts.values())} recordings into {out} (about half a minute)")
    make_demo(out, counts, flags.FLAGS.seed)
    given = [f"--annotations={out}/train.json,{out}/val.json", f"--videos={out}/videos"]
    given += [f"--out={out.parent}/dataset", "--image_size=64", "--frames=4"]
    print(f"next: {typed_command('prepare', *given)}")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder to write; it must not exist yet.")
    flags.DEFINE_integer("seed", 0, "Everything drawn follows from it.", lower_bound=0)
    flags.DEFINE_integer("train", 120, "Training recordings of 24 actions.", lower_bound=1)
    flags.DEFINE_integer("val", 20, "Validation recordings of 24 actions.", lower_bound=2)
    commandline.run(main, required=("out",))
