r"""Cache features: what the frozen part of the model makes of a dataset, written once.

    python launch/cache_features.py --config=configs/pretrain.py [--config.data.dir=...] \
        [--out=datasets/dst_clips_features]
    python launch/train.py --config=configs/pretrain.py \
        --config.data.feature_cache=datasets/dst_clips_features

Says first what the features take on disk, what a host must read, and what they spare; then writes
them at the deepest point below which the configuration trains nothing. Killed, the same command
goes on, on any number of hosts, each of which writes its own files. Training and evaluation with
`config.data.feature_cache` then read no frames, and refuse features of other data, frames or
weights.
"""

import contextlib
import functools
import math
import shutil
from pathlib import Path

import jax
from absl import flags
from jax.experimental import multihost_utils
from ml_collections import config_flags

from vtalign_jax import commandline, distributed, locks, remote, sharding
from vtalign_jax.config import Config, MeshConfig, resolve
from vtalign_jax.errors import UserError
from vtalign_jax.feature_cache import cost, write
from vtalign_jax.feature_cache.keys import DEPTHS, check_depth, deepest, make_key
from vtalign_jax.feature_cache.stored import DTYPES, INDEX, read_json
from vtalign_jax.interop.base_files import base_fingerprint
from vtalign_jax.interop.tokens import ClipTokenizer
from vtalign_jax.pipeline.dataset import open_split
from vtalign_jax.training.assemble import Assembly, assemble, load
from vtalign_jax.wording import typed_command, typed_overrides

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="file of the run, such as configs/pretrain.py; --config.a.b=x overrides"
)
_OUT = flags.DEFINE_string(
    "out", "", "folder of the features; default config.data.feature_cache, else <data.dir>_features"
)
_SPLITS = flags.DEFINE_string(
    "splits", "", "comma-separated; default config.data.train_split and val_split"
)
_DEPTH = flags.DEFINE_enum(
    "depth", "auto", ["auto", *DEPTHS], "how far the frozen part is followed"
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", list(DTYPES), "of the features; int8 has a scale for each vector"
)
_RATE = flags.DEFINE_float(
    "pairs_per_second", 0.0, "of training; what a host must read is said for it"
)
_MAX_GB = flags.DEFINE_float("max_gb", 200.0, "larger features are refused without --yes")
_YES = flags.DEFINE_bool("yes", False, "write features larger than --max_gb")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace features of other data or weights")
_SHARD_MB = flags.DEFINE_float("shard_mb", 512.0, "of a file, about", lower_bound=1e-6)


def main() -> None:
    """Write the features of every split."""
    config, out = resolve(_CONFIG.value), _out(resolve(_CONFIG.value))
    model = assemble(config)
    tokenizer = ClipTokenizer(model.directory)
    names = _SPLITS.value or f"{config.data.train_split},{config.data.val_split}"
    trained = config.data.train_split
    depth = deepest(config, model.base) if _DEPTH.value == "auto" else _DEPTH.value
    for name in dict.fromkeys(names.split(",")):
        check_depth(depth, config, train=name == trained)
    splits = [open_split(config.data.dir, name) for name in dict.fromkeys(names.split(","))]

    layout = cost.make_layout(depth, _DTYPE.value, model.base)
    longest = max(split.longest_window_seconds for split in splits)
    clip_tokens = tokenizer.max_clip_tokens(config.data.frames, longest)
    tokens = clip_tokens + config.data.max_text_tokens * (1 + (config.objective.caption_weight > 0))
    costs = {split.name: cost.of_split(split, layout, tokens) for split in splits}
    hosts = jax.process_count()
    for line in cost.lines(costs, layout, model, config, clip_tokens, _RATE.value, hosts):
        _say(line)
    _check_size(sum(each.total_bytes for each in costs.values()), out)

    base, targets = base_fingerprint(model.directory), []
    for split in splits:
        facts = base, tokenizer.image_size, depth
        key = make_key(config, split, *facts, train=split.name == trained)
        records = max(1, int(_SHARD_MB.value * 1e6 / costs[split.name].clip_bytes))
        targets.append(write.Target(split, out / split.name, key, layout, records))
    distributed.check_agreement(
        {"--config, --depth, --dtype, --shard_mb, data or base": repr([t[2:] for t in targets])}
    )
    distributed.check_shared(out, "--out")
    is_primary = jax.process_index() == 0
    with locks.hold(out, "--out") if is_primary else contextlib.nullcontext():
        if is_primary:
            for target in targets:
                write.begin(target, overwrite=_OVERWRITE.value)
        multihost_utils.sync_global_devices("folders are there")
        missing = [t for t in targets if read_json(t.folder / INDEX) is None]
        _write(missing, model, tokenizer, config)
    _say(f"the features are in {out}")
    _say(f"next: {_next_command(config, out)}")


def _next_command(config: Config, out: Path) -> str:
    """Return the training command; it needs this one's fields to take the features."""
    given = flags.FLAGS["config"]
    fields = {"data.dir": config.data.dir} | given.override_values
    named = typed_overrides(fields | {"data.feature_cache": out})
    return typed_command("train", f"--config={given.config_filename}", *named)


def _out(config: Config) -> Path:
    """Return the folder of the features."""
    out = _OUT.value or config.data.feature_cache
    if not out and "," in config.data.dir:
        raise UserError("config.data.dir names several datasets; say with --out where to write")
    out = out or f"{config.data.dir.rstrip('/')}_features"
    if remote.is_remote(out):
        raise UserError(
            f"features are not written to {out} directly; give an --out on a disk (that all hosts "
            f"share, if there are several), then: gcloud storage cp -r <that folder> {out}"
        )
    return Path(out).expanduser()


def _check_size(size: int, out: Path) -> None:
    if size > _MAX_GB.value * 1e9 and not _YES.value:
        raise UserError(
            f"{size / 1e9:,.1f} GB are more than --max_gb={_MAX_GB.value:g}; --yes writes them all "
            "the same, --dtype=int8 takes half of bfloat16"
        )
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    written = sum(file.stat().st_size for file in out.glob("*/*.array_record"))
    free = shutil.disk_usage(there).free
    if size > free + written:
        raise UserError(
            f"{size / 1e9:,.1f} GB do not fit on the disk of {out}, {free / 1e9:,.1f} GB are free; "
            "give another --out"
        )


def _write(
    targets: list[write.Target], model: Assembly, tokenizer: ClipTokenizer, config: Config
) -> None:
    """Compute what is missing, each process with its own devices."""
    if not targets:
        return
    devices = jax.local_devices()
    fsdp = math.gcd(max(config.mesh.fsdp, 1), len(devices))
    mesh = sharding.make_mesh(MeshConfig(fsdp=fsdp), devices)
    _say(f"loading the base from {model.directory}")
    params, frozen = load(model, mesh)
    machine = write.Machine(model.bind, {**params, **frozen}, mesh, tokenizer)
    process = jax.process_index(), jax.process_count()
    _say("computing (compiling first)")
    for target in targets:
        is_trained = target.split.name == config.data.train_split
        say = functools.partial(print, flush=True)
        error = write.write_shards(target, machine, config, process, train=is_trained, say=say)
        multihost_utils.sync_global_devices(f"{target.split.name} is written")
        if jax.process_index() == 0:
            write.finish(target)
        if error:
            rounding = f"{target.layout.dtype} is off by {error:.1e} of the values"
            _say(f"{target.split.name}: {rounding} (root mean square)")
    multihost_utils.sync_global_devices("all is written")


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)


if __name__ == "__main__":
    commandline.run(main, required=("config",), around=distributed.connected)
