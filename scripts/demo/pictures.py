"""Pictures as the image classifier takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 224
_CROPPED = 7 / 8


def load(path: Path) -> NDArray[np.float32]:
    """The middle of a picture as FP32 [1,3,224,224]: 7/8 of its shorter side, planes red, green, blue, (v - 127) / 128."""
    with Image.open(path) as picture:
        width, height = picture.size
        side = int(min(width, height) * _CROPPED)
        left, top = (width - side) // 2, (height - side) // 2
        square = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    planes = (np.asarray(square, np.float32) - 127) / 128
    return np.ascontiguousarray(planes.transpose(2, 0, 1)[np.newaxis])
