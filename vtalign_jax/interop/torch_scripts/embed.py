"""Embeds clips and texts with this folder: torch, transformers, pillow; peft for an adapter."""

import json
from datetime import timedelta

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn.functional import gelu, linear, normalize
from transformers import AutoModelForImageTextToText as Model


class Embedder:  # noqa: D101, for its length; `base`: another copy of an adapter's base model
    def __init__(self, folder: str, base: str = "", device: str = "cpu", dtype: str = "float32"):
        self.settings = s = json.load(open(f"{folder}/vtalign.json"))  # noqa: SIM115, for its length
        self.tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        self.head, is_peft = load_file(f"{folder}/head.safetensors"), s["form"] == "peft"
        name = (base or s["base"]) if is_peft else folder
        self.model = Model.from_pretrained(name, dtype=dtype, use_safetensors=True).to(device)
        self.core, ids = self.model.model, self.head["position_ids"].to(device)
        table = self.core.vision_model.embeddings.position_embedding  # transformers issue 41190
        self.repair = table.register_forward_pre_hook(lambda _, x: ids.expand_as(*x))
        if is_peft:
            self.model = __import__("peft").PeftModel.from_pretrained(self.model, folder).eval()

    def text(self, text: str) -> torch.Tensor:  # float32[E], unit norm
        return self._embed("text", text, None, self.settings["max_text_tokens"])

    def clip(self, frames: np.ndarray, times: list = (), window_seconds: float = 0) -> torch.Tensor:
        """uint8[F, H, W, 3], seconds from the window's start (or spread over it) -> float32[E]."""
        s, layout, n = self.settings, self.settings["layout"], len(frames)
        window, label = window_seconds or s["window_seconds"], layout["frame"]
        times = times or [round((k + 0.5) * window / n, 6) for k in range(n)]
        said = layout["intros"][n - 1].format(duration=timedelta(seconds=int(window)))
        said += "".join(label.format(minutes=int(t) // 60, seconds=int(t) % 60) for t in times)
        x = torch.tensor(np.stack([_square(frame, s) for frame in frames])).to(self.model.device)
        return self._embed("video", said + layout["outro"], x.permute(0, 3, 1, 2)[None] / 127.5 - 1)

    @torch.no_grad()
    def _embed(self, kind: str, said: str, pixels: torch.Tensor | None, most: int | None = None):
        turn, end = self.settings["layout"]["turn"], self.settings["layout"]["end_tokens"]
        ids = self.tokenizer.encode(turn.format(said)).ids  # cut, but for the turn's end
        ids = torch.tensor([ids[:most][:-end] + ids[-end:]], device=self.model.device)
        states = self.core(input_ids=ids, pixel_values=pixels)[0][0]
        x = states[-1] if self.settings["pooling"] == "last" else states.float().mean(0)
        w = [self.head[name] for name in self.settings["heads"][kind]]
        return normalize(linear(gelu(linear(x.float().cpu(), *w[:2])), *w[2:]), dim=-1)


def _square(frame: np.ndarray, s: dict) -> Image.Image:  # as prepare.py made frames square
    picture = Image.fromarray(np.rot90(frame, s["rotate"] // 90).copy())
    (w, h), size = picture.size, s["image_size"]
    edge = max(1, (int(size / (w / h) if w >= h else size * (w / h)) + 1) // 2 * 2)
    cover = [max(size, round(side * (size / min(w, h)))) for side in (w, h)]
    w, h = cover if s["fit"] == "center_crop" else (size, edge) if w >= h else (edge, size)
    x, y = max(0, w - size) // 2, max(0, h - size) // 2
    picture = picture.resize((w, h), Image.LANCZOS).crop((x, y, min(x + size, w), min(y + size, h)))
    return picture.resize((size, size), Image.LANCZOS)
