"""Responses as they are written, read by protobuf."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from tensorfarm.server.dispatch.request import Request, Response
from tensorfarm.server.grpc import infer_response
from tensorfarm.server.grpc.infer_response import response_parts, stream_end, stream_error, stream_refusal, stream_response
from tensorfarm.shm.placement import Inline, Lease, Span
from tensorfarm.workers.contract.messages import RequestBody, Tensor
from tensorfarm.workers.contract.status import Code, StatusError

VERSION = cast(Any, SimpleNamespace(name="modél", version=3, labels={"C": ["cat", "dog"]}, signature=SimpleNamespace(batching=False)))
ARENA = memoryview(bytes(range(256)))
REQUEST = Request(RequestBody("", 1, [], [], {}), 0, lambda response: None)

Expected = service_pb2.ModelInferResponse


def response(*outputs: Tensor, **parameters: Any) -> Response:
    return Response(REQUEST, list(outputs), parameters, arena_view=lambda lease: ARENA[lease.offset : lease.offset + lease.byte_size])


def inline(name: str, content: bytes, datatype: str = "UINT8", shape: tuple[int, ...] | None = None) -> Tensor:
    return Tensor(name, datatype, (len(content),) if shape is None else shape, Inline(memoryview(content)))


def written(*arguments: Any) -> Any:
    """A unary response, read back."""
    return Expected.FromString(b"".join(response_parts(*arguments)))


tensors = st.lists(st.tuples(st.text(max_size=8), st.binary(max_size=300), st.lists(st.integers(-1, 2**40), max_size=4)), max_size=4)


@given(
    tensors,
    st.text(max_size=8),
    st.dictionaries(st.text(max_size=5), st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.floats()),
)
@settings(max_examples=150, deadline=None)
def test_what_is_written_can_be_read(outputs: list[tuple[str, bytes, list[int]]], identifier: str, parameters: dict[str, Any]) -> None:
    found = written(
        VERSION,
        identifier,
        None,
        response(*[inline(name, content, "INT8", tuple(shape)) for name, content, shape in outputs], **parameters),
    )
    expected = Expected(
        model_name="modél",
        model_version="3",
        id=identifier,
        outputs=[Expected.InferOutputTensor(name=name, datatype="INT8", shape=shape) for name, _, shape in outputs],
        raw_output_contents=[content for _, content, _ in outputs],
    )
    for name, value in parameters.items():
        kind = {bool: "bool_param", str: "string_param", float: "double_param"}.get(type(value))
        setattr(expected.parameters[name], kind or ("uint64_param" if value >= 2**63 else "int64_param"), value)
    assert found.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)


def test_nothing_is_copied_before_the_end() -> None:
    content = bytes(100_000)
    parts = response_parts(VERSION, "", None, response(inline("A", content), Tensor("L", "UINT8", (16,), Lease(1, 32, 16))))
    assert any(isinstance(part, memoryview) and part.obj is content for part in parts)
    found = Expected.FromString(b"".join(parts))
    assert list(found.raw_output_contents) == [content, bytes(range(32, 48))]


def test_an_output_in_a_region_has_no_bytes_but_its_place() -> None:
    found = written(VERSION, "", None, response(inline("A", b"a"), Tensor("R", "INT32", (2,), Span(1, 0, 8)), inline("B", b"")))
    assert [output.name for output in found.outputs] == ["A", "R", "B"]
    assert list(found.raw_output_contents) == [b"a", b"", b""]
    assert not found.outputs[1].parameters


def test_classes() -> None:
    values = b"\x01\x00\x00\x00\x05\x00\x00\x00\x03\x00\x00\x00"
    found = written(VERSION, "", {"C": 2}, response(inline("C", values, "INT32", (3,)), inline("A", b"a")))
    assert [(output.datatype, list(output.shape)) for output in found.outputs] == [("BYTES", [2]), ("UINT8", [1])]
    assert found.raw_output_contents[0] == b"\x07\0\0\x005:1:dog\x03\0\0\x003:2"
    with pytest.raises(StatusError) as caught:
        written(VERSION, "", {"C": 2}, response(inline("C", b"\1", "BOOL", (1,))))
    assert caught.value.message == "class result not available for output due to unsupported type 'BOOL'"


def test_a_message_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(written(VERSION, "", None, response(inline("A", bytes(1000)))).SerializeToString())
    monkeypatch.setattr(infer_response, "MOST_BYTES", size)
    written(VERSION, "", None, response(inline("A", bytes(1000))))
    with pytest.raises(StatusError) as caught:
        written(VERSION, "", None, response(inline("A", bytes(1001))))
    assert caught.value.code is Code.INVALID_ARG
    assert caught.value.message == f"Response has byte size {size + 1} which exceeds gRPC's byte size limit {size}."


# streams


def stream(content: bytes) -> Any:
    return service_pb2.ModelStreamInferResponse.FromString(content)


@pytest.mark.parametrize("final", [False, True])
def test_a_message_of_a_stream(final: bool) -> None:
    found = stream(stream_response(VERSION, "q", None, response(inline("A", b"a" * 200), k="v"), final))
    assert not found.error_message
    told = found.infer_response
    assert (told.model_name, told.model_version, told.id, list(told.raw_output_contents)) == ("modél", "3", "q", [b"a" * 200])
    assert told.parameters["triton_final_response"].bool_param is final
    assert told.parameters["k"].string_param == "v"
    error = stream(stream_error("wróng", "q", "modél", final))
    assert (error.error_message, error.infer_response.model_name, error.infer_response.model_version, error.infer_response.id) == (
        "wróng",
        "modél",
        "",
        "q",
    )
    assert error.infer_response.parameters["triton_final_response"].bool_param is final


@pytest.mark.parametrize("identifier", ["", "é"])
def test_a_request_that_has_not_begun(identifier: str) -> None:
    found = stream(stream_refusal("a\ud800b", identifier))
    assert (found.error_message, found.HasField("infer_response")) == ("a?b", True)
    assert found.infer_response == Expected(id=identifier)
    assert not stream(stream_refusal("", identifier)).error_message


@pytest.mark.parametrize("identifier", ["", "q"])
def test_an_end_without_a_response(identifier: str) -> None:
    found = stream(stream_end(identifier, "modél"))
    expected = Expected(model_name="modél", id=identifier)
    expected.parameters["triton_final_response"].bool_param = True
    assert found.infer_response == expected
