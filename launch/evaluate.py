r"""Evaluate: how well a checkpoint's clips find their texts, beside chance and the base model.

    python launch/evaluate.py --checkpoint=runs/pretrain [--dataset=...] [--split=val]
    python launch/evaluate.py --probe [--base=...] [--dataset=...] [--split=val]

--checkpoint takes a workdir (its best checkpoint is taken and named), a checkpoint or an export;
--dataset one dataset or several, comma-separated. With --parent_text each text is shown with its
parent's, and two equal names below different parents are two texts. What the run read from a
feature cache is read from there again, unless --dataset or merged weights are given;
--feature_cache says else. --report draws a page of it, with recall, similarity, gallery and map.

--probe needs no checkpoint: it scores the frozen base by decoder block and pooling, in one pass
over the clips, and says which settings to train with.
"""

import contextlib
import dataclasses
import functools
import math
import shlex
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import flags
from etils import epath
from jax.sharding import NamedSharding

from vtalign_jax import commandline, distributed, sharding
from vtalign_jax.config import Config, MeshConfig, TuneConfig
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation import probe
from vtalign_jax.evaluation.embed import Evaluator
from vtalign_jax.evaluation.report import page
from vtalign_jax.evaluation.report.sample import Sample
from vtalign_jax.evaluation.result import Evaluation
from vtalign_jax.evaluation.table import format_table
from vtalign_jax.feature_cache import keys as feature_cache
from vtalign_jax.interop.base_files import base_fingerprint
from vtalign_jax.interop.forms import SETTINGS
from vtalign_jax.interop.tokens import ClipTokenizer
from vtalign_jax.interop.weights import run_file
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.pipeline.dataset import ClipSplit, open_split
from vtalign_jax.pipeline.mixture import describe
from vtalign_jax.secret_words import redact
from vtalign_jax.training.assemble import assemble, load
from vtalign_jax.training.trained import Trained, load_trained
from vtalign_jax.wording import counted, typed_command, typed_overrides

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "workdir (its best checkpoint is taken), checkpoint, or export"
)
_DATASET = flags.DEFINE_string(
    "dataset",
    "",
    "what prepare.py wrote with --out, or several, comma-separated; by default what the run was "
    "trained on",
)
_SPLIT = flags.DEFINE_string("split", "", "by default the run's validation split")
_PARENT_TEXT = flags.DEFINE_bool(
    "parent_text", None, "show texts with their parent's; by default as the run's validation did"
)
_BASE = flags.DEFINE_string(
    "base", "", "directory or hub id of the base model, where it has moved; with --probe which one"
)
_FEATURES = flags.DEFINE_string(
    "feature_cache",
    None,
    "what cache_features.py wrote; empty for frames; by default the run's, without --dataset",
)
_PROBE = flags.DEFINE_bool(
    "probe", False, "score the base alone by decoder block and pooling, before any training"
)
_REPORT = flags.DEFINE_string("report", "", "HTML file to draw the evaluation in")
_JSON = flags.DEFINE_bool("json", False, "print the numbers as JSON instead of a table")


def main() -> None:
    """Evaluate a checkpoint, or with --probe the base alone."""
    if _PROBE.value:
        _main_of_probe()
        return
    if not _CHECKPOINT.value:
        raise UserError("--checkpoint is missing; see --help")
    if _REPORT.value and jax.process_index() == 0:
        page.check_writable(_REPORT.value)
    # With --json nothing else stands on standard output.
    with contextlib.redirect_stdout(sys.stderr if _JSON.value else sys.stdout):
        facts, rows, make_sample = _evaluate()
    if jax.process_index() != 0:
        return
    out = sys.stderr if _JSON.value else sys.stdout
    if _JSON.value:
        found = {name: row.to_json() for name, row in rows.items()}
        parts = {"rows": "metrics", "intervals": "intervals", "groups": "groups"}
        commandline.print_json(
            facts
            | {part: {name: row[key] for name, row in found.items()} for part, key in parts.items()}
        )
    else:
        found = rows["chance"].metrics
        name = f"{facts['dataset']}, {facts['split']}"
        parents = " with their parent's" if facts["parent_text"] else ""
        shown = f"{counted(found['clips'], 'clip')}, {counted(found['texts'], 'distinct text')}"
        print(f"{name}: {shown}{parents}")
        print(format_table(rows))
    if _REPORT.value:
        print(f"report: {_draw(facts, rows, make_sample())}", file=out)
    print(f"next: {_next_command()}", file=out)


def _evaluate() -> tuple[dict[str, Any], dict[str, Evaluation], Callable[[], Sample]]:
    """Return what was evaluated, on what, and what `_scores` returns."""
    is_primary = jax.process_index() == 0
    say = functools.partial(print, flush=True) if is_primary else lambda line: None
    trained = load_trained(_CHECKPOINT.value, _BASE.value)
    say(trained.source)
    dataset = _DATASET.value or trained.config.data.dir
    split = open_split(dataset, _SPLIT.value or trained.config.data.val_split)
    if len(split.sizes) > 1:
        say(f"evaluating on {describe(split.sizes, list(split.sizes.values()))}")
    mesh = _make_mesh(trained.config.mesh)
    config = _fitted(trained.config, dataset, split, mesh.size, trained.is_merged)
    before = trained.config.data.frames
    if config.data.frames != before:
        say(f"trained with {before} frames a clip, {dataset} holds {split.frames}")
    base = trained.assembly.directory
    if config.data.feature_cache:
        edge = trained.assembly.base.vision.image_size
        feature_cache.attach(config, base_fingerprint(base), edge, evaluate=split)
        say(f"reading features of {config.data.feature_cache} instead of frames")
    facts = {
        "source": trained.source,
        "dataset": dataset,
        "split": split.name,
        "parent_text": config.data.eval_parent_text,
    }
    return facts, *_scores(trained, config, split, mesh, say)


def _main_of_probe() -> None:
    if _CHECKPOINT.value or _FEATURES.value or _REPORT.value:
        raise UserError(
            "--probe looks at frames and the base alone: leave --checkpoint, --feature_cache and "
            "--report out, and name the base with --base"
        )
    with contextlib.redirect_stdout(sys.stderr if _JSON.value else sys.stdout):
        config, base, chance, found = _probe()
    if jax.process_index() != 0:
        return
    overrides, blocks = probe.overrides(found), base.text.num_hidden_layers
    if _JSON.value:
        rows = [choice._asdict() | {"metrics": row.metrics} for choice, row in found.items()]
        best = probe.best_of(found)._asdict()
        facts = {"base": config.model.base, "dataset": config.data.dir, "blocks": blocks}
        facts |= {"rows": rows, "best": best, "overrides": overrides}
        commandline.print_json(facts | {"chance": chance.metrics})
    else:
        print(probe.format_probe(found, chance, blocks, overrides))
    named = typed_overrides({"model.base": config.model.base, "data.dir": config.data.dir})
    out = sys.stderr if _JSON.value else sys.stdout
    following = typed_command("train", f"--config={run_file(base)}", *named, *overrides)
    print(f"next: {following}", file=out)


def _probe() -> tuple[Config, SmolVLMConfig, Evaluation, dict[probe.Choice, Evaluation]]:
    """Return configuration, the base's numbers, chance and what each choice scores."""
    say = functools.partial(print, flush=True) if jax.process_index() == 0 else lambda line: None
    standard = Config()
    config = dataclasses.replace(
        standard,
        model=dataclasses.replace(standard.model, base=_BASE.value or standard.model.base),
        tune=TuneConfig(connector="frozen", text_blocks=0),
    )
    dataset = _DATASET.value or config.data.dir
    split = open_split(dataset, _SPLIT.value or config.data.val_split)
    mesh = _make_mesh(config.mesh)
    config = _fitted(config, dataset, split, mesh.size, is_merged=False)
    assembly = assemble(config)
    evaluator = Evaluator(
        assembly.bind, mesh, split, ClipTokenizer(assembly.directory), config, say
    )
    say(f"loading the base from {assembly.directory}")
    params, frozen = load(assembly, mesh)
    text = assembly.base.text
    wanted = probe.choices(text.num_hidden_layers)
    gib = 2 * len(split) * len(wanted) * text.hidden_size * 4 / 2**30
    say(
        f"scoring {len(wanted)} choices of block and pooling on {counted(len(split), 'clip')} "
        f"in one pass ({gib:.1f} GiB of states on this host): compiling first"
    )
    found = probe.probe(evaluator, params, frozen, wanted)
    return config, assembly.base, evaluator.chance(), found


def _make_mesh(config: MeshConfig) -> jax.sharding.Mesh:
    """Return a mesh over the devices at hand, sharded as in training where they suffice."""
    fsdp = max(config.fsdp, 1)
    return sharding.make_mesh(MeshConfig(fsdp=math.gcd(fsdp, jax.device_count())))


def _fitted(
    config: Config, dataset: str, split: ClipSplit, devices: int, is_merged: bool
) -> Config:
    """Return the run's configuration for this dataset, these flags and this number of devices."""
    rows = -(-config.train.eval_batch // devices) * devices
    data = dataclasses.replace(
        config.data, dir=dataset, frames=min(config.data.frames, split.frames)
    )
    if _FEATURES.value is not None:
        data = dataclasses.replace(data, feature_cache=_FEATURES.value)
    elif _DATASET.value or is_merged:  # other data or weights than the run's
        data = dataclasses.replace(data, feature_cache="")
    if _PARENT_TEXT.value is not None:
        data = dataclasses.replace(data, eval_parent_text=_PARENT_TEXT.value)
    return dataclasses.replace(
        config,
        data=data,
        train=dataclasses.replace(config.train, eval_batch=rows),
    )


def _scores(
    trained: Trained,
    config: Config,
    split: ClipSplit,
    mesh: jax.sharding.Mesh,
    say: Callable[[str], None],
) -> tuple[dict[str, Evaluation], Callable[[], Sample]]:
    """Return what was found by row of the table, and what makes the checkpoint's sample."""
    assembly = trained.assembly
    tokenizer = ClipTokenizer(assembly.directory)
    evaluator = Evaluator(assembly.bind, mesh, split, tokenizer, config, say)
    say(f"loading the base from {assembly.directory}")
    untrained, frozen = load(assembly, mesh)
    rows, clips = {"chance": evaluator.chance()}, counted(len(split), "clip")
    if trained.is_merged:
        say(f"evaluating {clips} (the export has no base for zero_shot): compiling")
    else:
        say(f"evaluating the base, then the checkpoint, on {clips}: compiling first")
        rows["zero_shot"], _ = evaluator.score_untrained(untrained, frozen)
    params = jax.device_put(trained.params, NamedSharding(mesh, sharding.WHOLE))
    found = evaluator.embeddings(params, frozen)
    rows["checkpoint"] = evaluator.evaluated(found.z_video, found.z_text)
    return rows, functools.partial(evaluator.sample, found, trained.facts.get("step") or 0)


def _draw(facts: dict[str, Any], rows: dict[str, Evaluation], sample: Sample) -> epath.Path:
    """Draw the page of --report; return where it is."""
    about = {
        "checkpoint": facts["source"],
        "dataset": facts["dataset"],
        "split": facts["split"],
        "texts": "with their parent's" if facts["parent_text"] else "",
        "command": redact(shlex.join(["python", *sys.argv])),
    }
    return page.write_evaluation(_REPORT.value, facts["dataset"], about, rows, sample)


def _next_command() -> str:
    path = _CHECKPOINT.value
    base = [f"--base={_BASE.value}"] if _BASE.value else []
    if (epath.Path(path) / SETTINGS).exists():
        return typed_command("export", f"--verify={path}", *base)
    return typed_command("export", f"--checkpoint={path}", "--format=peft", *base)


if __name__ == "__main__":
    commandline.run(main, around=distributed.connected)
