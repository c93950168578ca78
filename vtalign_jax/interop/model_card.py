"""The README.md of an export, rewritten from its own files when a verification adds a result."""

import json
from pathlib import Path
from typing import Any

from vtalign_jax import remote
from vtalign_jax.interop import certificate
from vtalign_jax.interop.forms import SETTINGS, SQUARE, Form, read_json
from vtalign_jax.wording import typed_command

CARD = "README.md"
_AS_FILMED = """Give frames as they were filmed, as `prepare.py` was given them: `Embedder` turns \\
and cuts them as in training.

"""
_FIGURES = ("val/recall@1", "val/recall@5", "val/recall@10")  # of the checkpoint

_CARD = """---
{base_model}library_name: {library}
tags: [video-text-alignment, lora, smolvlm, vtalign_jax]
---
# {title}

{contents} that give video clips and texts one embedding space, trained with vtalign_jax on
{base}.

| | |
|---|---|
| adapter | {adapter} |
| embedding | {embedding} |
| clip | {frames} frames over {window_seconds:g} s or the `window_seconds` given, {squared} |
| trained | {trained} |
| data | {data} |

## Use

{use}

{frames_note}The head is in `head.safetensors`, settings and prompts are in `vtalign.json`. In JAX
the folder loads with `vtalign_jax.Aligner.load`.

## Certificate

{certificate}

## Configuration of the run

<details><summary>as resolved</summary>

```json
{config}
```

</details>
"""

_UNVERIFIED = """**UNVERIFIED**: {reason} Verify it elsewhere with

```
{command}
```"""

_COMPARED = """The files of this folder were loaded with the libraries named, and the embeddings \
of {clips} fixed clips and {texts} texts compared, in float32, with those of {reference} \
(`certificate.safetensors`). Required: every cosine at least {required}, no weight missing or \
unexpected.

| versions | cosine, clips | texts | largest error | lost keys | | {titles} |
|---|---|---|---|---|---|{lines}
{rows}

{notes}"""
_WITHOUT = "With the base alone the lowest cosine of the texts is {:.4f}."
_ROUNDED = """Merged in float32, the weights are stored in the base's {dtypes}: rounding loses \
{error:.1%} of the update's norm. Against the trained model with its adapter kept apart, both in \
float32, the lowest cosine is {cosine_video:.6f} (clips) and {cosine_text:.6f} (texts). Allowed is \
what computing in bfloat16, as training does, costs the same clips and texts \
({allowed_video:.6f} and {allowed_text:.6f}), or {required}."""
_RECALL = """Recall on {clips} clips of the validation split ({dataset}, {split}; fingerprint \
{fingerprint}), among themselves, both directions. *JAX* is the trained model in float32:

| versions | recall@1: JAX, export, difference | recall@5: JAX, export, difference |
|---|---|---|
{rows}"""
_NO_RECALL = """Recall was not compared: no validation clips were at hand where it was {when} \
(`--dataset`)."""
_LANGUAGE = """What the model says, base against export: next-token loss of five fixed answers, \
and what follows their prompts instead (greedy, with {versions}). {loss}

| prompt | base | export |
|---|---|---|
{rows}"""
_NO_BASE = "The base model was not at hand to be compared with what the export says: {reason}"


def write_card(folder: Path, unverified: str = "") -> None:
    """Write the model card of an export from the files in it.

    Args:
      folder: the export.
      unverified: sentence that says why there is no result yet.
    """
    settings = read_json(folder, SETTINGS)
    base, config, trained = settings["base"], settings["config"], settings["trained"]
    metrics, is_local = trained["metrics"], remote.is_remote(base) or Path(base).is_absolute()
    figures = [f"{name} {metrics[name]:.4f}" for name in _FIGURES if name in metrics]
    form = certificate.form_of(folder)
    fit, rotate = (settings.get(name, default) for name, default in SQUARE.items())
    is_turned = (fit, rotate) != tuple(SQUARE.values())
    text = _CARD.format(
        base=base if is_local else f"[{base}](https://huggingface.co/{base})",
        base_model="" if is_local else f"base_model: {base}\n",  # the hub takes its own ids alone
        library=form.library,
        contents=form.contents,
        use=form.use(settings),
        title=f"{Path(base).name}: video-text alignment",
        adapter=_adapter(config["tune"]),
        embedding=f"{settings['embedding_dim']} numbers, pooling {settings['pooling']}, "
        f"head {config['model']['head']}, temperature {settings['temperature']:.4f}",
        frames=settings["frames"],
        window_seconds=settings["window_seconds"],
        squared=_squared(fit, rotate, settings["image_size"]),
        frames_note=_AS_FILMED if is_turned and form.is_embedded else "",
        trained=", ".join([f"{trained['step']} steps", *figures]) + _left_out(config["objective"]),
        data=f"{config['data']['dir']}, fingerprint {trained['fingerprints']['data'][:16]}",
        certificate=_certificate(folder, unverified),
        config=json.dumps(config, indent=1),
    )
    (folder / CARD).write_text(text)


def verify_command(folder: Path | str) -> str:
    """Return the command that verifies an export where PyTorch is installed."""
    return typed_command("export", f"--verify={folder}")


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


def _squared(fit: str, rotate: int, size: int) -> str:
    turned = f"turned by {rotate} degrees counter-clockwise, then " if rotate else ""
    how = "cut out of the middle at" if fit == "center_crop" else "squeezed to"
    return f"{turned}{how} {size} x {size} pixels"


def _certificate(folder: Path, unverified: str) -> str:
    inputs = read_json(folder, certificate.INPUTS)
    found, parts = inputs["results"], []
    if not found:
        command = verify_command("PATH_OF_THIS_FOLDER")
        reason = unverified or "not compared yet."
        parts.append(_UNVERIFIED.format(reason=reason, command=command))
    else:
        parts.append(_compared(inputs, certificate.form_of(folder)))
    if rounding := inputs.get("rounding"):
        dtypes = ", ".join(rounding["dtypes"])
        figures = rounding | {"dtypes": dtypes, "required": certificate.MIN_COSINE}
        parts.append(_ROUNDED.format(**figures))
    measured = [r for r in found if "recall" in r]
    if measured:
        rows = "\n".join(_recall_row(r) for r in measured)
        clips = measured[0]["recall"]["clips"]
        parts.append(_RECALL.format(clips=clips, rows=rows, **inputs["held_out"]))
    else:
        when = "verified" if inputs.get("held_out") else "exported"
        parts.append(_NO_RECALL.format(when=when))
    spoken = [r for r in found if "language" in r]
    if spoken:
        parts.append(_language(inputs, spoken[-1]))
    return "\n\n".join(parts)


def _compared(inputs: dict[str, Any], form: Form) -> str:
    found = inputs["results"]
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
        reference="the rounded weights in JAX" if "rounding" in inputs else "the exported model",
        required=certificate.MIN_COSINE,
        titles=" | ".join(form.figures.values()),
        lines="---|" * len(form.figures),
        rows="\n".join(rows),
        notes=" ".join([*notes, form.notes]),
    )


def _recall_row(result: dict[str, Any]) -> str:
    ours, theirs = result["recall"]["jax"], result["recall"]["export"]
    cells = [
        f"{ours[name]:.4f}, {theirs[name]:.4f}, {theirs[name] - ours[name]:+.4f}" for name in ours
    ]
    return f"| {certificate.libraries(result)} | {' | '.join(cells)} |"


def _language(inputs: dict[str, Any], result: dict[str, Any]) -> str:
    spoken = result["language"]
    if "base" not in spoken:
        return _NO_BASE.format(reason=spoken["base_absent"])
    base, export = spoken["base"], spoken["export"]
    loss = f"Loss: {base['loss']:.4f} and {export['loss']:.4f}."
    loss = " ".join([loss, *(f"**Warning**: {line}." for line in certificate.warnings(result))])
    rows = [
        f"| {'after a clip: ' if item['clip'] is not None else ''}{_cell(item['prompt'])} | "
        f"{_cell(before)} | {_cell(after)} |"
        for item, before, after in zip(
            inputs["language"], base["said"], export["said"], strict=True
        )
    ]
    versions = certificate.libraries(result)
    return _LANGUAGE.format(versions=versions, loss=loss, rows="\n".join(rows))


def _cell(text: str) -> str:
    """Return a model's words as a table's cell; it may say anything."""
    shown = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    for mark in "\\`|<>*_[]":
        shown = shown.replace(mark, f"\\{mark}")
    return shown
