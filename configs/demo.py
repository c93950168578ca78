"""The demo's run: a tiny random SmolVLM learns to match 48 texts to short clips.

    make demo

or, on the dataset that data/demo/run_demo.py prepares,

    python launch/train.py --config=configs/demo.py --config.data.dir=demo_run/dataset \
        --workdir=demo_run/run

About two minutes on two CPU cores. Expect validation recall@5 above 0.9 and recall@1 above 0.5,
where chance is 0.10 and 0.02.
"""

import ml_collections

from vtalign_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config()

    config.model.base = "tiny"
    config.model.embedding_dim = 128
    config.model.compute_dtype = "float32"  # a CPU computes bfloat16 more slowly
    config.model.frozen_dtype = "float32"
    config.model.remat = "none"  # memory is no concern at this size

    config.tune.connector = "lora"
    config.tune.text_blocks = 3  # all: there is nothing pretrained below them
    config.tune.rank = 16
    config.tune.alpha = 32.0
    config.tune.dropout = 0.0

    config.data.frames = 4
    config.data.max_text_tokens = 24

    config.optim.learning_rate = 3e-3
    config.optim.b2 = 0.98  # a run of 720 steps; 0.999 varies more between seeds

    config.train.contrastive_batch = 64
    config.train.epochs = 16
    config.train.eval_every_epochs = 2
    config.train.eval_batch = 96
    config.train.min_epochs = 16  # no early stop
    config.train.log_every_steps = 45
    return config
