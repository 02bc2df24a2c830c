"""BYTES tensors as ONNX Runtime's Python interface takes strings."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..contract.status import invalid

Array = np.ndarray[Any, np.dtype[Any]]

MAX_PADDED_BYTE_SIZE = 64 << 20


def string_tensor(array: Array, name: str) -> Array:
    """Turn an object array of ``bytes`` into one that ONNX Runtime copies into strings byte for byte.

    ONNX strings are UTF-8; of others, those of one length and those without a zero byte can still be
    handed over, as numpy's fixed-size types, unless their lengths are so unequal that this takes
    more than ``MAX_PADDED_BYTE_SIZE``. Raises INVALID_ARG for the rest, with the input's ``name``.
    """
    elements: list[bytes] = array.ravel().tolist()
    try:
        texts = np.empty(len(elements), np.object_)
        texts[:] = [element.decode() for element in elements]
        return texts.reshape(array.shape)
    except UnicodeDecodeError as error:
        longest = max(map(len, elements))
        if longest == min(map(len, elements)):
            return np.frombuffer(b"".join(elements), f"V{longest}").reshape(array.shape)
        # ONNX Runtime reads this type up to a zero byte, which a full-length element has only with room for it.
        width = longest + 1
        if len(elements) * width > MAX_PADDED_BYTE_SIZE or any([b"\0" in element for element in elements]):
            raise invalid(
                f"input '{name}' has strings that are not UTF-8, differ in length and contain zero bytes or are too long; "
                "ONNX Runtime cannot take these"
            ) from error
        return np.array(elements, f"S{width}").reshape(array.shape)
