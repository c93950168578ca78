"""The demo's base model: a small SmolVLM with random weights, in Hugging Face's own files.

Real architecture and real file layout, so that the demo and the tests run the code of the big job
and PyTorch opens the folder with `from_pretrained`.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers, trainers

from vtalign_jax.interop.processor_files import CHAT_TEMPLATE, processor_files
from vtalign_jax.interop.weights import hugging_face_sources, source_shape
from vtalign_jax.models import parameters
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.models.smolvlm import SmolVLM

VERSION = 2  # raise it with every change of what is written: the cached copy is named after it

_IMAGE_SIZE, _PATCH, _SHUFFLE = 64, 8, 4  # 64 patches, 4 tokens a frame
_VOCABULARY = 1024
# Standard deviation of a leaf times sqrt(inputs); 1 keeps the size of what passes through. Blocks
# add little, so that patches and words are still told apart at the end, and places differ much: the
# demo then needs about half the steps it needs with 1 throughout.
_SCALES = (
    (r"vision_model\..*\.(out_proj|fc2)\.kernel", 0.3),
    (r"text_model\..*\.(o_proj|down_proj)\.kernel", 0.5),
    (r"vision_model\.embeddings\.position_embedding\.embedding", 3.5),
    (r".*", 1.0),
)
_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    "<end_of_utterance>",
)
_NAMED = {
    "unk_token": "<|endoftext|>",
    "bos_token": "<|im_start|>",
    "eos_token": "<end_of_utterance>",
    "pad_token": "<|im_end|>",
}
# The processor's sentences as single pieces, so that a clip takes few tokens; then words, numbers.
_PIECES = (
    r"You are provided the following series of |"
    r" frames from a | \[H:MM:SS\] video\.\n|\n+Frame from \d\d:|User: |Assistant:|"
    r"\d+:?| ?\p{L}+| ?[^\s\p{L}\d]+|\s+"
)
_PROMPT = (
    "User: You are provided the following series of {count} frames from a 0:00:{second:02d} "
    "[H:MM:SS] video.\n\nFrame from 00:{second:02d}:\nFrame from 00:{second:02d}:\n\nAssistant:"
)
_COUNTS = "one two three four five six seven eight nine ten eleven twelve sixteen thirty-two"
_WORDS = (
    "a the to into onto from of on off and with in out up down over under around between behind "
    "left right top bottom front back side first second third next last new old another same both "
    "red green blue yellow orange purple white black gray grey brown pink cyan magenta dark light "
    "circle square triangle star cross ring bar block shape part piece wheel chassis body cabin "
    "base arm bolt screw nut plate cover box bottle cup bowl knife board hand table wall floor "
    "attach detach screw unscrew open close pick put place take remove insert push pull turn flip "
    "rotate spin slide move lift lower raise drop shake grow shrink bounce roll swing tilt align "
    "hold press cut pour stir mix wash wipe fold unfold connect disconnect tighten loosen assemble "
    "disassemble inspect check clockwise counterclockwise upward downward upwards downwards "
    "leftward rightward toward away fast slow quickly slowly twice once back forth zigzag diagonal "
    "small large big bring closer step action task video clip frame"
)


def write_tiny_checkpoint(directory: str | Path, seed: int = 0) -> None:
    """Write the checkpoint: configuration, weights, tokenizer and processor files.

    Args:
      directory: an existing folder or one to be made; files in it are replaced.
      seed: of the weights.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    config = _model_config(tokenizer)
    save_file(
        dict(_weights(config, seed)), directory / "model.safetensors", metadata={"format": "pt"}
    )
    side = {"longest_edge": _IMAGE_SIZE}
    sampling = {"video_sampling": {"fps": 1, "max_frames": 64, "video_size": side}}
    tokens_per_frame = SmolVLMConfig.from_hf(config).tokens_per_frame
    files = processor_files(_IMAGE_SIZE, tokens_per_frame, sampling)
    files["preprocessor_config.json"] |= sampling  # transformers reads a video's from here, too
    files |= {"config.json": config, "tokenizer_config.json": _tokenizer_config(tokenizer)}
    for name, values in files.items():
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        (directory / name).write_text(text, encoding="utf-8")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def train_tokenizer() -> tokenizers.Tokenizer:
    """Return the byte-level BPE tokenizer; the same on every call."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[tokenizers.AddedToken(token, special=True) for token in _SPECIAL],
        show_progress=False,
    )
    prompts = [
        _PROMPT.format(count=count, second=second)
        for count in _COUNTS.split()
        for second in range(60)
    ]
    words = [_WORDS, *(f"{word} {word}" for word in _WORDS.split())] * 8
    tokenizer.train_from_iterator(prompts + words, trainer)
    return tokenizer


def _model_config(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    """Return `config.json`; widths are pairwise different, so that no lost transpose passes."""
    ids = {name: tokenizer.token_to_id(token) for name, token in _NAMED.items()}
    special = {f"{name}_id": ids[name] for name in ("bos_token", "eos_token", "pad_token")}
    return {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "model_type": "smolvlm",
        "torch_dtype": "float32",
        "image_token_id": tokenizer.token_to_id("<image>"),
        "scale_factor": _SHUFFLE,
        "tie_word_embeddings": True,
        **special,
        "text_config": {
            "model_type": "llama",
            "vocab_size": _VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 176,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            # The old form: transformers 4.57 does not know rope_parameters and would silently take
            # 10000; transformers 5 reads both.
            "rope_theta": 5000.0,
            "tie_word_embeddings": True,
            **special,
        },
        "vision_config": {
            "model_type": "smolvlm_vision",
            "hidden_size": 48,
            "intermediate_size": 112,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": _IMAGE_SIZE,
            "patch_size": _PATCH,
        },
    }


def _weights(config: dict[str, Any], seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield random weights by Hugging Face's keys, of the scales of `_SCALES`.

    With the usual 0.02 so narrow a model would hardly move its residual stream.
    """
    sizes = SmolVLMConfig.from_hf(config)
    _, abstract = parameters.abstract(lambda: SmolVLM(sizes, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(seed)
    for path, source in sorted(hugging_face_sources(abstract).items()):
        shape = source_shape(source, abstract[path].shape)
        for key in source.keys:
            yield key, _initial(path, shape, rng)


def _initial(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    leaf = path.rsplit(".", 1)[1]
    if leaf == "scale":
        return np.ones(shape, np.float32)
    if leaf == "bias":
        return np.zeros(shape, np.float32)
    fan_in = int(np.prod(shape[1:])) if leaf == "kernel" else shape[1]
    scale = next(scale for pattern, scale in _SCALES if re.fullmatch(pattern, path))
    return (rng.standard_normal(shape) * scale * fan_in**-0.5).astype(np.float32)


def _tokenizer_config(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {"content": token, "special": True, **plain}
            for token in _SPECIAL
        },
        "additional_special_tokens": [t for t in _SPECIAL if t not in _NAMED.values()],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "padding_side": "right",
        "processor_class": "SmolVLMProcessor",
        **_NAMED,
    }
