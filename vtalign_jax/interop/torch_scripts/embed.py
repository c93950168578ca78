"""Embeds clips and texts with this adapter; needs torch, transformers, peft, pillow."""

import datetime
import json
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn.functional import gelu, linear, normalize
from transformers import AutoModelForImageTextToText


class Embedder:
    """Base, adapter and head; `base` names another copy of the base model."""

    def __init__(self, folder: str, base: str = "", device: str = "cpu", dtype: str = "float32"):
        self.settings = json.loads(Path(folder, "vtalign.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
        self.head = load_file(Path(folder, "head.safetensors"))
        name = base or self.settings["base"]
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype)
        # transformers 4.55-4.57 place image patches one too early (its issue 41190)
        table, ids = model.model.vision_model.embeddings, self.head["position_ids"].to(device)
        hook = table.position_embedding.register_forward_pre_hook(lambda _, x: ids.expand_as(*x))
        self.model, self.repair = PeftModel.from_pretrained(model, folder).to(device).eval(), hook

    def text(self, text: str) -> torch.Tensor:
        """Return float32[E], unit norm."""
        return self._embed("text", text, self.settings["max_text_tokens"], None)

    def clip(self, frames: np.ndarray, times: list = (), window_seconds: float = 0) -> torch.Tensor:
        """uint8[F, H, W, 3], seconds from the window's start (or spread over it) -> float32[E]."""
        layout, size, n = self.settings["layout"], self.settings["image_size"], len(frames)
        window = window_seconds or self.settings["window_seconds"]
        times = times or [round((k + 0.5) * window / n, 6) for k in range(n)]
        intro = layout["intros"][n - 1].format(duration=datetime.timedelta(seconds=int(window)))
        shown = [layout["frame"].format(minutes=int(t) // 60, seconds=int(t) % 60) for t in times]
        said = intro + "".join(shown) + layout["outro"]
        pixels = torch.stack([to_pixels(frame, size) for frame in frames])[None]
        return self._embed("video", said, None, pixels.to(self.model.device))

    @torch.no_grad()
    def _embed(self, kind: str, said: str, most: int | None, pixels: torch.Tensor | None):
        ids = self.tokenizer.encode(self.settings["layout"]["turn"].format(said)).ids
        kept = self.settings["layout"]["end_tokens"]  # the turn's end, where the pooled token is
        ids = torch.tensor([ids[:most][:-kept] + ids[-kept:]], device=self.model.device)
        states = self.model.get_base_model().model(input_ids=ids, pixel_values=pixels)[0][0]
        x = states[-1] if self.settings["pooling"] == "last" else states.float().mean(0)
        w = [self.head[name] for name in self.settings["heads"][kind]]
        return normalize(linear(gelu(linear(x.float().cpu(), *w[:2])), *w[2:]), dim=-1)


def to_pixels(frame: np.ndarray, size: int) -> torch.Tensor:
    """uint8[H, W, 3] -> [3, size, size], as SmolVLM: the longest edge to size, then the square."""
    picture, (h, w) = Image.fromarray(frame), frame.shape[:2]
    edge = max(1, (int(size / (w / h) if w >= h else size * (w / h)) + 1) // 2 * 2)
    for to in ((size, edge) if w >= h else (edge, size), (size, size)):
        picture = picture.resize(to, Image.Resampling.LANCZOS)
    return torch.tensor(np.asarray(picture)).permute(2, 0, 1) / 127.5 - 1
