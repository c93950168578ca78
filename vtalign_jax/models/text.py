"""The Llama decoder of SmolVLM, in two stacks: lower blocks, and top blocks with adapters."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from vtalign_jax.array_types import Array
from vtalign_jax.errors import UserError
from vtalign_jax.models.attention import attention
from vtalign_jax.models.configuration import TextConfig
from vtalign_jax.models.layers import Embedding, RMSNorm, scan_blocks
from vtalign_jax.models.lora import Build, Linear, fold_rows

# A projection's place here is folded into its dropout keys: keep the order.
_ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_STREAM = {name: i for i, name in enumerate(_ATTENTION_PROJECTIONS + _MLP_PROJECTIONS)}
_LANES = 128  # of a TPU's registers


def rotary_table(length: int, head_dim: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Return cosine and sine, each float32[S, H / 2], of positions 0 .. S - 1.

    Source: RoFormer (Su et al., 2021), in the half-split form of Llama.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1.0) / np.float32(theta) ** exponents
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)


def rotate(x: Array, table: tuple[Array, Array]) -> Array:
    """Return float[B, S, N, H] with each pair (i, i + H / 2) turned by its position's angle.

    The halves of each head change places by a product with zeros and ones, which is exact. Slicing
    them instead makes XLA lay a TPU's activations out anew, in float32: a fifteenth of the decoder.
    """
    heads, size = x.shape[-2:]
    rows = x.reshape(*x.shape[:-2], heads * size)
    cos, sin = (jnp.tile(part, (1, 2 * heads)) for part in table)  # [S, N * H]
    groups = rows.reshape(*x.shape[:-2], -1, _group_width(heads, size))
    swap = jnp.asarray(_swap_matrix(size, groups.shape[-1]), x.dtype)
    swapped = jnp.einsum("BSGK,KL->BSGL", groups, swap, precision=jax.lax.Precision.HIGHEST)
    swapped = swapped.reshape(rows.shape).astype(jnp.float32)
    turned = rows.astype(jnp.float32) * cos + swapped * sin
    return turned.astype(x.dtype).reshape(x.shape)


def _group_width(heads: int, size: int) -> int:
    """Return how many numbers go through one product: a TPU's lanes, if heads fill them."""
    return _LANES if _LANES % size == 0 and heads * size % _LANES == 0 else size


def _swap_matrix(size: int, width: int) -> np.ndarray:
    """Return float32[width, width] that turns (a, b), the halves of a head, into (-b, a)."""
    half = np.eye(size // 2, dtype=np.float32)
    swap = np.block([[np.zeros_like(half), half], [-half, np.zeros_like(half)]])
    return np.kron(np.eye(width // size, dtype=np.float32), swap)


class TextAttention(nnx.Module):
    """Causal self-attention with rotary positions and grouped key-value heads."""

    def __init__(self, path: str, config: TextConfig, build: Build):
        """Create the four projections."""
        self.head_dim = config.head_dim
        inner = config.num_attention_heads * config.head_dim
        shared = config.num_key_value_heads * config.head_dim
        sizes = {
            "q_proj": (config.hidden_size, inner),
            "k_proj": (config.hidden_size, shared),
            "v_proj": (config.hidden_size, shared),
            "o_proj": (inner, config.hidden_size),
        }
        for name in _ATTENTION_PROJECTIONS:
            layer = Linear(f"{path}.{name}", sizes[name], build, bias=config.attention_bias)
            setattr(self, name, layer)

    def __call__(
        self, x: Array, table: tuple[Array, Array], token_mask: Array, keys: Array | None
    ) -> Array:
        """Return float[B, S, D] for float[B, S, D]."""

        def heads(name: str) -> Array:
            projected = getattr(self, name)(x, fold_rows(keys, _STREAM[name]))
            return projected.reshape(*x.shape[:-1], -1, self.head_dim)

        q, k = (rotate(heads(name), table) for name in ("q_proj", "k_proj"))
        q, k, v = map(checkpoint_name, (q, k, heads("v_proj")), ("query", "key", "value"))
        mixed = attention(q, k, v, key_mask=token_mask, causal=True)
        mixed = checkpoint_name(mixed.reshape(*x.shape[:-1], -1), "mixed")  # [B, S, N * H]
        return self.o_proj(mixed, fold_rows(keys, _STREAM["o_proj"]))


class TextMLP(nnx.Module):
    """SwiGLU."""

    def __init__(self, path: str, config: TextConfig, build: Build):
        """Create gate, up and down projections."""
        narrow, wide = config.hidden_size, config.intermediate_size
        for name in _MLP_PROJECTIONS:
            sizes = (wide, narrow) if name == "down_proj" else (narrow, wide)
            setattr(self, name, Linear(f"{path}.{name}", sizes, build, bias=config.mlp_bias))

    def __call__(self, x: Array, keys: Array | None) -> Array:
        """Return float[B, S, D] for float[B, S, D]."""
        gate = checkpoint_name(self.gate_proj(x, fold_rows(keys, _STREAM["gate_proj"])), "gate")
        up = checkpoint_name(self.up_proj(x, fold_rows(keys, _STREAM["up_proj"])), "up")
        return self.down_proj(jax.nn.silu(gate) * up, fold_rows(keys, _STREAM["down_proj"]))


class TextBlock(nnx.Module):
    """Pre-norm decoder block."""

    def __init__(self, path: str, config: TextConfig, build: Build):
        """Create norms, attention and MLP."""
        size, eps = config.hidden_size, config.rms_norm_eps
        norm = {"param_dtype": build.param_dtype, "stack": build.stack}
        self.input_layernorm = RMSNorm(size, eps, **norm)
        self.self_attn = TextAttention(f"{path}.self_attn", config, build)
        self.post_attention_layernorm = RMSNorm(size, eps, **norm)
        self.mlp = TextMLP(f"{path}.mlp", config, build)

    def __call__(
        self, x: Array, table: tuple[Array, Array], token_mask: Array, keys: Array | None
    ) -> Array:
        """Return float[B, S, D] for float[B, S, D]."""
        x = x + self.self_attn(self.input_layernorm(x), table, token_mask, keys)
        x = checkpoint_name(x, "attended")
        return x + self.mlp(self.post_attention_layernorm(x), keys)


class TextModel(nnx.Module):
    """Token vectors to hidden states.

    `layers` are the lower blocks, `tuned_layers` the top ones that carry adapters. Two stacks, so
    that no scan slices one array for both and nothing differentiable enters the lower one: its
    backward pass is then never built when only the upper one is trained.
    """

    def __init__(self, config: TextConfig, build: Build, *, remat: str = "none"):
        """Create embeddings, both stacks (either may be absent) and the last norm.

        Raises:
          UserError: more tuned blocks than the decoder has.
        """
        tuned = build.adapters.text_blocks if build.adapters else 0
        if tuned > config.num_hidden_layers:
            raise UserError(
                f"tune.text_blocks is {tuned}, but this decoder has {config.num_hidden_layers} "
                "blocks; lower it"
            )
        self.rotary = (config.head_dim, config.rope_theta)
        self.dtype = build.compute_dtype
        self.remat = remat
        self.depths = {"layers": config.num_hidden_layers - tuned, "tuned_layers": tuned}
        self.embed_tokens = Embedding(
            config.vocab_size, config.hidden_size, rngs=build.rngs, param_dtype=build.param_dtype
        )
        for name, depth in self.depths.items():
            path = f"text_model.{name}"
            stack = TextBlock(path, config, build.stacked(depth)) if depth else None
            setattr(self, name, stack)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, param_dtype=build.param_dtype)

    def __call__(self, x: Array, token_mask: Array, dropout_keys: Array | None = None) -> Array:
        """Return the hidden states after the last norm.

        Args:
          x: float[B, S, D], token vectors with the image features in place.
          token_mask: bool[B, S].
          dropout_keys: key[B] or None for no dropout.

        Returns:
          float[B, S, D] in the compute dtype.
        """
        return self.upper(self.lower(x, token_mask), token_mask, dropout_keys)

    def lower(self, x: Array, token_mask: Array) -> Array:
        """Return what enters the blocks with adapters: float[B, S, D] for float[B, S, D]."""
        return self._run("layers", x.astype(self.dtype), token_mask)[0]

    def upper(self, x: Array, token_mask: Array, dropout_keys: Array | None = None) -> Array:
        """Return the hidden states after the last norm for what `lower` returned."""
        return self.norm(self._run("tuned_layers", x, token_mask, dropout_keys)[0])

    def every_layer(
        self, x: Array, token_mask: Array, keep: Callable[[Array], Array] = lambda x: x
    ) -> Array:
        """Return what is kept of the input, then of each block's output, not normed.

        Args:
          x: float[B, S, D], see `__call__`.
          token_mask: bool[B, S].
          keep: float[B, S, D] -> float[...]; all of it unless said otherwise.

        Returns:
          float[L + 1, ...].
        """
        x = x.astype(self.dtype)
        outputs = [keep(x)[None]]
        for name in self.depths:
            x, each = self._run(name, x, token_mask, keep=keep)
            outputs += [] if each is None else [each]
        return jnp.concatenate(outputs)

    def _run(
        self,
        name: str,
        x: Array,
        token_mask: Array,
        keys: Array | None = None,
        *,
        keep: Callable[[Array], Array] | None = None,
    ) -> tuple[Array, Array | None]:
        """Run one stack, which may be empty."""
        depth = self.depths[name]
        if not depth:
            return x, None
        token_mask = token_mask.astype(bool)
        table = rotary_table(x.shape[1], *self.rotary)
        return scan_blocks(
            getattr(self, name),
            x,
            lambda block, x, index: block(x, table, token_mask, fold_rows(keys, index)),
            depth=depth,
            first=0 if name == "layers" else self.depths["layers"],
            keep=keep,
            remat=self.remat,
        )
