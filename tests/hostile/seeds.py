"""What mutations start from: one sound, small example of everything that is read."""

import base64
import functools
import io
import json
from pathlib import Path

import numpy as np
from array_record.python import array_record_module
from PIL import Image
from safetensors.numpy import save_file

from tests.index_video import constant_ticks, draw_index, write_video
from tests.interop import checkpoints
from tests.pipeline.clip_fixtures import make_clips, write_dataset
from tests.proassist_tree import write_arrow
from tests.report_runs import make_run
from vtalign_jax.feature_cache import keys
from vtalign_jax.feature_cache.stored import Layout, shard_name
from vtalign_jax.interop import converted, peft, weights
from vtalign_jax.interop.forms import MERGED, PEFT
from vtalign_jax.pipeline.dataset import open_split
from vtalign_jax.training.assemble import assemble

FINGERPRINT, EDGE, FPS, SECONDS = "b" * 16, 24, 10.0, 4.0
_OPTIONS = "group_size:1,uncompressed"


def write_seeds(folder: Path) -> Path:
    """Write all of them below a folder; return it."""
    _write_annotations(folder / "annotations")
    _write_frames(folder / "frames")
    splits = {"train": make_clips(2, 3, 1), "val": make_clips(1, 3, 1)}
    write_dataset(folder / "dataset", splits)
    _write_features(folder)
    base = checkpoints.write_base(folder / "base", "smolvlm")
    config = checkpoints.make_config(base)
    _write_converted(folder / "converted", base)
    run = checkpoints.write_checkpoint(folder / "run", config)
    for form in (PEFT, MERGED):
        checkpoints.export_unverified(run, folder / form, form)
    _write_adapter(folder / "adapter", folder / PEFT)
    make_run(folder / "report", ["tighten <b>", "loosen"], clips=12)
    return folder


def _node(number: str, start: float) -> dict:
    return {
        "type": ("step", "substep", "action")[number.count(".")],
        "id": number,
        "start_ts": start,
        "end_ts": start + 1.5,
        "name": f"attach part {number}",
    }


def _write_annotations(folder: Path) -> None:
    folder.mkdir(parents=True)
    tree = [_node(number, k / 2) for k, number in enumerate(("S1", "S1.1", "S1.1.a", "S2"))]
    flat = [
        {"video_uid": uid, "inferred_goal": "x", "dataset": name, "dst": tree, "conversation": []}
        for uid, name in (("u1", ""), ("u2", "ego4d"), ("assembly_u3__c", "assembly101"))
    ]
    (folder / "flat.json").write_text(json.dumps(flat))
    (folder / "lines.json").write_text("\n".join(map(json.dumps, flat)))
    times = {"timestamps": {"start_ts": 0.5, "end_ts": 1.5}}
    action = {"act_id": "a", "name": "turn", "args_schema": {}} | times
    substep = {"sub_id": "S1.1", "name": "screw", "actions": [action]} | times
    step = {"step_id": "S1", "name": "assemble", "substeps": [substep]} | times
    short = {"id": 2, "name": "test", "t0": 1, "t1": 2.5, "conf": 0.5, "substeps": None}
    nested = [{"video_uid": uid, "dst": {"steps": [step, short]}} for uid in ("u1", "u2")]
    (folder / "nested.json").write_text(json.dumps(nested))
    said = '[0.5s-2.0s] attach\n - [1.0s] screw (mistake: "x")\n - [1.2s] user: "Hm"\nSummary: y'
    anns = {"all_step_descriptions": said, "dataset": "wtag", "fps": 10}
    proassist = [{"video_uid": "u1", "parsed_video_anns": anns}]
    (folder / "step_text.json").write_text(json.dumps(proassist))
    header = "type\tid\tstart_ts\tend_ts\tname\n"
    rows = [
        "\t".join(map(str, (n["type"], n["id"], n["start_ts"], n["end_ts"], n["name"])))
        for n in tree
    ]
    (folder / "u1.tsv").write_text(header + "\n".join(rows))
    header = "narration_id,video_id,start_timestamp,stop_timestamp,narration\n"
    rows = [f'n{k},u{k},00:00:0{k}.00,00:00:0{k}.90,"take, then put"' for k in (1, 2)]
    (folder / "segments.csv").write_text(header + "\n".join(rows))


def picture(number: int, kind: str = "JPEG") -> bytes:
    """Return an encoded picture of its number."""
    stream = io.BytesIO()
    Image.fromarray(draw_index(number, 48, 48)).save(stream, kind)
    return stream.getvalue()


def _write_frames(folder: Path) -> None:
    folder.mkdir(parents=True)
    times = constant_ticks(int(SECONDS * FPS), FPS)
    for name, codec in (
        ("v.mp4", "libx264"),
        ("v.mkv", "libx264"),
        ("v.ts", "libx264"),
        ("v.avi", "mpeg4"),
        ("v.webm", "libvpx"),
    ):
        write_video(folder / name, times, rate=10, codec=codec, width=64, height=48)
    for uid in ("u1", "u2", "u3__c"):
        (folder / f"{uid}.mp4").write_bytes((folder / "v.mp4").read_bytes())
    write_arrow(folder / "a.arrow", [base64.b64encode(picture(k)).decode() for k in range(8)])
    for kind in ("jpg", "png", "webp"):
        (folder / kind).mkdir()
        for number in range(int(SECONDS)):
            name = {"jpg": "JPEG"}.get(kind, kind.upper())
            (folder / kind / f"{number}.{kind}").write_bytes(picture(number, name))


def run_config(folder: Path, features: Path | None = None):
    """Return a configuration of the small base with the small dataset."""
    data = {"dir": str(folder / "dataset"), "feature_cache": str(features or "")}
    return checkpoints.make_config(folder / "base", data=data)


def _write_features(folder: Path) -> None:
    """Write a feature cache of random numbers for the split train."""
    split, layout = open_split(str(folder / "dataset"), "train"), Layout("tower", "int8", 6, 2)
    config, made = run_config(folder), folder / "features" / "train"
    made.mkdir(parents=True)
    key = keys.make_key(config, split, FINGERPRINT, EDGE, "tower", train=True)
    name = shard_name(0, 1)
    writer = array_record_module.ArrayRecordWriter(str(made / name), _OPTIONS)
    rng = np.random.default_rng(0)
    for _ in range(len(split)):
        writer.write(rng.integers(0, 64, (8, layout.vector_bytes), np.uint8).tobytes())
    writer.close()
    index = {"key": key, "layout": layout._asdict(), "shard_records": 100}
    (made / "key.json").write_text(json.dumps(index))
    sizes = {name: (made / name).stat().st_size}
    (made / "index.json").write_text(json.dumps(index | {"file_bytes": sizes}))


def _write_converted(folder: Path, base: Path) -> None:
    folder.mkdir()
    converted.write(folder, weights.views(base), base, str(base))


def _write_adapter(folder: Path, export: Path) -> None:
    """Write the export's adapter as PEFT itself would: no file of this package beside it."""
    folder.mkdir()
    for name in (peft.ADAPTER, peft.ADAPTER_CONFIG):
        (folder / name).write_bytes((export / name).read_bytes())


@functools.cache
def assembly_of(base: str):
    """Return the assembly of the small configuration; it does not change."""
    return assemble(checkpoints.make_config(Path(base)))


def write_safetensors(file: Path, tensors: dict) -> None:
    """Write a file as Hugging Face's library does."""
    save_file(tensors, file, metadata={"format": "pt"})
