"""The forms of export: one table of what is checked with what, and what the model card says of use.

Nothing here needs JAX: an export is verified where there is none. Who writes a form: `WRITERS` in
`vtalign_jax/export.py`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vtalign_jax import json_files
from vtalign_jax.errors import UserError
from vtalign_jax.interop import sentence_transformers_card

SETTINGS = "vtalign.json"  # in every export
PEFT, MERGED, SENTENCE_TRANSFORMERS = "peft", "merged", "sentence-transformers"
WEIGHTS_FOLDER = "weights_folder"  # key of the settings, see `embedding_files.Parts`
SQUARE = {"fit": "square", "rotate": 0}  # how frames were made square, where nothing says
_SCRIPTS = Path(__file__).with_name("torch_scripts")


@dataclasses.dataclass(frozen=True)
class Form:
    """One form of export.

    Attributes:
      check: script that loads the folder in its own ecosystem and compares, see `torch_scripts`.
      needs: packages that it imports.
      library: that loads it, as the hub names libraries.
      contents: what the folder holds, in a sentence.
      use: settings -> section of the model card.
      figures: `{key of a result: column of the certificate}`, beside those of every form.
      notes: what the certificate says of its figures.
      is_embedded: whether `embed.py` reads the folder.
    """

    check: Path
    needs: tuple[str, ...]
    library: str
    contents: str
    use: Callable[[Mapping[str, Any]], str]
    figures: Mapping[str, str]
    notes: str
    is_embedded: bool = True


_EMBED = """```python
from embed import Embedder              # the embed.py of this folder

embedder = Embedder(".")                # {arguments}device="cuda", dtype="bfloat16"
z_text = embedder.text("attach wheel to chassis")      # float32[E], unit norm
z_video = embedder.clip(frames)                        # uint8[F, H, W, 3] -> float32[E]
z_video = embedder.clip(frames, window_seconds=10.0)   # frames spread over another length
print(z_video @ z_text)
```"""

_REPAIR = """transformers 4.55 to 4.57 place each image patch one position too early
(huggingface/transformers issue 41190): there the base itself sees other pictures than in training.
`Embedder` puts the positions right, and `Embedder(".").model` is the whole model with that
repair."""

_UNREPAIRED = {"cosine_video_unrepaired": "unrepaired"}
_UNREPAIRED_NOTE = """*Unrepaired*: a clip with the positions that this transformers itself gives to
image patches (see above)."""

_PEFT_USE = f"""Needs `torch`, `transformers` (4.57.1 or newer), `peft` (0.11.1 or newer), `pillow`.
In this folder (of the hub: `hf download ORGANISATION/NAME --local-dir .`):

{_EMBED.format(arguments='base="path or hub id", ')}

The adapter alone, for further training or generation:

```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText

base = AutoModelForImageTextToText.from_pretrained("{{base}}")
model = PeftModel.from_pretrained(base, ".")
```

Use this class, not `AutoModel`: the modules of the latter have other names, and PEFT then loads
nothing, with no more than a warning. {_REPAIR}"""

_MERGED_USE = f"""Needs `torch`, `transformers` (4.57.1 or newer), `pillow`. In this folder (of the
hub: `hf download ORGANISATION/NAME --local-dir .`):

{_EMBED.format(arguments="")}

The folder is a whole SmolVLM, the update added to its weights; all other files are those of
`{{base}}`, byte for byte. It loads wherever the base does:

```python
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(".")   # or AutoModel, or a class of your own
processor = AutoProcessor.from_pretrained(".")
```

{_REPAIR}"""

FORMS: dict[str, Form] = {
    PEFT: Form(
        check=_SCRIPTS / "check.py",
        needs=("torch", "transformers", "peft"),
        library="peft",
        contents="LoRA adapter and projection head",
        use=lambda settings: _PEFT_USE.format(base=settings["base"]),
        figures=_UNREPAIRED,
        notes=_UNREPAIRED_NOTE,
    ),
    MERGED: Form(
        check=_SCRIPTS / "check.py",
        needs=("torch", "transformers"),
        library="transformers",
        contents="SmolVLM with a LoRA adapter merged in, and a projection head,",
        use=lambda settings: _MERGED_USE.format(base=settings["base"]),
        figures=_UNREPAIRED,
        notes=_UNREPAIRED_NOTE,
    ),
    SENTENCE_TRANSFORMERS: Form(
        check=_SCRIPTS / "check_sentence_transformers.py",
        needs=("torch", "transformers", "sentence_transformers", "torchvision", "num2words"),
        library="sentence-transformers",
        contents="SmolVLM with a LoRA adapter merged in, and a projection head,",
        use=sentence_transformers_card.use,
        figures=sentence_transformers_card.FIGURES,
        notes=sentence_transformers_card.NOTES,
        is_embedded=False,
    ),
}


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Return a JSON file of an export.

    Raises:
      UserError: it is missing or damaged.
    """
    try:
        return json_files.read_object(folder / name, "copy the export again")
    except FileNotFoundError:
        raise UserError(f"the export {folder} has no {name}; copy the whole folder") from None
