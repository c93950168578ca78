"""Writes docs/errors.md: every error a user can meet, read off the source.

    python tests/tools/errors_page.py

tests/test_errors_page.py fails while the page is not what this makes of the source.
"""

import ast
import os
import pathlib
import re
from collections.abc import Iterator

from vtalign_jax import system_faults

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "errors.md"
_FOLDERS = ("vtalign_jax", "launch", "data")
_ERRORS = ("UserError", "Damaged", "_fail", "ExportDiffers", "CheckFailed")
_REASONS = ("Skip", "_skip", "FrameError", "FrameFault", "_Refused")  # what is left out, one by one
_PLACE = {"Skip": 2, "_skip": 1}  # of the reason among the arguments; 0 for the others

# (title, modules by the start of their path): the first that fits.
_THEMES = (
    ("Command lines and configurations", ("vtalign_jax/commandline", "vtalign_jax/config")),
    (
        "Annotations and frames: prepare, lint",
        ("vtalign_jax/dst", "data/", "launch/prepare", "launch/lint"),
    ),
    ("Datasets: train, evaluate, cache_features", ("vtalign_jax/pipeline",)),
    ("Feature caches", ("vtalign_jax/feature_cache", "launch/cache_features")),
    (
        "Base models, adapters and exports",
        (
            "vtalign_jax/interop",
            "vtalign_jax/models",
            "vtalign_jax/export",
            "launch/export",
            "launch/convert",
        ),
    ),
    (
        "Training, checkpoints and presets",
        ("vtalign_jax/training", "vtalign_jax/objectives", "launch/train", "launch/ablate"),
    ),
    (
        "Evaluation, grounding and reports",
        ("vtalign_jax/evaluation", "launch/evaluate", "launch/ground", "launch/report"),
    ),
    ("Clips and texts in Python", ("vtalign_jax/aligner", "vtalign_jax/clips")),
    (
        "Devices, hosts and buckets",
        (
            "vtalign_jax/sharding",
            "vtalign_jax/distributed",
            "vtalign_jax/remote",
            "vtalign_jax/processes",
        ),
    ),
    (
        "Planning, doctor and bench",
        (
            "vtalign_jax/planning",
            "vtalign_jax/doctor",
            "launch/plan",
            "launch/doctor",
            "launch/bench",
        ),
    ),
    ("Any file", ("",)),
)
_HEAD = """# Errors

What a command says before it ends with exit code 2: one line `error: ...`, no traceback. In Python
the same text is a `vtalign_jax.UserError`. `{...}` stands for what the line names. A message says
what is wrong and where, and after a semicolon what to do. Made of the source by
`python tests/tools/errors_page.py`.
"""
_REASONS_HEAD = """
## What is left out, item by item

Reasons in `skipped.jsonl`, in `prepare`'s table and in `lint`; the line's `detail` says more, its
`where` names file and row. More than `--max_skipped` of them is an error.
"""
# What to do, where a message says no more than what is wrong; the first that fits.
_ADVICE = (
    (r"too small", "raise it"),
    (r"source_fps|must|knows|one of|a list|are seconds|comma-sep|may hold", "give such a value"),
    (r"regular expression|no template|cannot load|--seeds", "mend what the reason names"),
    (r"cannot (write|look)", "name a folder that can be written or read"),
    (r"not installed: |leave |alone", "do what the line says, or name another"),
    (r"no --beam_runner", "name one that Apache Beam has"),
    (r"is no TSV|is not an export", "name another file or folder"),
    (r"vision tower|resample", "use a SmolVLM's own files"),
    (r"not finite|lack|does not|the adapter", "copy or download the files again, all of one kind"),
    (r"is empty|cannot embed|frame_mask", "leave that clip out, or mend it"),
)


def messages() -> Iterator[tuple[str, str]]:
    """Yield (module, message) of every error, in order of the source."""
    for module, call, name in _calls():
        if name in _ERRORS and call.args and (text := _shape(call.args[0])):
            yield module, text


def reasons() -> list[str]:
    """Return why items are left out: what a skip or a fault of a node or frame is given."""
    found = set()
    for _, tree in _trees():
        words = _words(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                place = _PLACE.get(node.func.id, 0)
                given = [word.value for word in node.keywords if word.arg == "fault"]
                if node.func.id in _REASONS:
                    given += node.args[place : place + 1]
                for argument in given:
                    is_choice = isinstance(argument, ast.IfExp)
                    for each in [argument.body, argument.orelse] if is_choice else [argument]:
                        found |= words.get(getattr(each, "id", ""), set())
                        found |= {each.value} if isinstance(each, ast.Constant) else set()
    return sorted(found - {""})


def _words(tree: ast.Module) -> dict[str, set[str]]:
    """Return the texts that plain names are given in a module."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            text = "".join(_parts(node.value)) if not isinstance(node.value, ast.Call) else ""
            if re.search(r"[a-z]{2} [a-z]|^[a-z]{4}", re.sub(r"\{[^}]*\}", "", text)):
                found.setdefault(node.targets[0].id, set()).add(text)
    return found


def _trees() -> Iterator[tuple[str, ast.Module]]:
    for folder in _FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def _calls() -> Iterator[tuple[str, ast.Call, str]]:
    for module, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                yield module, node, node.func.id


def _shape(node: ast.expr) -> str:
    """Return a message with names for its values, "" if the source says no word of it."""
    text = "".join(_parts(node))
    return " ".join(text.split()) if re.search(r"[a-z]{2}", re.sub(r"\{[^}]*\}", "", text)) else ""


def _parts(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.JoinedStr):
        for value in node.values:
            yield from _parts(value)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from _parts(node.left)
        yield from _parts(node.right)
    elif isinstance(node, ast.FormattedValue):
        yield f"{{{_name(node.value)}}}"
    elif isinstance(node, ast.IfExp):
        yield from _parts(node.body)
        yield " | "
        yield from _parts(node.orelse)
    else:
        yield f"{{{_name(node)}}}"


_PLAIN = ("join", "len", "str", "sorted", "min", "max", "map", "split", "getattr", "repr", "strip")


def _name(node: ast.expr) -> str:
    """Return the plain name in an expression that says most of it."""
    inner = list(ast.walk(node))
    keys = [n.value for n in inner if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    if isinstance(node, ast.Subscript) and keys and re.fullmatch(r"\w+", keys[0]):
        return keys[0]
    named = [getattr(n, "id", getattr(n, "attr", "")) for n in inner]
    plain = [name for name in named if name and name not in _PLAIN and not name.startswith("__")]
    return (plain or ["value"])[0].lstrip("_").lower()


def page() -> str:
    """Return the page."""
    themes: dict[str, dict[str, list[str]]] = {title: {} for title, _ in _THEMES}
    for module, text in messages():
        title = next(t for t, starts in _THEMES if any(module.startswith(s) for s in starts))
        found = themes[title].setdefault(module, [])
        if text not in found:
            found.append(text)
    lines = [_HEAD]
    for title, modules in themes.items():
        if not modules:
            continue
        lines += [f"## {title}", "", "| where | message | what to do |", "|---|---|---|"]
        for module, texts in modules.items():
            for text in texts:
                what, _, mend = text.partition("; ")
                mend = mend or next(words for shape, words in _ADVICE if re.search(shape, text))
                lines.append(f"| `{module}` | {_cell(what)} | {_cell(mend)} |")
        lines.append("")
    lines += ["## What the operating system refuses", "", *_refusals(), ""]
    lines.append(_REASONS_HEAD.strip("\n"))
    lines += ["", *(f"- {reason}" for reason in reasons())]
    return "\n".join(lines) + "\n"


def _refusals() -> list[str]:
    """Return the table of what ends any command, wherever the system says it."""
    paths = dict.fromkeys(system_faults.OF_PATHS, "name another path, or mend that one")
    return ["| message | what to do |", "|---|---|"] + [
        f"| {os.strerror(number)} | {_cell(mend)} |"
        for number, mend in (system_faults.MENDS | paths).items()
    ]


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("*", r"\*").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
