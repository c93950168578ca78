"""Everything `prepare` decides before a frame is decoded."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable

from vtalign_jax.dst.finder import Finder, check_roots
from vtalign_jax.dst.images import FITS, ROTATIONS
from vtalign_jax.dst.layouts import LAYOUTS, Naming, make_layout
from vtalign_jax.dst.nodes import Remark, Skip, Video
from vtalign_jax.dst.pairs import is_chosen, make_pairs, parse_levels
from vtalign_jax.dst.readers import FORMATS, expand_paths, read_annotations
from vtalign_jax.dst.records import Job, make_jobs
from vtalign_jax.dst.splits import assign_splits, settle_leakage
from vtalign_jax.dst.tables import Columns
from vtalign_jax.dst.tree import Checked, build_videos
from vtalign_jax.dst.windows import SECONDS_A_FRAME, STRATEGIES, window_chooser
from vtalign_jax.errors import UserError

SPLITS = ("train", "val", "test")
ON_LEAKAGE = ("error", "drop")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the flags of `prepare` say, as typed.

    Attributes:
      annotations: comma-separated files or globs.
      videos: comma-separated folders of videos, Arrow frames or folders of images.
      layout: a key of `layouts.LAYOUTS`, or "".
      uid_pattern: see `layouts.make_layout`.
      path_template: see `layouts.make_layout`.
      recording_template: see `layouts.make_layout`.
      fit: "square", "center_crop", or "" for the layout's own.
      rotate: degrees counter-clockwise, or None for the layout's own.
      source_fps: frame rate of images, and of Arrow frames whose video and annotation do not tell.
      limit_videos: videos to take, in turn from each split; 0 for all.
      image_size: pixels.
      frames: frames to look for in each window; a run may use fewer.
      strategy: a key of `windows.STRATEGIES`: how long the windows are.
      window_seconds: their length ("center"), or their mean length ("adaptive").
      pad_seconds: what "span" adds to a node's span on each side.
      levels: "leaves", "all", or comma-separated levels.
      on_leakage: "error" or "drop".
      val_fraction: share of the recordings for val where the files give no split.
      format: one of `readers.FORMATS` for all annotation files, or "" to look at each.
      uid_column: of a segments CSV, as the four that follow; see `tables.Columns`.
      start_column: when a segment starts.
      end_column: when it ends.
      text_column: what is done in it.
      id_column: its id, or "".
    """

    annotations: str
    videos: str
    layout: str = ""
    uid_pattern: str = ""
    path_template: str = ""
    recording_template: str = ""
    fit: str = ""
    rotate: int | None = None
    source_fps: float | None = None
    limit_videos: int = 0
    image_size: int = 384
    frames: int = 8
    strategy: str = "center"
    window_seconds: float = 4.0
    pad_seconds: float = 0.5
    levels: str = "leaves"
    on_leakage: str = "error"
    val_fraction: float = 0.1
    format: str = ""
    uid_column: str = Columns.uid
    start_column: str = Columns.start
    end_column: str = Columns.end
    text_column: str = Columns.text
    id_column: str = Columns.id


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be written.

    Attributes:
      jobs: by split, in the order of the files.
      settings: as given.
      skips: what is left out already.
      dropped: clips removed from train because of leakage.
      warnings: what is kept and looks wrong.
      asides: lines of the annotations that are no nodes by nature, counted by kind.
      fingerprint: hex SHA-256 over the keys of the jobs.
    """

    jobs: dict[str, list[Job]]
    settings: Settings
    skips: list[Skip]
    dropped: int
    warnings: list[Remark]
    asides: collections.Counter[str]
    fingerprint: str

    @property
    def num_clips(self) -> int:
        """Pairs in all jobs."""
        return sum(len(job.pairs) for jobs in self.jobs.values() for job in jobs)


def check_settings(settings: Settings) -> None:
    """Raise UserError for a value that is out of range, naming the flag."""
    choices = {
        "layout": ("", *LAYOUTS),
        "fit": ("", *FITS),
        "rotate": (None, *ROTATIONS),
        "on_leakage": ON_LEAKAGE,
        "strategy": tuple(STRATEGIES),
        "format": ("", *FORMATS),
    }
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            known = ", ".join(str(value) for value in allowed if value not in ("", None))
            raise UserError(f"--{name} knows {known}, got {getattr(settings, name)!r}")
    shortest = SECONDS_A_FRAME * settings.frames  # of a window, in seconds
    ranges = {
        "limit_videos": (0, 10**9),
        "image_size": (16, 4096),
        "frames": (1, 64),
        "window_seconds": (shortest, 3600.0),
        "pad_seconds": (shortest / 2, 3600.0),
        "val_fraction": (0.0, 0.9),
        "source_fps": (0.01, 1000.0),
    }
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:
            raise UserError(f"--{name} must lie in [{low:g}, {high:g}], got {value}")


def make_naming(settings: Settings) -> Naming:
    """Return how files and recordings are named.

    Raises:
      UserError: see `layouts.make_layout`, and a layout beside a pattern.
    """
    custom = make_layout(settings.uid_pattern, settings.path_template, settings.recording_template)
    if custom and settings.layout:
        raise UserError(
            f"--layout={settings.layout} and --uid_pattern, --path_template, --recording_template "
            "exclude each other; give one way to name the files"
        )
    return Naming(settings.layout, custom)


def _end_with(refusal: Remark) -> None:
    raise UserError(refusal.detail)


Refuse = Callable[[Remark], None]  # gets what ends the command unless this function returns


def read_videos(settings: Settings, refuse: Refuse = _end_with) -> Checked:
    """Read and check all annotation files, and name the recordings.

    Args:
      settings: which files, and how they are written.
      refuse: called for each file that cannot be read.

    Raises:
      UserError: a path that names no file, a wrong naming flag, or what `refuse` raises.
    """
    naming = make_naming(settings)
    columns = Columns(
        settings.uid_column,
        settings.start_column,
        settings.end_column,
        settings.text_column,
        settings.id_column,
    )
    rows, skips = [], []
    for path in expand_paths(settings.annotations):
        try:
            file_rows, file_skips = read_annotations(path, settings.format, columns)
        except UserError as error:
            refuse(Remark("", "", "unreadable annotation file", str(error)))
            continue
        rows += file_rows
        skips += file_skips
    checked = build_videos(rows)
    named = [naming.name_recording(video) for video in checked.videos]
    return dataclasses.replace(checked, videos=named, skips=skips + checked.skips)


def make_plan(settings: Settings) -> Plan:
    """Read the annotations, settle the splits and find the frames.

    Raises:
      UserError: a wrong flag, an unreadable annotation file, leakage, or no frames for any uid.
    """
    check_settings(settings)
    levels = parse_levels(settings.levels)
    finder = make_finder(settings)
    checked = read_videos(settings)
    skips, warnings = checked.skips, list(checked.warnings)
    videos, dropped, shared = settle_leakage(
        assign_splits(checked.videos, settings.val_fraction), settings.on_leakage
    )
    if shared:
        warnings.append(Remark("", "", "recording(s) stand in val and in test", str(shared)))
    jobs, find_skips, find_warnings = find_frames(videos, finder, settings)
    if find_skips and not jobs:
        raise UserError(_no_frames(videos, find_skips, finder))
    if settings.limit_videos:  # what is wrong with other videos does not count
        taken = {job.pairs[0].uid for split_jobs in jobs.values() for job in split_jobs}
        skips = [skip for skip in skips if not skip.uid or skip.uid in taken]
    return Plan(
        jobs=jobs,
        settings=settings,
        skips=skips + find_skips,
        dropped=sum(is_chosen(node, levels) for video in dropped for node in video.nodes),
        warnings=warnings + find_warnings,
        asides=checked.asides,
        fingerprint=_fingerprint(jobs),
    )


def make_finder(settings: Settings) -> Finder:
    """Return what finds the frames.

    Raises:
      UserError: no such folder, or a wrong naming flag.
    """
    naming, roots = make_naming(settings), check_roots(settings.videos)
    return Finder(roots, naming, settings.fit, settings.rotate, settings.source_fps or None)


def find_frames(
    videos: list[Video], finder: Finder, settings: Settings, refuse: Refuse = _end_with
) -> tuple[dict[str, list[Job]], list[Skip], list[Remark]]:
    """Return the jobs of the videos that have frames, up to `limit_videos`, skips and warnings.

    Args:
      videos: each with a split.
      finder: of `make_finder`.
      settings: which nodes, which windows.
      refuse: called for each folder of images whose frame rate nothing tells.
    """
    levels = parse_levels(settings.levels)
    window_of = window_chooser(
        settings.strategy,
        videos,
        levels,
        window_seconds=settings.window_seconds,
        pad_seconds=settings.pad_seconds,
        frames=settings.frames,
    )
    jobs: dict[str, list[Job]] = {}
    skips, warnings, taken = [], [], 0
    for video in in_turn(videos) if settings.limit_videos else videos:
        if settings.limit_videos and taken == settings.limit_videos:
            break
        pairs = make_pairs(video, levels, window_of, settings.frames)
        if not pairs:
            continue
        source, tried, remarks = finder.find(video)
        if source is None:
            detail = f"tried {', '.join(tried)}"
            skips.append(Skip(video.uid, "", "no frames", detail, len(pairs)))
            continue
        if source.kind == "images" and not source.source_fps:
            detail = f"{source.path} is a folder of images; give its rate as --source_fps"
            refuse(Remark(video.uid, "", "no frame rate", detail))
            continue
        taken += 1
        warnings += remarks
        jobs.setdefault(video.split, []).extend(make_jobs(pairs, source, settings.image_size))
    if settings.limit_videos and skips:
        reason = "--limit_videos passed over uid(s) without frames"
        warnings.append(Remark("", "", reason, str(len(skips))))
        skips = [] if taken else skips
    return {split: jobs[split] for split in SPLITS if split in jobs}, skips, warnings


def in_turn(videos: list[Video]) -> list[Video]:
    """Return the videos ordered so that every split comes in turn."""
    rank = dict.fromkeys(SPLITS, 0)
    placed = []
    for video in videos:
        placed.append((rank[video.split], SPLITS.index(video.split), video))
        rank[video.split] += 1
    return [video for *_, video in sorted(placed, key=lambda item: item[:2])]


def _no_frames(videos: list[Video], skips: list[Skip], finder: Finder) -> str:
    first = skips[0]
    missing = {skip.uid for skip in skips}
    lost = [video for video in videos if video.uid in missing]
    return f"no frames for uid {first.uid}; {first.detail}; {finder.suggestion(lost)}"


def _fingerprint(jobs: dict[str, list[Job]]) -> str:
    """Hash what decides the records: not where the files lie, but what they are."""
    keys = {split: [job.key() for job in split_jobs] for split, split_jobs in jobs.items()}
    return hashlib.sha256(json.dumps(keys).encode()).hexdigest()
