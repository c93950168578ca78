"""Which videos are searched, for which texts, and where their frames lie."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from vtalign_jax.dst import plan
from vtalign_jax.dst.finder import Source
from vtalign_jax.dst.layouts import Layout
from vtalign_jax.dst.nodes import Remark, Video
from vtalign_jax.dst.pairs import parse_levels
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.grounding import as_source
from vtalign_jax.evaluation.questions import Question, questions_for, questions_of

Asked = dict[str, tuple[Video, list[Question]]]  # by uid

_AS_THEY_ARE = ("square", 0)  # frames that were made ready, or a layout that says nothing


class Job(NamedTuple):
    """One video to search.

    Attributes:
      name: of its files; a uid, or a file's name without its ending.
      source: where its frames lie, and how they become squares.
      questions: at least one.
    """

    name: str
    source: Source
    questions: list[Question]


class Jobs(NamedTuple):
    """What is to be done.

    Attributes:
      jobs: the videos.
      failed: why a video cannot be searched, by its name.
      warnings: what is done and looks wrong.
    """

    jobs: list[Job]
    failed: dict[str, str]
    warnings: list[Remark]


class Frames(NamedTuple):
    """How frames become squares.

    Attributes:
      trained: (fit, rotate) of the clips trained on.
      fit: what the user wants instead, or "".
      rotate: likewise, or None.
    """

    trained: tuple[str, int]
    fit: str = ""
    rotate: int | None = None

    def of(self, source: Source, row: Layout | None) -> Source:
        """Return a source that is made square as in training.

        A checkpoint says how its own clips were made, not from what: those of Assembly101 may have
        been cut out of raw videos and turned, or come from frames that were made ready. Where the
        dataset's row says that raw videos are special, that holds for raw videos; and frames that
        were made ready are taken as they are by a checkpoint of such raw videos.

        Args:
          source: as it was found.
          row: of its dataset, None for a plain file.
        """
        raw = (row.fit, row.rotate) if row else _AS_THEY_ARE
        fit, rotate = self.trained
        if raw != _AS_THEY_ARE and source.kind == "video":
            fit, rotate = raw
        elif raw != _AS_THEY_ARE and raw == self.trained:
            fit, rotate = _AS_THEY_ARE
        rotate = rotate if self.rotate is None else self.rotate
        return dataclasses.replace(source, fit=self.fit or fit, rotate=rotate)


def jobs_of_files(
    paths: Sequence[str], texts: Sequence[str], frames: Frames, source_fps: float | None
) -> Jobs:
    """Return a job a file, each with all texts; a file that is not there has failed.

    Raises:
      UserError: no text.
    """
    if not texts:
        raise UserError("no text to look for; give --text, --texts=file or --annotations")
    jobs, failed = [], {}
    for path in paths:
        try:
            source = frames.of(as_source(path, *frames.trained, source_fps), None)
        except UserError as error:
            failed[path] = str(error)
            continue
        jobs.append(Job(epath.Path(path).stem, source, questions_for(texts)))
    return Jobs(jobs, failed, [])


def jobs_of_annotations(
    settings: plan.Settings, paths: Sequence[str], texts: Sequence[str], frames: Frames
) -> Jobs:
    """Return a job an annotated video.

    Args:
      settings: which annotations and nodes, and where to find frames. Without `videos` they are
        looked for in the folder `videos` beside the annotations, else beside them.
      paths: files to take instead; each is the video whose uid is its name without the ending, or
        the only annotated one.
      texts: asked of every video instead of its nodes' names; () for the names.
      frames: how they become squares.

    Raises:
      UserError: an annotation that cannot be read or has no usable node, or a wrong setting.
    """
    plan.check_settings(settings)
    levels = parse_levels(settings.levels)
    checked = plan.read_videos(settings)
    asked: Asked = {}
    for video in checked.videos:
        questions = questions_for(texts, video) if texts else questions_of(video, levels)
        if questions:
            asked.setdefault(video.uid, (video, questions))
    if not asked:
        reasons = ", ".join(dict.fromkeys(skip.reason for skip in checked.skips))
        where = f"{settings.annotations} at --levels={settings.levels}"
        raise UserError(f"no usable node in {where}{reasons and f' ({reasons})'}; see lint.py")
    if paths:
        found = _given(paths, asked, frames, settings.source_fps)
    else:
        found = _found(asked, frames, settings)
    return found._replace(warnings=checked.warnings + found.warnings)


def _given(
    paths: Sequence[str],
    asked: Asked,
    frames: Frames,
    source_fps: float | None,
) -> Jobs:
    """Return the jobs of files that the user names."""
    jobs, failed = [], {}
    only = next(iter(asked)) if len(asked) == 1 and len(paths) == 1 else ""
    for path in paths:
        stem = epath.Path(path).stem
        try:
            if stem not in asked and not only:
                raise UserError(f"no annotated video is called {stem}; its uid names the file")
            video, questions = asked.get(stem) or asked[only]
            fps = source_fps or video.source_fps
            source = frames.of(as_source(path, *frames.trained, fps), None)
        except UserError as error:
            failed[path] = str(error)
            continue
        jobs.append(Job(video.uid, source, questions))
    return Jobs(jobs, failed, [])


def _found(asked: Asked, frames: Frames, settings: plan.Settings) -> Jobs:
    """Return the jobs of the videos that are found as `prepare` finds them."""
    if not settings.videos:
        beside = epath.Path(settings.annotations.split(",")[0].strip()).parent
        videos = beside / "videos"
        folder = videos if videos.is_dir() else beside
        settings = dataclasses.replace(settings, videos=str(folder))
    finder = plan.make_finder(settings)
    jobs, failed, warnings = [], {}, []
    for uid, (video, questions) in asked.items():
        if settings.limit_videos and len(jobs) == settings.limit_videos:
            break
        source, tried, remarks = finder.find(video)
        if source is None:
            failed[uid] = f"no frames for uid {uid}; tried {', '.join(tried)}"
        elif source.kind == "images" and not source.source_fps:
            failed[uid] = f"{source.path} is a folder of images; give its --source_fps"
        else:
            row = finder.naming.rows(video)[0][0]
            jobs.append(Job(uid, frames.of(source, row), questions))
            warnings += remarks
    if not jobs:
        advice = finder.suggestion([video for video, _ in asked.values()])
        raise UserError(f"{next(iter(failed.values()))}; {advice}")
    return Jobs(jobs, failed, warnings)
