"""The files of a search: `<video>.json`, its pictures, and of several videos `summary.json`.

`grounding_documents.py` says what a document holds. A later search of the same video replaces its
files, and one of a single video removes the summary of several: nothing in the folder is of a
search that is no more.
"""

import io
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath
from PIL import Image

from vtalign_jax import json_files, remote
from vtalign_jax.errors import UserError

FOLDER = "grounding"  # inside a workdir
SUMMARY = "summary"
_PAGE = ".page"  # and its number, from 2, before the ending of a further picture


def file_names(names: Iterable[str]) -> list[str]:
    """Return a name for each video's files: its own, numbered where it would meet another's."""
    taken, found = {SUMMARY}, []
    for name in names:
        name = name.replace("/", "_") or "video"
        is_page = re.search(rf"{re.escape(_PAGE)}\d+$", name, re.IGNORECASE)
        free, number = name, 1
        while is_page or free.lower() in taken:  # some disks know no case
            number, is_page = number + 1, None
            free = f"{name}-{number}"
        taken.add(free.lower())
        found.append(free)
    return found


def write_video(
    folder: epath.Path, name: str, content: dict[str, Any], pictures: Sequence[Image.Image]
) -> dict[str, Any]:
    """Write `<name>.json` and `<name>.png`, `<name>.page2.png`, ...; return the document.

    Pictures of an earlier search of this video that are not written again are removed.

    Args:
      folder: of the search.
      name: of `file_names`.
      content: of `grounding_documents.document`.
      pictures: of the video, none or more.

    Raises:
      UserError: a file cannot be written.
    """
    earlier = _earlier(folder, name).get("pictures")
    names = [_page(name, number) for number in range(1, len(pictures) + 1)]
    for file, picture in zip(names, pictures, strict=True):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        _write(folder / file, buffer.getvalue())
    whole = content | {"picture": names[0] if names else None, "pictures": names}
    _write_json(folder, name, whole)
    own = re.compile(rf"{re.escape(name)}({re.escape(_PAGE)}\d+)?\.png")
    for file in earlier if isinstance(earlier, list) else []:
        if file not in names and own.fullmatch(str(file)) and (folder / file).exists():
            (folder / file).unlink()
    return whole


def write_summary(folder: epath.Path, content: dict[str, Any]) -> None:
    """Write `summary.json` of several videos; of one, remove what an earlier search wrote.

    Args:
      folder: of the search.
      content: of `grounding_documents.summary`.

    Raises:
      UserError: the file cannot be written.
    """
    if len(content["videos"]) > 1:
        _write_json(folder, SUMMARY, content)
    elif "videos" in _earlier(folder, SUMMARY):
        (folder / f"{SUMMARY}.json").unlink()


def _page(name: str, number: int) -> str:
    return f"{name}.png" if number == 1 else f"{name}{_PAGE}{number}.png"


def _earlier(folder: epath.Path, name: str) -> dict[str, Any]:
    """Return the document that is there, {} if there is none or something else."""
    try:
        return json_files.read_object(folder / f"{name}.json", "")
    except (FileNotFoundError, UserError):
        return {}


def _write_json(folder: epath.Path, name: str, content: dict[str, Any]) -> None:
    _write(folder / f"{name}.json", (json.dumps(content, indent=1) + "\n").encode())


def is_drawn(out: epath.Path, workdir: str) -> bool:
    """Return whether a folder is the one that a workdir's report reads."""
    if not workdir:
        return False
    return remote.absolute(out) == remote.absolute(epath.Path(workdir) / FOLDER)


def make_folder(out: str, path: epath.Path) -> None:
    """Make the folder of the documents.

    Raises:
      UserError: it cannot be made, or is a file.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --out={out}: {error}; name a folder") from None


def _write(path: epath.Path, content: bytes) -> None:
    try:
        remote.write_bytes(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}; name another folder as --out") from None
