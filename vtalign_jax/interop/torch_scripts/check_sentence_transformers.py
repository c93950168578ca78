"""Loads a `sentence-transformers` export as its user would, and compares with what is stored in it.

    python check_sentence_transformers.py EXPORT [--clips=DIRECTORY]

Prints one JSON object. Runs alone, in any environment with sentence-transformers, torchvision and
num2words: nothing of vtalign_jax is imported but the embed.py beside it, which prepares frames.
"""

import argparse
import importlib.util
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router

TICKS = 1_000_000  # a second: how finely a clip says when its frames are shown

Pairs = dict[str, list[tuple[np.ndarray, np.ndarray]]]


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("--base", default="", help="not needed")
    parser.add_argument("--clips", type=Path, help="clips.json and clips.safetensors to embed too")
    arguments = parser.parse_args()
    print(json.dumps(compare(arguments.export, arguments.base, arguments.clips)))


def compare(export: Path, base: str = "", clips: Path | None = None) -> dict[str, Any]:
    """Return library versions, lost weights, lowest cosines and largest errors.

    Two cosines more say what the library does its own way: clips whose frames have the model's
    size already, so that nothing is resized, and texts that `encode` does not cut.

    Args:
      export: the folder.
      base: not needed, the export holds all weights.
      clips: folder whose clips are embedded as well, into `embedded.safetensors` in it.
    """
    user = User(export)
    missing, unexpected = weights_difference(user.transformer.model, user.folder)
    result = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentence-transformers": sentence_transformers.__version__,
        "python": platform.python_version(),
        "missing": missing,
        "unexpected": unexpected,
    }
    inputs = json.loads((export / "certificate.json").read_text())
    pairs = embed(user, inputs, load_file(export / "certificate.safetensors"))
    for name, found in pairs.items():
        theirs, ours = (torch.tensor(np.concatenate(x)).double() for x in zip(*found, strict=True))
        result[f"cosine_{name}"] = torch.cosine_similarity(theirs, ours).min().item()
        result[f"max_error_{name}"] = (theirs - ours).abs().max().item()
    if clips is not None:
        given = json.loads((clips / "clips.json").read_text())
        made = user.clips(given, load_file(clips / "clips.safetensors"))
        z_video = np.stack([user.model.encode(clip) for clip in made])
        z_text = user.model.encode_query(given["texts"])
        save_file({"z_video": z_video, "z_text": z_text}, clips / "embedded.safetensors")
    return result


class User:
    """What the card tells a user to do.

    Attributes:
      model: of the export, in float32.
      is_routed: whether clips and texts have heads of their own.
      transformer: the model's first module.
      folder: that module's files.
      is_prepared: whether frames are prepared as in training, because the library cannot.
    """

    def __init__(self, export: Path):
        """Load the export."""
        given = {"dtype": "float32", "use_safetensors": True}
        options = {"device": "cpu", "model_kwargs": given}
        self.model = SentenceTransformer(str(export), **options)
        self.is_routed = isinstance(self.model[0], Router)
        routes = self.model[0].sub_modules if self.is_routed else None
        self.transformer = routes["text"][0] if routes else self.model[0]
        self.folder = export / "transformer" if self.is_routed else export
        self._settings = json.loads((export / "vtalign.json").read_text())
        square = self._settings["fit"], self._settings["rotate"]
        self.is_prepared = square != ("square", 0)

    def clips(
        self, given: dict[str, Any], stored: dict[str, np.ndarray], *, is_prepared: bool = False
    ) -> list[dict[str, Any]]:
        """Return what `encode` takes as clips.

        Args:
          given: `times` and `windows` of the clips, in seconds.
          stored: clip_0, ...: uint8[F, H, W, 3].
          is_prepared: prepare the frames as in training, to the model's size.
        """
        clips = []
        for i, moments in enumerate(zip(given["times"], given["windows"], strict=True)):
            frames = stored[f"clip_{i}"]
            if is_prepared or self.is_prepared:
                to_square = _embed_script()._square
                frames = np.stack([to_square(frame, self._settings) for frame in frames])
            clip = make_clip(frames, *moments)
            clips.append({"video": clip} if self.is_routed else clip)
        return clips


def embed(user: User, inputs: dict[str, Any], stored: dict[str, np.ndarray]) -> Pairs:
    """Return `{what: [(the library's embeddings, ours)]}`.

    Clips are embedded alone and, as many as have equally many frames, in one batch with the texts
    where there is one head. Texts go through `encode_query`, those that are not cut through
    `encode` too.

    Args:
      user: with the export's model.
      inputs: of `certificate.json`.
      stored: of `certificate.safetensors`.
    """
    model, texts, times = user.model, inputs["texts"], inputs["times"]
    z_text, z_video = stored["z_text"], stored["z_video"]
    most = user.transformer.query_length
    lengths = [model.preprocess([text])["input_ids"].shape[1] for text in texts]
    whole = [i for i, length in enumerate(lengths) if length <= most]
    cut = [i for i, length in enumerate(lengths) if length > most]
    alike = [i for i, shown in enumerate(times) if len(shown) == len(times[0])]
    clips, prepared = (user.clips(inputs, stored, is_prepared=x) for x in (False, True))
    several, short = [clips[i] for i in alike], [texts[i] for i in whole]
    batches = [several, short] if user.is_routed else [several + short]
    together = np.concatenate([model.encode(batch) for batch in batches if batch])
    alone, not_resized = (np.stack([model.encode(x) for x in made]) for made in (clips, prepared))
    uncut = {"text_uncut": [(model.encode([texts[i] for i in cut]), z_text[cut])]} if cut else {}
    return uncut | {
        "video": [(alone, z_video), (together[: len(alike)], z_video[alike])],
        "text": [(model.encode_query(texts), z_text), (together[len(alike) :], z_text[whole])],
        "video_not_resized": [(not_resized, z_video)],
    }


def make_clip(frames: np.ndarray, times: list[float], window_seconds: float) -> dict[str, Any]:
    """Return what `encode` takes as a clip: uint8[F, H, W, 3], shown at `times`."""
    metadata = {
        "fps": TICKS,
        "total_num_frames": round(window_seconds * TICKS),
        "duration": window_seconds,
        "frames_indices": [round(time * TICKS) for time in times],
    }
    array = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))
    return {"array": array, "video_metadata": metadata}


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


def _embed_script() -> Any:
    place = Path(__file__).with_name("embed.py")
    spec = importlib.util.spec_from_file_location("embed", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
