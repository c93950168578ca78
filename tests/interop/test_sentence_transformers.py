"""The sentence-transformers export, read by that library."""

import functools
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.interop.checkpoints import make_config, write_base, write_checkpoint
from vtalign_jax.aligner import Aligner
from vtalign_jax.interop import certificate, embedding_files, peft, sentence_transformers
from vtalign_jax.training.trained import load_trained

pytestmark = pytest.mark.parity

CASES = {
    "smolvlm": {},
    "idefics3": {"model": {"pooling": "mean"}},
    "own-heads": {"model": {"head": "per_modality"}},
}
_MORE = [pytest.param(case, marks=pytest.mark.slow) for case in ("idefics3", "own-heads")]


def _as_instruct(base):
    """Give a base SmolVLM-Instruct's processor: of images alone, which it splits."""
    (base / "video_preprocessor_config.json").unlink()
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        values = json.loads((base / name).read_text()) | {"processor_class": "Idefics3Processor"}
        values.pop("video_sampling", None)
        if name == "preprocessor_config.json":
            values |= {"image_processor_type": "Idefics3ImageProcessor", "do_image_splitting": True}
        (base / name).write_text(json.dumps(values))


def _merged(trained, scale):
    weights = load_file(trained.assembly.directory / "model.safetensors")
    shapes = trained.assembly.trainable | trained.assembly.frozen
    adapter = peft.adapter_tensors(trained.params, peft.adapter_keys(trained.params, shapes))
    for key in [key for key in adapter if key.endswith("lora_A.weight")]:
        name = key.removeprefix("base_model.model.").replace(".lora_A", "")
        weights[name] += scale * adapter[key.replace("lora_A", "lora_B")] @ adapter[key]
    return weights


@pytest.fixture(scope="module")
def export_of(tmp_path_factory):
    @functools.cache
    def make(case):
        folder = tmp_path_factory.mktemp(case)
        base = write_base(folder / "base", "idefics3" if case == "idefics3" else "smolvlm")
        if case == "idefics3":
            _as_instruct(base)
        config = make_config(base, **CASES[case])
        trained = load_trained(write_checkpoint(folder / "run", config))
        heads = {
            kind: [
                f"{'head' if config.model.head == 'shared' else f'{kind}_head'}.{layer}.{leaf}"
                for layer in ("fc1", "fc2")
                for leaf in ("weight", "bias")
            ]
            for kind in ("video", "text")
        }
        settings = {
            "heads": heads,
            "pooling": config.model.pooling,
            "frames": 4,
            "window_seconds": 4.0,
            "max_text_tokens": 32,
        }
        out = folder / "out"
        out.mkdir()
        head = embedding_files.head_tensors(trained.params)
        sentence_transformers.write(out, head, settings, base)
        weights = sentence_transformers.weights_folder(out, settings) / "model.safetensors"
        save_file(_merged(trained, 7.5 / 3), weights, metadata={"format": "pt"})
        certificate.write_reference(out, Aligner(trained, "float32"), 4, 4.0)
        return out

    return make


@pytest.mark.parametrize("case", ["smolvlm", *_MORE])
def test_the_library_gives_the_same_embeddings(export_of, case):
    from vtalign_jax.interop.torch_scripts import check_sentence_transformers as check

    result = check.compare(export_of(case))
    assert certificate.is_passed(result), result
    assert result["missing"] == result["unexpected"] == []
    assert result["cosine_text"] > 0.999999
    assert result["cosine_video"] > 0.99999  # torchvision resizes a little differently
    assert result["cosine_video_not_resized"] > 0.9999999
    assert result["max_error_text"] < 1e-5
    assert result["cosine_text_uncut"] < 0.99  # as the card says


@pytest.mark.parametrize("case", ["smolvlm", *_MORE])
def test_what_was_not_trained_is_refused_by_the_library(export_of, case):
    from PIL import Image
    from sentence_transformers import SentenceTransformer

    from vtalign_jax.interop.torch_scripts import check_sentence_transformers as check

    model = SentenceTransformer(str(export_of(case)), device="cpu")
    with pytest.raises(ValueError, match="'image' is not supported"):
        model.encode(Image.new("RGB", (20, 20)))
    clip = check.make_clip(np.zeros((4, 64, 64, 3), np.uint8), [0.5, 1.5, 2.5, 3.5], 4.0)
    with pytest.raises(ValueError, match="Mismatch in `image` token count"):
        model.encode_query([{"video": clip}])  # encode_query cuts, as texts are cut
    if case == "own-heads":
        with pytest.raises((ValueError, AttributeError)):
            model.encode([{"video": clip}, "attach wheel to chassis"])


def test_a_damaged_layer_does_not_pass(export_of, tmp_path):
    from vtalign_jax.interop.torch_scripts import check_sentence_transformers as check

    copy = shutil.copytree(export_of("smolvlm"), tmp_path / "copy")
    file = copy / "2_Dense" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"linear.bias": tensors["linear.bias"][::-1].copy()}, file)
    assert not certificate.is_passed(check.compare(copy))
