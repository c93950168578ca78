"""The text that stands for a clip: the node's name, or the name with the parent's."""

import collections
import functools
from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa

from vtalign_jax.array_types import Identity
from vtalign_jax.config import DataConfig
from vtalign_jax.dst.identity import text_key
from vtalign_jax.errors import UserError
from vtalign_jax.pipeline.dataset import ClipSplit
from vtalign_jax.pipeline.identities import dense

_LENGTH_STEP = 8  # tokens


def with_parent(template: str, parent: str, name: str) -> str:
    """Return the text of a node with its parent's; just the name where there is no parent.

    Raises:
      UserError: the template has another field than {parent} and {name}.
    """
    try:
        text = template.format(parent=parent, name=name)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise UserError(
            f"config.data.parent_text {template!r} may hold {{parent}} and {{name}} alone ({error})"
        ) from error
    return text if parent else name


def cut_texts(
    texts: Iterable[str], encode: Callable[[str, int | None], np.ndarray], most: int
) -> tuple[int, int]:
    """Return how many distinct texts are cut, and how many of these then equal another text.

    Args:
      texts: with repetitions.
      encode: (text, most tokens or None) -> int32[n], such as `ClipTokenizer.encode_text`.
      most: tokens that are kept.
    """
    kept = collections.Counter()
    cut = []
    for text in set(texts):
        whole = encode(text, None)
        is_cut = len(whole) > most
        shown = (encode(text, most) if is_cut else whole).tobytes()
        kept[shown] += 1
        cut += [shown] * is_cut
    return len(cut), sum(kept[shown] > 1 for shown in cut)


@functools.lru_cache(maxsize=8)  # each evaluation asks anew
def padded_length(
    split: ClipSplit,
    encode: Callable[[str, int | None], np.ndarray],
    data: DataConfig,
    *,
    has_parents: bool,
) -> int:
    """Return to how many tokens a split's texts are padded: no chip computes what none of them has.

    Args:
      split: the records.
      encode: (text, most tokens or None) -> int32[n], such as `ClipTokenizer.encode_text`.
      data: of the run.
      has_parents: whether texts may be shown with their parents'.

    Returns:
      The length of the longest, rounded up to a multiple of 8; `data.max_text_tokens` at most.
    """
    texts = set(split.texts)
    if has_parents:
        parents = split.table["parent_text"].to_pylist()
        pairs = set(zip(parents, split.texts, strict=True))
        texts |= {with_parent(data.parent_text, parent or "", name) for parent, name in pairs}
    longest = max((len(encode(text, None)) for text in texts), default=1)
    return min(-(-longest // _LENGTH_STEP) * _LENGTH_STEP, data.max_text_tokens)


def shown_texts(split: ClipSplit, data: DataConfig) -> list[str]:
    """Return the text of each record as an evaluation shows it."""
    if not data.eval_parent_text:
        return split.texts
    parents = split.table["parent_text"].to_pylist()
    return [
        with_parent(data.parent_text, parent or "", name)
        for parent, name in zip(parents, split.texts, strict=True)
    ]


def evaluation_identity(split: ClipSplit, data: DataConfig) -> Identity:
    """Return who each record is, equal `text` meaning that an evaluation shows equal texts.

    With `data.eval_parent_text` the parent is part of the text: two nodes "attach wheel" below
    different parents are then two texts. In training they stay one, whatever is shown.
    """
    if not data.eval_parent_text:
        return split.identity
    key_of = functools.cache(
        lambda parent, name: text_key(with_parent(data.parent_text, parent, name))
    )
    keys = list(map(key_of, split.table["parent_text"].to_pylist(), split.texts))
    return split.identity._replace(text=dense(pa.array(keys)))
