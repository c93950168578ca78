import jax
import jax.numpy as jnp

from tests.tiny_aligner import HF_CONFIG, make_config
from vtalign_jax.models.configuration import SmolVLMConfig
from vtalign_jax.planning import flops
from vtalign_jax.training.assemble import assemble_of

BASE = SmolVLMConfig.from_hf(HF_CONFIG)
TOKENS = flops.Tokens(frames=2, clip=12, text=7, captions=0)

# By hand, from HF_CONFIG. Tower: 16 patches a frame, 2 blocks of q, k, v, out and the MLP.
PATCH = 4 * 4 * 3 * 24
TOWER = 2 * 16 * (PATCH + 2 * (4 * 24 * 24 + 2 * 24 * 40))
CONNECTOR = 2 * 4 * (24 * 4 * 32)  # 4 tokens a frame
BLOCK = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 56  # q and o, k and v of half the heads, MLP
HEAD = 32 * 32 + 32 * 20
# Rank 3 on q, k, v and o of 2 blocks: A from 32, B to 32 or 16.
LORA_A, LORA_B = 4 * 32 * 3, 3 * (32 + 16 + 16 + 32)
CONNECTOR_A, CONNECTOR_B = 2 * 4 * 96 * 3, 2 * 4 * 3 * 32


def of_pair(tokens=TOKENS, **sections):
    config = make_config(**sections)
    return flops.of_pair(assemble_of(BASE, config), config, tokens)


def test_products_with_weights_are_those_of_the_partition():
    both = TOKENS.clip + TOKENS.text
    forward = TOWER + CONNECTOR + CONNECTOR_A + CONNECTOR_B
    forward += 3 * BLOCK * both + 2 * (LORA_A + LORA_B) * both + 2 * HEAD
    # Clips go back to the connector's adapter, texts to the tuned blocks.
    inputs = BLOCK * TOKENS.clip + 2 * (BLOCK + LORA_A + LORA_B) * both + 2 * HEAD + CONNECTOR_B
    weights = 2 * (LORA_A + LORA_B) * both + 2 * HEAD + CONNECTOR_A + CONNECTOR_B
    assert of_pair().weights == 2.0 * (forward + inputs + weights)


def test_with_a_frozen_connector_nothing_goes_back_below_the_tuned_blocks():
    lora, frozen = of_pair(), of_pair(tune={"connector": "frozen"})
    less = CONNECTOR_A * 2 + CONNECTOR_B * 3 + BLOCK * TOKENS.clip
    assert lora.weights - frozen.weights == 2.0 * less
    attention = 4.0 * TOKENS.clip**2 * 32  # causal: half of 4 S^2 D forward, twice as much back
    assert lora.attention - frozen.attention == attention


def test_a_connector_trained_in_full_has_the_gradient_of_its_weights():
    full, frozen = of_pair(tune={"connector": "full"}), of_pair(tune={"connector": "frozen"})
    assert full.weights - frozen.weights == 2.0 * (CONNECTOR + BLOCK * TOKENS.clip)


def test_captions_add_the_logits_and_their_way_back():
    tokens = TOKENS._replace(captions=5)
    objective = {"caption_weight": 0.2}
    more = of_pair(tokens, objective=objective).weights - of_pair(objective=objective).weights
    assert more == 2.0 * 2 * 5 * 32 * 72
    tied = SmolVLMConfig.from_hf(HF_CONFIG | {"tie_word_embeddings": True})
    config = make_config(objective=objective)
    count = flops.of_pair(assemble_of(tied, config), config, tokens)
    assert count.weights == of_pair(tokens, objective=objective).weights


def test_the_matching_head_sees_three_rows_a_pair():
    more = of_pair(objective={"itm_weight": 0.5}).weights - of_pair().weights
    assert more == 2.0 * 3 * 3 * (2 * 20 * 20 + 20)


def test_the_forward_pass_is_what_the_compiler_counts_of_an_unrolled_model(monkeypatch):
    # One block a stack: the compiler counts the body of a loop once.
    config = make_config(tune={"text_blocks": 1, "connector": "frozen"}, model={"remat": "none"})
    values = HF_CONFIG | {
        "vision_config": HF_CONFIG["vision_config"] | {"num_hidden_layers": 1, "image_size": 56},
        "text_config": HF_CONFIG["text_config"] | {"num_hidden_layers": 2, "hidden_size": 128},
    }
    assembly = assemble_of(SmolVLMConfig.from_hf(values), config)
    rows, tokens = 3, flops.Tokens(frames=2, clip=140, text=40, captions=0)

    def forward(leaves: dict, frames: jax.Array, clip: jax.Array, text: jax.Array) -> tuple:
        model = assembly.bind(leaves)
        clips = model.pooled_clips(clip, clip > 0, frames)
        return model.project_clips(clips), model.project_texts(model.pooled_texts(text, text > 0))

    shapes = (
        jax.ShapeDtypeStruct((rows, 2, 56, 56, 3), jnp.uint8),
        jax.ShapeDtypeStruct((rows, tokens.clip), jnp.int32),
        jax.ShapeDtypeStruct((rows, tokens.text), jnp.int32),
    )
    leaves = assembly.trainable | assembly.frozen
    counted = jax.jit(forward).lower(leaves, *shapes).cost_analysis()["flops"] / rows
    # It counts causal attention in full, and every sum and exponential as well.
    length = tokens.clip**2 + tokens.text**2
    attention = 4.0 * 2 * 196**2 * 24 + 2 * 4.0 * length * 4 * 32
    ours = flops.forward_of_pair(assembly, tokens) + attention
    # Halves of heads change places by products that are not required: 128 wide for q, 32 for k.
    swaps = 2.0 * 2 * (tokens.clip + tokens.text) * (128 * 128 + 64 * 32)
    assert ours <= counted - swaps <= 1.15 * ours


def test_features_spare_the_forward_pass_below_them():
    config = make_config(tune={"connector": "frozen"})
    assembly = assemble_of(BASE, config)
    both = TOKENS.clip + TOKENS.text
    forward = {"tower": TOWER, "connector": TOWER + CONNECTOR}
    forward["decoder"] = forward["connector"] + BLOCK * both  # the one block that is not tuned
    for depth, products in forward.items():
        spared = flops.below(assembly, config, TOKENS, depth)
        assert spared.weights == 2.0 * products
        assert flops.of_pair(assembly, config, TOKENS).attention > spared.attention
    tower = 4.0 * 16**2 * 24 * 2 * 2  # q k^T and its weights times v, of 2 blocks and 2 frames
    assert flops.below(assembly, config, TOKENS, "tower").attention == tower
    block = 2.0 * (TOKENS.clip**2 + TOKENS.text**2) * 32
    assert flops.below(assembly, config, TOKENS, "decoder").attention == tower + block
