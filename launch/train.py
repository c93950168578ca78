r"""Train: adapt SmolVLM to a dataset of clips and texts.

    python launch/train.py --config=configs/pretrain.py --workdir=runs/pretrain \
        [--config.optim.learning_rate=3e-5] [--profile_steps=10:15] [--quiet]

The same command resumes from the newest checkpoint of the workdir. SIGTERM and Ctrl-C save and end;
a second Ctrl-C ends at once. On a TPU pod start it on every host; elsewhere --coordinator,
--num_processes and --process_id say which processes belong together. vtalign_jax/config.py lists
the fields of a configuration. --profile_steps traces these steps for TensorBoard's profile page.
"""

import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from absl import flags
from ml_collections import config_flags

from vtalign_jax import commandline, distributed, remote, sharding
from vtalign_jax.config import Config, resolve, warnings
from vtalign_jax.evaluation.embed import Evaluator, Parameters
from vtalign_jax.feature_cache import keys as feature_cache
from vtalign_jax.interop.base_files import base_fingerprint
from vtalign_jax.interop.forms import SQUARE
from vtalign_jax.interop.tokens import ClipTokenizer
from vtalign_jax.objectives.negatives import compares_texts
from vtalign_jax.pipeline.dataset import ClipSplit, check_leakage, open_split
from vtalign_jax.pipeline.loader import Batches, make_loader, train_order
from vtalign_jax.pipeline.mixture import describe, epoch_counts
from vtalign_jax.pipeline.order import BatchOrder
from vtalign_jax.pipeline.texts import cut_texts
from vtalign_jax.pipeline.transforms import check_frames
from vtalign_jax.training import manifest, optim, remat, trainable
from vtalign_jax.training.assemble import Assembly, assemble, load
from vtalign_jax.training.feed import Feed, compiling
from vtalign_jax.training.grad_cache import StreamedStep
from vtalign_jax.training.initial import FRESH, place, read_initial
from vtalign_jax.training.mask_log import MaskLog
from vtalign_jax.training.metrics import BOARD
from vtalign_jax.training.profile import Profile
from vtalign_jax.training.session import Session
from vtalign_jax.training.signatures import make_text_embedder, record_signatures
from vtalign_jax.training.state import TrainState, init_state
from vtalign_jax.training.step import Bind, make_train_step
from vtalign_jax.wording import counted

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="file of the run, such as configs/pretrain.py; --config.a.b=x overrides"
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "folder where the run is kept; default runs/<name of the config>"
)
_PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", "", "first:last step to trace into tensorboard/ of the workdir, such as 10:15"
)
_QUIET = flags.DEFINE_bool("quiet", False, "print warnings, evaluations and the end alone")


def main() -> None:
    """Train, or go on training, the run of `--workdir`."""
    config = resolve(_CONFIG.value)
    for line in warnings(config):
        _say(f"warning: {line}")
    ending = distributed.Ending()
    workdir = _workdir()
    profile = Profile(_PROFILE_STEPS.value if _is_primary() else "", _say)

    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch("train.contrastive_batch", config.train.contrastive_batch, mesh)
    train_split = open_split(config.data.dir, config.data.train_split)
    val_split = open_split(config.data.dir, config.data.val_split)
    check_leakage(train_split, val_split)
    order = train_order(train_split, config)
    epoch_steps = order.steps_per_epoch
    _say(
        f"{workdir}: {counted(order.epoch_records, 'clip')} to train on and {len(val_split):,} to "
        f"validate, {counted(config.train.epochs, 'epoch')} of {counted(epoch_steps, 'step')}, "
        f"{counted(mesh.size, 'device')}"
    )
    _say_mixture(order, train_split, val_split, config)

    model = assemble(config)
    counts = {
        "trainable_parameters": trainable.count(model.trainable),
        "total_parameters": trainable.count(model.trainable | model.frozen),
    }
    _say("training {trainable_parameters:,} of {total_parameters:,} parameters".format(**counts))
    tokenizer = ClipTokenizer(model.directory)
    check_frames(train_split, tokenizer.image_size, config.data.frames)  # before minutes of loading
    _say_cut_texts(train_split, tokenizer, config)
    evaluator = Evaluator(model.bind, mesh, val_split, tokenizer, config, _say)
    fingerprints = _fingerprints(model, config, train_split, val_split)
    clips = _clip_facts(train_split)
    _check_processes(workdir, config, fingerprints)  # they look at its checkpoints together
    session = Session(workdir, config, fingerprints, epoch_steps, clips, is_quiet=_QUIET.value)
    initial = FRESH if session.is_resumed else read_initial(config, model, _say)
    session.open()
    _say(f"loading the base from {model.directory}")
    drawn, frozen = load(model, mesh)
    start = place(initial, drawn)
    optimizer = optim.make_optimizer(config.optim, session.total_steps)
    learning_rate = optim.learning_rate(config.optim, session.total_steps)
    state = init_state(start, optimizer, config.train.seed, mesh)
    state = session.start(state, **counts, **initial.facts)
    if session.is_resumed:
        _say(f"resuming after step {session.step:,} of {session.total_steps:,}")

    clip_tokens = tokenizer.max_clip_tokens(config.data.frames, train_split.longest_window_seconds)
    bind = remat.settled_bind(config, model, clip_tokens, mesh, _say)
    train_step, put = _make_step(bind, optimizer, learning_rate, config, mesh)
    from_step = session.step if session.is_resumed else None
    mask_log = MaskLog(session.logs, from_step, config, train_split, mesh, is_primary=_is_primary())
    signature = None
    if not session.is_over(session.step):
        signature = _signature(train_split, tokenizer, model.bind, drawn, frozen, config, mesh)
        _say("compiling the training step")
    batches = _make_batches(session, train_split, tokenizer, config, signature)
    feed = Feed(batches, put)
    if not session.is_resumed:
        _say("evaluating the model before training meanwhile (compiling that first)")
        with _compiling(train_step, state, frozen, feed):
            _record_start(session, evaluator, drawn, start, frozen)

    ending.begin()
    metrics = {}
    with session.settled():
        for step, batch in feed:
            previous, done = metrics, step + 1
            profile.before(done, f"{session.logs}/{BOARD}")
            state, metrics, embedded, identity = train_step(state, frozen, batch)
            session.progress.advance(feed.fetch(metrics))
            jax.block_until_ready(previous)  # one step ahead of the devices, not many batches
            if step == session.step:
                jax.block_until_ready(metrics)
                session.progress.restart_clock()  # what came before is compilation
            profile.after(done, metrics)
            if session.is_log_due(done):
                described = mask_log.record(done, embedded, metrics["temperature"], identity)
                session.log(done, metrics, described)
                for line in mask_log.warnings():
                    session.progress.say(line)
            is_ending = ending.is_due(done)
            if session.is_evaluation_due(done):
                _record_evaluation(session, done, evaluator, state, frozen)
                session.progress.say(mask_log.line())
            elif session.is_save_due(done) or is_ending:
                session.save(done, state)
            if is_ending or session.is_over(done):
                break
    profile.close()
    batches.close()
    mask_log.close()
    session.close()
    _say(session.summary(), always=True)
    sys.exit(ending.exit_code())


def _make_batches(
    session: Session,
    split: ClipSplit,
    tokenizer: ClipTokenizer,
    config: Config,
    signature: np.ndarray | None,
) -> Batches:
    """Return this process's slices of the batches that the run has still to see."""
    left = session.total_steps - session.step
    return make_loader(
        split,
        tokenizer,
        config,
        start_step=session.step,
        num_steps=0 if session.is_over(session.step) else left,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        train=True,
        signature=signature,
    )


def _workdir() -> str:
    """Return where the run is kept; a bucket that cannot be reached is told before all else."""
    named = f"runs/{Path(flags.FLAGS['config'].config_filename).stem}"
    return str(remote.path(_WORKDIR.value or named))


def _say_mixture(
    order: BatchOrder, train_split: ClipSplit, val_split: ClipSplit, config: Config
) -> None:
    """Say how much of each dataset is read, where there are several; warn if it fills no batch."""
    if len(train_split.sizes) > 1:
        taken = epoch_counts(train_split.sizes, config.data.weights)
        _say(f"an epoch takes {describe(train_split.sizes, taken)}")
        _say(f"validating on {describe(val_split.sizes, list(val_split.sizes.values()))}")
    batch = config.train.contrastive_batch
    if order.epoch_records < batch:
        _say(
            f"warning: config.train.contrastive_batch={batch} is more than the "
            f"{counted(order.epoch_records, 'clip')}; the other rows of a batch stay empty"
        )


def _say_cut_texts(split: ClipSplit, tokenizer: ClipTokenizer, config: Config) -> None:
    """Warn of texts longer than `data.max_text_tokens`."""
    most = config.data.max_text_tokens
    if not _is_primary():
        return
    cut, merged = cut_texts(split.texts, tokenizer.encode_text, most)
    if cut:
        equal = f", after which {merged:,} of them equal another text" if merged else ""
        _say(
            f"warning: {cut:,} distinct texts are longer than config.data.max_text_tokens={most} "
            f"and are cut{equal}; raise it to keep them whole"
        )


def _fingerprints(
    model: Assembly, config: Config, train_split: ClipSplit, val_split: ClipSplit
) -> manifest.Fingerprints:
    """Return what the run reads; from here on splits are read from a feature cache, if wanted."""
    base, edge = base_fingerprint(model.directory), model.base.vision.image_size
    features = feature_cache.attach(config, base, edge, train=train_split, evaluate=val_split)
    if features:
        layout = train_split.features.layout
        _say(f"reading features ({layout.depth}, {layout.dtype}) instead of frames")
    return manifest.Fingerprints(base, train_split.fingerprint, features)


def _clip_facts(split: ClipSplit) -> dict[str, Any]:
    """Return what later embeddings of clips go by."""
    if split.square is None:
        _say(
            "warning: the clips were made square in several ways (fit and rotate in prepare.json); "
            "exports and vt.Aligner will squeeze theirs, vt.Aligner.load(fit=, rotate=) says else"
        )
    square = dict(zip(SQUARE, split.square, strict=True)) if split.square else SQUARE
    return {"window_seconds": split.window_seconds, **square}


def _record_start(
    session: Session,
    evaluator: Evaluator,
    drawn: Parameters,
    start: Parameters,
    frozen: Parameters,
) -> None:
    """Record chance, the base alone, and the model that training starts from, as step 0.

    Args:
      session: of the run.
      evaluator: of its validation split.
      drawn: the trainable leaves as they are without `config.tune.init`.
      start: those of step 0; the same object if nothing else was given.
      frozen: the base.
    """
    zero_shot, untrained = evaluator.score_untrained(drawn, frozen)
    session.record(0, "chance", evaluator.chance())
    session.record(0, "zero_shot", zero_shot)
    # No candidate for the best: nothing was trained here.
    session.record(0, "val", untrained if start is drawn else evaluator.score(start, frozen))


def _record_evaluation(
    session: Session, done: int, evaluator: Evaluator, state: TrainState, frozen: Parameters
) -> None:
    """Evaluate the model after `done` steps, record it, save, and begin to draw the report."""
    found = evaluator.embeddings(state.params, frozen)
    scores = evaluator.evaluated(found.z_video, found.z_text)
    session.evaluated(done, scores, state, functools.partial(evaluator.sample, found))


def _make_step(
    bind: Bind,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    config: Config,
    mesh: jax.sharding.Mesh,
) -> tuple[Callable, Callable]:
    """Return `step(state, frozen, put(batch on the host))` and `put`.

    Direct, `put` sends the batch to the devices; streamed, the step does so by microbatches.
    """
    if config.train.is_streamed(mesh.size):
        step = StreamedStep(bind, optimizer, learning_rate, config, mesh, _say)
        return step, lambda batch: batch
    step = make_train_step(bind, optimizer, learning_rate, config, mesh)
    return step, lambda batch: sharding.to_devices(batch, mesh)


def _compiling(
    step: Callable, state: TrainState, frozen: Parameters, feed: Feed
) -> contextlib.AbstractContextManager:
    """Compile a direct step meanwhile; a streamed one knows its programs at its first batch."""
    if isinstance(step, StreamedStep):
        return contextlib.nullcontext()
    return compiling(step, state, frozen, feed.first)


def _signature(
    split: ClipSplit,
    tokenizer: ClipTokenizer,
    bind: Bind,
    params: Parameters,
    frozen: Parameters,
    config: Config,
    mesh: jax.sharding.Mesh,
) -> np.ndarray | None:
    """Return the signature of each record's text, float32[N, G]; None if none is asked for."""
    if not compares_texts(config.objective):
        return None
    embed_texts = make_text_embedder(bind, params, frozen, tokenizer, config, mesh, _say)
    return record_signatures(split, embed_texts)


def _check_processes(workdir: str, config: Config, fingerprints: manifest.Fingerprints) -> None:
    """Refuse processes that would train different runs, or keep them in different places."""
    places = dataclasses.replace(  # these may differ, what lies there may not
        config,
        model=dataclasses.replace(config.model, base=fingerprints.base),
        data=dataclasses.replace(
            config.data, dir=fingerprints.data, feature_cache=fingerprints.features
        ),
    )
    revision = json.dumps(manifest.git_revision())
    distributed.check_agreement(
        {
            "config.model.base": fingerprints.base,
            "config.data.dir": fingerprints.data,
            "config.data.feature_cache": fingerprints.features,
            "--config": repr(places),
            "--workdir": workdir,
            "the source tree": revision,
        }
    )
    distributed.check_shared(workdir)


def _is_primary() -> bool:
    return jax.process_index() == 0


def _say(line: str, *, always: bool = False) -> None:
    if _is_primary() and (always or not _QUIET.value or line.startswith("warning:")):
        print(line, flush=True)


if __name__ == "__main__":
    around = functools.partial(distributed.connected, saves_on_sigterm=True)
    commandline.run(main, required=("config",), around=around)
