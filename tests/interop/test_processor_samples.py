"""Real clips, prepared without torch, against what transformers' processors make of them.

`pytest -s` prints how far torchvision's pixels are.
"""

import json

import numpy as np
import pytest

from tests.commands import ROOT, run
from tests.hidden_packages import hiding
from tests.interop.processor_inputs import CLIPS, FRAMES
from tests.samples import SAMPLES
from vtalign_jax.interop import tiny
from vtalign_jax.interop.processor_files import processor_files

pytestmark = [pytest.mark.samples, pytest.mark.parity]

SIZE, TOKENS_PER_FRAME = 384, 81  # of the 2.2B models: 27 x 27 patches, shuffled 3 x 3


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with everything of a base but weights, of a real model's frame size."""
    folder = tmp_path_factory.mktemp("base")
    tiny.write_tiny_checkpoint(folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] |= {"image_size": SIZE, "patch_size": 14}
    config["scale_factor"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    for name, values in processor_files(SIZE, TOKENS_PER_FRAME, {}).items():
        (folder / name).write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def ours(base):
    out = base / "clips.npz"
    names = ("torch", "torchvision", "transformers")
    script = f"""{hiding(*names)}
import runpy
sys.argv = ["processor_inputs.py", "{SAMPLES / "sign_recordings"}", "{base}", "{out}"]
runpy.run_path("tests/interop/processor_inputs.py", run_name="__main__")
assert not hidden & set(sys.modules), hidden & set(sys.modules)
"""
    run("-c", script, PYTHONPATH=str(ROOT))
    with np.load(out) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def theirs(base, ours):
    """Return `(input_ids, pixel_values [F, S, S, 3])` of each clip alone."""
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(base)
    turn = processor.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}])
    made = []
    for i in range(CLIPS):
        ticks, window = 1_000_000, float(ours[f"window_{i}"])
        metadata = {
            "fps": ticks,
            "total_num_frames": round(window * ticks),
            "duration": window,
            "frames_indices": np.round(ours[f"times_{i}"] * ticks).astype(int).tolist(),
        }
        frames = ours[f"raw_{i}"].transpose(0, 3, 1, 2)
        options = {"do_sample_frames": False, "return_tensors": "np"}
        outputs = processor(text=[turn], videos=[frames], video_metadata=[metadata], **options)
        made.append((outputs["input_ids"][0], outputs["pixel_values"][0].transpose(0, 2, 3, 1)))
    return made


def test_the_clips_are_twenty_of_eight_frames_and_differ(ours):
    assert ours["raw_0"].shape == (FRAMES, 240, 320, 3)
    assert len({ours[f"square_{i}"].tobytes() for i in range(CLIPS)}) == CLIPS
    assert len({ours[f"ids_{i}"].tobytes() for i in range(CLIPS)}) > 2


def test_token_ids_equal_the_processors(ours, theirs):
    for i, (ids, _) in enumerate(theirs):
        np.testing.assert_array_equal(ours[f"ids_{i}"], ids)


def test_pixels_equal_the_pil_processors_bit_for_bit(ours):
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    side = {"longest_edge": SIZE}
    common = {"size": side, "max_image_size": side, "do_image_splitting": False}
    whole = SmolVLMImageProcessorPil(**common, do_rescale=False, do_normalize=False)
    normalised = SmolVLMImageProcessorPil(**common)
    for i in range(CLIPS):
        for frame, square in zip(ours[f"raw_{i}"], ours[f"square_{i}"], strict=True):
            pixels = whole(frame, return_tensors="np")["pixel_values"][0, 0].transpose(1, 2, 0)
            np.testing.assert_array_equal(square, pixels)
        pixels = normalised(frame, return_tensors="np")["pixel_values"][0, 0].transpose(1, 2, 0)
        error = np.abs(ours[f"pixels_{i}"][-1] - pixels).max()
        assert error <= 2**-23  # one unit in the last place of 1: another order of operations


def test_pixels_are_near_those_of_the_video_processor(ours, theirs):
    error = np.stack([np.abs(ours[f"pixels_{i}"] - x) for i, (_, x) in enumerate(theirs)])
    steps = error.max() * 127.5  # a step of 8 bits is 1 / 127.5 when normalised
    print(f"\nagainst torchvision: at most {steps:.2f}/255, mean {error.mean():.2e} normalised")
    assert steps <= 3.001
    assert 0 < error.mean() <= 2e-4
