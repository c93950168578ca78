"""The demo from end to end, with the commands of the big job (`make demo`).

python data/demo/run_demo.py --out=demo_run [--seed=0]

Renders videos, prepares, trains, evaluates, grounds, exports and draws a report in `--out`, then
says where everything is. Ends with code 1 if recall or grounding on the unseen videos stays below
what the demo promises. About five minutes on two CPU cores.
"""

import json
import pathlib
import shlex
import shutil
import subprocess
import sys
import time

from absl import flags

from vtalign_jax import commandline
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.report.page import FILE as REPORT
from vtalign_jax.evaluation.result import Evaluation
from vtalign_jax.evaluation.table import format_table

GROUNDING = "grounding, R@1 at IoU 0.5"
PROMISED = {"recall@5": 0.9, "recall@1": 0.5, GROUNDING: 0.3}  # on videos never seen
_MARK = "made_by_the_demo"  # only a folder that holds it is ever replaced


def main() -> None:
    """Run every command, one after the other."""
    out, seed, began = pathlib.Path(flags.FLAGS.out), flags.FLAGS.seed, time.monotonic()
    _make_folder(out)
    recordings, dataset, workdir = out / "recordings", out / "dataset", out / "run"
    _run("data/demo/make_demo.py", f"--out={recordings}", f"--seed={seed}")
    _run(
        "launch/prepare.py",
        f"--annotations={recordings}/train.json,{recordings}/val.json",
        f"--videos={recordings}/videos",
        f"--out={dataset}",
        "--image_size=64",
        "--frames=4",
    )
    _run(
        "launch/train.py",
        "--config=configs/demo.py",
        f"--config.data.dir={dataset}",
        f"--config.train.seed={seed}",
        f"--workdir={workdir}",
    )
    result = json.loads(_run("launch/evaluate.py", f"--checkpoint={workdir}", "--json", read=True))
    grounded = json.loads(
        _run(
            "launch/ground.py",
            f"--checkpoint={workdir}",
            f"--annotations={recordings}/val.json",
            f"--videos={recordings}/videos",
            "--levels=action",
            "--widths=4",
            "--limit_videos=8",
            "--json",
            read=True,
        )
    )["metrics"]["action"]
    exported = workdir / "exports" / "peft"
    _run("launch/export.py", f"--checkpoint={workdir}", "--format=peft", f"--out={exported}")
    _run("launch/report.py", f"--workdir={workdir}")  # with the export's certificate

    rows = {
        row: Evaluation.from_json(
            {"metrics": metrics} | {part: result[part][row] for part in ("intervals", "groups")}
        )
        for row, metrics in result["rows"].items()
    }
    print(f"\n{'=' * 72}\nvalidation videos, never seen in training:\n{format_table(rows)}\n")
    for what, where in (
        ("report", workdir / REPORT),
        ("metrics of training", workdir / "metrics.jsonl"),
        ("evaluated", result["source"]),
        ("timelines", workdir / "grounding"),
        ("export for PyTorch", exported),
    ):
        print(f"{what + ':':22}{where}")
    print(f"{'waiting for data:':22}{_data_wait(workdir):.2%} of the training steps' time")
    print(f"the demo took {time.monotonic() - began:.0f} s")
    found = {row: grounded[row]["recall@1_iou_0.5"] for row in ("model", "random")}
    print(f"{GROUNDING}: {found['model']:.3f}, a window drawn at random {found['random']:.3f}")
    _check(rows["checkpoint"].metrics | {GROUNDING: found["model"]})


def _make_folder(out: pathlib.Path) -> None:
    if out.exists() and not (out / _MARK).exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is in the way and no demo; remove it or choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / _MARK).touch()


def _run(script: str, *arguments: str, read: bool = False) -> str:
    """Run a command as a user would, printing it first; return what it printed if `read`."""
    print(f"\n$ {shlex.join(['python', script, *arguments])}", flush=True)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, script, *arguments],
        stdout=subprocess.PIPE if read else None,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.returncode)
    print(f"({time.monotonic() - began:.0f} s)", flush=True)
    return done.stdout or ""


def _data_wait(workdir: pathlib.Path) -> float:
    """Return the share of the steps' time in which training waited for its batch."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "train/data_wait" in row]
    return sum(row["train/data_wait"] for row in rows) / len(rows)  # intervals of as many steps


def _check(reached: dict[str, float]) -> None:
    """Fail if the promise is broken."""
    for name, promised in PROMISED.items():
        verb = "reached" if reached[name] >= promised else "MISSED"
        print(f"{name} {reached[name]:.3f}, promised {promised}: {verb}")
    if any(reached[name] < promised for name, promised in PROMISED.items()):
        sys.exit(1)


if __name__ == "__main__":
    flags.DEFINE_string("out", "demo_run", "Folder of the demo; an earlier demo is replaced.")
    flags.DEFINE_integer("seed", 0, "Of the videos and of training.", lower_bound=0)
    commandline.run(main)
