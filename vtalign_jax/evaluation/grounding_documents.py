"""What a search says of a video: a JSON document, its form, and the one of several videos.

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

from collections.abc import Sequence
from typing import Any

from vtalign_jax.evaluation.grounding import Grounding
from vtalign_jax.evaluation.grounding_jobs import Job
from vtalign_jax.evaluation.grounding_metrics import Answer, grounding_metrics, judge
from vtalign_jax.evaluation.questions import right_spans
from vtalign_jax.evaluation.spans import WindowGrid
from vtalign_jax.wording import counted


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
    asked: dict[str, Any],
) -> dict[str, Any]:
    """Return the document of one video, see above; `grounding_files` names the pictures.

    Args:
      job: the questions.
      found: the answers.
      answers: of `answers_of`.
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
        "video": counted(len(documents), "video"),
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
