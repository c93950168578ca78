import io

import numpy as np
import pytest
from PIL import Image

from tests.index_video import draw_index, read_index
from vtalign_jax.dst import images
from vtalign_jax.dst.images import encode_jpeg, make_square


def _noise(width, height, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def _jpeg(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=70)
    return buffer.getvalue()


@pytest.mark.parity
@pytest.mark.parametrize(
    ("width", "height"), [(320, 240), (426, 240), (97, 211), (480, 355), (384, 384), (1000, 3)]
)
def test_square_agrees_with_the_smolvlm_processor_bit_for_bit(width, height):
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    picture = _noise(width, height)
    processor = SmolVLMImageProcessorPil(
        size={"longest_edge": 96},
        max_image_size={"longest_edge": 96},
        do_image_splitting=False,
        do_rescale=False,
        do_normalize=False,
    )
    expected = processor(picture, return_tensors="np")["pixel_values"][0, 0].transpose(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(make_square(picture, 96, "square", 0)), expected)


def test_center_crop_keeps_the_proportions_and_the_middle():
    picture = Image.fromarray(draw_index(1234, 320, 240))
    assert read_index(make_square(picture, 96, "center_crop", 0)) == 1234
    wide = Image.fromarray(np.zeros((50, 200, 3), np.uint8))
    wide.paste((255, 255, 255), (75, 0, 125, 50))
    assert np.asarray(make_square(wide, 40, "center_crop", 0)).min() > 200


def test_square_squashes():
    picture = Image.fromarray(draw_index(1234, 320, 240))
    squashed = make_square(picture, 192, "square", 0)
    assert squashed.size == (192, 192)
    assert read_index(squashed, squashed_from=(320, 240)) == 1234


def test_rotation_is_counter_clockwise_and_comes_first():
    picture = Image.fromarray(draw_index(77, 320, 240))
    for rotate in (90, 180, 270):
        turned = make_square(picture, 96, "center_crop", rotate)
        assert read_index(turned) == -1
        assert read_index(turned.rotate(-rotate)) == 77


def test_jpegs_of_the_right_size_are_copied_byte_for_byte():
    data = _jpeg(_noise(96, 96))
    for fit in ("square", "center_crop"):
        assert encode_jpeg(data, 96, fit, 0) is data


def test_other_jpegs_are_resized_and_turned():
    data = _jpeg(Image.fromarray(draw_index(99, 96, 96)))
    smaller = Image.open(io.BytesIO(encode_jpeg(data, 48, "square", 0)))
    turned = Image.open(io.BytesIO(encode_jpeg(data, 96, "square", 90)))
    assert smaller.size == (48, 48)
    assert read_index(smaller) == 99
    assert read_index(turned.rotate(-90)) == 99


def test_grey_jpegs_become_rgb():
    data = _jpeg(_noise(96, 96).convert("L"))
    assert Image.open(io.BytesIO(encode_jpeg(data, 96, "square", 0))).mode == "RGB"


def test_damaged_and_huge_pictures_are_refused(monkeypatch):
    good = _jpeg(_noise(96, 96))
    for bad in (b"", b"no picture", good[: len(good) // 2]):
        with pytest.raises(ValueError, match="no readable JPEG"):
            encode_jpeg(bad, 96, "square", 0)
    monkeypatch.setattr(images, "MAX_PIXELS", 96 * 96 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="too large"):
        encode_jpeg(good, 96, "square", 0)
