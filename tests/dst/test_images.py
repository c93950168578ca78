import io
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile

from tests.index_video import draw_index, read_index
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


def _encoded(picture, **options):
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("options", [{"format": "PNG"}, {"format": "WEBP", "lossless": True}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_png_and_webp_become_jpegs_even_at_the_right_size(options, mode):
    if mode == "P" and options["format"] == "WEBP":
        mode = "RGB"  # WebP has no palette
    data = _encoded(Image.fromarray(draw_index(99, 96, 96)).convert(mode), **options)
    picture = Image.open(io.BytesIO(encode_jpeg(data, 96, "square", 0)))
    assert (picture.format, picture.mode, read_index(picture)) == ("JPEG", "RGB", 99)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_turned_as_their_exif_says_and_only_once(file_format):
    upright = Image.fromarray(draw_index(1234, 96, 96))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by 90 degrees clockwise
    data = _encoded(upright.rotate(90), format=file_format, exif=exif)
    encoded = encode_jpeg(data, 96, "square", 0)
    assert read_index(Image.open(io.BytesIO(encoded))) == 1234
    assert ExifTags.Base.Orientation not in Image.open(io.BytesIO(encoded)).getexif()
    assert encode_jpeg(encoded, 96, "square", 0) is encoded


def test_exif_that_asks_for_no_turn_costs_no_copy():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 1
    data = _encoded(_noise(96, 96), format="JPEG", exif=exif)
    assert encode_jpeg(data, 96, "square", 0) is data


def test_damaged_pictures_are_refused():
    for bad in (b"", b"no picture", _encoded(_noise(96, 96), format="GIF")):
        with pytest.raises(ValueError, match="neither JPEG, PNG nor WEBP"):
            encode_jpeg(bad, 96, "square", 0)
    for file_format in ("JPEG", "PNG", "WEBP"):
        good = _encoded(_noise(96, 96), format=file_format)
        with pytest.raises(ValueError, match="damaged"):
            encode_jpeg(good[: len(good) // 2], 96, "square", 0)


def test_pictures_of_16_bits_are_refused_rather_than_clipped():
    deep = Image.fromarray(np.full((96, 96), 40_000, np.uint16))
    with pytest.raises(ValueError, match="more than 8 bits"):
        encode_jpeg(_encoded(deep, format="PNG"), 96, "square", 0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("edge", [10_000, 14_000])
def test_a_picture_of_100_megapixels_is_refused_before_it_is_decoded(monkeypatch, edge):
    data = bytearray(_encoded(Image.new("L", (16, 16)), format="JPEG"))
    frame = data.index(b"\xff\xc0") + 5  # of the frame header: height, then width
    data[frame : frame + 4] = struct.pack(">HH", edge, edge)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="too large"):
        encode_jpeg(bytes(data), 96, "square", 0)
