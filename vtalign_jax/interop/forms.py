"""The forms of export: one table of what is checked with what, and what the model card says of use.

Nothing here needs JAX: an export is verified where there is none. Who writes a form: `WRITERS` in
`vtalign_jax/export.py`.
"""

import dataclasses
from pathlib import Path

SETTINGS = "vtalign.json"  # in every export
PEFT, MERGED = "peft", "merged"
_SCRIPTS = Path(__file__).with_name("torch_scripts")


@dataclasses.dataclass(frozen=True)
class Form:
    """One form of export.

    Attributes:
      check: script that loads the folder in its own ecosystem and compares, see `torch_scripts`.
      needs: packages that it imports.
      library: that loads it, as the hub names libraries.
      contents: what the folder holds, in a sentence.
      use: section of the model card, a format string over `base`.
    """

    check: Path
    needs: tuple[str, ...]
    library: str
    contents: str
    use: str


_EMBED = """```python
from embed import Embedder              # the embed.py of this folder

embedder = Embedder(".")                # {arguments}device="cuda", dtype="bfloat16"
z_text = embedder.text("attach wheel to chassis")      # float32[E], unit norm
z_video = embedder.clip(frames)                        # uint8[F, H, W, 3] -> float32[E]
z_video = embedder.clip(frames, window_seconds=10.0)   # frames spread over another length
print(z_video @ z_text)
```"""

_PEFT_USE = f"""Needs `torch`, `transformers` (4.57.1 or newer), `peft` (0.11.1 or newer), `pillow`.

{_EMBED.format(arguments='base="path or hub id", ')}

The adapter alone, for further training or generation:

```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText

base = AutoModelForImageTextToText.from_pretrained("{{base}}")
model = PeftModel.from_pretrained(base, ".")
```

Use this class, not `AutoModel`: the modules of the latter have other names, and PEFT then loads
nothing, with no more than a warning."""

_MERGED_USE = f"""Needs `torch`, `transformers` (4.57.1 or newer), `pillow`.

{_EMBED.format(arguments="")}

The folder is a whole SmolVLM, the update added to its weights; all other files are those of
`{{base}}`, byte for byte. It loads wherever the base does:

```python
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(".")   # or AutoModel, or a class of your own
processor = AutoProcessor.from_pretrained(".")
```"""

FORMS: dict[str, Form] = {
    PEFT: Form(
        check=_SCRIPTS / "check.py",
        needs=("torch", "transformers", "peft"),
        library="peft",
        contents="LoRA adapter and projection head",
        use=_PEFT_USE,
    ),
    MERGED: Form(
        check=_SCRIPTS / "check.py",
        needs=("torch", "transformers"),
        library="transformers",
        contents="SmolVLM with a LoRA adapter merged in, and a projection head,",
        use=_MERGED_USE,
    ),
}
