"""What an export would have PyTorch's side run: nothing but this package's own script."""

from pathlib import Path
from typing import Any

from vtalign_jax import json_files
from vtalign_jax.errors import UserError
from vtalign_jax.interop.embedding_files import EMBED, EMBED_SCRIPT
from vtalign_jax.interop.forms import Form

# Of sentence-transformers: files that name the classes to be made; of a folder on this machine it
# imports those that are not its own from there.
_CLASS_FILES = ("modules.json", "router_config.json")
_CLASSES = "sentence_transformers."
_INDEX, _SAFE = ".index.json", ".safetensors"  # of shards, which may have any name
# Weights as Python objects, which older libraries unpickle: that runs what they say. None of ours.
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def refuse_programs(folder: Path, form: Form) -> None:
    """Refuse an export whose own code a verification would run.

    Raises:
      UserError: it holds a program that no export of this version has, or pickled weights, or
        names classes that are not the library's.
    """
    ours = EMBED_SCRIPT.read_bytes()
    for file in sorted(folder.rglob("*.py")):
        is_ours = file == folder / EMBED and form.is_embedded and file.is_file()
        if not is_ours or file.read_bytes() != ours:
            raise UserError(
                f"{file} is none of this version's programs, and verifying would run it; read it, "
                f"then remove it (an {EMBED}: put {EMBED_SCRIPT} in its place)"
            )
    for file in sorted(folder.rglob("*")):
        if file.suffix in PICKLED or (file.name.endswith(_INDEX) and not _is_safe(file)):
            raise UserError(
                f"{file} may be a pickle, and verifying would run what it says; exports hold "
                "safetensors alone: remove it, or copy the export again"
            )
    for file in (found for name in _CLASS_FILES for found in folder.rglob(name)):
        try:
            named = list(_types(json_files.loads(file.read_bytes())))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {file} ({error}); copy the export again") from None
        foreign = [kind for kind in named if not str(kind).startswith(_CLASSES)]
        if foreign:
            raise UserError(
                f"{file} names {foreign[0]!r}, no class of sentence-transformers; verifying would "
                "run it: copy the export again"
            )


def _is_safe(index: Path) -> bool:
    """Return whether an index names safetensors alone, as all that libraries read of it."""
    try:
        shards = json_files.loads(index.read_bytes())["weight_map"].values()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
    return index.name.endswith(_SAFE + _INDEX) and all(str(x).endswith(_SAFE) for x in shards)


def _types(value: Any) -> list[Any]:
    """Return every class that a file names: `type` of modules, `types` of a router."""
    if isinstance(value, list):
        return [kind for each in value for kind in _types(each)]
    if not isinstance(value, dict):
        return []
    routes = value.get("types")
    named = list(routes.values()) if isinstance(routes, dict) else []
    return named + ([value["type"]] if "type" in value else [])
