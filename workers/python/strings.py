"""BYTES tensors as arrays of Python objects, and back."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from ...shm.datatypes import iter_bytes, serialize_bytes

Array = np.ndarray[Any, np.dtype[Any]]


def encoded(array: Array) -> bytes:
    """An array of objects or of fixed-size bytes, serialised: str as UTF-8, what is neither str nor bytes by its ``str()``."""
    elements: list[Any] = array.ravel().tolist()
    return serialize_bytes([element if type(element) is bytes else _content(element) for element in elements])


def _content(element: object) -> bytes:
    if isinstance(element, bytes):
        return element
    return str(element).encode()


def decoded(buffer: bytes | memoryview) -> Array:
    """The elements of a serialised BYTES tensor: a flat object array of ``bytes``. Raises ValueError where it is cut off."""
    elements = list(iter_bytes(buffer))
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array


def serialize_byte_tensor(input_tensor: Array) -> bytes | tuple[()] | None:
    """An array of str, bytes or other objects, serialised: each element behind its length, 4 bytes little-endian.

    An empty tuple for an array without elements, None for one of another dtype.
    """
    if input_tensor.size == 0:
        return ()
    if input_tensor.dtype.kind not in "OS":
        return None
    return encoded(input_tensor)


def deserialize_bytes_tensor(encoded_tensor: bytes) -> Array:
    """A serialised BYTES tensor as a flat object array of ``bytes``. Raises struct.error where it is cut off."""
    try:
        return decoded(encoded_tensor)
    except ValueError as error:
        raise struct.error(str(error)) from error
