"""The plan's pretraining run of SmolVLM2-2.2B.

    python launch/train.py --config=configs/pretrain.py --workdir=runs/pretrain

bfloat16, 32 pairs of 8 frames a step, AdamW 1e-4 with cosine decay, 15 epochs, stopped early by
Recall@5. Trains 10.7 M of 2.26 B parameters; meant for a TPU v5e-8 or larger.
"""

import ml_collections

from vtalign_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config()

    config.model.base = "HuggingFaceTB/SmolVLM2-2.2B-Instruct"
    config.model.embedding_dim = 1024
    config.model.compute_dtype = "bfloat16"
    config.model.temperature_init = 0.07

    config.tune.connector = "lora"
    config.tune.text_blocks = 8
    config.tune.rank = 16
    config.tune.alpha = 32.0
    config.tune.dropout = 0.05

    config.data.frames = 8
    config.data.grouped_fraction = 0.25
    config.data.parent_text_probability = 0.0

    config.objective.same_recording_weight = 0.4
    config.objective.itm_weight = 0.5
    config.objective.caption_weight = 0.2

    config.optim.learning_rate = 1e-4
    config.optim.warmup_fraction = 0.03
    config.optim.weight_decay = 1e-4
    config.optim.clip_norm = 1.0

    config.train.contrastive_batch = 32
    config.train.epochs = 15
    config.train.eval_every_epochs = 1
    config.train.min_epochs = 5
    config.train.patience = 3
    return config
