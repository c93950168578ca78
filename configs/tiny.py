"""The demo's tiny random model on any prepared dataset: the whole way through on a laptop.

    python launch/train.py --config=configs/tiny.py --config.data.dir=datasets/dst_clips

Two CPU cores are enough. So small a base, trained on so little, learns only the dataset's own
words and pictures: the figures show that the parts work together, not what SmolVLM reaches. The
dataset may be prepared with the defaults; larger frames are shrunk.
"""

import ml_collections

from vtalign_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config()

    config.model.base = "tiny"
    config.model.embedding_dim = 128
    config.model.pooling = "mean"  # learns more from a hundred clips than the last token
    config.model.compute_dtype = "float32"  # a CPU computes bfloat16 more slowly
    config.model.frozen_dtype = "float32"
    config.model.remat = "none"  # memory is no concern at this size

    config.tune.connector = "lora"
    config.tune.text_blocks = 3  # all: there is nothing pretrained below them
    config.tune.rank = 16
    config.tune.alpha = 32.0
    config.tune.dropout = 0.0

    config.data.frames = 8
    config.data.max_text_tokens = 48

    config.optim.learning_rate = 2e-3
    config.train.contrastive_batch = 32
    config.train.epochs = 40
    config.train.eval_every_epochs = 4
    config.train.min_epochs = 40  # no early stop
    config.train.log_every_steps = 32
    return config
