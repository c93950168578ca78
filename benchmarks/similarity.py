"""How many pairs of other actions, and of paraphrases, a signature of texts judges rightly."""

import collections
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.similar_texts import DIFFERENT, PARAPHRASES
from vtalign_jax import sharding
from vtalign_jax.config import Config, MeshConfig, ModelConfig, TuneConfig
from vtalign_jax.dst.identity import normalise_text
from vtalign_jax.errors import UserError
from vtalign_jax.interop.tokens import ClipTokenizer
from vtalign_jax.training.assemble import assemble, load
from vtalign_jax.training.signatures import make_text_embedder, signatures

TEXTS = sorted({text for pair in DIFFERENT + PARAPHRASES for text in pair})
_FUNCTION_WORDS = frozenset(["of", "to", "in", "on", "with", "from", "into", "at", "using", "and"])
_THRESHOLDS = tuple(n / 20 for n in range(6, 20))


def measure(base: str, sentence_model: str, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Yield a row a signature: the lexical ones, a sentence embedding, the base's own.

    Args:
      base: directory or hub id of a base model, or "".
      sentence_model: folder that sentence-transformers loads, or "".
      say: prints what runs.
    """
    for name, tokens_of in _TOKENS.items():
        yield judge(name, _bags(tokens_of))
    yield judge("stems by tf-idf", _by_rarity(_bags(_stems)))
    if sentence_model:
        yield judge("sentence model", _encoded_by(sentence_model))
    if base:
        pooled = _pooled_by(base, say)
        yield judge("base, pooled", pooled)
        yield judge("base, signature", signatures(pooled))


def judge(name: str, vectors: np.ndarray) -> dict[str, Any]:
    """Return how a threshold on the cosine parts the two lists.

    Args:
      name: of the signature.
      vectors: [len(TEXTS), n], one a text.

    Returns:
      The best threshold (None: finding nothing is best), what it gets right; how many paraphrases
      are found by the lowest threshold that keeps all different pairs; how likely a paraphrase has
      a higher cosine than a different pair (0.5 is chance); both counts by threshold.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    index = {text: n for n, text in enumerate(TEXTS)}

    def cosines(pairs: tuple) -> np.ndarray:
        rows = np.array([[index[text] for text in pair] for pair in pairs])
        return np.sum(unit[rows[:, 0]] * unit[rows[:, 1]], axis=1).round(6)

    different, same = cosines(DIFFERENT), cosines(PARAPHRASES)

    def right(threshold: float) -> tuple[int, int]:
        return int(np.sum(different < threshold)), int(np.sum(same >= threshold))

    thresholds = (*np.unique(np.concatenate([different, same])), np.inf)
    best = max(thresholds, key=lambda threshold: (sum(right(threshold)), threshold))
    is_higher = (same[:, None] > different) + 0.5 * (same[:, None] == different)
    return {
        "part": "similarity",
        "signature": name,
        "threshold": round(float(best), 3) if np.isfinite(best) else None,
        "different_kept": right(best)[0],
        "paraphrases_found": right(best)[1],
        "paraphrases_found_keeping_all_different": int(np.sum(same > different.max())),
        "paraphrase_is_closer": round(float(is_higher.mean()), 3),
        "of": [len(DIFFERENT), len(PARAPHRASES)],
        "by_threshold": {f"{threshold:.2f}": right(threshold) for threshold in _THRESHOLDS},
    }


def _trigrams(text: str) -> list[str]:
    padded = f" {text} "
    return [padded[n : n + 3] for n in range(len(padded) - 2)]


def _stems(text: str) -> list[str]:
    words = [word for word in text.split() if word not in _FUNCTION_WORDS]
    return [re.sub(r"(?<=...)(ing|es|ed|s)$", "", word) for word in words or text.split()]


def _verb_and_noun(text: str) -> list[str]:
    return [f"{place} {stem}" for place, stem in enumerate(_stems(text)[:2])]


_TOKENS = {
    "trigrams of letters": _trigrams,
    "words": str.split,
    "stems": _stems,
    "verb and noun": _verb_and_noun,
}


def _bags(tokens_of: Callable[[str], list[str]]) -> np.ndarray:
    """Return how often each token stands in each text."""
    counts = [collections.Counter(tokens_of(normalise_text(text))) for text in TEXTS]
    known = sorted(set().union(*counts))
    return np.array([[count[token] for token in known] for count in counts], np.float64)


def _by_rarity(bags: np.ndarray) -> np.ndarray:
    """Return the bags with each token weighed by its inverse document frequency."""
    return bags * (np.log((1 + len(bags)) / (1 + np.sum(bags > 0, axis=0))) + 1)


def _encoded_by(folder: str) -> np.ndarray:
    """Return a sentence model's embedding of each text.

    Raises:
      UserError: sentence-transformers is absent, or the folder is none of its models.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(
            f"--sentence_model needs sentence-transformers ({error}); "
            "pip install -r requirements-dev.txt"
        ) from error
    try:
        return SentenceTransformer(folder, local_files_only=True).encode(TEXTS)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load --sentence_model={folder} ({error}); name a folder of such a model"
        ) from error


def _pooled_by(base: str, say: Callable[[str], None]) -> np.ndarray:
    """Return the base's pooled hidden state of each text: float32[n, D]."""
    config = Config(ModelConfig(base=base), TuneConfig("frozen", text_blocks=0))
    mesh = sharding.make_mesh(MeshConfig())
    model = assemble(config)
    say(f"loading the base from {model.directory}")
    params, frozen = load(model, mesh)
    tokenizer = ClipTokenizer(model.directory)
    embed_texts = make_text_embedder(model.bind, params, frozen, tokenizer, config, mesh, say)
    return embed_texts(TEXTS)
