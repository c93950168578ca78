"""The floating-point operations that a training step cannot do without.

A product of D tokens with a matrix of N weights takes 2 N D forward, as many for the gradient of
its input and as many for that of its weights. Counted is what the partition asks for: the gradient
of an input only above the first trained leaf of that pass, that of weights only where they are
trained. Not counted is recomputation. Products of activations with each other (attention) are
counted apart: the model FLOPs utilisation is stated without them.

Source of the count: Kaplan et al. (2020), "Scaling Laws for Neural Language Models".
"""

import re
from typing import NamedTuple

from vtalign_jax.config import Config
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.training.assemble import Assembly

_TOWER = "base.vision_model."


class Tokens(NamedTuple):
    """The tokens of a pair.

    Attributes:
      frames: of its clip.
      clip: of its clip's turn, with the caption if there is one.
      text: of its text's turn.
      captions: of them predicted.
    """

    frames: int
    clip: int
    text: int
    captions: int


class Flops(NamedTuple):
    """Of one pair.

    Attributes:
      weights: products with weights.
      attention: products of activations, causal ones by half.
    """

    weights: float
    attention: float


def tokens_of(config: Config, clip_tokens: int) -> Tokens:
    """Return the tokens of a pair; `clip_tokens` are those of the clip's turn alone."""
    captions = config.data.max_text_tokens if config.objective.caption_weight else 0
    return Tokens(config.data.frames, clip_tokens + captions, config.data.max_text_tokens, captions)


def of_pair(assembly: Assembly, config: Config, tokens: Tokens) -> Flops:
    """Return what a pair takes, forward and backward."""
    base = assembly.base
    return Flops(
        _forward(assembly, base, tokens) + _backward(assembly, config, base, tokens),
        _attention(config, base, tokens),
    )


def forward_of_pair(assembly: Assembly, tokens: Tokens) -> float:
    """Return the products with weights of the forward pass alone."""
    return _forward(assembly, assembly.base, tokens)


_BELOW = {  # the weights below each depth of a feature cache, see `AlignerModel.clip_prefix`
    "tower": r"base\.vision_model\..*",
    "connector": r"base\.(vision_model|connector)\..*",
    "decoder": r"base\.(vision_model|connector|text_model\.layers)\..*",
}


def below(assembly: Assembly, config: Config, tokens: Tokens, depth: str) -> Flops:
    """Return what features of a depth spare a pair: all of it forward."""
    base = assembly.base
    weights = sum(
        2.0 * leaf.size * _uses(path, base, tokens)
        for path, leaf in assembly.frozen.items()
        if re.fullmatch(_BELOW[depth], path)
    )
    attention = _tower_attention(base, tokens)
    if depth == "decoder":
        lower = base.text.num_hidden_layers - config.tune.text_blocks
        attention += lower * sum(_causal_attention(base, tokens))
    return Flops(weights, attention)


def _forward(assembly: Assembly, base: SmolVLMConfig, tokens: Tokens) -> float:
    total = 0.0
    for path, leaf in (assembly.trainable | assembly.frozen).items():
        total += 2.0 * leaf.size * _uses(path, base, tokens)
    return total


def _backward(assembly: Assembly, config: Config, base: SmolVLMConfig, tokens: Tokens) -> float:
    total = 0.0
    for path, leaf in (assembly.trainable | assembly.frozen).items():
        uses = _uses(path, base, tokens)
        if path in assembly.trainable:
            total += 2.0 * leaf.size * uses
        total += 2.0 * leaf.size * _input_gradients(path, uses, config, tokens)
    return total


def _uses(path: str, base: SmolVLMConfig, tokens: Tokens) -> float:
    """Return how many tokens of a pair are multiplied with a leaf."""
    if path == "base.text_model.embed_tokens.embedding":
        return float(tokens.captions * base.tie_word_embeddings)  # the logits' matrix then
    if not re.search(r"\.(kernel|lora_[ab])$", path):
        return 0.0  # norms, biases and tables take no products
    rows = (
        (r"base\.vision_model\..*", tokens.frames * base.vision.patches_per_side**2),
        (r"base\.connector\..*", tokens.frames * base.tokens_per_frame),
        (r"base\.text_model\..*", tokens.clip + tokens.text),
        (r"base\.lm_head\..*", tokens.captions),
        (r"head\..*", 2),
        (r"(video|text)_head\..*", 1),
        (r"matching_head\..*", 3),
    )
    return float(next(count for pattern, count in rows if re.fullmatch(pattern, path)))


def _input_gradients(path: str, uses: float, config: Config, tokens: Tokens) -> float:
    """Return for how many of these tokens the gradient goes on below the leaf."""
    if not uses or path.startswith(_TOWER):
        return 0.0
    if path.startswith("base.connector."):
        return uses if path.endswith(".lora_b") else 0.0  # below it nothing is trained
    if path.startswith("base.text_model.layers."):
        return 0.0 if config.tune.connector == "frozen" else float(tokens.clip)
    return uses


def _attention(config: Config, base: SmolVLMConfig, tokens: Tokens) -> float:
    """Return the products q k^T and weights v, and twice as many for their gradients."""
    clip, own = _causal_attention(base, tokens)
    tuned = config.tune.text_blocks
    lower = base.text.num_hidden_layers - tuned
    back = 0 if config.tune.connector == "frozen" else 2
    tower = _tower_attention(base, tokens)
    return tower + clip * (lower * (1 + back) + tuned * 3) + own * (lower + tuned * 3)


def _tower_attention(base: SmolVLMConfig, tokens: Tokens) -> float:
    vision = base.vision
    of_block = 4.0 * vision.patches_per_side**4 * vision.hidden_size
    return of_block * vision.num_hidden_layers * tokens.frames


def _causal_attention(base: SmolVLMConfig, tokens: Tokens) -> tuple[float, float]:
    """Return those of a block of the decoder forward, of clip and of text."""
    inner = base.text.num_attention_heads * base.text.head_dim
    return 2.0 * tokens.clip**2 * inner, 2.0 * tokens.text**2 * inner
