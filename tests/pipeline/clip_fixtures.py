"""A small dataset as launch/prepare.py writes it, and a tokenizer without a checkpoint."""

import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds
from PIL import Image

from vtalign_jax.interop.tiny import write_tiny_checkpoint
from vtalign_jax.interop.tokens import ClipTokenizer

IMAGE_SIZE, FRAMES, WINDOW_SECONDS = 24, 4, 4.0
_STRINGS = (
    *("clip_id", "text", "parent_text", "level", "node_id"),
    *("uid", "recording_id", "dataset", "text_key"),
)
_DOUBLES = ("window_start", "window_end", "node_start", "node_end", "video_duration")


def jpeg(color, size=IMAGE_SIZE):
    encoded = io.BytesIO()
    Image.new("RGB", (size, size), color).save(encoded, "JPEG", quality=95)
    return encoded.getvalue()


def make_clip(uid, node_id, midpoint, text, recording_id=None, **changes):
    """Return a record; `changes` replace its fields."""
    start = midpoint - WINDOW_SECONDS / 2
    digest = hashlib.sha256(f"{uid}/{node_id}".encode()).digest()
    depth = node_id.count(".")
    clip = {
        "clip_id": f"{uid}/{node_id}",
        "frames": [jpeg((digest[0], digest[1], 40 * k)) for k in range(FRAMES)],
        "frame_times": [start + (k + 0.5) * WINDOW_SECONDS / FRAMES for k in range(FRAMES)],
        "window_start": start,
        "window_end": start + WINDOW_SECONDS,
        "text": text,
        "parent_text": "",
        "level": ("step", "substep", "action")[min(depth, 2)],
        "node_id": node_id,
        "uid": uid,
        "recording_id": recording_id or uid,
        "dataset": "",
        "text_key": hashlib.sha256(text.encode()).hexdigest()[:16],
        "order": round(midpoint) // 10,
        "node_start": midpoint - 1.0,
        "node_end": midpoint + 1.0,
        "ancestor_ids": [".".join(node_id.split(".")[:n]) for n in range(1, depth + 1)],
        "video_duration": 1000.0,
    }
    return {**clip, **changes}


def make_clips(recordings=6, nodes=5, cameras=2):
    """Return clips of several recordings; texts repeat over the recordings."""
    return [
        make_clip(f"r{r}__c{c}", f"S{n}", 10.0 * n, f"do thing {n}", recording_id=f"r{r}")
        for r in range(recordings)
        for c in range(cameras)
        for n in range(nodes)
    ]


class DstClips(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Stores clips as they are; `data/dst_clips` cannot be made to write broken ones."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, splits, **kwargs):
        self._splits = splits
        super().__init__(file_format="array_record", **kwargs)

    def _info(self):
        text, sequence = tfds.features.Text(), tfds.features.Sequence
        features = dict.fromkeys(_STRINGS, text) | dict.fromkeys(_DOUBLES, np.float64)
        features |= {
            "frames": sequence(tfds.features.Image(encoding_format="jpeg")),
            "frame_times": sequence(np.float64),
            "ancestor_ids": sequence(text),
            "order": np.int64,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(clips) for name, clips in self._splits.items()}

    def _generate_examples(self, clips):
        for clip in clips:
            frames = [io.BytesIO(encoded) for encoded in clip["frames"]]
            yield clip["clip_id"], {**clip, "frames": frames}


def write_dataset(directory, splits, shards=1, **settings):
    """Write `{split: clips}` below `directory`; `settings` replace those of prepare.json."""
    tfds.display_progress_bar(False)
    builder = DstClips(splits, data_dir=directory)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
    written = directory / "dst_clips" / "1.0.0"
    described = {key: kind for key, kind in builder.info.features.items() if key != "frames"}
    without_frames = tfds.features.FeaturesDict(described)
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    for name, clips in splits.items():
        by_id = {clip["clip_id"]: clip for clip in clips}
        stored = builder.as_data_source(name, deserialize_method=raw)  # shuffled by TFDS
        records = [without_frames.deserialize_example_np(record) for record in stored]
        in_order = [by_id[record["clip_id"].decode()] for record in records]
        _write_table(written / f"clips-{name}.arrow", in_order)
    standard = {
        "fingerprint": "f" * 64,
        "image_size": IMAGE_SIZE,
        "frames": FRAMES,
    }
    (written / "prepare.json").write_text(json.dumps({**standard, **settings}))
    return written


def _write_table(path, clips):
    columns = {name: pa.array([clip[name] for clip in clips], pa.string()) for name in _STRINGS}
    for name in _DOUBLES:
        columns[name] = pa.array([clip[name] for clip in clips], pa.float64())
    columns["order"] = pa.array([clip["order"] for clip in clips], pa.int64())
    columns["num_frames"] = pa.array([len(clip["frames"]) for clip in clips], pa.int64())
    for name, kind in (("ancestor_ids", pa.string()), ("frame_times", pa.float64())):
        columns[name] = pa.array([clip[name] for clip in clips], pa.list_(kind))
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=16)


class FakeTokenizer:
    """Token ids that tell what was encoded: seconds in a clip, letters in a text; 1 ends a turn."""

    pad_id = 0

    def __init__(self, image_size=IMAGE_SIZE):
        self.image_size = image_size

    def encode_clip(self, frame_times, window_seconds):
        return np.array(
            [100 + int(window_seconds), *(10 + int(t) for t in frame_times), 1], np.int32
        )

    def encode_text(self, text, max_tokens):
        cut = text if max_tokens is None else text[: max_tokens - 1]
        return np.array([*(ord(c) for c in cut), 1], np.int32)

    def encode_caption(self, text, max_tokens):
        ids = np.array([2, *(ord(c) for c in text[: max_tokens - 2]), 1], np.int32)
        return ids, ids != 2

    def max_clip_tokens(self, frames, window_seconds):
        return frames + 3

    @staticmethod
    def text(ids, mask):
        return "".join(chr(i) for i in ids[mask][:-1])


def make_tiny_tokenizer(directory):
    """Return the tiny checkpoint's tokenizer, for frames of the size stored here."""
    write_tiny_checkpoint(directory)
    tokenizer = ClipTokenizer(directory)
    tokenizer.image_size = IMAGE_SIZE
    return tokenizer
