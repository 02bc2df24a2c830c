"""Opens the pictures that people send: photos lying on their side, transparent ones, and files that are no pictures at all."""

import io
import struct

from PIL import Image, ImageOps

MOST_PIXELS = 64_000_000
TOO_LARGE = f"more than {MOST_PIXELS} pixels"


class PictureError(Exception):
    """A file is not a picture that can be used; the text says why."""


def opened(file):
    """The RGB picture in the bytes of a JPEG or PNG file, upright, transparency on white. Raises PictureError."""
    try:
        picture = Image.open(io.BytesIO(file), formats=("JPEG", "PNG"))
        # known from the first bytes: a small file may claim to be enormous
        if picture.width * picture.height > MOST_PIXELS:
            raise PictureError(TOO_LARGE)
        picture.load()
        return plain(ImageOps.exif_transpose(picture))
    except Image.DecompressionBombError as error:
        raise PictureError(TOO_LARGE) from error
    except (OSError, SyntaxError, ValueError, EOFError, KeyError, struct.error) as error:
        # whatever Pillow's readers raise for bytes that they do not understand
        raise PictureError("not a JPEG or PNG file that can be read") from error


def plain(picture):
    """Eight bits each of red, green and blue."""
    if picture.mode.startswith("I"):  # 16 bits of grey, which convert() would cut instead of scale
        picture = picture.convert("I").point(lambda grey: grey / 256).convert("L")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
