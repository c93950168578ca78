r"""Check annotations, and with --videos whether their frames are there: writes no dataset.

python launch/lint.py --annotations=train.json,val.json --videos=videos

Takes prepare's flags for annotations, frames and clips, reads and finds as prepare does, and prints
what prepare would leave out or refuse (errors), what it would keep but looks wrong (warnings), and
what is worth a look (infos). --contact_sheet=sheet.png draws the frames that some of the texts get.

Exit code: 0 nothing but infos, 1 findings (see --fail_on), 2 a mistake on the command line.
"""

import contextlib
import functools
import io
import json
import os
import sys

from absl import flags
from etils import epath

from vtalign_jax import commandline
from vtalign_jax.dst import lint_report, report
from vtalign_jax.dst.contact_sheet import (
    Clip,
    choose_clips,
    draw_sheet,
    render_clips,
)
from vtalign_jax.dst.lint import Linted, Options, lint, with_skips
from vtalign_jax.dst.plan import Settings
from vtalign_jax.dst.settings_flags import define_settings_flags, typed_flags, typed_settings
from vtalign_jax.dst.typeface import Typeface, load_typeface
from vtalign_jax.errors import UserError
from vtalign_jax.processes import make_pool, map_in_order
from vtalign_jax.wording import counted, typed_command

define_settings_flags()
flags.DEFINE_integer("max_text_chars", Options.max_text_chars, "A longer text is a warning.")
flags.DEFINE_boolean("decode", False, "Decode every clip: finds damage inside files.")
flags.DEFINE_float(
    "max_skipped", report.MAX_SKIPPED, "What prepare will be given, for the outlook."
)
flags.DEFINE_boolean("json", False, "Print all findings as JSON instead of a table.")
flags.DEFINE_string("out", "", "Write all findings as JSON to this file.")
flags.DEFINE_enum("fail_on", "warning", ["error", "warning"], "From which severity on to exit 1.")
flags.DEFINE_string("contact_sheet", "", "Draw some texts with their frames into this PNG.")
flags.DEFINE_integer("contact_sheet_clips", 24, "How many, over as many videos as possible.")
flags.DEFINE_string("contact_sheet_font", "", "Font file, for texts beyond the Latin alphabet.")
flags.DEFINE_integer("seed", 0, "Of the choice of clips for --contact_sheet.")
flags.DEFINE_integer("workers", 0, "Processes that look at the frames; 0: one a core.")


def main() -> None:
    """Read, check, report."""
    args = flags.FLAGS
    settings = typed_settings()
    _check_flags()
    face = load_typeface(args.contact_sheet_font)
    # With --json nothing else stands on standard output.
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
        linted = lint(settings, _options())
        if args.contact_sheet:
            linted = _draw_sheet(linted, settings, face)
        document = lint_report.as_json(linted, settings.levels)
        if not args.json:
            _print_report(linted, settings)
        if args.out:
            _write(args.out, "out", (json.dumps(document, indent=1) + "\n").encode())
        when = ", once the errors are mended" if document["counts"]["error"] else ""
        print(f"next{when}: {_next_command(settings)}")
    if args.json:
        print(json.dumps(document, indent=1))
    counts = document["counts"]
    if counts["error"] or (counts["warning"] and args.fail_on == "warning"):
        sys.exit(1)


def _check_flags() -> None:
    args = flags.FLAGS
    for name, least in {"workers": 0, "max_text_chars": 1, "contact_sheet_clips": 1}.items():
        if args[name].value < least:
            raise UserError(f"--{name} must be {least} or more, got {args[name].value}")
    if not 0 <= args.max_skipped <= 1:
        raise UserError(f"--max_skipped must lie in [0, 1], got {args.max_skipped}")
    for name in ("decode", "contact_sheet"):
        if args[name].value and not args.videos:
            raise UserError(f"--{name} needs frames; give their folder as --videos")
    if args.contact_sheet and not args.contact_sheet.lower().endswith(".png"):
        raise UserError(f"--contact_sheet writes PNG, got {args.contact_sheet}; end it in .png")
    for name in ("out", "contact_sheet"):  # not only after an hour of decoding
        if args[name].value:
            _make_room(args[name].value, name)


def _workers() -> int:
    return flags.FLAGS.workers or os.cpu_count() or 1


def _options() -> Options:
    args = flags.FLAGS
    say = functools.partial(print, flush=True)
    return Options(args.max_text_chars, args.decode, _workers(), say)


def _draw_sheet(linted: Linted, settings: Settings, face: Typeface) -> Linted:
    """Draw the contact sheet, and return what was found with what drawing found."""
    args = flags.FLAGS
    jobs = choose_clips(linted.jobs, args.contact_sheet_clips, args.seed)
    count = sum(len(job.pairs) for job in jobs)
    if not count:
        print("no contact sheet: no clip has frames")
        return linted
    clips: list[Clip] = []
    workers, progress = min(_workers(), len(jobs)), report.ProgressLine(count, "draw")
    with contextlib.closing(progress), make_pool(workers) as pool:
        for found in map_in_order(render_clips, jobs, pool):
            lost = sum(clip.skip is not None for clip in found)
            progress.advance(len(found) - lost, lost)
            clips += found
    total = sum(len(job.pairs) for of_video in linted.jobs.values() for job in of_video)
    how = f"--strategy={settings.strategy}, --frames={settings.frames}"
    title = f"{count:,} of {total:,} clips with {how}; green: within the node's span"
    sheet = io.BytesIO()
    draw_sheet(clips, title, face).save(sheet, "PNG")
    _write(args.contact_sheet, "contact_sheet", sheet.getvalue())
    return with_skips(linted, [clip.skip for clip in clips if clip.skip])


def _print_report(linted: Linted, settings: Settings) -> None:
    report.print_asides(linted.asides)
    for line in lint_report.table_lines(linted.findings):
        print(line)
    for line in lint_report.totals_lines(lint_report.totals(linted, settings.levels)):
        print(line)
    print(lint_report.outlook(linted, flags.FLAGS.max_skipped))
    counts = lint_report.count_severities(linted.findings)
    shown = [counted(count, name) for name, count in counts.items() if count]
    print(f"found {', '.join(shown) or 'nothing wrong'}")


def _make_room(path: str, flag: str) -> None:
    try:
        epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write --{flag}={path}: {error}") from None
    if epath.Path(path).is_dir():
        raise UserError(f"cannot write --{flag}={path}: that is a folder; name a file")


def _write(path: str, flag: str, content: bytes) -> None:
    try:
        epath.Path(path).write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write --{flag}={path}: {error}") from None
    print(f"wrote {path}")


def _next_command(settings: Settings) -> str:
    args = flags.FLAGS
    given = typed_flags(settings)
    if not settings.videos:
        given.append("--videos=VIDEOS")
    if args.max_skipped != report.MAX_SKIPPED:
        given.append(f"--max_skipped={args.max_skipped:g}")
    return typed_command("prepare", *given)


if __name__ == "__main__":
    commandline.run(main, required=("annotations",))
