"""The letters of the pictures that commands draw."""

import dataclasses
import io
import unicodedata
from typing import Any

from etils import epath
from PIL import ImageFont

from vtalign_jax.errors import UserError

_TRIED = 24  # pixels


@dataclasses.dataclass(frozen=True)
class Typeface:
    """The letters of a picture: of a font file, or Pillow's own, which has little beyond ASCII."""

    data: bytes = b""

    def font(self, size: int) -> Any:
        """Return the font of a size in pixels."""
        if self.data:
            return ImageFont.truetype(io.BytesIO(self.data), size)
        return ImageFont.load_default(size)

    def letters(self, text: str) -> str:
        """Return the text in letters that can be drawn; what has no such letter shows as a box."""
        if self.data:
            return text
        apart = unicodedata.normalize("NFKD", text)
        return "".join(char for char in apart if not unicodedata.combining(char))


def load_typeface(path: str) -> Typeface:
    """Return the typeface of a font file, or Pillow's own for "".

    Raises:
      UserError: no font file.
    """
    if not path:
        return Typeface()
    try:
        face = Typeface(epath.Path(path).read_bytes())
        face.font(_TRIED)
    except OSError as error:
        raise UserError(f"cannot read the font {path}: {error}; give a .ttf or .otf") from None
    return face
