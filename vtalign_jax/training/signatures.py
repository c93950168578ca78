"""Which texts are similar: a small vector for each record, compared on the device.

The frozen base embeds each distinct text as it does in training, without adapters and head. Hidden
states share a large common part, so their mean over the dataset's texts is taken off; a fixed
random projection then keeps their cosines roughly (Johnson and Lindenstrauss, 1984) in few numbers.
"""

import functools
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from vtalign_jax import sharding
from vtalign_jax.config import Config
from vtalign_jax.evaluation.embed import Bind, Parameters, without_adapters
from vtalign_jax.pipeline.dataset import ClipSplit
from vtalign_jax.pipeline.transforms import Tokenizer, padded

SIZE = 64  # numbers of a signature (`G`)
# Signatures are whole multiples of 1 / _GRID: products and their sums are then exact in float32,
# and a cosine depends neither on which text stands in the row nor on how a device adds.
_GRID = 2**11
_ROWS_A_DEVICE = 16  # fixed, so that every number of devices runs the same program on its rows
_QUIET_SECONDS = 5.0

EmbedTexts = Callable[[Sequence[str]], np.ndarray]


def record_signatures(split: ClipSplit, embed_texts: EmbedTexts) -> np.ndarray:
    """Return the signature of each record's text: float32[N, G]; equal texts share one.

    Args:
      split: the records.
      embed_texts: gives float32[n, D] for n texts, see `make_text_embedder`.
    """
    _, first, which = np.unique(split.identity.text, return_index=True, return_inverse=True)
    return signatures(embed_texts([split.texts[index] for index in first]))[which]


def signatures(pooled: np.ndarray) -> np.ndarray:
    """Return the signatures of distinct texts: float32[n, G], unit norm up to their grid.

    Args:
      pooled: float[n, D]; what stands at the mean gets a signature of zeros.
    """
    centred = np.asarray(pooled, np.float64)
    centred = centred - centred.mean(axis=0)
    key = jax.random.key(0)  # a stream that stays the same in all versions of JAX
    projection = np.asarray(jax.random.normal(key, (centred.shape[1], SIZE)), np.float64)
    projected = centred @ projection
    norm = np.linalg.norm(projected, axis=1, keepdims=True)
    unit = projected / np.maximum(norm, 1e-12)
    return (np.round(unit * _GRID) / _GRID).astype(np.float32)


def make_text_embedder(
    bind: Bind,
    params: Parameters,
    frozen: Parameters,
    tokenizer: Tokenizer,
    config: Config,
    mesh: Mesh,
    say: Callable[[str], None],
) -> EmbedTexts:
    """Return what gives the frozen base's pooled hidden state of texts: float32[n, D].

    Args:
      bind: arrays by path -> model.
      params: the trainable leaves; LoRA updates are taken as zero.
      frozen: the base.
      tokenizer: the model's.
      config: of the run.
      mesh: texts are split over its devices; every process gets all rows.
      say: prints what runs, and about how long where it is long.
    """
    params = without_adapters(params)
    rows, max_tokens = _ROWS_A_DEVICE * mesh.size, config.data.max_text_tokens

    def of_rows(params: Parameters, frozen: Parameters, ids: jax.Array, mask: jax.Array):
        return sharding.bind_whole(bind, mesh, params, frozen).pooled_texts(ids, mask)

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, sharding.WHOLE))
    def pooled(params: Parameters, frozen: Parameters, ids: jax.Array, mask: jax.Array):
        rows = sharding.ROWS
        given = (sharding.WHOLE, sharding.frozen_specs(frozen), rows, rows)
        return sharding.per_device(of_rows, mesh, given, rows)(params, frozen, ids, mask)

    def embed_texts(texts: Sequence[str]) -> np.ndarray:
        say(f"comparing {len(texts):,} distinct texts by the base (compiling it first)")
        began, is_said, found = time.perf_counter(), False, []
        batches = _batches(texts, tokenizer, max_tokens, rows)
        for number, batch in enumerate(batches, start=1):
            found.append(np.asarray(pooled(params, frozen, *sharding.to_devices(batch, mesh))))
            seconds = time.perf_counter() - began
            if not is_said and seconds > _QUIET_SECONDS:
                left = seconds / number * (len(batches) - number)
                say(f"comparing texts, {left:.0f} s to go")
                is_said = True
        return np.concatenate(found)[: len(texts)]

    return embed_texts


def _batches(
    texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int, rows: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return this process's slice of each batch of `rows` texts: ids int32[b, T], mask bool[b, T].

    The last batch is filled up with the last text.
    """
    encoded = [tokenizer.encode_text(text, max_tokens) for text in texts]
    length = max(map(len, encoded))
    local = rows // jax.process_count()
    batches = []
    for start in range(jax.process_index() * local, -(-len(texts) // rows) * rows, rows):
        own = [encoded[min(n, len(texts) - 1)] for n in range(start, start + local)]
        ids, mask = zip(*(padded(row, length, tokenizer.pad_id) for row in own), strict=True)
        batches.append((np.stack(ids), np.stack(mask)))
    return batches
