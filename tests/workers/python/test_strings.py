from __future__ import annotations

import struct

import numpy as np
import pytest

from tensorfarm.workers.python.strings import deserialize_bytes_tensor, serialize_byte_tensor


def test_serialize() -> None:
    assert serialize_byte_tensor(np.array(["a", b"b", 3], np.object_)) == b"\1\0\0\0a\1\0\0\0b\1\0\0\x003"
    assert serialize_byte_tensor(np.array([["é"], [""]], np.object_)) == b"\2\0\0\0\xc3\xa9\0\0\0\0"
    assert serialize_byte_tensor(np.array([b"ab"])) == b"\2\0\0\0ab"
    assert serialize_byte_tensor(np.array([np.bytes_(b"ab")], np.object_)) == b"\2\0\0\0ab"


def test_what_is_no_array_of_strings() -> None:
    assert serialize_byte_tensor(np.array([])) == ()
    assert serialize_byte_tensor(np.array([1])) is None
    assert serialize_byte_tensor(np.array(["é"])) is None


def test_deserialize() -> None:
    array = deserialize_bytes_tensor(b"\1\0\0\0a\0\0\0\0\2\0\0\0b\0")
    assert array.dtype == np.object_ and array.tolist() == [b"a", b"", b"b\0"]
    assert deserialize_bytes_tensor(b"").shape == (0,)


@pytest.mark.parametrize("content", [b"\1\0\0", b"\1\0\0\0a\2\0\0\0b"])
def test_cut_off(content: bytes) -> None:
    with pytest.raises(struct.error):
        deserialize_bytes_tensor(content)
