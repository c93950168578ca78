"""Checks of what the model is shown: pixels and token ids against plain references, no torch."""

import datetime
import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
from num2words import num2words
from PIL import Image

from vtalign_jax.clips import Square
from vtalign_jax.doctor import reference
from vtalign_jax.doctor.figures import Finding, worst
from vtalign_jax.doctor.recordings import STORED_A_FRAME, draw, make_nodes, make_split
from vtalign_jax.doctor.subject import FRAMES, Subject
from vtalign_jax.errors import UserError
from vtalign_jax.interop.base_files import read_json
from vtalign_jax.interop.tokens import ClipTokenizer
from vtalign_jax.models import aligner
from vtalign_jax.pipeline.dataset import Record
from vtalign_jax.pipeline.sampling import whole_seconds
from vtalign_jax.pipeline.transforms import Row, RowMaker

_SETTINGS = "preprocessor_config.json"
_LANCZOS = 1  # Pillow's number, as in _SETTINGS
_LEVELS = 3.0  # of 255: roundings of up to four passes; another filter is off by ten or more
_SHAPES = ((90, 160), (160, 90), (131, 131), (40, 52))  # height, width of pictures, in pixels
_RECORDS = (0, 3)  # one with all its frames, one without the last
# Window in seconds, frames looked for in it, those that exist.
_CLIPS = (
    (Fraction(4), 8, tuple(range(8))),
    (Fraction(3, 4), 4, (0, 1, 3)),
    (Fraction(151, 2), 8, (0, 3, 7)),
    (Fraction(37252, 10), 6, (1, 4, 5)),
)
_TEXTS = ("attach the red wheel", "Screw, then unscrew: 12 bolts", "é 把手")


def resize(subject: Subject) -> Finding:
    """Pictures and stored frames as squares."""
    if (asked := read_json(subject.processor, _SETTINGS).get("resample", _LANCZOS)) != _LANCZOS:
        raise UserError(f"{_SETTINGS} asks for resample={asked}, frames are shrunk by Lanczos (1)")
    size = ClipTokenizer(subject.processor).image_size
    pictures = {f"a picture of {w} x {h}": draw(h, w, h) for h, w in _SHAPES}
    pairs = {name: (Square(size, "square", 0)(x), np.asarray(x)) for name, x in pictures.items()}
    for record, row in _rows(subject):
        for place in range(int(row.frame_mask.sum())):
            with Image.open(io.BytesIO(record.frames[place * STORED_A_FRAME + 1])) as stored:
                pairs[f"frame {place} of {record.clip_id}"] = row.frames[place], np.asarray(stored)
    errors = {
        name: _levels_apart(ours, reference.square(x, size)) for name, (ours, x) in pairs.items()
    }
    figure, name = worst(errors)
    return Finding(
        f"{len(errors)} frames with Lanczos in NumPy, levels of 255", figure, _LEVELS, name
    )


def _levels_apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.max(np.abs(np.asarray(ours, np.int32) - theirs.astype(np.int32))))


def pixels(subject: Subject) -> Finding:
    """Every level of every channel, normalised on the device, with the processor's own numbers."""
    settings = read_json(subject.processor, _SETTINGS)
    levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)[:, None]
    ours = jax.device_get(jax.jit(lambda x: aligner.normalise(x))(levels))
    mean, std = (np.array(settings.get(f"image_{name}", [0.5] * 3)) for name in ("mean", "std"))
    theirs = (levels.astype(np.float64) / 255.0 - mean) / std
    return Finding(
        f"256 levels normalised, with {_SETTINGS}, difference",
        float(np.max(np.abs(ours - theirs))),
        1e-5,
    )


def prompt(subject: Subject) -> Finding:
    """Token ids of clips and texts with what the base's own chat template renders."""
    ours, theirs = ClipTokenizer(subject.processor), ChatTemplate(subject.processor)
    pairs = {}
    for window, sampled, numbers in _CLIPS:
        seconds = whole_seconds(numbers, float(window), sampled)
        times = [(k + Fraction(1, 2)) * window / sampled for k in numbers]
        name = f"{len(numbers)} frames in {float(window):g} s"
        pairs[name] = ours.encode_clip(seconds, float(window)), theirs.clip(times, window)
    for text in _TEXTS:
        pairs[f"text {text!r}"] = ours.encode_text(text), theirs.text(text)
    for record, row in _rows(subject):
        times = [
            Fraction(record.frame_times[place * STORED_A_FRAME + 1] - record.window_start)
            for place in range(int(row.frame_mask.sum()))
        ]
        window = Fraction(record.window_end - record.window_start)
        pairs[f"clip {record.clip_id}"] = row.clip_ids[row.clip_mask], theirs.clip(times, window)
        pairs[f"text of {record.clip_id}"] = row.text_ids[row.text_mask], theirs.text(record.text)
    errors = {name: _ids_apart(*pair) for name, pair in pairs.items()}
    figure, name = worst(errors)
    compared = f"{len(pairs)} turns with the base's chat template, ids that differ"
    return Finding(compared, figure, 0.0, name if figure else "")


def _ids_apart(ours: np.ndarray, theirs: Sequence[int]) -> float:
    shared = min(len(ours), len(theirs))
    differing = np.sum(np.asarray(ours[:shared]) != np.asarray(theirs[:shared]))
    return float(differing + abs(len(ours) - len(theirs)))


def _rows(subject: Subject) -> Iterator[tuple[Record, Row]]:
    """Yield some records and the rows that training makes of them."""
    tokenizer = ClipTokenizer(subject.processor)
    split = make_split(make_nodes(max(_RECORDS) + 1, 1), tokenizer.image_size, FRAMES)
    config = subject.config_of("float32", max_text_tokens=64)
    make_row = RowMaker(split, tokenizer, config, split.clip_cache, train=False)
    for index in _RECORDS:
        yield split.record(index), make_row(0, index)


class ChatTemplate:
    """Turns as Hugging Face's processor renders them, by the tokenizer that transformers loads.

    Source: `SmolVLMProcessor.replace_video_token`, whose sentences are taken from transformers.
    """

    def __init__(self, directory: Path) -> None:
        """Load the tokenizer and its template."""
        import transformers  # slow to import, and only this check needs it
        from transformers.models.smolvlm import processing_smolvlm

        self._sentences = processing_smolvlm
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True
        )
        self._template = self._tokenizer.chat_template
        if self._template is None:  # older checkpoints keep it beside the tokenizer
            self._template = read_json(directory, "chat_template.json")["chat_template"]
        self._tokens_per_frame = ClipTokenizer(directory).tokens_per_frame

    def clip(self, times: Sequence[Fraction], window: Fraction) -> list[int]:
        """Return the ids of the turn that holds a video; times and window in seconds."""
        length = datetime.timedelta(seconds=int(window))
        video = self._sentences.DEFAULT_VIDEO_INTRO.format(
            frame_count=num2words(len(times)), video_duration=str(length)
        )
        for time in times:
            stamp = f"{int(time) // 60:02d}:{int(time) % 60:02d}"
            video += self._sentences.FRAME_TIMESTAMP_MESSAGE.format(timestamp=stamp) + self._frame()
        video += self._sentences.DEFAULT_MEDIA_OUTTRO
        return self._ids(self._render({"type": "video"}).replace("<video>", video))

    def text(self, text: str) -> list[int]:
        """Return the ids of the turn that holds a text."""
        return self._ids(self._render({"type": "text", "text": text}))

    def _frame(self) -> str:
        fake, start, image = (
            getattr(self._tokenizer, f"{name}_token", None) or default
            for name, default in (
                ("fake_image", "<fake_token_around_image>"),
                ("global_image", "<global-img>"),
                ("image", "<image>"),
            )
        )
        return f"{fake}{start}{image * self._tokens_per_frame}{fake}"

    def _render(self, content: dict[str, str]) -> str:
        return self._tokenizer.apply_chat_template(
            [{"role": "user", "content": [content]}], chat_template=self._template, tokenize=False
        )

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text)["input_ids"]
