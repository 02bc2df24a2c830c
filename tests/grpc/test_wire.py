"""The wire format as it is read and written here, against protobuf itself."""

from __future__ import annotations

import time

import pytest
from google.protobuf.internal.decoder import _DecodeVarint
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from tensorfarm.server.grpc.wire import Unreadable, cut_out, field, field_head, first_content_at, packed_varints, varint

CUT = frozenset((3, 7))

inputs = st.builds(
    lambda name, shape: service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype="INT32", shape=shape),
    st.text(max_size=10),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
)
requests = st.builds(
    lambda model, identifier, tensors, raw: service_pb2.ModelInferRequest(
        model_name=model, id=identifier, inputs=tensors, raw_input_contents=raw
    ),
    st.text(max_size=300),
    st.text(max_size=10),
    st.lists(inputs, max_size=3),
    st.lists(st.binary(max_size=300), max_size=4),
)


@given(st.integers(-(2**63), 2**64 - 1))
@settings(deadline=None)
def test_numbers(value: int) -> None:
    content = varint(value)
    assert _DecodeVarint(content, 0) == (value % 2**64, len(content))


@given(st.binary(max_size=300), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5))
@settings(deadline=None)
def test_fields(content: bytes, shape: list[int]) -> None:
    message = service_pb2.ModelInferResponse.FromString(field(6, content) + field_head(6, len(content)) + content)
    assert list(message.raw_output_contents) == [content] * 2
    tensor = service_pb2.ModelInferResponse.InferOutputTensor.FromString(packed_varints(3, shape))
    assert list(tensor.shape) == shape
    assert tensor.SerializeToString() == packed_varints(3, shape)


@given(requests)
@settings(max_examples=200, deadline=None)
def test_tensors_are_cut_out_and_the_rest_is_the_rest(request: service_pb2.ModelInferRequest) -> None:
    content = request.SerializeToString()
    rest, cut = cut_out(memoryview(content), CUT, 100)
    assert [content[start:stop] for number, start, stop in cut if number == 7] == list(request.raw_input_contents)
    assert [content[start:stop].decode() for number, start, stop in cut if number == 3] == [request.id] * bool(request.id)
    bare = service_pb2.ModelInferRequest(model_name=request.model_name, inputs=request.inputs)
    assert service_pb2.ModelInferRequest.FromString(rest) == bare
    at = first_content_at(memoryview(content))
    assert at == next((start for number, start, _ in cut if number == 7), 0)


@given(requests, st.data())
@settings(max_examples=200, deadline=None)
def test_the_beginning_tells_where_the_first_tensor_lies(request: service_pb2.ModelInferRequest, data: st.DataObject) -> None:
    """Or that it is not seen; never anything else."""
    content = request.SerializeToString()
    whole = first_content_at(memoryview(content))
    seen = data.draw(st.integers(0, len(content)))
    assert first_content_at(memoryview(content)[:seen]) == (whole if whole <= seen else 0)


pieces = st.one_of(
    st.binary(max_size=6),
    st.builds(lambda number, content: field(number, content), st.integers(1, 20), st.binary(max_size=10)),
    st.builds(lambda number, value: varint(number << 3) + varint(value), st.integers(8, 30), st.integers(0, 2**64 - 1)),
    st.builds(lambda number, content: varint(number << 3 | 1) + content, st.integers(8, 30), st.binary(min_size=8, max_size=8)),
    st.builds(lambda number, content: varint(number << 3 | 5) + content, st.integers(8, 30), st.binary(min_size=4, max_size=4)),
    st.builds(lambda content, size: b"\x3a" + varint(size) + content, st.binary(max_size=10), st.integers(0, 2**64 - 1)),
)


@given(st.lists(pieces, max_size=8).map(b"".join))
@settings(max_examples=400, deadline=None)
def test_any_bytes_mean_what_protobuf_says(content: bytes) -> None:
    """What is taken apart and put together is the same message, or neither of the two is one."""
    try:
        rest, cut = cut_out(memoryview(content), CUT, 100)
        ours = service_pb2.ModelInferRequest.FromString(rest)
        for number, start, stop in cut:
            if number == 3:
                ours.id = content[start:stop].decode()
            else:
                ours.raw_input_contents.append(content[start:stop])
    except (Unreadable, DecodeError, UnicodeDecodeError):
        return
    theirs = service_pb2.ModelInferRequest.FromString(content)
    assert (ours.id, list(ours.raw_input_contents)) == (theirs.id, list(theirs.raw_input_contents))
    assert (ours.model_name, ours.inputs, ours.parameters) == (theirs.model_name, theirs.inputs, theirs.parameters)


@pytest.mark.parametrize(
    "broken",
    [
        b"\x3a",
        b"\x3a\x01",
        b"\x3a\x80",
        b"\x80",
        b"\xff" * 11,
        b"\x38\x01",
        b"\x18\x01",
        b"\x1d\0\0\0\0",
        b"\x0b",
        b"\x0c",
        b"\x0e",
        b"\x0f",
    ]
    + [b"\x09" + bytes(7), b"\x0d" + bytes(3), b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x08"],
)
def test_what_is_no_message(broken: bytes) -> None:
    with pytest.raises(Unreadable):
        cut_out(memoryview(b"\x0a\x01a" + broken), CUT, 100)


def test_there_are_only_so_many_fields() -> None:
    content = field(7, b"") * 100
    assert len(cut_out(memoryview(content), CUT, 100)[1]) == 100
    with pytest.raises(Unreadable):
        cut_out(memoryview(content + field(1, b"")), CUT, 100)
    assert first_content_at(memoryview(varint(1 << 3) * 2 * 300 + field(7, b""))) == 0


def test_a_beginning_is_looked_at_shortly() -> None:
    """However much has come: first one field that is not seen to its end, then many small ones."""
    for content in (field(1, bytes(1 << 22)) + field(7, b"x"), b"\x08\x01" * (1 << 20)):
        begun = time.process_time()
        for _ in range(100):
            assert first_content_at(memoryview(content)) == 0
        assert time.process_time() - begun < 1
