"""Pages of text whose words are known, to hold a reader of pages against."""

from __future__ import annotations

import difflib
import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

SCANNED = (
    "Region-based segmentation",
    "Let us first determine markers of the coins and the",
    "background. These markers are pixels that we can label",
    "unambiguously as either object or background. Here,",
    "the markers are found at the two extreme parts of the",
    "histogram of grey values:",
    ">>> markers = np.zeros_like(coins)",
)
"""What can be read on page.png, a bent page under a camera; a last line is cut through."""


def printed(lines: Sequence[str], *, letter_height: int = 40, form: str = "PNG", turned_degrees: float = 0) -> bytes:
    """The bytes of an image file of a page with these lines on it."""
    font = ImageFont.load_default(letter_height)
    width = int(max(font.getlength(line) for line in lines)) + 4 * letter_height
    page = Image.new("RGB", (width, (2 * len(lines) + 4) * letter_height), "white")
    drawing = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        drawing.text((2 * letter_height, (2 * number + 2) * letter_height), line, (20, 20, 40), font)
    content = io.BytesIO()
    page.rotate(turned_degrees, Image.Resampling.BICUBIC, fillcolor="white").save(content, form)
    return content.getvalue()


def likeness(read: Sequence[str], expected: Sequence[str]) -> float:
    """How much of the letters is right, 0 to 1; spaces do not count."""
    letters = ["\n".join("".join(line.split()) for line in lines) for lines in (read, expected)]
    return difflib.SequenceMatcher(None, letters[0], letters[1], autojunk=False).ratio()
