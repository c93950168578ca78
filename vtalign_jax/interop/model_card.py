"""The README.md of an export, rewritten from its own files when a verification adds a result."""

import json
from pathlib import Path
from typing import Any

from vtalign_jax.interop import certificate
from vtalign_jax.interop.forms import SETTINGS

CARD = "README.md"
_FIGURES = ("val/recall@1", "val/recall@5", "val/recall@10")  # of the checkpoint

_CARD = """---
base_model: {base}
library_name: {library}
tags: [video-text-alignment, lora, smolvlm, vtalign_jax]
---
# {title}

{contents} that give video clips and texts one embedding space, trained with vtalign_jax on
[{base}]({link}).

| | |
|---|---|
| adapter | {adapter} |
| embedding | {embedding} |
| clip | {frames} frames over {window_seconds:g} s or the `window_seconds` given, squeezed to \
{image_size} x {image_size} pixels |
| trained | {trained} |

## Use

{use}

The head is in `head.safetensors`, settings and prompts are in `vtalign.json`. In JAX the folder
loads with `vtalign_jax.Aligner.load`.

## Certificate

{certificate}
"""

_UNVERIFIED = """**UNVERIFIED**: {reason} Verify it elsewhere with

```
{command}
```"""

_COMPARED = """The files of this folder were loaded with PyTorch, and the embeddings of {clips} \
fixed clips and {texts} texts compared, in float32, with those of the exported JAX model \
(`certificate.safetensors`). Required: every cosine at least {required}, no key missing or \
unexpected.

| versions | cosine, clips | texts | largest error | lost keys | | {titles} |
|---|---|---|---|---|---|{lines}
{rows}

{notes}"""

_WITHOUT = "Without the adapter the lowest cosine of the texts is {:.4f}."


def write_card(folder: Path, unverified: str = "") -> None:
    """Write the model card of an export from the files in it.

    Args:
      folder: the export.
      unverified: sentence that says why there is no result yet.
    """
    settings = json.loads((folder / SETTINGS).read_text())
    base, config, trained = settings["base"], settings["config"], settings["trained"]
    metrics = trained["metrics"]
    figures = [f"{name} {metrics[name]:.4f}" for name in _FIGURES if name in metrics]
    form = certificate.form_of(folder)
    text = _CARD.format(
        base=base,
        library=form.library,
        contents=form.contents,
        use=form.use(settings),
        link=base if Path(base).is_absolute() else f"https://huggingface.co/{base}",
        title=f"{Path(base).name}: video-text alignment",
        adapter=_adapter(config["tune"]),
        embedding=f"{settings['embedding_dim']} numbers, pooling {settings['pooling']}, "
        f"head {config['model']['head']}, temperature {settings['temperature']:.4f}",
        frames=settings["frames"],
        window_seconds=settings["window_seconds"],
        image_size=settings["image_size"],
        trained=", ".join([f"{trained['step']} steps", *figures]) + _left_out(config["objective"]),
        certificate=_certificate(folder, unverified),
    )
    (folder / CARD).write_text(text)


def verify_command(folder: Path | str) -> str:
    """Return the command that verifies an export where PyTorch is installed."""
    return f"python launch/export.py --verify={folder}"


def _adapter(tune: dict[str, Any]) -> str:
    projections = "q, k, v, o" + (", gate, up, down" if tune["mlp"] else "")
    connector = "the connector and " if tune["connector"] == "lora" else ""
    full = (
        "; the connector itself trained (`modules_to_save`)" if tune["connector"] == "full" else ""
    )
    return (
        f"rank {tune['rank']}, alpha {tune['alpha']:g}, on {connector}{projections} of the top "
        f"{tune['text_blocks']} text blocks{full}"
    )


def _left_out(objective: dict[str, Any]) -> str:
    weight = objective.get("itm_weight", 0.0)  # exports of before have none
    if not weight:
        return ""
    return f"; the matching head (`objective.itm_weight={weight:g}`) is left out: it embeds nothing"


def _certificate(folder: Path, unverified: str) -> str:
    found = certificate.results(folder)
    if not found:
        command = verify_command("PATH_OF_THIS_FOLDER")
        return _UNVERIFIED.format(reason=unverified or "not compared yet.", command=command)
    inputs = json.loads((folder / certificate.INPUTS).read_text())
    form = certificate.form_of(folder)
    rows = [
        f"| {certificate.libraries(r)} | {r['cosine_video']:.7f} | "
        f"{r['cosine_text']:.7f} | {max(r['max_error_video'], r['max_error_text']):.1e} | "
        f"{len(r['missing']) + len(r['unexpected'])} | "
        f"{'passed' if certificate.is_passed(r) else '**FAILED**'} | "
        f"{' | '.join(f'{r[key]:.7f}' if key in r else '-' for key in form.figures)} |"
        for r in found
    ]
    without = [
        r["cosine_text_without_adapter"] for r in found if "cosine_text_without_adapter" in r
    ]
    notes = [_WITHOUT.format(min(without))] if without else []
    return _COMPARED.format(
        clips=len(inputs["times"]),
        texts=len(inputs["texts"]),
        required=certificate.MIN_COSINE,
        titles=" | ".join(form.figures.values()),
        lines="---|" * len(form.figures),
        rows="\n".join(rows),
        notes=" ".join([*notes, form.notes]),
    )
