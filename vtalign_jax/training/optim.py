"""AdamW with linear warm-up, cosine decay to zero, and clipping by the global norm."""

import optax

from vtalign_jax.config import OptimConfig
from vtalign_jax.training import trainable


def learning_rate(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Return step -> learning rate; the step is the number of updates made before."""
    warmup = round(config.warmup_fraction * total_steps)
    return optax.schedules.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(total_steps, warmup + 1),
        end_value=0.0,
    )


def make_optimizer(config: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """Return the optimizer of a flat `{path: array}` tree."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, total_steps),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=lambda params: {path: trainable.is_decayed(path) for path in params},
        ),
    )
