"""Where the frames of a uid lie: one table row a dataset, and the search through the folders."""

import dataclasses
import re

from etils import epath

from vtalign_jax.dst.nodes import Video
from vtalign_jax.errors import UserError

VIDEO_EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mpeg", ".mpg", ".mov", ".m4v", ".ts", ".MP4")
ASSUMED_FPS = 30.0


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a dataset names its files.

    Attributes:
      uid: uids that the row speaks about; all others are looked up under their own name.
      arrow: name of the Arrow frames, from the groups of `uid`.
      videos: paths of the video file below a `--videos` folder; without extension, any is taken.
      fit: how raw videos of this dataset are made square, unless a flag says otherwise.
      rotate: degrees counter-clockwise that raw videos are turned, unless a flag says otherwise.
    """

    uid: re.Pattern[str]
    arrow: str
    videos: tuple[str, ...]
    fit: str = "square"
    rotate: int = 0


_PLAIN = Layout(re.compile(r"(?P<uid>.+)"), "{uid}", ("{uid}",))

LAYOUTS = {
    "assembly101": Layout(
        re.compile(r"(?:dis)?assembly_(?P<seq>.+)__(?P<cam>.+)"),
        "{seq}__{cam}",
        ("{seq}/{cam}.mp4",),
        fit="center_crop",
        rotate=90,
    ),
}


@dataclasses.dataclass(frozen=True)
class Source:
    """The frames of one uid, and how they are to be made square.

    Attributes:
      kind: "video" or "arrow".
      path: the file.
      name: the file below its `--videos` folder, part of the fingerprint.
      num_bytes: size of the file, part of the fingerprint.
      fit: "square" or "center_crop".
      rotate: degrees counter-clockwise.
      video_path: Arrow only: the video the rows were taken from, whose frame rate counts; or "".
      source_fps: Arrow only: frame rate to use when there is no such video.
    """

    kind: str
    path: str
    name: str
    num_bytes: int
    fit: str
    rotate: int
    video_path: str = ""
    source_fps: float = 0.0


@dataclasses.dataclass(frozen=True)
class Finder:
    """Finds frame sources below the `--videos` folders.

    Attributes:
      roots: the folders.
      layout: a key of `LAYOUTS`, or "" for files named after the uid.
      fit: overrides the layout's if not "".
      rotate: overrides the layout's if not None.
      source_fps: the flag's value, or None.
    """

    roots: tuple[str, ...]
    layout: str = ""
    fit: str = ""
    rotate: int | None = None
    source_fps: float | None = None

    def find(self, video: Video) -> tuple[Source | None, list[str], str]:
        """Return the source (Arrow frames before video files), the paths tried, and a warning.

        The frame rate of Arrow frames comes from the video if it is at hand, else from the
        annotation, else from `source_fps`, else it is taken to be 30 with a warning.
        """
        row = LAYOUTS[self.layout] if self.layout else _PLAIN
        match = row.uid.fullmatch(video.uid)
        if not match:
            row, match = _PLAIN, _PLAIN.uid.fullmatch(video.uid)
        names = match.groupdict()
        arrow = row.arrow.format(**names)
        arrow_paths = [f"{folder}{arrow}.arrow" for folder in ("", "frames/")]
        video_paths = [
            path if path.endswith(VIDEO_EXTENSIONS) else f"{path}{extension}"
            for path in (template.format(**names) for template in row.videos)
            for extension in ([""] if path.endswith(VIDEO_EXTENSIONS) else VIDEO_EXTENSIONS)
        ]
        found_arrow, found_video = self._first(arrow_paths), self._first(video_paths)
        if found_arrow:
            fps = video.source_fps or self.source_fps
            warning = ""
            if not found_video and not fps:
                warning = f"frame rate taken to be {ASSUMED_FPS:g} (--source_fps)"
            source = Source(
                "arrow",
                *found_arrow,
                fit=self.fit or "square",
                rotate=self.rotate or 0,
                video_path=found_video[0] if found_video else "",
                source_fps=fps or ASSUMED_FPS,
            )
            return source, [], warning
        if found_video:
            rotate = row.rotate if self.rotate is None else self.rotate
            return Source("video", *found_video, fit=self.fit or row.fit, rotate=rotate), [], ""
        tried = [f"{root}/{arrow_paths[0]}" for root in self.roots] + [
            f"{root}/{_shorten(row.videos[0].format(**names))}" for root in self.roots
        ]
        return None, tried, ""

    def _first(self, names: list[str]) -> tuple[str, str, int] | None:
        for root in self.roots:
            for name in names:
                path = epath.Path(root) / name
                if path.is_file():
                    return str(path), name, path.stat().length
        return None

    def suggestion(self, videos: list[Video]) -> str:
        """Return advice for uids without frames: a layout that finds some, if one does."""
        for name in LAYOUTS:
            finder = dataclasses.replace(self, layout=name)
            if name != self.layout and any(finder.find(video)[0] for video in videos[:100]):
                return f"try --layout={name}"
        others = [name for name in LAYOUTS if name != self.layout]
        return "check --videos" + (f", or try --layout={'|'.join(others)}" if others else "")


def check_roots(roots: str) -> tuple[str, ...]:
    """Return the comma-separated folders of `--videos`.

    Raises:
      UserError: no folder, or one that does not exist.
    """
    folders = tuple(part.strip().rstrip("/") for part in roots.split(",") if part.strip())
    if not folders:
        raise UserError("--videos names no folder; give the folder of the videos or Arrow frames")
    for folder in folders:
        if not epath.Path(folder).is_dir():
            raise UserError(f"no folder {folder}; --videos takes the folder of videos or frames")
    return folders


def _shorten(path: str) -> str:
    return path if path.endswith(VIDEO_EXTENSIONS) else f"{path}.{{mp4,mkv,...}}"
