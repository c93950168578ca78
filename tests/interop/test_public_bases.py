import json
import pathlib

import pytest

from vtalign_jax.interop import public_bases
from vtalign_jax.models.configuration import SmolVLMConfig

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
FILES = {
    "SmolVLM2-2.2B-Instruct": "smolvlm2_2b_instruct",
    "SmolVLM2-500M-Video-Instruct": "smolvlm2_500m_video_instruct",
    "SmolVLM2-256M-Video-Instruct": "smolvlm2_256m_video_instruct",
    "SmolVLM-Instruct": "smolvlm_instruct",
    "SmolVLM-500M-Instruct": "smolvlm_500m_instruct",
    "SmolVLM-256M-Instruct": "smolvlm_256m_instruct",
}


def test_every_public_base_has_a_row():
    assert {f"HuggingFaceTB/{name}" for name in FILES} == public_bases.CONFIGS.keys()


@pytest.mark.parametrize("name", FILES)
def test_a_rows_numbers_are_those_of_its_config_json(name):
    theirs = SmolVLMConfig.from_hf(json.loads((FIXTURES / f"{FILES[name]}.json").read_text()))
    assert SmolVLMConfig.from_hf(public_bases.CONFIGS[f"HuggingFaceTB/{name}"]) == theirs


def test_a_clips_turn_is_as_long_as_smollm2s_tokenizer_makes_it():
    # Counted with SmolLM2's own tokenizer and `ClipTokenizer.max_clip_tokens`: 4 tokens a frame.
    base = "HuggingFaceTB/SmolVLM2-2.2B-Instruct"
    counted = {1: 52, 4: 103, 8: 171, 16: 307, 20: 375, 32: 581}
    assert {n: public_bases.clip_tokens(base, n, 4) for n in counted} == counted
    assert public_bases.clip_tokens("HuggingFaceTB/SmolVLM-Instruct", 8, 81) == 35 + 8 * 98
