"""A few real steps on random clips and texts of the tiny bases."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from tests.interop.checkpoints import FRAMES
from tests.objectives.identities import make_identity
from vtalign_jax import sharding
from vtalign_jax.array_types import Batch
from vtalign_jax.config import Config, MeshConfig, OptimConfig, to_dict
from vtalign_jax.interop.base_files import base_fingerprint
from vtalign_jax.interop.tokens import ClipTokenizer
from vtalign_jax.pipeline.transforms import padded
from vtalign_jax.training import optim
from vtalign_jax.training.assemble import assemble, load
from vtalign_jax.training.checkpoint import FOLDER, METRIC, Checkpoints
from vtalign_jax.training.manifest import Fingerprints
from vtalign_jax.training.state import init_state
from vtalign_jax.training.step import make_train_step

_STEPS, _LENGTH = 3, 100  # of the run that is broken off after so many steps
_TEXTS = ("attach wheel", "detach the second wheel", "screw", "turn it over")
_OPTIM = OptimConfig(learning_rate=0.05, warmup_fraction=0.0)


@contextlib.contextmanager
def compiled_quickly() -> Iterator[None]:
    """Let XLA leave most optimizations out: a few steps take less time than these do."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


@compiled_quickly()
def train_shortly(workdir: Path, config: Config) -> tuple[Path, dict[str, np.ndarray]]:
    """Train three steps and save; return the workdir and the trainable leaves before them."""
    assembly = assemble(config)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    drawn, frozen = load(assembly, mesh)
    optimizer = optim.make_optimizer(_OPTIM, _LENGTH)
    schedule = optim.learning_rate(_OPTIM, _LENGTH)
    step = make_train_step(assembly.bind, optimizer, schedule, config, mesh)
    state = init_state(drawn, optimizer, config.train.seed, mesh)
    batch = sharding.to_devices(_batch(assembly.directory, config), mesh)
    for _ in range(_STEPS):
        state, metrics, *_ = step(state, frozen, batch)
    assert np.isfinite(metrics["loss"])
    assert int(state.skipped) == 0
    prints = Fingerprints(base_fingerprint(assembly.directory), "none")
    extra = {"config": to_dict(config), "fingerprints": prints.to_json()}
    checkpoints = Checkpoints(workdir / FOLDER)
    checkpoints.save(_STEPS, state, extra, {METRIC: 0.75})
    checkpoints.wait()
    checkpoints.close()
    return workdir, jax.device_get(drawn)


def _batch(base: Path, config: Config) -> Batch:
    """Return a row for each text, of recordings of their own."""
    tokenizer, rows, rng = ClipTokenizer(base), len(_TEXTS), np.random.default_rng(2)
    clip = tokenizer.encode_clip(range(FRAMES), FRAMES)
    most = config.data.max_text_tokens
    texts = [padded(tokenizer.encode_text(t, most), most, tokenizer.pad_id) for t in _TEXTS]
    size = tokenizer.image_size
    return Batch(
        frames=rng.integers(0, 256, (rows, FRAMES, size, size, 3), np.uint8),
        frame_mask=np.ones((rows, FRAMES), bool),
        clip_ids=np.tile(clip, (rows, 1)),
        clip_mask=np.ones((rows, len(clip)), bool),
        caption_mask=np.zeros((rows, len(clip)), bool),
        text_ids=np.stack([ids for ids, _ in texts]),
        text_mask=np.stack([mask for _, mask in texts]),
        identity=make_identity(np.arange(rows)),
    )
