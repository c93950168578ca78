"""get_config() of a run that ends within seconds; the tests point it at their own dataset."""

import ml_collections

from vtalign_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config()
    config.model.base = "tiny"
    config.model.embedding_dim = 24
    config.model.compute_dtype = "float32"
    config.model.frozen_dtype = "float32"
    config.model.remat = "none"
    config.tune.text_blocks = 1
    config.tune.rank = 2
    config.data.frames = 4
    config.optim.learning_rate = 1e-3
    config.train.contrastive_batch = 8
    config.train.epochs = 4
    config.train.log_every_steps = 1
    config.train.save_every_steps = 2
    return config
