"""Loads a `peft` export in PyTorch as its user would, and compares with its stored embeddings.

    python check.py EXPORT [--base=DIRECTORY_OR_HUB_ID]

Prints one JSON object. Runs alone, in any environment with torch, transformers and peft: nothing of
vtalign_jax is imported but the export's own embed.py.
"""

import argparse
import importlib.util
import json
import platform
import types
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("--base", default="")
    arguments = parser.parse_args()
    print(json.dumps(compare(arguments.export, arguments.base)))


def compare(export: Path, base: str = "") -> dict:
    """Return library versions, lost adapter keys, lowest cosines and largest errors.

    Two more say what would go wrong: the texts without the adapter, and a clip with the positions
    that the library itself gives to image patches.

    Args:
      export: the folder.
      base: directory or hub id of the base model; by default the one that the export names.
    """
    embedder = _load_embed(export).Embedder(str(export), base)
    missing, unexpected = adapter_difference(embedder.model, export)
    inputs = json.loads((export / "certificate.json").read_text())
    stored = load_file(export / "certificate.safetensors")
    times, windows = inputs["times"], inputs["windows"]
    clips = [stored[f"clip_{i}"].numpy() for i in range(len(times))]
    videos = [embedder.clip(*given) for given in zip(clips, times, windows, strict=True)]
    texts = [embedder.text(text) for text in inputs["texts"]]
    pairs = {
        "video": (torch.stack(videos), stored["z_video"]),
        "text": (torch.stack(texts), stored["z_text"]),
    }
    result = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "python": platform.python_version(),
        "missing": missing,
        "unexpected": unexpected,
    }
    for name, (theirs, ours) in pairs.items():
        result[f"cosine_{name}"] = _cosine(theirs, ours)
        result[f"max_error_{name}"] = (theirs.cpu().double() - ours).abs().max().item()
    with embedder.model.disable_adapter():  # shows that the comparison would notice a lost adapter
        texts = torch.stack([embedder.text(text) for text in inputs["texts"]])
        result["cosine_text_without_adapter"] = _cosine(texts, stored["z_text"])
    embedder.repair.remove()
    video = embedder.clip(clips[0], times[0], windows[0])
    result["cosine_video_unrepaired"] = _cosine(video[None], stored["z_video"][:1])
    return result


def adapter_difference(model: peft.PeftModel, export: Path) -> tuple[list[str], list[str]]:
    """Return the adapter keys the model has and the file lacks, and the reverse.

    PEFT only warns about the former and says nothing about the latter; a key whose value did not
    arrive counts as missing.
    """
    stored = load_file(export / "adapter_model.safetensors")
    loaded = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    both = stored.keys() & loaded.keys()
    unchanged = {key for key in both if torch.equal(stored[key], loaded[key].cpu().float())}
    return sorted(set(loaded) - unchanged), sorted(set(stored) - set(loaded))


def _cosine(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    """Return the lowest cosine of any row."""
    return torch.cosine_similarity(theirs.cpu().double(), ours.double()).min().item()


def _load_embed(export: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("embed", export / "embed.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
