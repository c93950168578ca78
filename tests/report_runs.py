"""Workdirs as training leaves them, made in a moment: ordinary ones and hostile ones."""

import dataclasses
import io
import json
import pathlib

import numpy as np
import pyarrow as pa
from PIL import Image

from tests.tiny_aligner import make_config
from vtalign_jax.array_types import Identity
from vtalign_jax.config import to_dict
from vtalign_jax.evaluation.report import sample as samples

ORDINARY = ["attach wheel to chassis", "screw the arm on", "lift the cabin", "turn the body over"]
HOSTILE = [
    "<script>document.title = 'owned'; console.error('owned')</script>",
    '"><img src=x onerror=console.error("owned")>',
    "</title></style></svg><svg onload=console.error('owned')>",
    "'; fetch('http://example.org/') //",
    "]]> --> {{ 7 * 7 }} {% raw %} &amp; <!--",
    "\u202eright to left \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\U0001f469\u200d\U0001f527 emoji \U0001f6e0\ufe0f and \x00 \x1b[31m \ud800 controls",
    "w" * 20_000,
    "a very long text of words that goes on and on " * 200,
    "C:\\videos\\<b>bold</b>\\..\\..\\etc",
]


@dataclasses.dataclass(frozen=True)
class NamedSplit:
    """As much of a `ClipSplit` as a sample asks for."""

    table: pa.Table
    identity: Identity
    texts: list[str]
    name: str = "val"
    fingerprint: str = "f" * 64

    def __len__(self) -> int:
        return len(self.texts)


def make_split(names: list[str], clips: int = 40, recordings: int = 5) -> NamedSplit:
    """Return clips whose texts, ids and recordings are taken from these names in turn."""
    number = np.arange(clips)
    text, recording = number % len(names), number % recordings
    start = (number // recordings * 4).astype(np.float32)
    zeros, count = np.zeros(clips, np.int32), np.int32(clips)
    identity = Identity(
        row_mask=np.ones(clips, bool),
        record=number.astype(np.int32),
        recording=recording.astype(np.int32),
        uid=recording.astype(np.int32),
        level=zeros,
        order=(number // recordings).astype(np.int32),
        node=number.astype(np.int32),
        ancestors=np.full((count, 3), -1, np.int32),
        text=text.astype(np.int32),
        window=np.stack([start, start + 4], axis=1),
        span=np.stack([start, start + 2], axis=1),
        signature=np.zeros((clips, 0), np.float32),
    )
    lossy = [name.encode("utf-8", "replace").decode() for name in names]  # Arrow holds UTF-8
    ids = [f"{lossy[recording[n] % len(names)]}/{n}" for n in number]
    rooms = [lossy[k % len(names)] + str(k) for k in recording]
    table = pa.table({"clip_id": ids, "recording_id": rooms})
    return NamedSplit(table, identity, [names[k] for k in text])


def embeddings(identity: Identity, noise: float, width: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Return unit clips around their unit texts, float32[N, width] each."""
    chance = np.random.default_rng(0)
    texts = chance.normal(size=(int(identity.text.max()) + 1, width))[identity.text]
    clips = texts + noise * chance.normal(size=texts.shape)
    return tuple(
        (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32) for z in (clips, texts)
    )


def make_run(
    folder: pathlib.Path, names: list[str], *, clips: int = 40, noise: float = 1.5
) -> pathlib.Path:
    """Write a workdir with everything that a report shows; return it."""
    folder.mkdir(parents=True)
    config = to_dict(make_config())
    config["data"]["dir"] = names[0]
    config["model"]["base"] = names[-1]
    write_json(folder / "config.json", config)
    start = {
        "time": "2026-11-27T06:21:56+00:00",
        "command": ["python", "launch/train.py", f"--workdir={names[0]}"],
        "git": {"revision": "0" * 40, "is_changed": True},
        "versions": {"jax": "0.10.2"},
        "devices": {"platform": "cpu", "kind": names[1 % len(names)], "count": 1, "processes": 1},
    }
    facts = {"fingerprints": {"base": "b" * 16, "data": "d" * 64}, "trainable_parameters": 7}
    write_json(folder / "manifest.json", {"starts": [start], "total_parameters": 9} | facts)
    _write_metrics(folder, names)
    split = make_split(names, clips, recordings=7)  # each of them has every text
    shown = samples.choose(split.identity, *embeddings(split.identity, noise))
    samples.write(folder, samples.name(shown, 30, split, split.texts))
    _write_grounding(folder / "grounding", names)
    libraries = {"torch": "2.13.0", "transformers": "5.24.0", "peft": "0.21.0"}
    passed = {"missing": [], "unexpected": [], "cosine_video": 1.0, "cosine_text": 0.99999}
    recalls = {side: {"recall@1": 0.5, "recall@5": 0.75} for side in ("jax", "export")}
    errors = {"max_error_video": 1e-7, "max_error_text": 2e-7, "recall": recalls}
    for name, results in (("peft", [passed | errors | libraries]), ("merged", [])):
        (folder / "exports" / name).mkdir(parents=True)
        write_json(folder / "exports" / name / "certificate.json", {"results": results})
    return folder


def write_json(path: pathlib.Path, value: object) -> None:
    path.write_text(json.dumps(value))


def write_rows(path: pathlib.Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_metrics(folder: pathlib.Path, names: list[str]) -> None:
    scores = {f"recall@{k}": k / 20 for k in (1, 5, 10)} | {"median_rank": 9.0, "mAP": 0.2}
    scores |= {f"{way}/{k}": v for way in ("video_to_text", "plain") for k, v in scores.items()}
    scores |= {"clips": 40.0, "texts": 4.0, "margin": 0.1, "choice_intra": None, "silhouette": 0.1}
    rows, found, confused = [], [], []
    for row in ("chance", "zero_shot", "val"):
        rows.append({"step": 0} | {f"{row}/{k}": v for k, v in scores.items()})
        found.append({"step": 0, "row": row, "metrics": scores, "intervals": {}, "groups": {}})
    for step in (10, 20, 30):
        shares = {"cross_recording": 0.9, "same_recording": 0.1, "overlap": 0.0}
        train = {"loss": 3.0 / step, "loss_itc": 2.0 / step, "temperature": 0.07}
        train |= {f"pairs/{k}": v for k, v in shares.items()} | {"effective_negatives": 20.0}
        train |= {"pairs_per_second": 100.0 + step, "data_wait": 0.01, "gradient_norm": None}
        rows.append({"step": step} | {f"train/{k}": v for k, v in train.items()})
        better = scores | {"recall@5": 0.25 + step / 60}
        rows.append({"step": step} | {f"val/{k}": v for k, v in better.items()})
        groups = {"clips": 20, "texts": 4, "recall@1": 0.1, "recall@5": 0.5, "recall@10": 0.9}
        kinds = {k: dict.fromkeys(names, groups) for k in ("dataset", "level", "recording")}
        between = {"recall@5": [0.2, 0.9]}
        found.append(
            {"step": step, "row": "val", "metrics": better, "intervals": between, "groups": kinds}
        )
        pairs = [
            {
                "clip": f"{name}/1",
                "clip_text": name,
                "text": names[k - 1],
                "text_clip": f"{names[k - 1]}/2",
                "class": "same_recording",
                "probability": 0.5 + k / 100,
            }
            for k, name in enumerate(names)
        ]
        confused.append({"step": step, "pairs": pairs})
    write_rows(folder / "metrics.jsonl", rows)
    write_rows(folder / "evaluations.jsonl", found)
    write_rows(folder / "confused.jsonl", confused)


def _write_grounding(folder: pathlib.Path, names: list[str]) -> None:
    folder.mkdir()
    texts = [
        {
            "text": name,
            "level": "action",
            "annotated": [[1.0, 3.5]],
            "spans": [{"start": 1.5, "end": 3.5, "score": 0.8}, {"start": 8, "end": 9, "score": 0}],
            "iou": 0.8,
        }
        for name in names
    ]
    group = {way: {"recall@1_iou_0.5": 0.5, "mean_iou": 0.4} for way in ("model", "random")}
    metrics = {"all": {"questions": len(names)} | group}
    value = {"video": names[0], "seconds": 12.0, "texts": texts, "metrics": metrics}
    write_json(folder / "video.json", value | {"picture": "video.png"})
    stream = io.BytesIO()
    Image.new("RGB", (2000, 300), "#336699").save(stream, "PNG")
    (folder / "video.png").write_bytes(stream.getvalue())
