"""A base model of either architecture, and a checkpoint trained on it, without any training."""

import json
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes  # noqa: F401, gives NumPy its bfloat16
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vtalign_jax import export, sharding
from vtalign_jax.config import Config, resolve, to_dict
from vtalign_jax.interop import certificate
from vtalign_jax.interop.base_files import INDEX, base_fingerprint
from vtalign_jax.interop.forms import PEFT
from vtalign_jax.interop.tiny import write_tiny_checkpoint
from vtalign_jax.training import optim
from vtalign_jax.training.assemble import assemble
from vtalign_jax.training.checkpoint import FOLDER, METRIC, Checkpoints
from vtalign_jax.training.manifest import Fingerprints
from vtalign_jax.training.state import init_state

FRAMES, STEP = 4, 7


def write_base(
    directory: Path, architecture: str, *, dtype: str = "float32", shards: bool = False
) -> Path:
    """Write a small random base, norms and biases random too.

    The Idefics3 one has an own output matrix and, as SmolVLM-Instruct, a tokenizer to which
    <global-img> is several tokens.

    Args:
      directory: the folder.
      architecture: "smolvlm" or "idefics3".
      dtype: of the stored weights.
      shards: whether they lie in two files and an index.
    """
    write_tiny_checkpoint(directory)
    weights, rng = load_file(directory / "model.safetensors"), np.random.default_rng(5)
    for key, value in sorted(weights.items()):
        if value.ndim == 1:
            weights[key] = value + 0.3 * rng.standard_normal(value.shape).astype(np.float32)
    if architecture == "idefics3":
        weights["lm_head.weight"] = weights["model.text_model.embed_tokens.weight"][::-1].copy()
        _edit(directory / "config.json", _as_idefics3)
        _edit(directory / "tokenizer.json", _without_global_image)
        _edit(directory / "tokenizer_config.json", _without_global_image)
    weights = {key: value.astype(dtype) for key, value in weights.items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    if shards:
        split_weights(directory)
    return directory


def make_config(base: Path, **sections: dict) -> Config:
    """Return a configuration of the small model; sections override its fields."""
    values = {
        "model": {"base": str(base), "embedding_dim": 24},
        "tune": {"text_blocks": 2, "rank": 3, "alpha": 7.5},
        "data": {"frames": FRAMES, "max_text_tokens": 32},
    }
    for name, fields in sections.items():
        values[name] = values.get(name, {}) | fields
    return resolve(values)


def write_checkpoint(workdir: Path, config: Config, *, lora_b: float = 0.2) -> Path:
    """Write a workdir with one checkpoint whose trained leaves are random; return it.

    Args:
      workdir: the folder.
      config: of the run.
      lora_b: scale of the LoRA B matrices, 0 leaves the model untrained.
    """
    assembly = assemble(config)
    rng = np.random.default_rng(3)
    params = {}
    for path, shape in assembly.trainable.items():
        scale = shape.shape[-2] ** -0.5 if len(shape.shape) > 1 else 0.1
        scale = lora_b if path.endswith("lora_b") else scale
        params[path] = jnp.asarray(scale * rng.standard_normal(shape.shape), jnp.float32)
    params["log_temperature"] = jnp.log(jnp.float32(0.05))
    extra = {
        "config": to_dict(config),
        "fingerprints": Fingerprints(base_fingerprint(assembly.directory), "none").to_json(),
    }
    checkpoints = Checkpoints(workdir / FOLDER)
    mesh = sharding.make_mesh(config.mesh)
    state = init_state(params, optim.make_optimizer(config.optim, 10), 0, mesh)
    checkpoints.save(STEP, state, extra, {METRIC: 0.75, "val/recall@1": 0.5})
    checkpoints.wait()
    checkpoints.close()
    return workdir


def export_unverified(workdir: Path, out: Path, form: str = PEFT) -> Path:
    """Export as where there is no PyTorch to compare with; return the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificate, "missing_packages", lambda needs: ["torch"])
        unverified = export.export(workdir, out, form, say=lambda line: None)
    assert "torch" in unverified
    return out


def split_weights(directory: Path) -> None:
    """Split the weights into two files with an index, as transformers does."""
    tensors = load_file(directory / "model.safetensors")
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        stored = {name: tensors[name] for name in part}
        save_file(stored, directory / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (directory / "model.safetensors").unlink()


def _edit(file: Path, change) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def _as_idefics3(config: dict) -> dict:
    config |= {"model_type": "idefics3", "architectures": ["Idefics3ForConditionalGeneration"]}
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    config["vision_config"]["model_type"] = "idefics3_vision"
    return config


def _without_global_image(values: dict) -> dict:
    return json.loads(json.dumps(values).replace("<global-img>", "<unused>"))
