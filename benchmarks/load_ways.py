"""What runs in a process of its own to measure loading: each way of it, and one forward pass."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_SAMPLED_EVERY = 0.01  # seconds
_FRAMES, _WORDS = 2, 16
_TUNED_BLOCKS = 8  # as configs/pretrain.py: the decoder comes in two stacks


def main(way: str, folder: str, argument: str) -> None:
    """Do one thing and print what it gives as one line of JSON."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    print(json.dumps(WAYS[way](Path(folder), argument)))


def make_checkpoint(folder: Path, config: str) -> dict[str, Any]:
    """Write a random checkpoint in bfloat16, in several files; `config` is its `config.json`."""
    import torch
    import transformers

    values = json.loads(config)
    with torch.device("meta"):
        config_class = transformers.CONFIG_MAPPING[values["model_type"]]
        model = transformers.AutoModelForImageTextToText.from_config(config_class(**values))
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Each product keeps its input's scale, so that activations stay of order one.
            scale = 1.0 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.normal_(0, 0.5 * scale, generator=random)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    model.save_pretrained(folder, max_shard_size="2GB")
    return {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def convert(folder: Path, out: str) -> dict[str, Any]:
    """Write the converted form of a base."""
    import jax

    from vtalign_jax.interop import converted, weights

    jax.devices()
    began = time.perf_counter()
    Path(out).mkdir()
    converted.write(Path(out), weights.views(folder), folder, str(folder))
    return {"seconds": time.perf_counter() - began}


def load_here(folder: Path, dtype: str) -> dict[str, Any]:
    """Load as a run does, from either form, onto one device."""
    import jax
    from flax import nnx

    from vtalign_jax.interop import weights
    from vtalign_jax.models import parameters
    from vtalign_jax.models.lora import AdapterConfig
    from vtalign_jax.models.smolvlm import SmolVLM

    jax.devices()

    def load() -> int:
        config = weights.read_config(folder)
        blocks = min(_TUNED_BLOCKS, config.text.num_hidden_layers)
        adapters = AdapterConfig(text_blocks=blocks)
        _, abstract = parameters.abstract(lambda: SmolVLM(config, adapters, rngs=nnx.Rngs(0)))
        leaves = weights.load_into(abstract, folder, dtype=dtype)
        return sum(leaf.nbytes for leaf in jax.block_until_ready(leaves).values())

    return _watched(load)


def load_peer(folder: Path, dtype: str) -> dict[str, Any]:
    """Load with transformers, which is lazy, and copy every tensor."""
    import torch
    import transformers

    def load() -> int:
        model = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=getattr(torch, dtype)
        )
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data = tensor.data.clone()
        return sum(parameter.nbytes for parameter in model.parameters())

    return _watched(load)


def forward_here(folder: Path, out: str) -> dict[str, Any]:
    """Save every layer's output of one clip and of one text, in float32."""
    import jax

    import vtalign_jax as vt

    model = vt.load_smolvlm(folder)

    @jax.jit
    def states(model: Any, ids: Any, mask: Any, frames: Any) -> Any:
        features = None if frames is None else model.image_features(frames)
        merged = model.merge_inputs(ids, features)
        return model.text_model.every_layer(merged, mask), model.text_model(merged, mask)

    clip, text, frames = _inputs(json.loads((folder / "config.json").read_text()))
    found = {}
    for name, ids, shown in (("clip", clip, frames), ("text", text, None)):
        layers, last = states(model, ids, np.ones_like(ids), shown)
        found[name] = np.concatenate([layers[:-1], last[None]])[:, 0]
    np.savez(out, **found)
    return {}


def forward_peer(folder: Path, out: str) -> dict[str, Any]:
    """Save the same from transformers."""
    import torch
    import transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    clip, text, frames = _inputs(json.loads((folder / "config.json").read_text()))
    found = {}
    for name, ids, shown in (("clip", clip, frames), ("text", text, None)):
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        if shown is not None:
            inputs["pixel_values"] = shown.transpose(0, 1, 4, 2, 3)
        tensors = {key: torch.from_numpy(np.ascontiguousarray(x)) for key, x in inputs.items()}
        with torch.no_grad():
            states = model.eval().model(**tensors, output_hidden_states=True).hidden_states
        found[name] = np.stack([state[0].numpy() for state in states])
    np.savez(out, **found)
    return {}


def _inputs(config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the ids of a clip and of a text, and the clip's frames, normalised."""
    from vtalign_jax.models.configuration import SmolVLMConfig

    numbers = SmolVLMConfig.from_hf(config)
    random = np.random.default_rng(0)
    words = random.integers(4, numbers.text.vocab_size, (2, _WORDS))
    words[words == numbers.image_token_id] = 4
    images = np.full(_FRAMES * numbers.tokens_per_frame, numbers.image_token_id)
    edge = numbers.vision.image_size
    frames = random.uniform(-1, 1, (1, _FRAMES, edge, edge, 3)).astype(np.float32)
    return np.concatenate([images, words[0]])[None], words[1][None], frames


def _watched(load: Callable[[], int]) -> dict[str, Any]:
    """Return the bytes loaded, the seconds, and the peak of anonymous memory of this process.

    Read from `RssAnon` in /proc/self/status by a thread: `VmHWM` would count the pages of the
    weight files, which belong to the page cache.
    """
    peak, is_done = _anonymous(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_done.wait(_SAMPLED_EVERY):
            peak = max(peak, _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    size = load()
    seconds = time.perf_counter() - began
    is_done.set()
    watcher.join()
    return {"bytes": size, "seconds": seconds, "peak": max(peak, _anonymous())}


def _anonymous() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


WAYS = {
    "make": make_checkpoint,
    "convert": convert,
    "here": load_here,
    "peer": load_peer,
    "forward_here": forward_here,
    "forward_peer": forward_peer,
}


if __name__ == "__main__":
    main(*sys.argv[1:])
