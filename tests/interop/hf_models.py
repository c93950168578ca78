"""Small random Hugging Face models, saved to disk, and what they compute layer by layer."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

FIXTURES = Path(__file__).parent / "fixtures"
PUBLIC = (  # the numbers of every public SmolVLM: fixtures/<name>.json
    "smolvlm2_2b_instruct",
    "smolvlm_instruct",
    "smolvlm2_500m_video_instruct",
    "smolvlm2_256m_video_instruct",
    "smolvlm_500m_instruct",
    "smolvlm_256m_instruct",
)
IMAGE_TOKEN, VOCABULARY = 129, 131
CLASSES = {
    "smolvlm": (transformers.SmolVLMConfig, transformers.SmolVLMForConditionalGeneration),
    "idefics3": (transformers.Idefics3Config, transformers.Idefics3ForConditionalGeneration),
}
_NARROWER = 8  # than the real one
_SQUARES_PER_SIDE = {3: 3, 4: 2}  # by scale_factor: 9 and 8 patches a side


def public_config(name: str) -> dict[str, Any]:
    """Return the `config.json` of a public model."""
    return json.loads((FIXTURES / f"{name}.json").read_text())


def shaped_after(name: str) -> dict[str, Any]:
    """Return a public model's configuration, an eighth as wide and less deep.

    Its own are: architecture, ratio of depths and of widths, numbers of heads, patch and pixel
    shuffle, the rotary base, the norms' epsilon, and whether the embeddings are tied.
    """
    values = public_config(name)
    text, vision = values["text_config"], values["vision_config"]
    for part, fields in (
        (text, ("hidden_size", "intermediate_size", "head_dim")),
        (vision, ("hidden_size", "intermediate_size")),
    ):
        part |= {field: part[field] // _NARROWER for field in fields if field in part}
    vision.setdefault("intermediate_size", 4 * vision["hidden_size"])  # the default is not narrow
    blocks = vision.get("num_hidden_layers", 12), text["num_hidden_layers"]
    shorter = math.gcd(*blocks) if math.gcd(*blocks) > 2 else 1
    vision["num_hidden_layers"], text["num_hidden_layers"] = (n // shorter for n in blocks)
    side = _SQUARES_PER_SIDE[values["scale_factor"]] * values["scale_factor"]
    vision["image_size"] = side * vision["patch_size"]
    text |= {"vocab_size": VOCABULARY, "pad_token_id": 0}
    return values | {"image_token_id": IMAGE_TOKEN, "vocab_size": VOCABULARY, "pad_token_id": 0}


def save_random_model(
    directory: Path, values: dict[str, Any], *, old_rope: bool, shards: bool
) -> torch.nn.Module:
    """Save a model whose every leaf, norms and biases too, is random; return it as read back.

    Args:
      directory: where.
      values: its `config.json`, old form.
      old_rope: keep `rope_theta` where transformers 4 writes it.
      shards: several weight files and an index.
    """
    config_class, model_class = CLASSES[values["model_type"]]
    rope_theta = values["text_config"]["rope_theta"]
    torch.manual_seed(rope_theta + values["tie_word_embeddings"])
    model = model_class(config_class(**values)).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.0 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn_like(parameter) * 0.5 * scale)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    model.save_pretrained(directory, max_shard_size="1MB" if shards else "1GB")
    if old_rope:
        file = directory / "config.json"
        written = json.loads(file.read_text())
        written["text_config"].pop("rope_parameters")
        written["text_config"]["rope_theta"] = rope_theta
        file.write_text(json.dumps(written))
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
