from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from tensorfarm.shm.datatypes import DATATYPES
from tensorfarm.workers.python.errors import TritonModelException
from tensorfarm.workers.python.tensor import Tensor

from .fake_host import received

NUMERIC = [datatype for datatype in DATATYPES.values() if datatype.name not in ("BYTES", "BF16")]


@pytest.mark.parametrize("datatype", NUMERIC, ids=lambda datatype: datatype.name)
def test_arrays_of_every_datatype_come_and_go(datatype: Any) -> None:
    array = np.array([[0, 1, 1]], datatype.dtype)
    given = Tensor("X", array)
    assert (given.name(), given.datatype, given.triton_dtype()) == ("X", datatype.name, datatype.number)
    assert given.shape() == [1, 3] and given.dims() == (1, 3)
    assert given.as_numpy() is array and given.content() is array
    assert given.is_cpu()
    got, _ = received("X", datatype.name, (1, 3), array.tobytes())
    assert (got.name(), got.datatype, got.shape(), got.triton_dtype()) == ("X", datatype.name, [1, 3], datatype.number)
    taken = got.as_numpy()
    assert taken.dtype == datatype.dtype and taken.shape == (1, 3) and taken.tobytes() == array.tobytes()


def test_a_received_array_is_made_once_is_writable_and_gives_up_its_place() -> None:
    tensor, memory = received("X", "INT32", (2,), struct.pack("<2i", 1, 2))
    place = tensor.place
    assert place is not None and memory.asked == 0
    array = tensor.as_numpy()
    assert tensor.place is None
    array[0] = 7
    assert tensor.as_numpy() is array and memory.asked == 1
    assert tensor.content() is array


def test_a_received_tensor_is_passed_on_by_its_place_or_its_bytes() -> None:
    content = struct.pack("<I2s", 2, b"ab")
    tensor, _ = received("S", "BYTES", (1,), content)
    assert tensor.content() == content
    assert tensor.place is not None


@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
def test_odd_shapes(shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, np.float32)
    assert Tensor("X", array).shape() == list(shape)
    tensor, _ = received("X", "FP32", shape, array.tobytes())
    assert tensor.as_numpy().shape == shape
    strings, _ = received("S", "BYTES", shape, b"\0\0\0\0" if shape == () else b"")
    assert strings.as_numpy().shape == shape


def test_strings_are_objects_in_the_tensors_shape() -> None:
    content = b"".join(struct.pack("<I", len(text)) + text for text in (b"", b"a\0", "é".encode(), b"\xff"))
    tensor, _ = received("S", "BYTES", (2, 2), content)
    array = tensor.as_numpy()
    assert array.tolist() == [[b"", b"a\0"], ["é".encode(), b"\xff"]]
    assert array.dtype == np.object_ and array.flags.writeable
    assert tensor.content() == content
    array[0, 0] = "changed"
    assert tensor.content() == content.replace(b"\0\0\0\0", struct.pack("<I", 7) + b"changed", 1)


def test_strings_given_as_objects_or_fixed_size_bytes() -> None:
    objects = Tensor("S", np.array(["é", b"b", 3, None], np.object_))
    assert objects.content() == b"\2\0\0\0\xc3\xa9\1\0\0\0b\1\0\0\x003\4\0\0\0None"
    assert objects.as_numpy().tolist() == ["é", b"b", 3, None]
    fixed = Tensor("S", np.array([b"ab", b"cde"]))
    assert (fixed.datatype, fixed.triton_dtype()) == ("BYTES", 13)
    assert fixed.content() == b"\2\0\0\0ab\3\0\0\0cde"


def test_an_array_out_of_order_is_copied_at_once() -> None:
    array = np.arange(6, dtype=np.int64).reshape(2, 3).T
    tensor = Tensor("X", array)
    array[0, 0] = 99
    assert tensor.as_numpy().flags.c_contiguous
    assert tensor.as_numpy().tolist() == [[0, 3], [1, 4], [2, 5]]


def test_bf16_has_no_array() -> None:
    tensor, _ = received("X", "BF16", (2,), b"\x80\x3f\x00\x40")
    with pytest.raises(TritonModelException) as raised:
        tensor.as_numpy()
    assert str(raised.value) == "Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and from_dlpack() instead."
    assert tensor.place is not None and tensor.triton_dtype() == 14
    content = tensor.content()
    assert isinstance(content, np.ndarray) and content.tolist() == [0x3F80, 0x4000]


def test_a_name_is_not_empty() -> None:
    with pytest.raises(TritonModelException, match=r"^Tensor name cannot be an empty string\.$"):
        Tensor("", np.zeros(1))


@pytest.mark.parametrize("dtype", ["U5", "c16", "M8[s]", ">i4", "V4", "g"])
def test_dtypes_that_the_protocol_does_not_have(dtype: str) -> None:
    with pytest.raises(TritonModelException, match=r"^NumPy dtype is not supported\.$"):
        Tensor("X", np.zeros(2, dtype))


@pytest.mark.parametrize("arguments", [("X", [1]), ("X", 5), (5, np.zeros(1)), ("X", None), ("X", np.float32(3))])
def test_other_types(arguments: tuple[Any, Any]) -> None:
    with pytest.raises(TypeError, match="incompatible"):
        Tensor(*arguments)
