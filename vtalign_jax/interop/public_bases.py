"""The public SmolVLMs: what must be known of them where their files are not at hand.

Source: `config.json` and `tokenizer_config.json` of each, on the Hugging Face hub.
"""

from typing import Any

_LARGE_TOWER = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
_SMALL_TOWER = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}
_LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "vocab_size": 49280, "head_dim": 64}
_TEXT_2B = _LLAMA | {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "rope_theta": 130000.0,
}
_TEXT_500M = _LLAMA | {
    "hidden_size": 960,
    "intermediate_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 15,
    "num_key_value_heads": 5,
    "rope_theta": 100000.0,
}
_TEXT_256M = _LLAMA | {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "rope_theta": 100000.0,
}


def _values(model_type: str, tower: dict, text: dict, **top: Any) -> dict[str, Any]:
    image = {"image_token_id": 49190, "scale_factor": 3 if tower is _LARGE_TOWER else 4}
    return {"model_type": model_type, "vision_config": tower, "text_config": text, **image, **top}


# Hub id -> its config.json, but for what no computation reads.
CONFIGS: dict[str, dict[str, Any]] = {
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": _values("smolvlm", _LARGE_TOWER, _TEXT_2B),
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": _values("smolvlm", _SMALL_TOWER, _TEXT_500M),
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": _values("smolvlm", _SMALL_TOWER, _TEXT_256M),
    "HuggingFaceTB/SmolVLM-Instruct": _values(
        "idefics3",
        _LARGE_TOWER,
        _TEXT_2B | {"vocab_size": 49155, "rope_theta": 273768.0},
        image_token_id=49153,
    ),
    "HuggingFaceTB/SmolVLM-500M-Instruct": _values("idefics3", _SMALL_TOWER, _TEXT_500M),
    "HuggingFaceTB/SmolVLM-256M-Instruct": _values("idefics3", _SMALL_TOWER, _TEXT_256M),
}

# Tokens of a clip's turn beside the image tokens, as SmolLM2's tokenizer cuts them (one digit a
# token): the turn with its intro, and each frame with its label and what encloses its images.
TURN_TOKENS, FRAME_TOKENS = 35, 13
SPLIT_GLOBAL_IMAGE = {"HuggingFaceTB/SmolVLM-Instruct": 4}  # "<global-img>" is five tokens there
_LONG_COUNT = 2  # more tokens that a number of frames above twenty takes in the intro


def clip_tokens(base: str, frames: int, tokens_per_frame: int) -> int:
    """Return about how long a clip's turn is at most (`S` without captions).

    Args:
      base: hub id.
      frames: of the clip.
      tokens_per_frame: image tokens of one (`Q`).
    """
    frame = tokens_per_frame + FRAME_TOKENS + SPLIT_GLOBAL_IMAGE.get(base, 0)
    return TURN_TOKENS + (_LONG_COUNT if frames > 20 else 0) + frames * frame
