"""Pictures of any size -> JPEG bytes of the model's square."""

import io
import warnings

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

FITS = ("square", "center_crop")
ROTATIONS = (0, 90, 180, 270)
JPEG_QUALITY = 95
MAX_PIXELS = 64_000_000  # larger pictures are refused before they are decoded
MAX_BYTES = 64 * 2**20  # larger image files are refused before they are read

_FORMATS = ("JPEG", "PNG", "WEBP")
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I", "F")  # Pillow's conversion to RGB would clip them

ROTATED = {  # degrees counter-clockwise
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


def make_square(picture: Image.Image, size: int, fit: str, rotate: int) -> Image.Image:
    """Return an RGB picture of size x size pixels.

    Args:
      picture: any size.
      size: pixels.
      fit: "square" squashes as SmolVLM's processors do (LANCZOS to the longest edge, then to the
        square); "center_crop" resizes to cover and cuts the centre out.
      rotate: degrees counter-clockwise, a multiple of 90; done first.

    Source: transformers, `SmolVLMImageProcessorPil`, with which "square" agrees bit for bit.
    """
    picture = picture if picture.mode == "RGB" else picture.convert("RGB")
    if rotate:
        picture = picture.transpose(ROTATED[rotate])
    if fit == "center_crop":
        return _cover(picture, size)
    return _resize(_resize(picture, _longest_edge(*picture.size, size)), (size, size))


def encode_jpeg(picture: Image.Image | bytes, size: int, fit: str, rotate: int) -> bytes:
    """Return the picture as JPEG bytes of size x size pixels.

    Args:
      picture: RGB, or the bytes of an image file (JPEG, PNG, WebP), which is turned as its EXIF
        orientation says. A JPEG that has the size already and is not to be turned comes back
        untouched.
      size: pixels.
      fit: see `make_square`.
      rotate: see `make_square`.

    Raises:
      ValueError: bytes that are no such picture, damaged or too large.
    """
    if isinstance(picture, bytes):
        opened = open_picture(picture)
        is_ready = opened.format == "JPEG" and opened.mode == "RGB" and not rotate
        if is_ready and opened.size == (size, size):
            return picture
        picture = opened
    buffer = io.BytesIO()
    make_square(picture, size, fit, rotate).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def open_picture(data: bytes) -> Image.Image:
    """Return a decoded image file, as its EXIF turns it; it has no `format` if that did turn it.

    Raises:
      ValueError: no such picture, damaged or too large.
    """
    try:
        with warnings.catch_warnings():  # of sizes that are refused below
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=_FORMATS)
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"picture of {width} x {height} pixels is too large")
        if picture.mode in DEEP_MODES:
            raise ValueError(f"picture of mode {picture.mode}, more than 8 bits a channel")
        picture.load()  # a picture that is cut short must fail here, not in training
        is_turned = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(picture) if is_turned else picture
    except UnidentifiedImageError:
        raise ValueError(f"neither {', '.join(_FORMATS[:-1])} nor {_FORMATS[-1]}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"picture is too large: {error}") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"damaged: {error}") from None


def _longest_edge(width: int, height: int, size: int) -> tuple[int, int]:
    """Return (width, height): the longest edge at `size`, the other even (as transformers)."""
    ratio = width / height
    if width >= height:
        other = int(size / ratio)
        return size, max(1, other + other % 2)
    other = int(size * ratio)
    return max(1, other + other % 2), size


def _cover(picture: Image.Image, size: int) -> Image.Image:
    scale = size / min(picture.size)
    width, height = (max(size, round(edge * scale)) for edge in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    return _resize(picture, (width, height)).crop((left, top, left + size, top + size))


def _resize(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)
