"""Embeddings of a whole split, exact on any number of devices, and what they score.

Training and `launch/evaluate.py` both come here. Every process embeds its slice of each batch, gets
the rows of all of them, and ranks its share of the queries; the numbers of process 0 count.
"""

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from vtalign_jax import sharding
from vtalign_jax.array_types import Batch
from vtalign_jax.config import Config
from vtalign_jax.evaluation.choice import (
    Questions,
    choice_chance,
    choice_metrics,
    make_questions,
)
from vtalign_jax.evaluation.groups import group_names, group_recalls
from vtalign_jax.evaluation.intervals import bootstrap_intervals
from vtalign_jax.evaluation.ranking import ALONE, Share
from vtalign_jax.evaluation.report.sample import Sample, choose, name
from vtalign_jax.evaluation.result import Evaluation
from vtalign_jax.evaluation.retrieval import chance_metrics, rank_queries, summary
from vtalign_jax.evaluation.silhouette import silhouette
from vtalign_jax.models.aligner import AlignerModel, unit_norm
from vtalign_jax.pipeline.dataset import ClipSplit
from vtalign_jax.pipeline.loader import make_eval_loader
from vtalign_jax.pipeline.texts import evaluation_identity, shown_texts
from vtalign_jax.pipeline.transforms import Tokenizer
from vtalign_jax.training.step import stored_prefixes
from vtalign_jax.wording import counted

Parameters = Mapping[str, jax.Array]
Bind = Callable[[Parameters], AlignerModel]
_QUIET_SECONDS = 5.0  # an evaluation that takes longer says so


class Embeddings(NamedTuple):
    """Of N clips and their texts, unit norm.

    Attributes:
      z_video: float32[N, E], through the head.
      z_text: float32[N, E], through the head.
      pooled_video: float32[N, D], pooled hidden state without the head.
      pooled_text: float32[N, D], likewise.
    """

    z_video: np.ndarray
    z_text: np.ndarray
    pooled_video: np.ndarray
    pooled_text: np.ndarray


def embed_rows(model: AlignerModel, batch: Batch) -> Embeddings:
    """Return the embeddings of a batch, with the head and without."""
    known = stored_prefixes(model, batch)
    clips = model.pooled_clips(
        batch.clip_ids, batch.clip_mask, batch.frames, prefix=known.clips, depth=known.depth
    )  # [B, D]
    texts = model.pooled_texts(batch.text_ids, batch.text_mask, prefix=known.texts)  # [B, D]
    return Embeddings(
        model.project_clips(clips), model.project_texts(texts), unit_norm(clips), unit_norm(texts)
    )


def make_embed(
    bind: Bind, mesh: Mesh, of_rows: Callable[[AlignerModel, Batch], Any] = embed_rows
) -> Callable[[Parameters, Parameters, Batch], tuple]:
    """Return the jitted `embed(params, frozen, batch) -> (record, what of_rows returns)`.

    Every device holds the rows of the whole batch.
    """

    def of_device(params: Parameters, frozen: Parameters, batch: Batch) -> tuple:
        model = sharding.bind_whole(bind, mesh, params, frozen)
        return batch.identity.record, of_rows(model, batch)

    def embed(params: Parameters, frozen: Parameters, batch: Batch) -> tuple:
        rows = sharding.ROWS
        given = (sharding.WHOLE, sharding.frozen_specs(frozen), rows)
        return sharding.per_device(of_device, mesh, given, rows)(params, frozen, batch)

    return jax.jit(
        embed,
        out_shardings=NamedSharding(mesh, sharding.WHOLE),
        compiler_options=sharding.compiler_options(mesh),
    )


def without_adapters(params: Parameters) -> dict[str, jax.Array]:
    """Return the parameters with every LoRA update zero.

    A connector tuned in full has no such switch: take `params` from before training then.
    """
    return {
        path: jnp.zeros_like(value) if path.endswith(".lora_b") else value
        for path, value in params.items()
    }


def collect(rows: Iterable[tuple[jax.Array, Any]], count: int) -> Any:
    """Return the embeddings of records 0..count-1, whatever order the devices hold them in.

    Args:
      rows: (record int32[B], named tuple of float32[B, ...]); record -1 is padding.
      count: N.

    Returns:
      The same named tuple of float32[N, ...].

    Raises:
      ValueError: a record is missing.
    """
    found, gathered = np.zeros(count, bool), None
    for record, embeddings in rows:
        record, parts = np.asarray(record), [np.asarray(part) for part in embeddings]
        if gathered is None:
            make = type(embeddings)
            gathered = [np.empty((count, *part.shape[1:]), np.float32) for part in parts]
        real = record >= 0
        found[record[real]] = True
        for whole, part in zip(gathered, parts, strict=True):
            whole[record[real]] = part[real]
    if not found.all():
        raise ValueError(f"{count - found.sum()} of {count} records were not embedded")
    return make(*gathered)


class Evaluator:
    """Scores a model on one split."""

    def __init__(
        self,
        bind: Bind,
        mesh: Mesh,
        split: ClipSplit,
        tokenizer: Tokenizer,
        config: Config,
        say: Callable[[str], None] = print,
    ):
        """Prepare; nothing runs yet.

        Args:
          bind: arrays by path -> model.
          mesh: `config.train.eval_batch` must divide over its devices.
          split: the clips.
          tokenizer: the model's.
          config: of the run; `data.eval_parent_text` decides which texts are shown and compared.
          say: prints a line of a long evaluation.

        Raises:
          UserError: the batch does not divide over the devices.
        """
        sharding.check_batch("train.eval_batch", config.train.eval_batch, mesh)
        self._bind, self._mesh, self._say = bind, mesh, say
        self._embed = make_embed(bind, mesh)
        self._split, self._tokenizer, self._config = split, tokenizer, config
        self._identity = evaluation_identity(split, config.data)

    def embeddings(self, params: Parameters, frozen: Parameters) -> Embeddings:
        """Return the embeddings of every clip and text of the split, in record order."""
        return collect(self._rows(self._embed, params, frozen), len(self._split))

    def pass_over(
        self, of_rows: Callable[[AlignerModel, Batch], Any], params: Parameters, frozen: Parameters
    ) -> Any:
        """Return what `of_rows` makes of every clip and text, in record order.

        Args:
          of_rows: (model, batch) -> named tuple of float32[B, ...]; compiled anew for each call.
          params: the trainable leaves.
          frozen: the base.
        """
        embed = make_embed(self._bind, self._mesh, of_rows)
        return collect(self._rows(embed, params, frozen), len(self._split))

    def _rows(self, embed: Callable, params: Parameters, frozen: Parameters) -> Iterable[tuple]:
        batch_size, count = self._config.train.eval_batch, len(self._split)
        loader = make_eval_loader(
            self._split,
            self._tokenizer,
            self._config,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        began, is_said = time.perf_counter(), False
        # One batch runs on the device while the rows of the one before are copied.
        held = None
        for number, (_, batch) in enumerate(loader):
            running = embed(params, frozen, sharding.to_devices(batch, self._mesh))
            if held is not None:
                yield held
            held = running
            seconds = time.perf_counter() - began
            if not is_said and seconds > _QUIET_SECONDS:
                left = seconds / (number + 1) * (-(-count // batch_size) - number - 1)
                clips = f"{counted(count, 'clip')} of {self._split.name}"
                self._say(f"evaluating {clips}, {left:.0f} s to go")
                is_said = True
        yield held

    def score(self, params: Parameters, frozen: Parameters) -> Evaluation:
        """Return what the embeddings through the head score."""
        found = self.embeddings(params, frozen)
        return self.evaluated(found.z_video, found.z_text)

    def sample(self, found: Embeddings, step: int) -> Sample:
        """Return what the report shows of embeddings of the split, after this many steps."""
        shown = choose(self._identity, found.z_video, found.z_text)
        return name(shown, step, self._split, shown_texts(self._split, self._config.data))

    def score_untrained(
        self, params: Parameters, frozen: Parameters
    ) -> tuple[Evaluation, Evaluation]:
        """Return what (zero-shot, the untrained head) score, in one pass.

        Args:
          params: before training; LoRA updates are taken as zero.
          frozen: the base.
        """
        found = self.embeddings(without_adapters(params), frozen)
        zero_shot = self.evaluated(found.pooled_video, found.pooled_text)
        return zero_shot, self.evaluated(found.z_video, found.z_text)

    def chance(self) -> Evaluation:
        """Return what random rankings and choices score on this split."""
        return Evaluation(chance_metrics(self._identity) | choice_chance(self._questions))

    def evaluated(self, video: np.ndarray, text: np.ndarray) -> Evaluation:
        """Return what embeddings of the split score, float32[N, any] of unit norm each."""
        ranked = rank_queries(video, text, self._identity, _share())
        found = summary(ranked) | choice_metrics(video, text, self._questions)
        found["silhouette"] = silhouette(video, self._identity.text)
        # Hosts of other kinds may round otherwise; what follows from the scores must not differ.
        values = np.array([*found.values()], np.float64).view(np.uint8)  # JAX has float32 alone
        agreed = np.asarray(multihost_utils.broadcast_one_to_all(values)).view(np.float64)
        metrics = dict(zip(found, agreed.tolist(), strict=True))
        return Evaluation(metrics, bootstrap_intervals(ranked), group_recalls(ranked, self._names))

    @functools.cached_property
    def _questions(self) -> dict[str, Questions]:
        return make_questions(self._identity)

    @functools.cached_property
    def _names(self) -> dict[str, np.ndarray]:
        return group_names(self._split)


def _share() -> Share:
    """Return this process's share of the ranking."""
    if jax.process_count() == 1:
        return ALONE

    def total(counts: np.ndarray) -> np.ndarray:
        everyone = multihost_utils.process_allgather(counts.astype(np.int32))  # JAX has no int64
        return np.asarray(everyone).sum(axis=0, dtype=np.int64)

    return Share(jax.process_index(), jax.process_count(), total)
