"""The sentence-transformers export, read by that library; `pytest -s` prints the figures."""

import functools
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.interop.checkpoints import (
    FRAMES,
    export_unverified,
    make_config,
    write_base,
    write_checkpoint,
)
from vtalign_jax import export
from vtalign_jax.errors import UserError
from vtalign_jax.interop import certificate
from vtalign_jax.interop.forms import MERGED, SENTENCE_TRANSFORMERS
from vtalign_jax.training import trained

pytestmark = pytest.mark.parity

CASES = {
    "smolvlm": {},
    "idefics3": {"model": {"pooling": "mean"}},
    "own-heads": {"model": {"head": "per_modality"}},
    "cropped": {},
}
_MORE = [pytest.param(case, marks=pytest.mark.slow) for case in list(CASES)[1:]]


def _as_instruct(base):
    """Give a base SmolVLM-Instruct's processor: of images alone, which it splits."""
    (base / "video_preprocessor_config.json").unlink()
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        values = json.loads((base / name).read_text()) | {"processor_class": "Idefics3Processor"}
        values.pop("video_sampling", None)
        if name == "preprocessor_config.json":
            values |= {"image_processor_type": "Idefics3ImageProcessor", "do_image_splitting": True}
        (base / name).write_text(json.dumps(values))


@pytest.fixture(scope="module")
def export_of(tmp_path_factory):
    """A function that exports a case, once, and does not compare."""

    @functools.cache
    def make(case):
        folder = tmp_path_factory.mktemp(case)
        base = write_base(folder / "base", "idefics3" if case == "idefics3" else "smolvlm")
        if case == "idefics3":
            _as_instruct(base)
        workdir = write_checkpoint(folder / "run", make_config(base, **CASES[case]))
        with pytest.MonkeyPatch.context() as patch:
            if case == "cropped":
                patch.setattr(trained, "SQUARE", {"fit": "center_crop", "rotate": 90})
            return export_unverified(workdir, folder / "out", SENTENCE_TRANSFORMERS)

    return make


@pytest.mark.parametrize("case", ["smolvlm", *_MORE])
def test_the_library_gives_the_same_embeddings(export_of, case):
    from vtalign_jax.interop.torch_scripts import check_sentence_transformers as check

    result = check.compare(export_of(case))
    not_resized = result["cosine_video_not_resized"]
    print(f"\n{case}: {certificate.describe(result)}; clips not resized {not_resized:.7f}")
    assert certificate.is_passed(result), result
    assert result["missing"] == result["unexpected"] == []
    assert result["cosine_text"] > 0.999999
    assert result["cosine_video"] > 0.99999  # torchvision resizes a little differently
    assert result["cosine_video_not_resized"] > 0.9999999
    assert result["max_error_text"] < 1e-5
    assert result["cosine_text_uncut"] < 0.99  # as the card says
    card = (export_of(case) / "README.md").read_text()
    assert ("turned by 90 degrees" in card) == (case == "cropped")
    assert ("heads of their own" in card) == (case == "own-heads")


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


def test_it_is_no_base_for_the_merged_form_but_for_its_own(export_of, tmp_path):
    folder = export_of("smolvlm")
    with pytest.raises(UserError, match="processor is not the base's"):
        export.export(folder, tmp_path / "merged", MERGED, say=lambda line: None)
    assert not list(tmp_path.iterdir())
    again = trained.load_trained(folder)
    export.write(tmp_path, again, SENTENCE_TRANSFORMERS)
    for file in folder.rglob("*"):
        if file.is_file() and not file.name.startswith(("README", "certificate", "vtalign")):
            assert (tmp_path / file.relative_to(folder)).read_bytes() == file.read_bytes(), file


def test_a_damaged_layer_does_not_pass(export_of, tmp_path):
    from vtalign_jax.interop.torch_scripts import check_sentence_transformers as check

    copy = shutil.copytree(export_of("smolvlm"), tmp_path / "copy")
    file = copy / "2_Dense" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"linear.bias": tensors["linear.bias"][::-1].copy()}, file)
    assert not certificate.is_passed(check.compare(copy))


def test_frames_of_a_long_array_are_chosen_only_on_request(export_of):
    from sentence_transformers import SentenceTransformer

    folder = str(export_of("smolvlm"))
    metadata = {"fps": 5.0, "total_num_frames": 20, "duration": 4.0}
    metadata["frames_indices"] = list(range(20))
    clip = {"array": np.zeros((20, 3, 64, 64), np.uint8), "video_metadata": metadata}
    for options, frames in (({}, 20), ({"fps": FRAMES / 4, "num_frames": FRAMES}, FRAMES)):
        model = SentenceTransformer(folder, device="cpu", processor_kwargs=options)
        assert model.preprocess([clip])["pixel_values"].shape[1] == frames


def test_clips_of_unequal_length_in_one_batch_move_as_the_card_says(export_of):
    from sentence_transformers import SentenceTransformer

    from vtalign_jax.interop.torch_scripts import check_sentence_transformers as check

    folder = export_of("smolvlm")
    model = SentenceTransformer(str(folder), device="cpu")
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, 64, 64, 3), np.uint8)
    short = check.make_clip(frames[:2], [1.0, 3.0], 4.0)
    alone = model.encode(short)
    beside_equal = model.encode([short, short])[0]
    beside_longer = model.encode([short, check.make_clip(frames, [0.5, 1.5, 2.5, 3.5], 4.0)])[0]
    assert alone @ beside_equal > 0.999999
    assert alone @ beside_longer < 0.999
    assert "must have equally many frames" in (folder / "README.md").read_text()


def test_the_card_s_code_gives_the_embeddings(export_of, monkeypatch):
    folder = export_of("smolvlm")
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    stored = load_file(folder / certificate.TENSORS)
    monkeypatch.chdir(folder)
    names = {"frames": np.ascontiguousarray(stored["clip_0"].transpose(0, 3, 1, 2))}
    exec(code, names)
    assert names["z_video"][0] @ stored["z_video"][0] > 0.99999
    assert names["z_text"][0] @ stored["z_text"][0] > 0.999999
