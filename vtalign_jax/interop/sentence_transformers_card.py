"""What the model card of a `sentence-transformers` export says of its use."""

import functools
import textwrap
from collections.abc import Mapping
from typing import Any

_USE = """Needs `sentence-transformers` (6.2 or newer), `torchvision` and `num2words`.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".")  # device="cuda", model_kwargs={{"dtype": "float32"}}


def clip(frames, window_seconds={window:g}):  # uint8[F, 3, H, W], spread evenly over the window
    ticks, count = 1_000_000, len(frames)  # it counts time in microseconds
    shown = [round((k + 0.5) * window_seconds / count * ticks) for k in range(count)]
    metadata = {{"fps": ticks, "total_num_frames": round(window_seconds * ticks)}}
    metadata |= {{"duration": window_seconds, "frames_indices": shown}}
    return {{"array": frames, "video_metadata": metadata}}


z_text = model.encode_query(["attach wheel to chassis"])  # float32[B, E], unit norm
z_video = model.encode([{clip}])  # the same of clips
print(model.similarity(z_video, z_text))
```

{points}"""

FIGURES = {"cosine_video_not_resized": "not resized", "cosine_text_uncut": "not cut"}
NOTES = """*Not resized*: the clips, their frames made as in training, of the model's size already.
*Not cut*: the long text through `encode`. The other texts and the clips were embedded alone, and
together in one batch as far as the points above allow."""

_POINTS = (
    "A text of more than {most} tokens is cut by `encode_query`, as in training. `encode` does not "
    "cut it, and gives another embedding; of shorter texts it gives the same.",
    "Frames are taken as they are given, and shown at `frames_indices / fps` seconds from the "
    "clip's start. Trained with {frames} frames over {window:g} s.",
    "Clips of one batch must have equally many frames. The library fills up the others and says "
    "the larger number in their prompts, which moves their embeddings.",
    "Frames of another size are resized by torchvision, up to 3/255 of a colour value away from "
    "the Pillow of training (the certificate has both). Frames of {size} x {size} pixels are not "
    "resized.",
    "Single images are refused: none was trained on.",
    "A string that is the path of a video file is opened as one, with `torchcodec`; this is not in "
    "the certificate. By default every frame of the file is taken, so load a model of its own for "
    'files, `SentenceTransformer(".", processor_kwargs={{"fps": {rate:g}, "num_frames": '
    "{frames}}})`, which chooses {frames} at most, spread over the whole file.",
)
_SHARED = (
    "Texts and clips may stand in one list; `encode_query` takes texts alone.",
    "clip(frames)",
)
_ROUTED = (
    "Texts and clips have heads of their own, so they cannot stand in one list; `encode_query` "
    'takes texts alone, and a clip stands under `"video"`. The base\'s '
    "files and the merged weights lie in `transformer`.",
    '{"video": clip(frames)}',
)
_PREPARED = (
    "The library squeezes a frame to a square. In training frames were {how} first: do so before "
    "`clip(frames)`, to {size} x {size} pixels."
)


def use(settings: Mapping[str, Any]) -> str:
    """Return the section, in Markdown.

    Args:
      settings: of `vtalign.json`.
    """
    is_routed = settings["heads"]["video"] != settings["heads"]["text"]
    lists, clip = _ROUTED if is_routed else _SHARED
    facts = {
        "frames": settings["frames"],
        "window": settings["window_seconds"],
        "rate": settings["frames"] / settings["window_seconds"],
        "most": settings["max_text_tokens"],
        "size": settings["image_size"],
    }
    points = [_POINTS[0], lists.replace("{", "{{").replace("}", "}}"), *_POINTS[1:]]
    if how := _preparation(settings):
        points.append(_PREPARED.replace("{how}", how))
    wrap = functools.partial(
        textwrap.fill, width=100, subsequent_indent="  ", break_on_hyphens=False
    )
    listed = "\n".join(wrap(f"- {point.format(**facts)}") for point in points)
    return _USE.format(window=facts["window"], clip=clip, points=listed)


def _preparation(settings: Mapping[str, Any]) -> str:
    """Return what was done to frames in training that the library cannot do."""
    done = []
    if rotate := settings.get("rotate", 0):
        done.append(f"turned by {rotate} degrees counter-clockwise")
    if settings.get("fit", "square") == "center_crop":
        done.append("resized to cover the square and cut out of the centre")
    return " and ".join(done)
