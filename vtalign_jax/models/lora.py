"""Linear layers, with or without low-rank adapters (LoRA), and the table that places adapters.

Sources: LoRA (Hu et al., 2021), y = x W + (alpha / rank) dropout(x) A B; alpha / sqrt(rank) instead
after Kalajdzievski (2023), "A rank stabilization scaling factor for fine-tuning with LoRA".
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vtalign_jax.array_types import Array
from vtalign_jax.models.layers import INIT_STD


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Where adapters sit and how large they are.

    Attributes:
      text_blocks: the top `text_blocks` blocks of the decoder carry adapters.
      rank: width of the bottleneck (`R`).
      alpha: decides `scale`.
      rank_stabilized: whether `scale` goes by the square root of the rank.
      dropout: share of the adapter's inputs zeroed in training.
      connector: whether the connector's projection carries an adapter.
      mlp: whether gate, up and down projections do too.
    """

    text_blocks: int = 8
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    connector: bool = True
    mlp: bool = False
    rank_stabilized: bool = False

    @property
    def scale(self) -> float:
        """What the product of an adapter's two matrices is multiplied with, here and in exports."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


# Module path -> whether it carries an adapter; the first row that matches decides.
LORA_RULES: tuple[tuple[str, Callable[[AdapterConfig], bool]], ...] = (
    (r"connector\.modality_projection\.proj", lambda adapters: adapters.connector),
    (r"text_model\.tuned_layers\.self_attn\.[qkvo]_proj", lambda adapters: True),
    (r"text_model\.tuned_layers\.mlp\.(gate|up|down)_proj", lambda adapters: adapters.mlp),
    (r".*", lambda adapters: False),
)


def carries_adapter(path: str, adapters: AdapterConfig | None) -> bool:
    """Return whether the linear layer at `path` (`text_model.layers...`) has LoRA leaves."""
    if adapters is None:
        return False
    return next(rule(adapters) for pattern, rule in LORA_RULES if re.fullmatch(pattern, path))


class Linear(nnx.Module):
    """x W + b, plus the adapter where `LORA_RULES` places one."""

    def __init__(self, path: str, sizes: tuple[int, int], build: "Build", *, bias: bool = False):
        """Create the leaves.

        `kernel` [*stack, in, out] and `bias` [*stack, out] in the storage dtype; `lora_a`
        [*stack, in, R] uniform as PEFT draws it and `lora_b` [*stack, R, out] = 0, float32.

        Args:
          path: the module's path in the model, matched against `LORA_RULES`.
          sizes: input and output width.
          build: what all layers share.
          bias: whether there is a bias.
        """
        size_in, size_out = sizes
        key = build.rngs.params
        shape = (*build.stack, size_in, size_out)
        self.dtype = build.compute_dtype
        self.kernel = nnx.Param(INIT_STD * jax.random.normal(key(), shape, build.param_dtype))
        self.bias = (
            nnx.Param(jnp.zeros((*build.stack, size_out), build.param_dtype)) if bias else None
        )
        self.adapted = carries_adapter(path, build.adapters)
        if self.adapted:
            rank = build.adapters.rank
            self.scale = build.adapters.scale
            self.dropout = build.adapters.dropout
            bound = size_in**-0.5
            shape = (*build.stack, size_in, rank)
            self.lora_a = nnx.Param(jax.random.uniform(key(), shape, jnp.float32, -bound, bound))
            self.lora_b = nnx.Param(jnp.zeros((*build.stack, rank, size_out), jnp.float32))

    def __call__(self, x: Array, dropout_keys: Array | None = None) -> Array:
        """Return float[B, ..., out] for float[B, ..., in], in the compute dtype.

        Args:
          x: the input.
          dropout_keys: one key a row, key[B], so that a row's mask does not depend on the rows
            around it; None for no dropout.
        """
        x = x.astype(self.dtype)
        y = x @ self.kernel[...].astype(self.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype)
        if not self.adapted:
            return y
        if dropout_keys is not None and self.dropout > 0.0:
            x = _drop(x, dropout_keys, self.dropout)
        low = x @ self.lora_a[...].astype(self.dtype)
        return y + self.scale * (low @ self.lora_b[...].astype(self.dtype))


@dataclasses.dataclass(frozen=True)
class Build:
    """What every layer of one model is built with.

    Attributes:
      rngs: source of the initial values.
      param_dtype: storage of everything but LoRA leaves, which are float32.
      compute_dtype: dtype of products and activations.
      adapters: see `AdapterConfig`; None for none.
      stack: leading axes of every leaf, `(L,)` for a stack of blocks.
    """

    rngs: nnx.Rngs
    param_dtype: Any
    compute_dtype: Any
    adapters: AdapterConfig | None = None
    stack: tuple[int, ...] = ()

    def stacked(self, depth: int) -> "Build":
        """Return the same for a stack of `depth` blocks."""
        return dataclasses.replace(self, stack=(depth,))


def fold_rows(keys: Array | None, number: Array | int) -> Array | None:
    """Fold `number` into each row's key, key[B] -> key[B]; None stays None."""
    if keys is None:
        return None
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def _drop(x: Array, keys: Array, rate: float) -> Array:
    """Zero each entry with probability `rate`, row by row, and scale up the rest."""
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
