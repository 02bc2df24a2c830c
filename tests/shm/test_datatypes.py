"""Datatypes, shapes, and the serialised form of BYTES."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor, triton_to_np_dtype

from tensorfarm.shm.datatypes import BY_NUMBER, DATATYPES, element_count, iter_bytes, serialize_bytes, shape_text


def test_numbers_and_names_are_those_of_the_configuration() -> None:
    values = dict(model_config_pb2.DataType.items())
    assert values.pop("TYPE_INVALID") == 0
    assert {datatype.config_name: datatype.number for datatype in DATATYPES.values()} == values
    assert {number: datatype.config_name for number, datatype in BY_NUMBER.items()} == {number: name for name, number in values.items()}


@pytest.mark.parametrize("name", list(DATATYPES))
def test_sizes_and_numpy_types(name: str) -> None:
    datatype = DATATYPES[name]
    assert datatype.name == name
    if name == "BYTES":
        assert datatype.byte_size == 0
    elif name == "BF16":
        assert (datatype.byte_size, datatype.dtype) == (2, np.uint16)
    else:
        assert datatype.dtype == np.dtype(triton_to_np_dtype(name))
        assert datatype.byte_size == datatype.dtype.itemsize


@pytest.mark.parametrize(("shape", "text", "count"), [
    ((), "[]", 0), ((1,), "[1]", 1), ((0,), "[0]", 0), ((2, 3), "[2,3]", 6), ((4, 0, 5), "[4,0,5]", 0), ((-1, 16), "[-1,16]", -16),
    ((2**40, 2**40), "[1099511627776,1099511627776]", 2**80),
])  # fmt: skip
def test_shapes(shape: tuple[int, ...], text: str, count: int) -> None:
    assert shape_text(shape) == text
    assert element_count(shape) == count


@given(st.lists(st.binary(max_size=40)))
def test_bytes_are_serialised_as_the_stock_client_does(elements: list[bytes]) -> None:
    content = serialize_bytes(elements)
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    theirs = serialize_byte_tensor(array)
    assert content == (theirs.item() if theirs.size else b"")
    assert list(iter_bytes(content)) == list(iter_bytes(memoryview(content))) == elements
    if elements:
        assert deserialize_bytes_tensor(content).tolist() == elements


@given(st.lists(st.binary(max_size=40), min_size=1), st.data())
def test_a_cut_buffer_is_an_error_and_never_a_short_element(elements: list[bytes], draw: st.DataObject) -> None:
    content = serialize_bytes(elements)
    cut = content[: draw.draw(st.integers(0, len(content) - 1))]
    found: list[bytes] = []
    try:
        found.extend(iter_bytes(cut))
    except ValueError as error:
        assert str(error) in ("a BYTES tensor ends inside an element's length", "a BYTES tensor ends inside an element")
    else:
        assert serialize_bytes(found) == cut
    assert found == elements[: len(found)]


def test_a_length_beyond_the_buffer_takes_no_memory() -> None:
    with pytest.raises(ValueError, match="^a BYTES tensor ends inside an element$"):
        list(iter_bytes(struct.pack("<I", 2**32 - 1) + b"x"))
