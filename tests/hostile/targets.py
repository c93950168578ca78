"""What is attacked: for each kind of file, how it is damaged and which functions then read it.

A target gets a folder in which everything is sound but what `mutate` changed. `read` calls what the
commands call; whatever it raises but `UserError` is a finding, and so is an assertion that an item
was neither used nor reported.
"""

import dataclasses
import functools
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.hostile import seeds
from tests.hostile.mutations import (
    mutate_bytes,
    mutate_json,
    mutate_lines,
    mutate_safetensors,
)
from tests.interop import checkpoints
from vtalign_jax.config import resolve
from vtalign_jax.dst.finder import Source
from vtalign_jax.dst.layouts import LAYOUTS
from vtalign_jax.dst.lint import Options, lint
from vtalign_jax.dst.pairs import Pair, frame_times
from vtalign_jax.dst.plan import Settings, make_plan
from vtalign_jax.dst.probe import probe
from vtalign_jax.dst.records import Job, render
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.report import page
from vtalign_jax.feature_cache import keys
from vtalign_jax.interop import certificate, converted, weights
from vtalign_jax.interop.base_files import base_fingerprint
from vtalign_jax.interop.tokens import ClipTokenizer
from vtalign_jax.pipeline.clip_cache import ClipCache
from vtalign_jax.pipeline.dataset import open_split
from vtalign_jax.pipeline.transforms import RowMaker
from vtalign_jax.training import checkpoint
from vtalign_jax.training.initial import read_initial
from vtalign_jax.training.set_aside import set_damaged_aside
from vtalign_jax.training.trained import load_trained


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
      parts: folders of the seeds that an item gets a copy of.
      files: globs below them, of what may be damaged.
      read: calls the readers on the item's folder and the damaged file; returns what became of it.
    """

    parts: tuple[str, ...]
    files: tuple[str, ...]
    read: Callable[[Path, Path, random.Random], str]


def make_item(target: Target, seeds_folder: Path, folder: Path, rng: random.Random) -> Path:
    """Copy the parts into a folder, damage one file, and return it."""
    for part in target.parts:
        shutil.copytree(seeds_folder / part, folder / part, copy_function=os.link)
    found = [file for glob in target.files for file in sorted(folder.glob(glob)) if file.is_file()]
    file = rng.choice(found)
    damaged = _damaged(rng, file)
    file.unlink()
    file.write_bytes(damaged)
    return file


def _damaged(rng: random.Random, file: Path) -> bytes:
    data = file.read_bytes()
    if file.suffix == ".safetensors":
        return mutate_safetensors(rng, data)
    if file.suffix == ".jsonl" or file.name == "lines.json":
        return mutate_lines(rng, data)
    if file.suffix == ".json" or file.name == "metadata":
        return mutate_json(rng, json.loads(data))
    return mutate_bytes(rng, data)


def _read_annotations(folder: Path, file: Path, rng: random.Random) -> str:
    layout = rng.choice(["", "", *LAYOUTS])
    videos = str(folder / "frames")
    linted = lint(Settings(str(file), "", layout), Options())
    make = Settings(str(file), videos, layout, image_size=32, frames=2)
    _check_accounts(file, linted)
    try:
        plan = make_plan(make)
    except UserError:
        return "refused"
    return "reported" if plan.skips or linted.findings else "used"


def _check_accounts(file: Path, linted) -> None:
    """Check that each row of a JSON list is used, or named by a finding."""
    try:
        rows = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return
    if not isinstance(rows, list):
        return
    used = {video.uid for video in linted.videos if video.nodes}
    named = " ".join(f"{found.where} " for found in linted.findings)
    for number, row in enumerate(rows, 1):
        uid = row.get("video_uid") if isinstance(row, dict) else None
        is_used = isinstance(uid, str | int) and str(uid).strip() in used
        assert is_used or f"row {number} " in named, f"row {number} is neither used nor named"


def _pairs(count: int = 4) -> tuple[Pair, ...]:
    facts = ("u", "x", "", "action", "", "r", "k")
    return tuple(
        Pair(f"u/{k}", facts[0], str(k), *facts[1:], k, k, k + 1.0, (), k, k + 1.0, times)
        for k in range(count)
        for times in [frame_times(k, k + 1.0, 2)]
    )


def _read_frames(folder: Path, file: Path, rng: random.Random) -> str:
    kind = {"arrow": "arrow"}.get(file.suffix[1:], "video")
    path = file
    if file.parent.name in ("jpg", "png", "webp"):
        kind, path = "images", file.parent
    fit, turned = rng.choice(["square", "center_crop"]), rng.choice([0, 90])
    source = Source(kind, str(path), file.name, 1, fit, turned, source_fps=1.0)
    if kind == "arrow":
        source = dataclasses.replace(source, source_fps=30.0)
    job = Job(_pairs(), source, 32)
    rendered = render(job)
    probe([job])
    done = {record["clip_id"] for record in rendered.records}
    done |= {f"{skip.uid}/{skip.node_id}" for skip in rendered.skips}
    assert done == {pair.clip_id for pair in job.pairs}
    assert all(len(r["frames"]) == len(r["frame_times"]) > 0 for r in rendered.records)
    return "reported" if rendered.skips else "used"


def _read_dataset(folder: Path, file: Path, rng: random.Random) -> str:
    tokenizer = _tokenizer(str(folder / "base"))
    tokenizer.image_size = 24
    config = checkpoints.make_config(folder / "base", data={"dir": str(folder / "dataset")})
    refused = 0
    for name in ("train", "val"):
        split = open_split(config.data.dir, name)
        identity = split.identity
        assert len(identity.record) == len(split)
        make = RowMaker(split, tokenizer, config, ClipCache(0), train=True)
        for index in range(len(split)):
            try:
                row = make(0, index)
                assert np.isfinite(row.frames[0]).all()
            except UserError:
                refused += 1
    return "reported" if refused else "used"


def _tokenizer(base: str) -> ClipTokenizer:
    return ClipTokenizer(base)


def _read_features(folder: Path, file: Path, rng: random.Random) -> str:
    config = seeds.run_config(folder, folder / "features")
    split = open_split(config.data.dir, "train")
    keys.attach(config, seeds.FINGERPRINT, seeds.EDGE, train=split)
    for index in range(len(split)):
        split.features.frames(index)
    return "used"


def _read_base(folder: Path, file: Path, rng: random.Random) -> str:
    directory = file.relative_to(folder).parts[0]
    base = folder / directory
    base_fingerprint(base)
    config = checkpoints.make_config(base)
    assembly = seeds.assembly_of.__wrapped__(str(base))
    tokenizer = ClipTokenizer(base)
    tokenizer.encode_clip([0, 1], 4.0)
    tokenizer.encode_text("attach the wheel", config.data.max_text_tokens)
    tokenizer.max_clip_tokens(4, 4.0)
    abstract = {
        path.removeprefix("base."): leaf
        for path, leaf in (assembly.trainable | assembly.frozen).items()
        if path.startswith("base.")
    }
    weights.load_into(abstract, base)
    if directory == "converted":
        converted.original(str(base))
    return "used"


def _read_adapter(folder: Path, file: Path, rng: random.Random) -> str:
    values = dataclasses.asdict(checkpoints.make_config(folder / "base"))
    values["tune"]["init"] = str(folder / "adapter")
    assembly = seeds.assembly_of(str(folder / "base"))
    found = read_initial(resolve(values), assembly, lambda line: None)
    assert all(np.isfinite(x).all() for x in found.params.values())
    return "used"


def _read_export(folder: Path, file: Path, rng: random.Random) -> str:
    form = file.relative_to(folder).parts[0]
    base = str(folder / "base") if form == "peft" else ""
    found = load_trained(folder / form, base)
    assert all(np.isfinite(x).all() for x in found.params.values())
    certificate.check_verifiable(folder / form)
    certificate.held_out_facts(folder / form)
    certificate.results(folder / form)
    return "used"


def _read_checkpoint(folder: Path, file: Path, rng: random.Random) -> str:
    saved = folder / "run" / checkpoint.FOLDER
    shutil.copytree(saved / "7", saved / "9", copy_function=os.link)
    sound = {path.name for path in saved.iterdir()}
    _, said = set_damaged_aside(saved)  # both are damaged, by one and the same file
    assert len(sound) - len(list(saved.iterdir())) == len(said)
    found = load_trained(folder / "run", str(folder / "base"))
    _compare(found.params, Path(os.environ["SEEDS"]) / "run")
    return "reported" if said else "used"


def _compare(params: dict, run: Path) -> None:
    """Check that what was read is what was saved."""
    expected = _saved(str(run))
    assert params.keys() == expected.keys()
    for name, value in params.items():
        assert np.array_equal(value, expected[name]), f"{name} is read and is not what was saved"


@functools.cache
def _saved(run: str) -> dict:
    return load_trained(run, str(Path(run).with_name("base"))).params


def _read_report(folder: Path, file: Path, rng: random.Random) -> str:
    page.write_report(folder / "report", str(folder / "page.html"))
    assert (folder / "page.html").stat().st_size < 2**24
    return "used"


_DATASET = ("dataset/**/*.json", "dataset/**/*.arrow", "dataset/**/*.array_record*")
TARGETS = {
    "annotations": Target(("annotations", "frames"), ("annotations/*",), _read_annotations),
    "videos": Target(("frames",), ("frames/v.*",), _read_frames),
    "pictures": Target(("frames",), ("frames/*/*",), _read_frames),
    "arrow": Target(("frames",), ("frames/*.arrow",), _read_frames),
    "dataset": Target(("dataset", "base"), _DATASET, _read_dataset),
    "features": Target(("dataset", "base", "features"), ("features/*/*",), _read_features),
    "base": Target(("base",), ("base/*.json", "base/*.safetensors"), _read_base),
    "converted": Target(
        ("converted", "base"), ("converted/*.json", "converted/weights/**/*"), _read_base
    ),
    "adapter": Target(("adapter", "base"), ("adapter/*",), _read_adapter),
    "export": Target(
        ("peft", "merged", "base"), ("peft/*.json", "peft/*.safetensors", "merged/*"), _read_export
    ),
    "checkpoint": Target(("run", "base"), ("run/checkpoints/**/*",), _read_checkpoint),
    "report": Target(("report",), ("report/**/*",), _read_report),
}
