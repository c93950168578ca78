import dataclasses

import jax
import numpy as np
import pytest

from benchmarks import train_step
from tests.commands import one_error_line, run
from tests.tiny_aligner import HF_CONFIG
from vtalign_jax.interop.peft import adapter_keys, adapter_tensors
from vtalign_jax.interop.weights import hugging_face_sources
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.planning import flops
from vtalign_jax.training.assemble import assemble_of

VALUES = HF_CONFIG | {"text_config": HF_CONFIG["text_config"] | {"vocab_size": 97}}
SHAPE = train_step.Shape(VALUES, pairs=4, frames=2, text_tokens=9, dtype="float32", dropout=0.0)
STEPS = 4


def _losses(shape, **changes):
    shape = dataclasses.replace(shape, **changes)
    batch = train_step.make_batch(shape, train_step.make_config(shape))
    step, _ = train_step.make_ours(shape, batch)
    return [float(step()) for _ in range(STEPS)]


@pytest.fixture(scope="module")
def losses():
    return _losses(SHAPE)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"cached": True}, {"microbatch": 2}], ids=str)
def test_every_way_makes_the_same_steps(losses, changes):
    np.testing.assert_allclose(_losses(SHAPE, **changes), losses, rtol=1e-4)


@pytest.mark.parity
def test_the_peer_makes_the_same_steps(losses):
    import torch

    from benchmarks import peer_step

    config = train_step.make_config(SHAPE)
    batch = train_step.make_batch(SHAPE, config)
    _, leaves = train_step.make_ours(SHAPE, batch)
    model = peer_step.PeerModel(VALUES, config)
    copied = _hugging_face({path: np.asarray(x) for path, x in leaves.items()})
    state = model.state_dict()
    assert {name for name in copied if name not in state} == set()
    # No loss uses the logits.
    assert {name for name in state if name not in copied} <= {
        "model.base_model.model.lm_head.weight"
    }
    model.load_state_dict(
        {name: torch.tensor(x).reshape(state[name].shape) for name, x in copied.items()},
        strict=False,
    )
    step = peer_step.PeerStep(model, config, compiled=False, recompute=False)
    given = train_step.peer_batch(batch, config)
    theirs = [float(step(given)) for _ in range(STEPS)]
    assert theirs[0] != theirs[-1]
    np.testing.assert_allclose(theirs, losses, rtol=1e-4)


def _hugging_face(leaves):
    """Return our leaves under the names of the peer's parameters."""
    shapes = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in leaves.items()}
    base = {path.removeprefix("base."): x for path, x in shapes.items() if path.startswith("base.")}
    keys = adapter_keys([path for path in leaves if ".lora_" in path], shapes)
    adapters = adapter_tensors(leaves, keys)
    named = {"model." + key.replace(".weight", ".default.weight"): x for key, x in adapters.items()}
    adapted = {key.split(".lora_")[0] for key in adapters}
    for path, source in hugging_face_sources(base).items():
        leaf = leaves[f"base.{path}"]
        for key, part in zip(source.keys, leaf if source.is_stacked else [leaf], strict=True):
            module, kind = f"base_model.model.{key}".rsplit(".", 1)
            inside = ".base_layer" if module in adapted else ""
            back = None if source.axes is None else np.argsort(source.axes)
            named[f"model.{module}{inside}.{kind}"] = part if back is None else part.transpose(back)
    for name in ("fc1", "fc2"):
        named[f"{name}.weight"] = leaves[f"head.{name}.kernel"].T
        named[f"{name}.bias"] = leaves[f"head.{name}.bias"]
    return named | {"log_temperature": leaves["log_temperature"]}


def test_a_row_says_rates_of_the_work_that_was_done():
    shape = dataclasses.replace(SHAPE, cached=True)
    (row,) = train_step.measure("small", shape, 1, lambda line: None, peer=False)
    rate = row["pairs"] / row["seconds"]["ours"]
    assert row["pairs_a_second"]["ours"] == pytest.approx(rate, rel=0.01)
    useful = row["tflop_a_pair"]["ours"] * rate
    assert row["mfu"]["ours"] == pytest.approx(useful / row["limit_tflop_a_second"], rel=0.01)
    patches, width, wide, layers = 16, 24, 40, 2
    block = 4 * width**2 + 2 * width * wide
    tower = 2 * SHAPE.frames * patches * (layers * block + 4 * 4 * 3 * width)
    config = train_step.make_config(shape)
    assembly = assemble_of(SmolVLMConfig.from_hf(VALUES), config)
    whole = flops.of_pair(assembly, config, flops.tokens_of(config, shape.clip_tokens)).weights
    assert row["tflop_a_pair"]["ours"] * 1e12 == pytest.approx(whole - tower, rel=0.001)


def test_the_peer_has_no_other_loss(tmp_path):
    flags = "--size=tiny", "--peer", "--losses=itm"
    said = one_error_line(run("launch/bench.py", "step", *flags, code=2))
    assert "leave out --losses" in said


def test_nothing_that_reads_data_or_checkpoints_is_imported(tmp_path):
    said = run("-c", "import sys, benchmarks.train_step; print(*sys.modules)")
    loaded = {name.split(".")[0] for name in said.split()}
    unwanted = {"grain", "orbax", "tensorflow_datasets", "ml_collections", "torch", "tokenizers"}
    assert loaded & (unwanted | {"PIL", "pyarrow", "av", "tensorboardX"}) == set()
