"""Loads a `peft` or `merged` export as its user would, and compares with what is stored in it.

    python check.py EXPORT [--base=DIRECTORY_OR_HUB_ID] [--clips=DIRECTORY]

Prints one JSON object. Runs alone, in any environment with torch, transformers and, for an adapter,
peft: nothing of vtalign_jax is imported but the export's own embed.py.
"""

import argparse
import contextlib
import importlib.util
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

REPLY = "Assistant:"  # after the user's turn
NEW_TOKENS = 20  # of a generation


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("--base", default="", help="another copy of the base model")
    parser.add_argument("--clips", type=Path, help="clips.json and clips.safetensors to embed too")
    arguments = parser.parse_args()
    print(json.dumps(compare(arguments.export, arguments.base, arguments.clips)))


def compare(export: Path, base: str = "", clips: Path | None = None) -> dict[str, Any]:
    """Return library versions, lost keys, lowest cosines, largest errors and what the model says.

    Two figures say what would go wrong: the texts with the base alone, and a clip with the
    positions that the library itself gives to image patches.

    Args:
      export: the folder.
      base: directory or hub id of the base model; by default the one that the export names.
      clips: folder whose clips are embedded as well, into `embedded.safetensors` in it.
    """
    embedder = _load_embed(export).Embedder(str(export), base)
    missing, unexpected = key_difference(embedder, export)
    inputs = json.loads((export / "certificate.json").read_text())
    stored = load_file(export / "certificate.safetensors")
    texts = inputs["texts"]
    result = {
        **_versions(embedder),
        "missing": missing,
        "unexpected": unexpected,
        **_difference("video", _videos(embedder, inputs, stored), stored["z_video"]),
        **_difference("text", _texts(embedder, texts), stored["z_text"]),
    }
    if clips is not None:
        given = json.loads((clips / "clips.json").read_text())
        frames = load_file(clips / "clips.safetensors")
        video, text = _videos(embedder, given, frames), _texts(embedder, given["texts"])
        save_file({"z_video": video, "z_text": text}, clips / "embedded.safetensors")
    spoken = {"export": speak(embedder, inputs, stored)}
    with as_base(embedder, base) as absent:
        if not absent:
            spoken["base"] = speak(embedder, inputs, stored)
            cosine = _difference("text", _texts(embedder, texts), stored["z_text"])["cosine_text"]
            result["cosine_text_without_adapter"] = cosine
    result["language"] = spoken | ({"base_absent": absent} if absent else {})
    embedder.repair.remove()
    video = _videos(embedder, inputs, stored, 1)
    result["cosine_video_unrepaired"] = _difference("", video, stored["z_video"][:1])["cosine_"]
    return result


def key_difference(embedder: Any, export: Path) -> tuple[list[str], list[str]]:
    """Return the keys the loaded model has and the files lack, and the reverse.

    The libraries only warn of the former, or say nothing; a key whose value did not arrive counts
    as missing.
    """
    if embedder.settings["form"] == "peft":
        import peft

        loaded = peft.get_peft_model_state_dict(embedder.model, save_embedding_layers=False)
        files = [export / "adapter_model.safetensors"]
    else:
        loaded = dict(embedder.model.named_parameters())  # tied ones once
        files = sorted(export.glob("model*.safetensors"))
    absent, unexpected = set(loaded), []
    tied = dict(embedder.model.named_parameters(remove_duplicate=False))
    for file in files:
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118, it is no dictionary
                found = loaded.get(key, tied.get(key))
                if found is None:
                    unexpected.append(key)
                elif torch.equal(tensors.get_tensor(key).float(), found.detach().cpu().float()):
                    absent.discard(key)
    return sorted(absent), sorted(unexpected)


def speak(embedder: Any, inputs: dict, stored: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return the mean next-token loss of the answers, and what follows each prompt instead."""
    losses, said = [], []
    for item in inputs["language"]:
        prompt, pixels = _prompt(embedder, item, inputs, stored)
        encoding = embedder.tokenizer.encode(f"{prompt} {item['answer']}")
        ids = torch.tensor([encoding.ids])
        is_answer = torch.tensor([start >= len(prompt) for start, _ in encoding.offsets])
        with torch.no_grad():
            logits = embedder.model(input_ids=ids, pixel_values=pixels).logits[0, :-1]
        chosen = torch.log_softmax(logits.float(), -1).gather(1, ids[0, 1:, None])[:, 0]
        losses.append(-chosen[is_answer[1:]])
        ids = torch.tensor([embedder.tokenizer.encode(prompt).ids])
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if pixels is not None:
            given["pixel_values"] = pixels
        with torch.no_grad():
            whole = embedder.model.generate(**given, do_sample=False, max_new_tokens=NEW_TOKENS)
        said.append(embedder.tokenizer.decode(whole[0, ids.shape[1] :].tolist()))
    return {"loss": torch.cat(losses).mean().item(), "said": said}


@contextlib.contextmanager
def as_base(embedder: Any, base: str) -> Iterator[str]:
    """Let the embedder compute with the base model alone; gives why it cannot, or ""."""
    if embedder.settings["form"] == "peft":
        with embedder.model.disable_adapter():
            yield ""
        return
    before = embedder.model, embedder.core, embedder.repair
    try:
        # The embedder of the export, told to load another folder's weights.
        model = type(embedder.model).from_pretrained(
            base or embedder.settings["base"], dtype=embedder.model.dtype, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        yield str(error).strip().splitlines()[0]
        return
    embedder.model, embedder.core = model.eval(), model.model
    table = embedder.core.vision_model.embeddings.position_embedding
    ids = embedder.head["position_ids"]
    table.register_forward_pre_hook(lambda _, x: ids.expand_as(*x))
    yield ""
    embedder.model, embedder.core, embedder.repair = before


def _prompt(
    embedder: Any, item: dict, inputs: dict, stored: dict[str, torch.Tensor]
) -> tuple[str, torch.Tensor | None]:
    """Return the user's turn and the reply's start, and the pixels of its clip."""
    turn, pixels, said = embedder.settings["layout"]["turn"], None, item["prompt"]
    if item["clip"] is not None:
        made = []
        embed, embedder._embed = embedder._embed, lambda kind, *given: made.extend(given)
        k = item["clip"]
        embedder.clip(stored[f"clip_{k}"].numpy(), inputs["times"][k], inputs["windows"][k])
        embedder._embed = embed
        said, pixels = made[0] + said, made[1]
    return turn.format(said) + REPLY, pixels


def _videos(
    embedder: Any, inputs: dict, stored: dict[str, torch.Tensor], most: int | None = None
) -> torch.Tensor:
    given = zip(inputs["times"][:most], inputs["windows"], strict=False)
    clips = [embedder.clip(stored[f"clip_{k}"].numpy(), *x) for k, x in enumerate(given)]
    return torch.stack(clips)


def _texts(embedder: Any, texts: list[str]) -> torch.Tensor:
    return torch.stack([embedder.text(text) for text in texts])


def _difference(name: str, theirs: torch.Tensor, ours: torch.Tensor) -> dict[str, float]:
    """Return the lowest cosine of any row and the largest difference."""
    theirs, ours = theirs.cpu().double(), ours.double()
    cosine = torch.cosine_similarity(theirs, ours).min().item()
    return {f"cosine_{name}": cosine, f"max_error_{name}": (theirs - ours).abs().max().item()}


def _versions(embedder: Any) -> dict[str, str]:
    found = {"torch": torch.__version__, "transformers": transformers.__version__}
    if embedder.settings["form"] == "peft":
        import peft

        found["peft"] = peft.__version__
    return found | {"python": platform.python_version()}


def _load_embed(export: Path) -> Any:
    spec = importlib.util.spec_from_file_location("embed", export / "embed.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
