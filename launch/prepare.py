r"""Annotations + videos -> a TFDS dataset of clip-text pairs in ArrayRecord.

python launch/prepare.py --annotations=train.json,val.json --videos=videos --out=datasets/dst_clips

Annotations are flat or nested JSON, JSON lines, ProAssist step text, TSV of nodes or CSV of
segments: the content says which, or --format. A CSV's columns are those of EPIC-KITCHENS-100 unless
flags name others.
Frames are found by uid below --videos: ProAssist Arrow frames, video files, or folders of numbered
images. --layout knows how six datasets name them; --uid_pattern and --path_template describe other
names, for instance --uid_pattern='(?P<seq>.+)_(?P<cam>.+)' --path_template='{seq}/{cam}.mp4'.
What cannot be used is left out, named in <out>/skipped.jsonl, and counted in the table at the end.
"""

import os
import shutil
from pathlib import Path

from absl import flags, logging
from etils import epath

from data.dst_clips.write import (
    Listeners,
    Machines,
    clear_remains,
    dataset_path,
    existing_fingerprint,
    write_dataset,
)
from vtalign_jax import commandline, remote
from vtalign_jax.dst import report
from vtalign_jax.dst.nodes import Skip
from vtalign_jax.dst.plan import Plan, make_plan
from vtalign_jax.dst.settings_flags import define_settings_flags, typed_settings
from vtalign_jax.errors import UserError
from vtalign_jax.wording import counted, typed_command

define_settings_flags()
flags.DEFINE_string("out", "datasets/dst_clips", "Where the dataset goes.")
flags.DEFINE_float("max_skipped", report.MAX_SKIPPED, "Share of the clips that may be left out.")
flags.DEFINE_integer("workers", 0, "Decoding processes; 0: one a core.")
flags.DEFINE_string("beam_runner", "", "Render on this Apache Beam runner, such as DirectRunner.")
flags.DEFINE_list("beam_options", "", "Options of the pipeline: name=value,... (Beam's own names).")
flags.DEFINE_boolean("overwrite", False, "Replace another dataset that stands below --out.")


def main() -> None:
    """Plan, render, write, report."""
    logging.set_verbosity(logging.WARNING)
    args = flags.FLAGS
    settings = typed_settings()
    if not 0 <= args.max_skipped <= 1:
        raise UserError(f"--max_skipped must lie in [0, 1], got {args.max_skipped}")
    machines = _machines()
    remote.path(args.out)  # a bucket that cannot be reached is told before the work
    print(f"reading {settings.annotations}", flush=True)
    plan = make_plan(settings)
    report.print_asides(plan.asides)
    report.print_warnings(plan.warnings)
    if _is_done(plan, args.out, args.overwrite):
        if not remote.is_remote(args.out):
            clear_remains(args.out)
        print(f"{dataset_path(args.out)} holds exactly this already, nothing to do")
    else:
        _write(plan, args.out, args.max_skipped, machines)
        print(f"wrote {dataset_path(args.out)}, skipped clips in {_skipped(args.out)}")
    print("pretrain.py trains SmolVLM 2.2B, on TPUs; --config=configs/tiny.py tries it on a laptop")
    print(_next_command(plan, args.out))


def _is_done(plan: Plan, out: str, overwrite: bool) -> bool:
    """Return whether the planned dataset stands below `out` already."""
    found = existing_fingerprint(out)
    if found is None or overwrite:
        return False
    if found != plan.fingerprint:
        raise UserError(
            f"{dataset_path(out)} holds another dataset; replace it with --overwrite, or give "
            "another --out"
        )
    return True


def _next_command(plan: Plan, out: str) -> str:
    """Return the line that ends the command; training needs splits train and val."""
    when, missing = "", [split for split in ("train", "val") if split not in plan.jobs]
    if missing:
        when, out = f", with a DATASET of split {' and '.join(missing)}", f"{out},DATASET"
    given = "--config=configs/pretrain.py", f"--config.data.dir={out}"
    return f"next{when}: {typed_command('train', *given)}"


def _machines() -> Machines:
    args = flags.FLAGS
    if args.workers < 0:
        raise UserError(f"--workers must be 0 or more, got {args.workers}")
    if args.beam_options and not args.beam_runner:
        raise UserError("--beam_options go with --beam_runner; name one, such as DirectRunner")
    if remote.is_remote(args.out) and args.beam_runner not in ("", "DirectRunner"):
        raise UserError(
            f"--beam_runner={args.beam_runner} writes where all its machines can, which --out="
            f"{args.out} is not; give a folder that they share and copy it to the bucket"
        )
    return Machines(args.workers or os.cpu_count() or 1, args.beam_runner, tuple(args.beam_options))


def _skipped(out: str) -> epath.Path:
    return epath.Path(out) / "skipped.jsonl"


def _write(plan: Plan, out: str, max_skipped: float, machines: Machines) -> None:
    if not remote.is_remote(out):
        _render(plan, out, out, max_skipped, machines)
        return
    here = remote.staging(out)
    if existing_fingerprint(str(here)) != plan.fingerprint:  # else its upload was cut off
        _render(plan, str(here), out, max_skipped, machines)
    remote.upload(Path(dataset_path(str(here))), dataset_path(out), "prepare.json")
    shutil.rmtree(here)


def _render(plan: Plan, here: str, out: str, max_skipped: float, machines: Machines) -> None:
    """Write the dataset below `here`, a folder of this machine, and the skipped clips to `out`."""
    skipped = _skipped(out)

    def check_skips(skips: list[Skip], taken: int) -> None:
        report.write_skips(skips, skipped)
        report.check_share(skips, taken, max_skipped, skipped)

    try:
        check_skips(plan.skips, plan.num_clips)
    except OSError as error:
        raise UserError(f"cannot write below --out={out}: {error}") from None
    if not plan.jobs:
        where = f"{plan.settings.annotations} at --levels={plan.settings.levels}"
        reasons = ", ".join(dict.fromkeys(skip.reason for skip in plan.skips))
        raise UserError(f"no usable node in {where}{reasons and f' ({reasons})'}; see {skipped}")
    videos = len({job.source.path for jobs in plan.jobs.values() for job in jobs})
    where = machines.beam_runner or f"{machines.workers} process(es)"
    print(
        f"rendering {counted(plan.num_clips, 'clip')} of {counted(videos, 'video')}, {where}",
        flush=True,
    )
    progress = report.ProgressLine(plan.num_clips, "prepare")
    listeners = Listeners(progress.advance, progress.say, check_skips)
    try:
        written = write_dataset(plan, here, machines, listeners)
    finally:
        progress.close()
    print(report.closing_table(written.tables, written.num_bytes, written.skips, plan.dropped))


if __name__ == "__main__":
    commandline.run(main, required=("annotations", "videos", "out"))
