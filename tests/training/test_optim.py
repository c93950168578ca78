"""The optimizer against the update rule written out in NumPy."""

import numpy as np
import optax
import pytest

from vtalign_jax.config import OptimConfig
from vtalign_jax.training.optim import learning_rate, make_optimizer


def test_schedule_warms_up_linearly_and_ends_at_zero():
    schedule = learning_rate(OptimConfig(learning_rate=1e-4, warmup_fraction=0.03), 1000)
    assert schedule(0) == 0.0
    np.testing.assert_allclose(schedule(15), 0.5e-4, rtol=1e-5)
    np.testing.assert_allclose(schedule(30), 1e-4, rtol=1e-6)
    halfway = 30 + (1000 - 30) // 2
    np.testing.assert_allclose(schedule(halfway), 0.5e-4, rtol=1e-4)
    np.testing.assert_allclose(schedule(1000), 0.0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_short_runs_have_a_schedule(steps):
    schedule = learning_rate(OptimConfig(warmup_fraction=0.03), steps)
    assert float(schedule(0)) == pytest.approx(1e-4)


def test_update_is_clipped_adamw_with_decay_on_matrices_only():
    config = OptimConfig(
        learning_rate=0.01, warmup_fraction=0.0, weight_decay=0.1, clip_norm=1.0, b1=0.9, b2=0.99
    )
    values = {
        "base.text_model.tuned_layers.self_attn.q_proj.lora_a": np.float32([[2.0, -1.0]]),
        "head.fc1.kernel": np.float32([[3.0]]),
        "head.fc1.bias": np.float32([3.0]),
        "log_temperature": np.float32(-2.0),
    }
    grads = {path: np.full_like(value, 2.0) for path, value in values.items()}
    optimizer = make_optimizer(config, total_steps=10)
    updates, _ = optimizer.update(grads, optimizer.init(values), values)
    new = optax.apply_updates(values, updates)

    clipped = 2.0 / np.sqrt(5 * 2.0**2)  # five numbers of gradient 2
    direction = clipped / (np.sqrt(clipped**2) + 1e-8)  # the first bias-corrected Adam step
    for path, value in values.items():
        decay = 0.1 * value if path.endswith(("kernel", "lora_a")) else 0.0
        np.testing.assert_allclose(new[path], value - 0.01 * (direction + decay), rtol=1e-5)
