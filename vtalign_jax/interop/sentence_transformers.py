"""The `sentence-transformers` export: a folder that `SentenceTransformer(folder).encode` reads.

Merged weights, the library's own modules around them (Transformer, Pooling, two Dense layers as the
head, Normalize) and a processor of clips, whatever processor the base has; none of its own code.
Written without torch.

With one head a modality the library's Router, which looks at what it is given, picks the head. It
must then be the first module and the weights lie in a folder below; both routes share them.

Source: the files that sentence-transformers 6.2 saves and loads.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from vtalign_jax.interop import merged
from vtalign_jax.interop.base_files import TOKENIZER_FILES, copy_files, read_json
from vtalign_jax.interop.embedding_files import Parts
from vtalign_jax.interop.forms import WEIGHTS_FOLDER
from vtalign_jax.interop.processor_files import CHAT_TEMPLATE, processor_files
from vtalign_jax.models.configuration import SmolVLMConfig

_POOLING = {"last": "lasttoken", "mean": "mean"}
_MODULES = {
    "transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "dense": "sentence_transformers.base.modules.dense.Dense",
    "normalize": "sentence_transformers.base.modules.normalize.Normalize",
    "router": "sentence_transformers.base.modules.router.Router",
}
_EMBEDDING = {
    "module_input_name": "sentence_embedding",
    "module_output_name": "sentence_embedding",
}


def is_routed(settings: Mapping[str, Any]) -> bool:
    """Return whether clips and texts go through heads of their own."""
    return settings["heads"]["video"] != settings["heads"]["text"]


def write(folder: Path, parts: Parts) -> merged.Rounding:
    """Write the merged base, its processor replaced, and the modules around it.

    Args:
      folder: of the export.
      parts: of the trained model.

    Raises:
      UserError: see `merged.write_weights`.
    """
    settings, head = parts.settings, parts.head
    chain = [("router", "")] if is_routed(settings) else _chain("")
    if is_routed(settings):
        settings[WEIGHTS_FOLDER] = "transformer"
    place = folder / settings.get(WEIGHTS_FOLDER, "")
    place.mkdir(exist_ok=True)
    rounding = merged.write_weights(place, parts)
    _write_transformer(place, parts)
    pooling = {
        "embedding_dimension": head[settings["heads"]["text"][0]].shape[1],
        "pooling_mode": _POOLING[settings["pooling"]],
        "include_prompt": True,
    }
    _write_json(folder / "1_Pooling" / "config.json", pooling)
    if is_routed(settings):
        _write_routes(folder, head, settings)
    else:
        _write_head(folder, "", head, settings["heads"]["text"])
    _write_json(folder / "4_Normalize" / "config.json", _EMBEDDING)
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": _MODULES[kind]}
        for i, (kind, path) in enumerate(chain)
    ]
    _write_json(folder / "modules.json", modules)
    about = {
        "model_type": "SentenceTransformer",
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    _write_json(folder / "config_sentence_transformers.json", about)
    return rounding


def _chain(suffix: str, transformer: str = "") -> list[tuple[str, str]]:
    """Return the modules that an input goes through, and their folders."""
    return [
        ("transformer", transformer),
        ("pooling", "1_Pooling"),
        ("dense", f"2_Dense{suffix}"),
        ("dense", f"3_Dense{suffix}"),
        ("normalize", "4_Normalize"),
    ]


def _write_transformer(folder: Path, parts: Parts) -> None:
    copy_files(parts.directory, folder, ("config.json", *TOKENIZER_FILES))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    sampling = {
        "do_sample_frames": False,
        "fps": parts.settings["frames"] / parts.settings["window_seconds"],
        "num_frames": parts.settings["frames"],
    }
    config = SmolVLMConfig.from_hf(read_json(folder, "config.json"))
    files = processor_files(config.vision.image_size, config.tokens_per_frame, sampling)
    for name, values in files.items():
        _write_json(folder / name, values)
    forward = {"method": "forward", "method_output_name": "last_hidden_state"}
    _write_json(
        folder / merged.NOT_A_BASE,
        {
            "transformer_task": "feature-extraction",
            "modality_config": {  # single images are not what it was trained on
                "text": forward,
                "video": forward,
                "message": {**forward, "format": "structured"},
            },
            "module_output_name": "token_embeddings",
            # With a rate the library would choose frames anew, and give them other times, even
            # from a clip whose frames were chosen.
            "processor_kwargs": {"fps": None, "num_frames": None},
            # The library has one limit for texts and clips, but encode_query another of its own.
            "query_length": parts.settings["max_text_tokens"],
        },
    )


def _write_routes(
    folder: Path, head: Mapping[str, np.ndarray], settings: Mapping[str, Any]
) -> None:
    types, structure = {}, {}
    for kind, tensors in settings["heads"].items():
        _write_head(folder, f"_{kind}", head, tensors)
        chain = _chain(f"_{kind}", "transformer")
        types |= {path: _MODULES[module] for module, path in chain}
        structure[kind] = [path for _, path in chain]
    routes = {
        "types": types,
        "structure": structure,
        # No default: a batch of clips and texts is refused and does not go through one head.
        "parameters": {"default_route": None, "allow_empty_key": False, "route_mappings": {}},
    }
    _write_json(folder / "router_config.json", routes)


def _write_head(
    folder: Path, suffix: str, head: Mapping[str, np.ndarray], names: list[str]
) -> None:
    """Write the two layers; `names` are their weights and biases in order."""
    activations = ("torch.nn.modules.activation.GELU", "torch.nn.modules.linear.Identity")
    for number, activation in enumerate(activations):
        weight, bias = (head[name] for name in names[2 * number : 2 * number + 2])
        place = folder / f"{number + 2}_Dense{suffix}"
        values = {
            "in_features": weight.shape[1],
            "out_features": weight.shape[0],
            "bias": True,
            "activation_function": activation,
            **_EMBEDDING,
        }
        _write_json(place / "config.json", values)
        tensors = {"linear.weight": weight, "linear.bias": bias}
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})


def _write_json(file: Path, values: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
