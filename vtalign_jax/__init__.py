"""Contrastive alignment of procedural video and text with SmolVLM, on JAX."""

import importlib
from typing import Any

_HOMES = {  # public name -> module; loaded on first use, so that `import vtalign_jax` stays light
    "Aligner": "vtalign_jax.aligner",
    "ground": "vtalign_jax.evaluation.grounding",
    "load_smolvlm": "vtalign_jax.interop.weights",
    "weighted_info_nce": "vtalign_jax.objectives.info_nce",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
