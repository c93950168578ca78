"""What a search leaves behind: a JSON document a video, and what is drawn beside it.

A document is

    {"video": name, "checkpoint": what was asked,
     "seconds": length of the video,
     "windows": {"widths": [seconds, ...], "stride": share of the width, "count": n,
                 "lost": {reason: n}, "nms_iou": x, "point_seconds": see `questions.right_spans`},
     "texts": [{"text", "level", "annotated": [[start, end], ...],
                "spans": [{"start", "end", "score"}, ...], "iou": x or null}, ...],
     "metrics": see `grounding_metrics.grounding_metrics`, {} where nothing is annotated,
     "picture": "<name>.png" beside the document, or null,
     "pictures": all of them, where a video has more texts than one picture shows}

Times are seconds from the video's first frame. Spans stand best first; `iou` is that of the first
one, null where the video's annotation does not have the text. `summary.json`, of several videos,
has the same form: "video" says how many, "texts" is empty, "metrics" are those of all questions,
and "videos" and "failed" ({name: reason}) name them.
"""

import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath
from PIL import Image

from vtalign_jax import remote
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.grounding import Grounding
from vtalign_jax.evaluation.grounding_jobs import Job
from vtalign_jax.evaluation.grounding_metrics import Answer, grounding_metrics, judge
from vtalign_jax.evaluation.questions import right_spans
from vtalign_jax.evaluation.spans import WindowGrid

SUMMARY = "summary"


def answers_of(job: Job, found: Grounding, window_seconds: float) -> list[Answer | None]:
    """Return how well each question is answered, None where nothing says what is right.

    Args:
      job: the questions.
      found: the answers.
      window_seconds: of the clips trained on, for moments.
    """
    answers: list[Answer | None] = []
    for question, spans in zip(job.questions, found.spans, strict=True):
        right = right_spans(question.annotated, found.seconds, window_seconds)
        span = spans[0].start, spans[0].end
        answers.append(judge(question.level, span, found.windows, right) if len(right) else None)
    return answers


def document(
    job: Job,
    found: Grounding,
    answers: Sequence[Answer | None],
    pictures: Sequence[str],
    asked: dict[str, Any],
) -> dict[str, Any]:
    """Return the document of one video, see above.

    Args:
      job: the questions.
      found: the answers.
      answers: of `answers_of`.
      pictures: names of files.
      asked: "checkpoint", and of "windows" what all videos share.
    """
    texts = [
        {
            "text": question.text,
            "level": question.level,
            "annotated": [list(span) for span in question.annotated],
            "spans": [
                {"start": round(s.start, 3), "end": round(s.end, 3), "score": round(s.score, 5)}
                for s in spans
            ],
            "iou": None if answer is None else round(answer.model, 5),
        }
        for question, spans, answer in zip(job.questions, found.spans, answers, strict=True)
    ]
    return {
        "video": job.name,
        "checkpoint": asked["checkpoint"],
        "seconds": round(found.seconds, 3),
        "windows": asked["windows"] | {"count": len(found.windows), "lost": found.lost},
        "texts": texts,
        "metrics": grounding_metrics([answer for answer in answers if answer]),
        "picture": pictures[0] if pictures else None,
        "pictures": list(pictures),
    }


def summary(
    documents: Sequence[dict[str, Any]],
    answers: Sequence[Answer],
    failed: dict[str, str],
    asked: dict[str, Any],
) -> dict[str, Any]:
    """Return the document of several videos, see above."""
    count = sum(found["windows"]["count"] for found in documents)
    return {
        "video": f"{len(documents)} videos",
        "checkpoint": asked["checkpoint"],
        "seconds": round(sum(found["seconds"] for found in documents), 3),
        "windows": asked["windows"] | {"count": count},
        "texts": [],
        "metrics": grounding_metrics(answers),
        "picture": None,
        "pictures": [],
        "videos": [found["video"] for found in documents],
        "failed": failed,
    }


def settings_shown(
    grid: WindowGrid, checkpoint: str, nms_iou: float, window_seconds: float
) -> dict[str, Any]:
    """Return what the documents of all videos share."""
    return {
        "checkpoint": checkpoint,
        "windows": {
            "widths": list(grid.widths),
            "stride": grid.stride,
            "nms_iou": nms_iou,
            "point_seconds": window_seconds,
        },
    }


def file_names(names: Iterable[str]) -> list[str]:
    """Return a name for each video's files: its own, numbered where another one has it."""
    taken, found = {SUMMARY}, []
    for name in names:
        name = name.replace("/", "_") or "video"
        free, number = name, 1
        while free.lower() in taken:  # some disks know no case
            number += 1
            free = f"{name}-{number}"
        taken.add(free.lower())
        found.append(free)
    return found


def write_document(folder: epath.Path, name: str, content: dict[str, Any]) -> None:
    """Write `<folder>/<name>.json`."""
    _write(folder / f"{name}.json", (json.dumps(content, indent=1) + "\n").encode())


def write_pictures(folder: epath.Path, name: str, pictures: Sequence[Image.Image]) -> list[str]:
    """Write `<folder>/<name>.png`, `<name>.page2.png`, ..., and return their names.

    Pages of an earlier search that had more of them are removed.
    """
    names = [_page(name, number) for number in range(1, len(pictures) + 1)]
    for file, picture in zip(names, pictures, strict=True):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        _write(folder / file, buffer.getvalue())
    number = len(pictures) + 1
    while (stale := folder / _page(name, number)).exists():
        stale.unlink()
        number += 1
    return names


def _page(name: str, number: int) -> str:
    return f"{name}.png" if number == 1 else f"{name}.page{number}.png"


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
