"""Tables -> raw rows: TSV of one video's nodes, and CSV of many videos' segments (DATA.md).

Lines are taken apart one by one, so that a damaged one costs that line and nothing else.
"""

import csv
import dataclasses
import textwrap
from collections.abc import Iterator

from etils import epath

from vtalign_jax.dst.nodes import LEVELS, RawNode, RawVideo, Skip
from vtalign_jax.errors import UserError

_MISFIT = "another number of cells than the header"
_NODE_COLUMNS = ("type", "id", "start_ts", "end_ts", "name")
_DELIMITERS = (",", "\t", ";")
_MOST_LINES_A_ROW = 20  # of a quoted cell with line breaks; more is a quote that never ends


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns of a segments CSV; the defaults are EPIC-KITCHENS-100's.

    Attributes:
      uid: the video.
      start: seconds or a clock time.
      end: seconds or a clock time.
      text: the segment's text.
      id: unique within the video; "": `narration_id` if there is such a column, else the number
        of the row.
    """

    uid: str = "video_id"
    start: str = "start_timestamp"
    end: str = "stop_timestamp"
    text: str = "narration"
    id: str = ""


def is_node_table(line: str) -> bool:
    """Return whether a first line is the header, or without one the first row, of a node TSV."""
    cells = [cell.strip().lower() for cell in line.split("\t")]
    return set(_NODE_COLUMNS) <= set(cells) or (
        len(cells) == len(_NODE_COLUMNS) and cells[0] in LEVELS
    )


def table_cells(line: str) -> list[str]:
    """Return the cells of a CSV's first line, at the delimiter that makes the most of them."""
    return _parse(line, _delimiter(line))


def read_tsv(text: str, path: str) -> tuple[list[RawVideo], list[Skip]]:
    """Return the one video of a node TSV: `type id start_ts end_ts name`, named after its uid.

    Raises:
      UserError: the columns are not there.
    """
    file = epath.Path(path)
    lines = [(n, line) for n, line in enumerate(_lines(text), 1) if line.strip()]
    if not lines or not is_node_table(lines[0][1]):
        found = f"its first line is {lines[0][1][:80]!r}" if lines else "it is empty"
        raise UserError(f"{path} is no TSV of {', '.join(_NODE_COLUMNS)}: {found}")
    header = [cell.strip().lower() for cell in lines[0][1].split("\t")]
    if set(_NODE_COLUMNS) <= set(header):
        lines = lines[1:]
    else:
        header = list(_NODE_COLUMNS)
    places = [header.index(name) for name in ("id", "type", "start_ts", "end_ts", "name")]
    nodes = []
    for number, line in lines:
        cells, where = line.split("\t"), f"line {number}"
        if len(cells) == len(header):
            nodes.append(RawNode(*(cells[place] for place in places), where=where))
        else:
            nodes.append(RawNode(None, None, None, None, line, where=where, fault=_MISFIT))
    return [RawVideo(file.stem, tuple(nodes), "", "", None, file.name)], []


def read_csv(text: str, path: str, columns: Columns) -> tuple[list[RawVideo], list[Skip]]:
    """Return the videos of a segments CSV, one row a segment, without hierarchy.

    Raises:
      UserError: a named column is not there.
    """
    name = epath.Path(path).name
    rows = _csv_rows(text)
    header = [cell.strip() for cell in next(rows, (0, []))[1]]
    places = _places(header, columns, path)
    videos: dict[str, list[RawNode]] = {}
    skips = []
    for count, (number, cells) in enumerate(rows, 1):
        where = f"line {number}"
        if len(cells) != len(header):
            detail = f"{len(cells)} cells below a header of {len(header)}"
            skips.append(Skip("", "", _MISFIT, detail, where=f"{name} {where}"))
            continue
        uid, start, end, said = (cells[places[key]] for key in ("uid", "start", "end", "text"))
        node_id = cells[places["id"]] if "id" in places else str(count)
        node = RawNode(node_id, "action", start, end, said, ancestor_ids=(), where=where)
        videos.setdefault(uid.strip(), []).append(node)
    rows = [RawVideo(uid, tuple(nodes), "", "", None, name) for uid, nodes in videos.items()]
    return rows, skips


def _places(header: list[str], columns: Columns, path: str) -> dict[str, int]:
    """Return where the columns are."""
    wanted = dataclasses.asdict(columns)
    if not columns.id:
        del wanted["id"]
    missing = {key: name for key, name in wanted.items() if name not in header or not name}
    if missing:
        flags = ", ".join(f"--{key}_column" for key in missing)
        names = ", ".join(name or '""' for name in missing.values())
        there = textwrap.shorten(", ".join(header), 400)
        raise UserError(
            f"{path} has no column {names}; it has {there}; name the right one with {flags}"
        )
    if "id" not in wanted and "narration_id" in header:
        wanted["id"] = "narration_id"
    return {key: header.index(name) for key, name in wanted.items()}


def _csv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of each row; a row that cannot be parsed has no cells."""
    lines = _lines(text)
    first = next((line for line in lines if line.strip()), "")
    delimiter = _delimiter(first)
    at = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        row, used = [], 1
        for used in range(1, _MOST_LINES_A_ROW + 1):
            row = _parse("\n".join(lines[at : at + used]), delimiter)
            if row or at + used >= len(lines):
                break
        yield at + 1, row
        at += used if row else 1


def _parse(text: str, delimiter: str) -> list[str]:
    """Return the cells of one row, none if it is damaged or its quotes are not closed."""
    lines = [f"{line}\n" for line in text.split("\n")]
    try:
        rows = list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error:
        return []
    return rows[0] if len(rows) == 1 else []


def _delimiter(line: str) -> str:
    return max(_DELIMITERS, key=lambda delimiter: len(_parse(line, delimiter)))


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
