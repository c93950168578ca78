"""What a feature cache takes, and what it spares: said before anything is written."""

from typing import NamedTuple

import pyarrow.compute as pc

from vtalign_jax.config import Config
from vtalign_jax.feature_cache.stored import Layout
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.pipeline.dataset import ClipSplit
from vtalign_jax.planning import flops
from vtalign_jax.training.assemble import Assembly

_WHERE = {
    "tower": "after the vision tower, a record for each stored frame",
    "connector": "after the connector, a record for each stored frame",
    "decoder": "before the first tuned block, a record for each clip and its text",
}


class Cost(NamedTuple):
    """Of the features of one split.

    Attributes:
      clip_bytes: of the largest clip.
      total_bytes: of all clips; of depth "decoder", where prompts differ in length, at most.
    """

    clip_bytes: int
    total_bytes: int


def make_layout(depth: str, dtype: str, base: SmolVLMConfig) -> Layout:
    """Return how features of a depth are stored."""
    if depth == "tower":
        return Layout(depth, dtype, base.vision.hidden_size, base.vision.patches_per_side**2)
    vectors = base.tokens_per_frame if depth == "connector" else 0
    return Layout(depth, dtype, base.text.hidden_size, vectors)


def of_split(split: ClipSplit, layout: Layout, tokens: int) -> Cost:
    """Return what a split takes; `tokens` are those of the longest clip and text together."""
    if layout.depth == "decoder":
        clip = tokens * layout.vector_bytes
        return Cost(clip, clip * len(split))
    frame = layout.vectors * layout.vector_bytes
    frames = pc.list_value_length(split.table["frame_times"])
    return Cost(frame * pc.max(frames).as_py(), frame * pc.sum(frames).as_py())


def lines(
    costs: dict[str, Cost],
    layout: Layout,
    assembly: Assembly,
    config: Config,
    clip_tokens: int,
    rate: float,
    hosts: int,
) -> list[str]:
    """Return what is said of the costs.

    Args:
      costs: by split.
      layout: of the features.
      assembly: of the model.
      config: of the run.
      clip_tokens: of the longest clip's turn, without a caption.
      rate: pairs a second of all devices; 0 if not known.
      hosts: that read.
    """
    clip = max(cost.clip_bytes for cost in costs.values())
    total = sum(cost.total_bytes for cost in costs.values())
    parts = ", ".join(f"{name} {cost.total_bytes / 1e9:,.2f} GB" for name, cost in costs.items())
    reading = f"a host reads {clip / 1e6:,.3f} MB/s for each pair a second that it trains on"
    if rate:
        share = clip * rate / hosts / 1e6
        reading += f"; {share:,.1f} MB/s for {rate:g} pairs a second on {hosts} host(s)"
    tokens = flops.tokens_of(config, clip_tokens)
    whole = flops.of_pair(assembly, config, tokens).weights
    left = whole - flops.below(assembly, config, tokens, layout.depth).weights
    return [
        f"features {_WHERE[layout.depth]}, {layout.dtype}",
        f"{clip / 1e6:,.3f} MB a clip; {parts}, {total / 1e9:,.2f} GB in all",
        reading,
        f"a pair takes {left / 1e9:,.4g} GFLOP in products with weights instead of "
        f"{whole / 1e9:,.4g}: {whole / left:.2f} times the pairs a second at equal utilisation",
    ]
