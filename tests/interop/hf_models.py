"""Small random Hugging Face models, saved to disk, and what they compute layer by layer."""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

IMAGE_TOKEN, VOCABULARY = 129, 131
IMAGE_SIZE, SCALE_FACTOR = 56, 2
TOKENS_PER_FRAME = 16

# Widths of every axis are pairwise different: in a real checkpoint q, k, v, o are square, and a
# lost transpose would pass.
VISION = {
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": IMAGE_SIZE,
    "patch_size": 7,
}
TEXT = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
}
CLASSES = {
    "smolvlm": (transformers.SmolVLMConfig, transformers.SmolVLMForConditionalGeneration),
    "idefics3": (transformers.Idefics3Config, transformers.Idefics3ForConditionalGeneration),
}


def save_random_model(
    directory: Path, architecture: str, *, tied: bool, old_rope: bool, shards: bool
) -> torch.nn.Module:
    """Save a model whose every leaf, norms and biases too, is random; return it as read back."""
    config_class, model_class = CLASSES[architecture]
    config = config_class(
        vision_config=VISION,
        text_config={**TEXT, "rope_theta": 777.0, "tie_word_embeddings": tied},
        scale_factor=SCALE_FACTOR,
        image_token_id=IMAGE_TOKEN,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(len(architecture) + tied)
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.0 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn_like(parameter) * 0.5 * scale)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    model.save_pretrained(directory, max_shard_size="100KB" if shards else "1GB")
    if old_rope:
        file = directory / "config.json"
        values = json.loads(file.read_text())
        values["text_config"].pop("rope_parameters")
        values["text_config"]["rope_theta"] = 777.0
        file.write_text(json.dumps(values))
    return model_class.from_pretrained(directory, attn_implementation="eager").eval()


def layer_outputs(model: torch.nn.Module, **inputs: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Return every block's output of both towers, the final norms' and the logits."""
    taken: dict[str, list[np.ndarray]] = {"vision": [], "text": [], "norms": []}
    places = {
        "vision": model.model.vision_model.encoder.layers,
        "text": model.model.text_model.layers,
        "norms": [model.model.vision_model.post_layernorm, model.model.text_model.norm],
    }

    def keep(name):
        def hook(_module, _inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            taken[name].append(output.numpy())

        return hook

    hooks = [m.register_forward_hook(keep(name)) for name, ms in places.items() for m in ms]
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in inputs.items()}
    with torch.no_grad():
        logits = model(**tensors).logits.numpy()
    for hook in hooks:
        hook.remove()
    return {**taken, "logits": [logits]}
