"""Everything that is wrong in annotations, or looks so, by the code that `prepare` uses."""

import collections
import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import Executor

from vtalign_jax.dst.checks import check_splits, check_texts, check_tree
from vtalign_jax.dst.finder import Finder
from vtalign_jax.dst.findings import Finding, from_remark, from_skip
from vtalign_jax.dst.nodes import Remark, Skip, Video
from vtalign_jax.dst.pairs import is_chosen, parse_levels
from vtalign_jax.dst.plan import (
    Settings,
    check_settings,
    find_frames,
    in_turn,
    make_finder,
    read_videos,
)
from vtalign_jax.dst.probe import Probe, check_frames, decode, probe
from vtalign_jax.dst.records import Job
from vtalign_jax.dst.report import ProgressLine
from vtalign_jax.dst.splits import assign_splits, settle_leakage
from vtalign_jax.dst.tree import Checked
from vtalign_jax.errors import UserError
from vtalign_jax.processes import make_pool, map_in_order
from vtalign_jax.wording import counted

Key = tuple[str, str]  # split and uid: a uid may stand in several splits


@dataclasses.dataclass(frozen=True)
class Options:
    """What decides the checks, beside `Settings`.

    Attributes:
      max_text_chars: a longer text is worth a warning.
      decode: whether to decode every clip, which finds damage inside files.
      workers: processes that look at the frames.
      say: gets a line on what begins now.
    """

    max_text_chars: int = 200
    decode: bool = False
    workers: int = 1
    say: Callable[[str], None] = lambda line: None


@dataclasses.dataclass(frozen=True)
class Linted:
    """What `lint` found.

    Attributes:
      findings: in no particular order.
      videos: that could be read, each with a split.
      asides: lines of the annotations that are no nodes by nature, counted by kind.
      jobs: what `prepare` would render; empty without `--videos`.
      taken: clips that `prepare` would take; without `--videos`, if all have frames.
      durations: seconds, of the videos with readable frames.
    """

    findings: list[Finding]
    videos: list[Video]
    asides: collections.Counter[str]
    jobs: dict[Key, list[Job]]
    taken: int
    durations: dict[Key, float]


def lint(settings: Settings, options: Options) -> Linted:
    """Read the annotations and find their frames as `prepare` does, and tell what is wrong.

    Args:
      settings: as of `prepare`; without `videos` the frames are not looked for.
      options: what to check, and how.

    Raises:
      UserError: a wrong flag, or no annotation file that can be read.
    """
    check_settings(settings)
    levels = parse_levels(settings.levels)
    finder = make_finder(settings) if settings.videos else None
    options.say(f"reading {settings.annotations}")
    refused: list[Remark] = []
    checked = read_videos(settings, refused.append)
    if refused and not checked.videos and not checked.skips:
        raise UserError(refused[0].detail)
    videos = assign_splits(checked.videos, settings.val_fraction)
    if free := sum(not video.split for video in checked.videos):
        share = f"--val_fraction={settings.val_fraction:g} of their recordings"
        options.say(f"{free:,} of {len(videos):,} videos have no split by file: {share} go to val")
    findings = list(check_splits(videos, settings.on_leakage))
    if not any(is_chosen(node, levels) for video in videos for node in video.nodes):
        findings += _check_levels(checked, settings.levels)
    jobs: dict[Key, list[Job]] = {}
    if finder:
        options.say(
            f"looking for the frames of {counted(len(videos), 'video')} in {settings.videos}"
        )
        jobs, found = _find(videos, finder, settings)
        findings += found
    if settings.limit_videos:
        videos = _first(videos, settings.limit_videos, jobs if finder else None)
        checked = _only(checked, {video.uid for video in videos})
    nodes = sum(len(video.nodes) for video in videos)
    options.say(f"checking {counted(nodes, 'node')} of {counted(len(videos), 'video')}")
    findings += [from_remark(remark, "error") for remark in refused]
    findings += map(from_skip, checked.skips)
    findings += map(from_remark, checked.warnings)
    findings += check_texts(videos, options.max_text_chars)
    for video in videos:
        findings += check_tree(video)
    durations, skips, found = _look(videos, jobs, options)
    if finder:
        taken = sum(len(job.pairs) for of_video in jobs.values() for job in of_video) - len(skips)
    else:
        taken = sum(is_chosen(node, levels) for video in videos for node in video.nodes)
    findings = _placed([*findings, *map(from_skip, skips), *found], videos)
    return Linted(findings, videos, checked.asides, jobs, taken, durations)


def with_skips(linted: Linted, skips: list[Skip]) -> Linted:
    """Return the same with clips that were found to be left out later on."""
    known = {(found.check, found.uid, found.node_id) for found in linted.findings}
    fresh = [skip for skip in skips if (skip.reason, skip.uid, skip.node_id) not in known]
    findings = linted.findings + _placed(list(map(from_skip, fresh)), linted.videos)
    return dataclasses.replace(linted, findings=findings, taken=linted.taken - len(fresh))


def _check_levels(checked: Checked, levels: str) -> list[Finding]:
    """Return why no node is chosen, unless what is left out says it."""
    there = collections.Counter(node.level for video in checked.videos for node in video.nodes)
    if not there and checked.skips:
        return []
    shown = ", ".join(f"{count} {level}(s)" for level, count in there.items())
    detail = f"--levels={levels}; there are {shown or 'none at all'}"
    return [Finding("error", "no node at these levels", detail=detail)]


def _find(
    videos: list[Video], finder: Finder, settings: Settings
) -> tuple[dict[Key, list[Job]], list[Finding]]:
    """Return the jobs of the videos that have frames, and what is wrong with the others."""
    if settings.on_leakage == "drop":
        videos, _, _ = settle_leakage(videos, "drop")
    refused: list[Remark] = []
    by_split, skips, remarks = find_frames(videos, finder, settings, refused.append)
    findings = [from_remark(remark, "error") for remark in refused]
    findings += map(from_remark, remarks)
    if skips:
        missing = {skip.uid for skip in skips}
        advice = finder.suggestion([video for video in videos if video.uid in missing])
        for skip in skips:
            findings.append(from_skip(dataclasses.replace(skip, detail=f"{skip.detail}; {advice}")))
    jobs: dict[Key, list[Job]] = {}
    for split, split_jobs in by_split.items():
        for job in split_jobs:
            jobs.setdefault((split, job.pairs[0].uid), []).append(job)
    return jobs, findings


def _first(videos: list[Video], limit: int, jobs: dict[Key, list[Job]] | None) -> list[Video]:
    """Return the videos that `--limit_videos` takes: of those with frames, if these are known."""
    if jobs is None:
        return in_turn(videos)[:limit]
    return [video for video in videos if (video.split, video.uid) in jobs]


def _only(checked: Checked, uids: set[str]) -> Checked:
    """Return what is wrong with these videos only, and with whole files."""
    return dataclasses.replace(
        checked,
        skips=[skip for skip in checked.skips if not skip.uid or skip.uid in uids],
        warnings=[remark for remark in checked.warnings if remark.uid in uids],
    )


def _look(
    videos: list[Video], jobs: dict[Key, list[Job]], options: Options
) -> tuple[dict[Key, float], list[Skip], list[Finding]]:
    """Open every file once, and decode every clip if that is wanted.

    Returns:
      The duration of what is readable, the clips that would be left out, and what looks wrong.
    """
    if not jobs:
        return {}, [], []
    workers = min(options.workers, len(jobs))
    with make_pool(workers) as pool:
        options.say(f"opening {len(jobs):,} sources of frames, {workers} process(es)")
        probes = dict(zip(jobs, _open_all(list(jobs.values()), pool), strict=True))
        if options.decode:
            options.say("decoding every clip, which takes about as long as prepare")
            for key, skips in _decode_all(jobs, pool).items():
                probes[key] = dataclasses.replace(probes[key], skips=tuple(skips))
    findings: list[Finding] = []
    for video in videos:
        key = (video.split, video.uid)
        if key in jobs:
            findings += check_frames(video, jobs[key][0].source, probes[key])
    durations = {key: probe.duration for key, probe in probes.items() if probe.duration is not None}
    skips = [skip for found in probes.values() for skip in found.skips]
    return durations, skips, findings


def _open_all(by_video: list[list[Job]], pool: Executor | None) -> Iterator[Probe]:
    progress = ProgressLine(len(by_video), "open", "source")
    try:
        for found in map_in_order(probe, by_video, pool):
            progress.advance(found.duration is not None, found.duration is None)
            yield found
    finally:
        progress.close()


def _decode_all(by_key: dict[Key, list[Job]], pool: Executor | None) -> dict[Key, list[Skip]]:
    """Return the clips that cannot be rendered."""
    keyed = [(key, job) for key, jobs in by_key.items() for job in jobs]
    progress = ProgressLine(sum(len(job.pairs) for _, job in keyed), "decode")
    skips: dict[Key, list[Skip]] = {key: [] for key in by_key}
    try:
        results = map_in_order(decode, [job for _, job in keyed], pool)
        for (key, job), lost in zip(keyed, results, strict=True):
            skips[key] += lost
            progress.advance(len(job.pairs) - len(lost), len(lost))
    finally:
        progress.close()
    return skips


def _placed(findings: list[Finding], videos: list[Video]) -> list[Finding]:
    """Return the findings, each with its place in the files if it is about one node."""
    places = {(video.uid, node.node_id): node.where for video in videos for node in video.nodes}
    return [
        found
        if found.where
        else dataclasses.replace(found, where=places.get((found.uid, found.node_id), ""))
        for found in findings
    ]
