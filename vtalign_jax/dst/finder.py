"""Where the frames of a uid lie: the search through the `--videos` folders.

Nothing outside the folders is ever looked at through a uid: see `templates.fill_path`.
"""

import dataclasses
import errno
from collections.abc import Callable, Iterable

from etils import epath

from vtalign_jax import remote
from vtalign_jax.dst.image_folder import numbered_pictures
from vtalign_jax.dst.layouts import (
    ARROW_EXTENSION,
    BY_DATASET,
    LAYOUTS,
    VIDEO_EXTENSIONS,
    Layout,
    Naming,
    is_video,
)
from vtalign_jax.dst.nodes import Remark, Video
from vtalign_jax.dst.templates import fill_glob, fill_path
from vtalign_jax.errors import UserError

ASSUMED_FPS = 30.0

_SUFFIXES = (*VIDEO_EXTENSIONS, *map(str.upper, VIDEO_EXTENSIONS))  # cameras write .MP4
_LEAVES = "a link that leads out of --videos: name the folder it leads to in --videos too"
_EXAMPLES = 3  # names shown of a folder without the files looked for
_MOST_TRIED = 100  # videos that a suggestion is tried with


@dataclasses.dataclass(frozen=True)
class Source:
    """The frames of one uid, and how they are to be made square.

    Attributes:
      kind: "video", "arrow" or "images".
      path: the file or folder.
      name: the same below its `--videos` folder, part of the fingerprint.
      size: bytes of the file, or pictures in the folder; part of the fingerprint.
      fit: "square" or "center_crop".
      rotate: degrees counter-clockwise.
      video_path: Arrow only: the video the rows were taken from, whose frame rate counts; or "".
      source_fps: frame rate of Arrow frames without such a video, and of images; 0 if unknown.
    """

    kind: str
    path: str
    name: str
    size: int
    fit: str
    rotate: int
    video_path: str = ""
    source_fps: float = 0.0


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A name to look for below a folder; `pattern` is the same with `*`, "" if it has none."""

    name: str
    pattern: str
    row: Layout

    def named(self, suffixes: Iterable[str]) -> list["_Candidate"]:
        """Return the candidate as it is if it ends in a suffix, else with each of them."""
        suffixes = tuple(suffixes)
        if self.name.lower().endswith(tuple(map(str.lower, suffixes))):
            return [self]
        return [
            _Candidate(self.name + end, self.pattern and self.pattern + end, self.row)
            for end in suffixes
        ]


@dataclasses.dataclass(frozen=True)
class _Found:
    """What a candidate names; `rivals` are the other files that its `*` fits."""

    root: str
    path: epath.Path
    row: Layout
    rivals: tuple[epath.Path, ...]

    @property
    def name(self) -> str:
        return str(self.path.relative_to(epath.Path(self.root)))


@dataclasses.dataclass(frozen=True)
class Finder:
    """Finds frame sources below the `--videos` folders.

    Attributes:
      roots: the folders.
      naming: how files are named.
      fit: overrides the layout's if not "".
      rotate: overrides the layout's if not None.
      source_fps: the flag's value, or None.
    """

    roots: tuple[str, ...]
    naming: Naming = BY_DATASET
    fit: str = ""
    rotate: int | None = None
    source_fps: float | None = None

    def find(self, video: Video) -> tuple[Source | None, list[str], list[Remark]]:
        """Return the source of a video, or None and the paths that were tried, and warnings.

        Arrow frames come before video files, and these before folders of images.
        """
        frames, videos, refused = self._candidates(video)
        arrow = self._first([c for f in frames for c in f.named((ARROW_EXTENSION,))], _is_file)
        file = self._first([c for f in videos for c in f.named(_SUFFIXES)], _is_file)
        images = None if arrow or file else self._first(_bare(frames), _has_pictures)
        found = [each for each in (arrow, file, images) if each]
        if leaving := [str(each.path) for each in found if not self._holds(each.path)]:
            return None, [f"{path} ({_LEAVES})" for path in leaving] + refused, []
        if arrow:
            source, remarks = self._arrow_source(video, arrow, file)
        elif file:
            fit = self.fit or file.row.fit
            rotate = file.row.rotate if self.rotate is None else self.rotate
            size = file.path.stat().length
            source = Source("video", str(file.path), file.name, size, fit, rotate)
            remarks = []
        elif images:
            source, remarks = self._image_source(video, images)
        else:
            return None, self._tried(frames, videos) + refused, []
        for each in found:
            if each.rivals:
                detail = f"{each.path} is taken, not {each.rivals[0]}"
                remarks.append(Remark(video.uid, "", "several files for one uid", detail))
        return source, [], remarks

    def suggestion(self, videos: list[Video]) -> str:
        """Return advice for uids without frames: a layout that finds some, if one does."""
        flag = "--layout" if self.naming.layout else "--uid_pattern and --path_template"
        instead = " instead of --path_template" if self.naming.custom else ""
        advice = {f"leave {flag} out": BY_DATASET} | {
            f"try --layout={name}{instead}": Naming(name) for name in LAYOUTS
        }
        for words, naming in advice.items():
            finder = dataclasses.replace(self, naming=naming)
            if naming != self.naming and any(finder.find(v)[0] for v in videos[:_MOST_TRIED]):
                return words
        root = self.roots[0]
        names = sorted(path.name for path in epath.Path(root).iterdir())
        more = ", ..." if len(names) > _EXAMPLES else ""
        held = f"{root} holds {', '.join(names[:_EXAMPLES]) or 'nothing'}{more}"
        return f"{held}: check --videos, or describe the names with --path_template"

    def _candidates(self, video: Video) -> tuple[list[_Candidate], list[_Candidate], list[str]]:
        """Return names of frames and of videos, and the templates that the uid does not fit."""
        frames, videos, refused = [], [], []
        for row, values in self.naming.rows(video):
            for templates, names in ((row.frames, frames), (row.videos, videos)):
                for template in templates:
                    try:
                        name = fill_path(template, values)
                    except ValueError as error:
                        refused.append(f"{template} ({error})")
                        continue
                    pattern = fill_glob(template, values) if "*" in template else ""
                    names.append(_Candidate(name, pattern, row))
        return frames, videos, refused

    def _holds(self, path: epath.Path) -> bool:
        """Return whether a path lies in one of the folders once links are followed."""
        if remote.is_remote(path):  # which has no links
            return True
        return any(remote.is_within(path, root) for root in self.roots)

    def _first(
        self, candidates: list[_Candidate], is_wanted: Callable[[epath.Path], bool]
    ) -> _Found | None:
        """Return the first candidate that is there, in the first folder that has one."""
        for root in self.roots:
            for candidate in candidates:
                paths = _paths(root, candidate, is_wanted)
                if paths:
                    return _Found(root, paths[0], candidate.row, tuple(paths[1:]))
        return None

    def _arrow_source(
        self, video: Video, arrow: _Found, file: _Found | None
    ) -> tuple[Source, list[Remark]]:
        """The frame rate comes from the video, else the annotation, else the flag, else is 30."""
        remarks = []
        fps = video.source_fps or self.source_fps
        if not file and not fps:
            reason = f"frame rate taken to be {ASSUMED_FPS:g} (--source_fps)"
            remarks.append(Remark(video.uid, "", reason))
        source = Source(
            "arrow",
            str(arrow.path),
            arrow.name,
            arrow.path.stat().length,
            fit=self.fit or "square",
            rotate=self.rotate or 0,
            video_path=str(file.path) if file else "",
            source_fps=fps or ASSUMED_FPS,
        )
        return source, remarks

    def _image_source(self, video: Video, images: _Found) -> tuple[Source, list[Remark]]:
        """The frame rate comes from the flag, else the annotation; without either it stays 0."""
        remarks = []
        pictures = sorted(numbered_pictures(str(images.path)))
        if not self.source_fps and video.source_fps:
            reason = "frame rate of images taken to be the annotation's (--source_fps)"
            remarks.append(Remark(video.uid, "", reason, f"{video.source_fps:g}"))
        if pictures[0][0] > 1:
            reason = "images numbered neither from 0 nor from 1; the first is taken as time 0"
            remarks.append(Remark(video.uid, "", reason, pictures[0][1]))
        source = Source(
            "images",
            str(images.path),
            images.name,
            len(pictures),
            fit=self.fit or "square",
            rotate=self.rotate or 0,
            source_fps=self.source_fps or video.source_fps or 0.0,
        )
        return source, remarks

    def _tried(self, frames: list[_Candidate], videos: list[_Candidate]) -> list[str]:
        """Return the paths looked for, for messages."""
        endings: dict[str, list[str]] = {candidate.name: [] for candidate in frames + videos}
        for candidate in _bare(frames):
            endings[candidate.name] += [ARROW_EXTENSION, "/"]
        for candidate in videos:
            if not is_video(candidate.name):
                endings[candidate.name] += [*VIDEO_EXTENSIONS[:2], "..."]
        names = [f"{name}{{{','.join(e)}}}" if e else name for name, e in endings.items()]
        return [f"{root}/{name}" for root in self.roots for name in names]


def check_roots(roots: str) -> tuple[str, ...]:
    """Return the comma-separated folders of `--videos`.

    Raises:
      UserError: no folder, or one that does not exist.
    """
    folders = tuple(part.strip().rstrip("/") for part in roots.split(",") if part.strip())
    if not folders:
        raise UserError("--videos names no folder; give the folder of the videos or frames")
    for folder in folders:
        if not remote.path(folder).is_dir():
            raise UserError(f"no folder {folder}; --videos takes the folder of videos or frames")
    return folders


def _bare(candidates: list[_Candidate]) -> list[_Candidate]:
    """Return the names that can be those of folders."""
    return [c for c in candidates if not c.name.lower().endswith(ARROW_EXTENSION)]


def _is_file(path: epath.Path) -> bool:
    return remote.is_file(path)


def _has_pictures(path: epath.Path) -> bool:
    return path.is_dir() and next(numbered_pictures(str(path)), None) is not None


def _paths(
    root: str, candidate: _Candidate, is_wanted: Callable[[epath.Path], bool]
) -> list[epath.Path]:
    """Return what a candidate names below a folder, if it is what is wanted."""
    folder = epath.Path(root)
    try:
        names = folder.glob(candidate.pattern) if candidate.pattern else [folder / candidate.name]
        return sorted(path for path in names if is_wanted(path))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # so there is no such file
            return []
        raise UserError(f"cannot look for {folder / candidate.name}: {error.strerror}") from None
