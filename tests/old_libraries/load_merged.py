"""Loads a `merged` export in every way that the next training stages do.

    python load_merged.py EXPORT INPUTS

INPUTS is a safetensors file with `pixels` float32[F, 3, H, W] and `states` float32[F, P, V]. Prints
one JSON object. Runs alone, in any environment with torch and transformers.
"""

import json
import sys

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor


def main() -> None:
    """Load and print."""
    print(json.dumps(load(sys.argv[1], **load_file(sys.argv[2]))))


def load(export: str, pixels: torch.Tensor, states: torch.Tensor) -> dict:
    """Return class names, lost keys and the outputs of AutoModel's connector, as nested lists.

    Args:
      export: the folder.
      pixels: go through AutoModel's tower first, which gives `features`; some versions place its
        patches elsewhere.
      states: go into the connector of each model, which gives `connector`.
    """
    loaded = {"AutoModel": AutoModel, "generation": AutoModelForImageTextToText}
    loaded = {name: load_with(kind, export) for name, kind in loaded.items()}
    model, generation = (loaded[name][0] for name in ("AutoModel", "generation"))
    subclass, lost = load_with(with_extra_head(type(generation)), export)
    # Of the base's own class too, which config.json names.
    named = getattr(transformers, generation.config.architectures[0])
    processor = AutoProcessor.from_pretrained(export)
    with torch.no_grad():
        found = model.connector(states)
        others = generation.model.connector(states), subclass.model.connector(states)
        features = model.connector(model.vision_model(pixel_values=pixels).last_hidden_state)
    return {
        "classes": [type(m).__name__ for m in (model, generation, processor)],
        "is_named_class": isinstance(generation, named),
        "is_equal": all(torch.equal(found, other) for other in others),
        "lost": {name: lost for name, (_, lost) in loaded.items()} | {"subclass": lost},
        "connector": found.tolist(),
        "features": features.tolist(),
    }


def load_with(kind: type, export: str) -> tuple[torch.nn.Module, dict]:
    """Return a model in float32 and the keys that were missing or unexpected."""
    model, info = kind.from_pretrained(export, dtype=torch.float32, output_loading_info=True)
    return model.eval(), {name: sorted(info[f"{name}_keys"]) for name in ("missing", "unexpected")}


def with_extra_head(kind: type) -> type:
    """Return a subclass that predicts something of its own."""

    class WithHead(kind):
        def __init__(self, config):
            super().__init__(config)
            self.extra_head = torch.nn.Linear(config.text_config.hidden_size, 2)
            self.post_init()

    return WithHead


if __name__ == "__main__":
    main()
