r"""Ground: when in a whole video is shown what a text says, as ranked spans and as a picture.

python launch/ground.py --checkpoint=runs/pretrain --video=clip.mp4 --text="attach wheel to chassis"
python launch/ground.py --checkpoint=runs/pretrain --annotations=val.json --videos=videos

--video takes a video file, ProAssist Arrow frames or a folder of numbered images; it and --text may
be repeated, --texts=file.txt holds a text a line. With --annotations every node's text is asked of
its video (or --text of every video), and what is found is compared with where it is annotated: R@1
at IoU 0.3, 0.5 and 0.7 and mean IoU, overall and a level, beside a window drawn at random and the
best one that there is. A text that stands in a video several times is right at any of its places; a
node shorter than half a second is a moment, and counts as the window that a clip of it has in
training.

--out gets <video>.json (vtalign_jax/evaluation/grounding_documents.py says its form), <video>.png
and, of several videos, summary.json. It is by default the folder grounding/ of a workdir, and of
the current folder for an export.
"""

import contextlib
import dataclasses
import functools
import sys
import time
from typing import Any

from absl import flags
from etils import epath

from vtalign_jax import commandline, remote
from vtalign_jax.aligner import Aligner
from vtalign_jax.dst import report
from vtalign_jax.dst.images import FITS, ROTATIONS
from vtalign_jax.dst.settings_flags import define_source_flags, typed_settings
from vtalign_jax.dst.typeface import Typeface, load_typeface
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation import grounding_documents, grounding_files, grounding_jobs
from vtalign_jax.evaluation.grounding import KEEP, NMS_IOU, check_choice, ground
from vtalign_jax.evaluation.grounding_metrics import Answer, format_metrics
from vtalign_jax.evaluation.spans import WIDTHS, WindowGrid
from vtalign_jax.evaluation.timeline import ROWS, draw_timeline
from vtalign_jax.training.trained import Trained, load_trained
from vtalign_jax.wording import counted, typed_command

_SHOWN = 12  # texts of a video whose spans are printed

flags.DEFINE_string(
    "checkpoint", "", "workdir (its best checkpoint is taken), checkpoint, or export"
)
flags.DEFINE_string("base", "", "directory or hub id of the base model, where it has moved")
flags.DEFINE_multi_string("video", [], "video file, .arrow file or folder of images; repeatable")
flags.DEFINE_multi_string("text", [], "what to look for; repeatable")
flags.DEFINE_string("texts", "", "file with a text a line")
define_source_flags(levels="all")
flags.DEFINE_string("fit", "", "square or center_crop; default: as the checkpoint's clips")
flags.DEFINE_integer("rotate", None, "degrees counter-clockwise; default: as its clips")
flags.DEFINE_list("widths", [f"{width:g}" for width in WIDTHS], "of the windows, in seconds")
flags.DEFINE_float("stride", WindowGrid.stride, "to the next window, as a share of the width")
flags.DEFINE_integer("keep", KEEP, "spans a text, at most")
flags.DEFINE_float("nms_iou", NMS_IOU, "a span that overlaps a better one by more is left out")
flags.DEFINE_string("dtype", "", "float32 or bfloat16; default: as in training")
flags.DEFINE_string("out", "", "folder of the documents and pictures; see above")
flags.DEFINE_bool("pictures", True, "draw a timeline of each video")
flags.DEFINE_string("font", "", "font file of the timelines, for texts beyond the Latin alphabet")
flags.DEFINE_bool("json", False, "print the documents as JSON instead")


def main() -> None:
    """Search the videos, write, report."""
    args = flags.FLAGS
    # With --json nothing else stands on standard output.
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
        result = _ground()
        print(f"next: {_next_command(result.pop('out'))}")
    if args.json:
        commandline.print_json(result)


def _ground() -> dict[str, Any]:
    """Return what was found, of all videos and of each."""
    args, say = flags.FLAGS, functools.partial(print, flush=True)
    grid, face = _grid(), load_typeface(args.font)
    texts = _texts()
    trained = load_trained(args.checkpoint, args.base)
    grid.check(trained.config.data.frames)
    say(trained.source)
    found = _jobs(trained, texts)
    report.print_warnings(found.warnings)
    failed = dict(found.failed)
    for name, reason in failed.items():
        say(f"left out: {_shown(name)}: {reason}")
    if not found.jobs:
        raise UserError(next(iter(failed.values())))
    workdir = _workdir(args.checkpoint)
    out = remote.path(args.out or f"{workdir or '.'}/{grounding_files.FOLDER}")
    grounding_files.make_folder(args.out, out)
    say(f"loading the base from {trained.assembly.directory}")
    aligner = Aligner(trained, args.dtype, fit=args.fit, rotate=args.rotate)
    window = trained.facts["window_seconds"]
    asked = grounding_documents.settings_shown(grid, trained.source, args.nms_iou, window)
    count = sum(len(job.questions) for job in found.jobs)
    say(f"asking {counted(count, 'text')} of {counted(len(found.jobs), 'video')}: compiling first")
    documents, answers, began = [], [], time.monotonic()
    names = grounding_files.file_names(job.name for job in found.jobs)
    for number, (job, name) in enumerate(zip(found.jobs, names, strict=True), 1):
        try:
            document, of_video = _search(aligner, job, grid, (out, name), face, asked)
        except UserError as error:
            failed[job.name] = str(error)
            say(f"left out: {_shown(job.name)}: {error}")
            continue
        documents.append(document)
        answers += of_video
        left = (time.monotonic() - began) / number * (len(found.jobs) - number)
        place = (
            f"; {number} of {counted(len(found.jobs), 'video')}, {left:.0f} s left" if left else ""
        )
        _print_video(document, place)
    if not documents:
        raise UserError(next(iter(failed.values())))
    whole = grounding_documents.summary(documents, answers, failed, asked)
    grounding_files.write_summary(out, whole)
    if whole["metrics"]:
        say(format_metrics(whole["metrics"]))
    say(f"wrote {len(documents)} of {counted(len(documents) + len(failed), 'video')} to {out}")
    return whole | {"videos": documents, "out": out}


def _search(
    aligner: Aligner,
    job: grounding_jobs.Job,
    grid: WindowGrid,
    file: tuple[epath.Path, str],
    face: Typeface,
    asked: dict[str, Any],
) -> tuple[dict[str, Any], list[Answer]]:
    """Search one video, write its files, and return its document and its answers."""
    args, (out, name) = flags.FLAGS, file
    progress = _Progress(_shown(job.name))
    texts = [question.text for question in job.questions]
    with contextlib.closing(progress):
        found = ground(
            aligner,
            job.source,
            texts,
            grid.widths,
            stride=grid.stride,
            keep=args.keep,
            nms_iou=args.nms_iou,
            tell=progress,
        )
    answers = grounding_documents.answers_of(job, found, asked["windows"]["point_seconds"])
    title = f"{job.name}, {found.seconds:.1f} s, {counted(len(found.windows), 'window')}"
    drawn = draw_timeline(found, job.questions, title, face, ROWS) if args.pictures else []
    document = grounding_documents.document(job, found, answers, asked)
    document = grounding_files.write_video(out, name, document, drawn)
    return document, [answer for answer in answers if answer]


class _Progress:
    """A line or bar of the windows of a video, once their number is known."""

    def __init__(self, name: str):
        self._name, self._line, self._done = name, None, 0

    def __call__(self, done: int, total: int) -> None:
        if self._line is None:
            self._line = report.ProgressLine(total, self._name, "window")
        if done < total:  # the end is told by the video's own line
            self._line.advance(done - self._done, 0)
            self._done = done

    def close(self) -> None:
        """End the bar."""
        if self._line is not None:
            self._line.close()


def _print_video(document: dict[str, Any], place: str) -> None:
    windows, texts = document["windows"], document["texts"]
    lost = "".join(f"; {n} left out: {reason}" for reason, n in windows["lost"].items())
    counts = f"{counted(windows['count'], 'window')}, {counted(len(texts), 'text')}"
    said = f"{_shown(document['video'])}: {document['seconds']:.1f} s, {counts}"
    print(f"{said}{lost}{place}", flush=True)
    if len(texts) > _SHOWN or (document["metrics"] and len(texts) > 1):
        return
    for text in texts:
        print(f"  {_shown(text['text'])}")
        for span in text["spans"]:
            print(f"    {span['start']:9.2f} to {span['end']:9.2f} s   {span['score']:7.4f}")


def _shown(text: str) -> str:
    """Return a text that any terminal takes, whatever bytes a file's name has."""
    return text.encode("utf-8", "replace").decode()


def _grid() -> WindowGrid:
    args = flags.FLAGS
    try:
        widths = tuple(float(width) for width in args.widths)
    except ValueError:
        raise UserError(f"--widths are seconds, such as 2,4,8, got {args.widths}") from None
    check_choice(args.keep, args.nms_iou)
    return WindowGrid(widths, args.stride)


def _texts() -> list[str]:
    """Return the texts that the flags give.

    Raises:
      UserError: an empty text, or a file without any.
    """
    args = flags.FLAGS
    texts = list(args.text)
    if args.texts:
        try:
            lines = remote.path(args.texts).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read --texts={args.texts}: {error}; a text a line") from None
        texts += [line for line in lines if line.strip()]
        if not texts:
            raise UserError(f"--texts={args.texts} holds no text; write one a line")
    if not all(text.strip() for text in texts):
        raise UserError("--text is empty; say what to look for")
    return [text.strip() for text in texts]


def _jobs(trained: Trained, texts: list[str]) -> grounding_jobs.Jobs:
    args = flags.FLAGS
    for name, allowed in (("fit", ("", *FITS)), ("rotate", (None, *ROTATIONS))):
        if args[name].value not in allowed:
            known = ", ".join(str(choice) for choice in allowed if choice not in ("", None))
            raise UserError(f"--{name} knows {known}, got {args[name].value!r}")
    facts = trained.facts
    frames = grounding_jobs.Frames((facts["fit"], facts["rotate"]), args.fit, args.rotate)
    if args.annotations:
        settings = dataclasses.replace(typed_settings(), fit="", rotate=None)
        return grounding_jobs.jobs_of_annotations(settings, args.video, texts, frames)
    if not args.video:
        raise UserError("no video to search; give --video, or --annotations with --videos")
    return grounding_jobs.jobs_of_files(args.video, texts, frames, args.source_fps)


def _workdir(checkpoint: str) -> str:
    """Return the workdir that a --checkpoint is or lies in, "" for an export or a lone one."""
    path = remote.path(checkpoint)
    for folder in (path, path.parent, path.parent.parent):
        if (folder / "checkpoints").is_dir() and (folder / "config.json").exists():
            return str(folder)
    return ""


def _next_command(out: epath.Path) -> str:
    workdir = _workdir(flags.FLAGS.checkpoint)
    if grounding_files.is_drawn(out, workdir):
        return typed_command("report", f"--workdir={workdir}")
    return typed_command("evaluate", f"--checkpoint={flags.FLAGS.checkpoint}")


if __name__ == "__main__":
    commandline.run(main, required=("checkpoint",))
