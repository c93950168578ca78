"""Loads a `sentence-transformers` export as its user would; compares with its stored embeddings.

    python check_sentence_transformers.py EXPORT

Prints one JSON object. Runs alone, in any environment with sentence-transformers, torchvision and
num2words: nothing of vtalign_jax is imported.
"""

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import sentence_transformers
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router

TICKS = 1_000_000  # a second: how finely a clip says when its frames are shown


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("--base", default="", help="not needed: the export holds all weights")
    print(json.dumps(compare(parser.parse_args().export)))


def compare(export: Path) -> dict:
    """Return library versions, lost weights, lowest cosines and largest errors.

    Two cosines more say what the library does its own way: clips whose frames have the model's
    size already, so that nothing is resized, and texts that `encode` does not cut.

    Args:
      export: the folder.
    """
    model = SentenceTransformer(str(export), device="cpu", model_kwargs={"dtype": "float32"})
    transformer, folder = model[0], export
    if isinstance(transformer, Router):  # a head a modality
        transformer, folder = transformer.sub_modules["text"][0], export / "transformer"
    missing, unexpected = weights_difference(transformer.model, folder)
    result = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentence-transformers": sentence_transformers.__version__,
        "python": platform.python_version(),
        "missing": missing,
        "unexpected": unexpected,
    }
    inputs = json.loads((export / "certificate.json").read_text())
    stored = load_file(export / "certificate.safetensors")
    side = transformer.processor.video_processor.max_image_size["longest_edge"]
    for name, pairs in embed(model, inputs, stored, side, transformer.query_length).items():
        theirs, ours = (torch.tensor(np.concatenate(x)).double() for x in zip(*pairs, strict=True))
        result[f"cosine_{name}"] = torch.cosine_similarity(theirs, ours).min().item()
        result[f"max_error_{name}"] = (theirs - ours).abs().max().item()
    return result


def embed(
    model: SentenceTransformer, inputs: dict, stored: dict[str, np.ndarray], side: int, most: int
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Return `{what: [(the library's embeddings, ours)]}`.

    Clips are embedded alone and, as many as have equally many frames, in one batch with the texts
    where there is one head. Texts go through `encode_query`, those that are not cut through
    `encode` too.

    Args:
      model: of the export.
      inputs: of `certificate.json`.
      stored: of `certificate.safetensors`.
      side: of the model's frames, in pixels.
      most: tokens of a text that is not cut.
    """
    texts, times, windows = inputs["texts"], inputs["times"], inputs["windows"]
    z_text, z_video = stored["z_text"], stored["z_video"]
    is_routed = isinstance(model[0], Router)
    clips, squares = [], []
    for i, given in enumerate(zip(times, windows, strict=True)):
        frames = stored[f"clip_{i}"]
        square = np.stack([to_square(frame, side) for frame in frames])
        for made, pictures in ((clips, frames), (squares, square)):
            clip = make_clip(pictures, *given)
            made.append({"video": clip} if is_routed else clip)
    alike = [i for i, shown in enumerate(times) if len(shown) == len(times[0])]
    lengths = [model.preprocess([text])["input_ids"].shape[1] for text in texts]
    whole = [i for i, length in enumerate(lengths) if length <= most]
    cut = [i for i, length in enumerate(lengths) if length > most]
    several, short = [clips[i] for i in alike], [texts[i] for i in whole]
    batches = [several, short] if is_routed else [several + short]
    together = np.concatenate([model.encode(batch) for batch in batches if batch])
    alone, not_resized = (np.stack([model.encode(x) for x in made]) for made in (clips, squares))
    uncut = {"text_uncut": [(model.encode([texts[i] for i in cut]), z_text[cut])]} if cut else {}
    return uncut | {
        "video": [(alone, z_video), (together[: len(alike)], z_video[alike])],
        "text": [(model.encode_query(texts), z_text), (together[len(alike) :], z_text[whole])],
        "video_not_resized": [(not_resized, z_video)],
    }


def make_clip(frames: np.ndarray, times: list[float], window_seconds: float) -> dict:
    """Return what `encode` takes as a clip: uint8[F, H, W, 3], shown at `times`."""
    metadata = {
        "fps": TICKS,
        "total_num_frames": round(window_seconds * TICKS),
        "duration": window_seconds,
        "frames_indices": [round(time * TICKS) for time in times],
    }
    array = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))
    return {"array": array, "video_metadata": metadata}


def to_square(frame: np.ndarray, size: int) -> np.ndarray:
    """uint8[H, W, 3] -> [size, size, 3], as SmolVLM: the longest edge to size, then the square."""
    picture, (h, w) = Image.fromarray(frame), frame.shape[:2]
    edge = max(1, (int(size / (w / h) if w >= h else size * (w / h)) + 1) // 2 * 2)
    for to in ((size, edge) if w >= h else (edge, size), (size, size)):
        picture = picture.resize(to, Image.Resampling.LANCZOS)
    return np.asarray(picture)


def weights_difference(model: torch.nn.Module, folder: Path) -> tuple[list[str], list[str]]:
    """Return the weights of the model that are not its files', and the reverse.

    The output matrix of generation has no place in a model that embeds.
    """
    held, arrived, unexpected = model.state_dict(), set(), []
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as stored:
            for key in stored.keys():  # noqa: SIM118 (it is no mapping)
                name = key.removeprefix("model.")
                if name not in held:
                    unexpected += [key] if not key.startswith("lm_head.") else []
                elif torch.equal(stored.get_tensor(key).to(held[name].dtype), held[name].cpu()):
                    arrived.add(name)
    return sorted(set(held) - arrived), unexpected


if __name__ == "__main__":
    main()
