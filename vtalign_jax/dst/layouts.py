"""How datasets name their files and recordings: one table row a dataset, or one made of flags."""

import dataclasses
import re

from vtalign_jax.dst.nodes import Video
from vtalign_jax.dst.templates import check_path_template, check_template, fill
from vtalign_jax.errors import UserError

VIDEO_EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mpeg", ".mpg", ".mov", ".m4v", ".ts")
ARROW_EXTENSION = ".arrow"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a dataset names its files and recordings.

    The templates hold the groups of `uid`, and `{uid}` and `{dataset}`. A path without extension is
    tried as Arrow frames, as a video with each of `VIDEO_EXTENSIONS`, and as a folder of images.

    Attributes:
      uid: uids that the row speaks about, matched as a whole.
      frames: paths of Arrow frames or folders of images below a `--videos` folder, which are taken
        as they are.
      videos: paths of the raw video file below a `--videos` folder; `*` stands for any name.
      recording: the recording; "" for the rule of `identity.recording_id`.
      fit: how raw videos of this dataset are made square, unless a flag says otherwise.
      rotate: degrees counter-clockwise that raw videos are turned, unless a flag says otherwise.
    """

    uid: re.Pattern[str]
    frames: tuple[str, ...]
    videos: tuple[str, ...]
    recording: str = ""
    fit: str = "square"
    rotate: int = 0

    def match(self, video: Video) -> dict[str, str] | None:
        """Return what the names in braces stand for, None if the row does not speak about it."""
        match = self.uid.fullmatch(video.uid)
        if match is None:
            return None
        known = {"uid": video.uid, "dataset": video.dataset}
        return known | match.groupdict(default="")


_FRAMES = ("{uid}", "frames/{uid}")
_ANY = re.compile(r".+")

PLAIN = Layout(_ANY, _FRAMES, ("{uid}",))

LAYOUTS = {
    "assembly101": Layout(
        re.compile(r"(?:dis)?assembly_(?P<seq>.+)__(?P<cam>.+)"),
        ("{seq}__{cam}", "frames/{seq}__{cam}"),
        ("{seq}/{cam}.mp4",),
        "{seq}",
        fit="center_crop",
        rotate=90,
    ),
    "ego4d": Layout(  # a group is named after its first video
        re.compile(r"(?:grp-)?(?P<id>.+)"), ("{id}", "frames/{id}"), ("{id}.mp4",), "{id}"
    ),
    "holoassist": Layout(_ANY, _FRAMES, ("{uid}/Export_py/Video_pitchshift.mp4",), "{uid}"),
    "epickitchens": Layout(
        re.compile(r"(?P<participant>P\d+)_.+"),
        _FRAMES,
        ("EK100/{participant}/videos/{uid}.MP4", "EK55/videos/*/*/{uid}.MP4"),
        "{uid}",
    ),
    "egoexolearn": Layout(_ANY, _FRAMES, ("{uid}.mp4",), "{uid}"),
    "wtag": Layout(_ANY, _FRAMES, ("{uid}/Video/Video.mpeg",), "{uid}"),
}


@dataclasses.dataclass(frozen=True)
class Naming:
    """Which row of `LAYOUTS`, or which row made of flags, speaks about a video.

    Attributes:
      layout: a key of `LAYOUTS`, or "".
      custom: the row that the flags make (`make_layout`), or None.
    """

    layout: str = ""
    custom: Layout | None = None

    def rows(self, video: Video) -> list[tuple[Layout, dict[str, str]]]:
        """Return the rows to look a video up by, first one first, and what they made of its uid.

        The row that a flag names stands alone where it speaks about the uid. Otherwise the row of
        the dataset that the annotation names comes first and the uid's own name second.
        """
        flagged = self.custom or LAYOUTS.get(self.layout)
        if flagged and (values := flagged.match(video)) is not None:
            return [(flagged, values)]
        rows = (LAYOUTS.get(video.dataset.lower()), PLAIN)
        return [(row, values) for row in rows if row and (values := row.match(video)) is not None]

    def name_recording(self, video: Video) -> Video:
        """Return the video with its recording's name, where a row has one."""
        rows = self.rows(video) + BY_DATASET.rows(video)
        named = (fill(row.recording, values) for row, values in rows)
        return dataclasses.replace(video, named_recording=next(filter(None, named), ""))


BY_DATASET = Naming()


def make_layout(uid_pattern: str, path_template: str, recording_template: str) -> Layout | None:
    """Return the row that `--uid_pattern`, `--path_template` and `--recording_template` make.

    Args:
      uid_pattern: a regular expression for whole uids; "" for any.
      path_template: comma-separated; "" for the uid's own name. What ends in a video extension is a
        raw video, anything else frames that were made ready.
      recording_template: "" for the rule that holds without the flags.

    Returns:
      None if none of the three is given.

    Raises:
      UserError: no regular expression, a template with an unknown name, a path that leaves its
        folder, or a pattern that nothing uses.
    """
    if not (uid_pattern or path_template or recording_template):
        return None
    if not (path_template or recording_template):
        raise UserError("--uid_pattern alone changes nothing; add --path_template='{group}.mp4'")
    try:
        pattern = re.compile(uid_pattern or _ANY.pattern)
    except re.error as error:
        raise UserError(f"--uid_pattern={uid_pattern} is no regular expression: {error}") from None
    names = {"uid", "dataset", *pattern.groupindex}
    check_template(recording_template, names, "recording_template", "uid_pattern")
    paths = tuple(part.strip() for part in path_template.split(",")) if path_template else ()
    for path in paths:
        check_template(path, names, "path_template", "uid_pattern")
        check_path_template(path, "path_template")
    videos = tuple(path for path in paths if is_video(path))
    frames = tuple(path for path in paths if not is_video(path))
    bare = tuple(path for path in frames if not path.lower().endswith(ARROW_EXTENSION))
    if not paths:
        return Layout(pattern, PLAIN.frames, PLAIN.videos, recording_template)
    return Layout(pattern, frames, videos + bare, recording_template)


def is_video(path: str) -> bool:
    """Return whether a path ends as video files do."""
    return path.lower().endswith(VIDEO_EXTENSIONS)
