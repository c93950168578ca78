"""The same training step in PyTorch: transformers, PEFT, SDPA and, on a GPU, torch.compile.

As fast as plain PyTorch gets it: the frozen tower under `no_grad`, texts without a gradient below
the tuned blocks, no attention mask (nothing is padded), adapters in the compute dtype, fused AdamW,
FlashAttention 2 where it is installed; blocks are recomputed only if memory asks for it.
"""

import importlib.util
from collections.abc import Mapping
from typing import Any

import peft
import torch
import transformers
from torch.nn import functional

from vtalign_jax.config import Config
from vtalign_jax.models.aligner import MIN_LOG_TEMPERATURE, PIXEL_MEAN, PIXEL_STD

_CLASSES = {
    "smolvlm": (transformers.SmolVLMConfig, transformers.SmolVLMForConditionalGeneration),
    "idefics3": (transformers.Idefics3Config, transformers.Idefics3ForConditionalGeneration),
}
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class PeerModel(torch.nn.Module):
    """SmolVLM with PEFT's LoRA, the shared projection head and the temperature.

    Attributes:
      model: PEFT's.
      fc1, fc2: of the head, float32.
      log_temperature: float32[].
    """

    def __init__(self, values: Mapping[str, Any], config: Config):
        """Create it with random weights on PyTorch's default device.

        Args:
          values: the base's `config.json`.
          config: of the run: LoRA's places and sizes, the head's, the dtype.
        """
        super().__init__()
        config_class, model_class = _CLASSES[values["model_type"]]
        text = {"pad_token_id": 0} | values["text_config"]
        hub_config = config_class(**{**values, "text_config": text, "pad_token_id": 0})
        base = model_class._from_config(
            hub_config,
            attn_implementation=attention_name(config.model.compute_dtype),
            dtype=_DTYPES[config.model.compute_dtype],
        )
        depth, width = text["num_hidden_layers"], text["hidden_size"]
        self.model = peft.get_peft_model(
            base, _lora(config, depth), autocast_adapter_dtype=False
        ).train()
        self.fc1 = torch.nn.Linear(width, width)
        self.fc2 = torch.nn.Linear(width, config.model.embedding_dim)
        initial = torch.tensor(config.model.temperature_init).log()
        self.log_temperature = torch.nn.Parameter(initial.clamp(min=MIN_LOG_TEMPERATURE))
        self._image_token = values["image_token_id"]
        self._dtype = _DTYPES[config.model.compute_dtype]

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the weighted InfoNCE of a batch without padding: float32[]."""
        clips = self._head(self._clip_states(batch["frames"], batch["clip_ids"]))
        inner = self.model.base_model.model.model.text_model
        texts = self._head(self._states(inner.embed_tokens(batch["text_ids"])))
        logits = clips @ texts.T / self.log_temperature.clamp(min=MIN_LOG_TEMPERATURE).exp()
        weighted = logits + batch["weights"].log()
        negatives = weighted.logsumexp(1) + weighted.logsumexp(0)
        return (negatives - 2 * logits.diagonal()).mean()

    def _clip_states(self, frames: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return float[B, D] for uint8[B, F, H, W, 3] and int64[B, S]."""
        inner = self.model.base_model.model.model
        with torch.no_grad():
            pixels = (frames.flatten(0, 1).float() / 255.0 - PIXEL_MEAN) / PIXEL_STD
            pixels = pixels.permute(0, 3, 1, 2).to(self._dtype)  # [B * F, 3, H, W]
            patches = inner.vision_model(pixel_values=pixels).last_hidden_state
        images = inner.connector(patches)  # [B * F, Q, D]
        x = inner.text_model.embed_tokens(ids)
        is_image = (ids == self._image_token)[..., None]
        return self._states(x.masked_scatter(is_image, images.to(x.dtype)))

    def _states(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last hidden state of each turn, float[B, D], for token vectors."""
        text_model = self.model.base_model.model.model.text_model
        return text_model(inputs_embeds=x, use_cache=False).last_hidden_state[:, -1]

    def _head(self, pooled: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.fc2(functional.gelu(self.fc1(pooled.float()))), dim=-1)


class PeerStep:
    """`step(batch) -> loss`: forward, backward, clipping and AdamW at a constant rate."""

    def __init__(self, model: PeerModel, config: Config, *, compiled: bool, recompute: bool):
        """Prepare; nothing is compiled yet.

        Args:
          model: on its device.
          config: of the run: the optimizer.
          compiled: whether `torch.compile` is used.
          recompute: whether each block is computed again in the backward pass.
        """
        if recompute:
            model.model.gradient_checkpointing_enable({"use_reentrant": False})
        trained = [(name, x) for name, x in model.named_parameters() if x.requires_grad]
        self._trained = [x for _, x in trained]
        decayed = [x for name, x in trained if name.endswith("weight")]
        plain = [x for name, x in trained if not name.endswith("weight")]
        optim = config.optim
        self._optimizer = torch.optim.AdamW(
            [{"params": decayed}, {"params": plain, "weight_decay": 0.0}],
            lr=optim.learning_rate,
            betas=(optim.b1, optim.b2),
            weight_decay=optim.weight_decay,
            fused=True,
        )
        self._clip_norm = optim.clip_norm
        self._forward = torch.compile(model) if compiled else model

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        loss = self._forward(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, self._clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def attention_name(dtype: str) -> str:
    """Return the attention that transformers is told to take."""
    has_flash = importlib.util.find_spec("flash_attn") is not None
    fits = torch.cuda.is_available() and dtype == "bfloat16"
    return "flash_attention_2" if has_flash and fits else "sdpa"


def matmul_flops(edge: int, dtype: str, seconds_of: Any) -> float:
    """Return the operations a second of a product of two square matrices.

    Args:
      edge: of the matrices.
      dtype: their.
      seconds_of: function to be called -> seconds.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(edge, edge, device=device, dtype=_DTYPES[dtype]) for _ in range(2))

    def multiply() -> None:
        a @ b
        synchronize()

    return 2 * edge**3 / seconds_of(multiply)


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _lora(config: Config, depth: int) -> peft.LoraConfig:
    """Return adapters where ours sit."""
    tune = config.tune
    blocks = "|".join(map(str, range(depth - tune.text_blocks, depth)))
    places = (
        rf"model\.text_model\.layers\.({blocks})\.self_attn\.[qkvo]_proj",
        r"model\.connector\.modality_projection\.proj",
    )
    return peft.LoraConfig(
        r=tune.rank,
        lora_alpha=tune.alpha,
        lora_dropout=tune.dropout,
        use_rslora=tune.rank_stabilized,
        target_modules="|".join(places),
    )
