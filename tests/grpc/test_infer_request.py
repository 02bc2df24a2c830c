"""Reading inference requests. Texts and their order were asked of release 24.10."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from tensorfarm.server.door.body import ArenaBody, InlineBody
from tensorfarm.server.door.scratch import NO_MEMORY, Scratch
from tensorfarm.server.grpc.infer_call import InferCall
from tensorfarm.server.grpc.infer_message import InferMessage
from tensorfarm.server.grpc.infer_request import read_request
from tensorfarm.server.grpc.protocol import Unparsable
from tensorfarm.shm.placement import Inline, Lease, Span
from tensorfarm.workers.contract.messages import RequestContext, WantedOutput
from tensorfarm.workers.contract.status import Code, StatusError, not_found
from tests.http.doors import an_arena
from tests.http.echo_service import CountedBody, echo_signature, spec

ID = echo_signature("id", [spec("IA", "INT32", -1), spec("IB", "INT32", -1, optional=True)])
BATCH = echo_signature("batch", [spec("IA", "INT32", -1, batching=True)], max_batch_size=8)

Input = service_pb2.ModelInferRequest.InferInputTensor
Output = service_pb2.ModelInferRequest.InferRequestedOutputTensor
Contents = service_pb2.InferTensorContents
Parameter = service_pb2.InferParameter


def parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by the types of their values; ``...``: one without a value."""
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    return {
        name: value if isinstance(value, Parameter) else Parameter(**({} if value is ... else {kinds[type(value)]: value}))
        for name, value in given.items()
    }


def tensor(name: str = "IA", shape: tuple[int, ...] = (1,), datatype: str = "INT32", contents: Any = None, **more: Any) -> Any:
    """An input."""
    return Input(name=name, datatype=datatype, shape=shape, contents=contents, parameters=parameters(more))


def request(*inputs: Any, raw: tuple[bytes, ...] = (), outputs: tuple[Any, ...] = (), identifier: str = "", **more: Any) -> bytes:
    """A request's bytes."""
    return bytes(
        service_pb2.ModelInferRequest(
            model_name="id", id=identifier, inputs=inputs, raw_input_contents=raw, outputs=outputs, parameters=parameters(more)
        ).SerializeToString()
    )


class Regions:
    """One region."""

    asked = 0

    def __call__(self) -> Regions:
        self.asked += 1
        return self

    def span(self, name: str, offset: int, byte_size: int) -> Span:
        if name != "r":
            raise not_found(f"Unable to find shared memory region: '{name}'")
        return Span(5, offset, byte_size)


def read(content: bytes, signature: Any = ID, scratch: Scratch | None = None, **more: Any) -> InferCall:
    """Read a request."""
    message = InferMessage(InlineBody(content))
    message.parse()
    return read_request(message, signature, Regions(), scratch or Scratch(), **more)


def refusal(content: bytes, signature: Any = ID) -> tuple[Code, str]:
    """What is wrong with a request."""
    with pytest.raises(StatusError) as caught:
        read(content, signature)
    return caught.value.code, caught.value.message


def content_of(call: InferCall, index: int = 0) -> bytes:
    """The bytes of an input."""
    place = call.body.inputs[index].place
    assert type(place) is Inline
    return bytes(place.content)


# messages


@pytest.mark.parametrize("broken", [b"\x0a", b"\x0a\x05a", b"\x0a\x01\xff", b"\x1a\x01\xff", b"\x3a\x05a", b"\xff" * 20, b"\x2a\x01\x08"])
def test_what_is_no_message_is_given_back(broken: bytes) -> None:
    body = CountedBody(broken)
    with pytest.raises(Unparsable, match="Unable to parse request"):
        InferMessage(body).parse()
    assert body.releases == 1


def test_a_message_gives_its_body_back_once() -> None:
    body = CountedBody(request(tensor(), raw=(b"abcd",)))
    message = InferMessage(body)
    message.release()
    message.release()
    assert body.releases == 1


def test_an_empty_request_names_no_model() -> None:
    message = InferMessage(InlineBody())
    message.parse()
    assert (message.model, message.version, message.id, message.sizes) == ("", "", "", ())


# tensors


def test_raw_tensors_are_taken_in_order_and_not_copied() -> None:
    body = InlineBody(request(tensor(), tensor("IB", (2,)), raw=(b"abcd", b"efghijkl"), identifier="q"))
    message = InferMessage(body)
    message.parse()
    regions = Regions()
    call = read_request(message, ID, regions, Scratch())
    assert [content_of(call, index) for index in (0, 1)] == [b"abcd", b"efghijkl"]
    place = call.body.inputs[0].place
    assert type(place) is Inline and place.content.obj is body.view.obj
    assert [(item.name, item.datatype, item.shape) for item in call.body.inputs] == [("IA", "INT32", (1,)), ("IB", "INT32", (2,))]
    assert (call.body.id, call.body.batch_size, call.body.outputs, call.body.parameters, call.body.context) == ("q", 1, [], {}, None)
    assert regions.asked == 0


def test_a_message_in_the_arena_stays_there() -> None:
    with an_arena() as arena:
        content = request(tensor(), raw=(b"abcd",))
        block = arena.reserve(len(content) + 3)
        block.view[3 : 3 + len(content)] = content
        message = InferMessage(ArenaBody(block, len(content), 3))
        message.parse()
        call = read_request(message, ID, Regions(), Scratch())
        place = call.body.inputs[0].place
        assert type(place) is Lease
        assert bytes(block.view[place.offset - block.offset :][:4]) == b"abcd"
        assert call.body.context == RequestContext(0, 0, 0, "", True)
        message.release()


def test_typed_tensors_become_bytes_and_large_ones_go_to_scratch() -> None:
    with an_arena() as arena:
        scratch = Scratch(arena)
        values = list(range(20_000))
        call = read(
            request(tensor(shape=(20_000,), contents=Contents(int_contents=values)), tensor("IB", contents=Contents(int_contents=[7]))),
            ID,
            scratch,
        )
        place = call.body.inputs[0].place
        assert type(place) is Lease and place.byte_size == 80_000
        assert content_of(call, 1) == b"\7\0\0\0"
        assert arena.used_byte_size >= 80_000
        scratch.release()


def test_an_arena_without_room_refuses_what_must_be_decoded() -> None:
    with an_arena(1 << 16) as arena:
        rest = arena.reserve(60_000)
        with pytest.raises(StatusError, match=re.escape(NO_MEMORY)) as caught:
            read(request(tensor(shape=(20_000,), contents=Contents(int_contents=[1] * 20_000))), ID, Scratch(arena))
        assert caught.value.code is Code.UNAVAILABLE
        rest.release()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (request(tensor()), "unable to find data for input tensor 'IA' for model 'id' in request."),
        (request(tensor(shape=(0,))), "unable to find data for input tensor 'IA' for model 'id' in request."),
        (request(tensor(), tensor("IB"), raw=(b"abcd",)), "unable to find data for input tensor 'IB' for model 'id' in request."),
        (request(tensor(), tensor(), raw=(b"abcd",) * 2), "[request id: <id_unknown>] input 'IA' already exists in request"),
        (request(tensor(), tensor(), raw=(b"abcd",) * 2, identifier="q"), "[request id: q] input 'IA' already exists in request"),
        (
            request(tensor(), tensor("IB", contents=Contents(int_contents=[1])), raw=(b"abcd",)),
            "contents field must not be specified when using raw_input_contents for 'IB' for model 'id'",
        ),
        (
            request(tensor(contents=Contents(int64_contents=[1]))),
            "unexpected explicit tensor data for input tensor 'IA' for model 'id' of type 'INT64', expected datatype 'INT32'",
        ),
        (
            request(tensor(datatype="FOO", contents=Contents(int_contents=[1]))),
            "unexpected explicit tensor data for input tensor 'IA' for model 'id' of type 'INT32', expected datatype '<invalid>'",
        ),
    ],
)
def test_tensors_that_are_refused(content: bytes, text: str) -> None:
    assert refusal(content) == (Code.INVALID_ARG, text)


def test_more_raw_tensors_than_inputs_mean_nothing() -> None:
    assert content_of(read(request(tensor(), raw=(b"abcd", b"more")))) == b"abcd"
    assert read(request(raw=(b"more",))).body.inputs == []


def test_an_empty_tensor_is_one_where_it_is_given() -> None:
    assert content_of(read(request(tensor(shape=(0,)), raw=(b"",)))) == b""


def test_a_datatype_that_there_is_not() -> None:
    assert read(request(tensor(datatype="FOO"), raw=(b"x",))).body.inputs[0].datatype == "<invalid>"


@pytest.mark.parametrize(("shape", "size"), [((3, 2), 3), ((), 1), ((-1,), -1)])
def test_the_batch_size_is_the_first_dim(shape: tuple[int, ...], size: int) -> None:
    assert read(request(tensor(shape=shape), raw=(b"x",)), BATCH).body.batch_size == size


# regions


def test_inputs_and_outputs_in_regions() -> None:
    call = read(
        request(
            tensor(shared_memory_region="r", shared_memory_byte_size=8, shared_memory_offset=4),
            tensor("IB"),
            raw=(b"abcd",),
            outputs=(
                Output(name="OA", parameters=parameters({"shared_memory_region": "r", "shared_memory_byte_size": 8})),
                Output(name="OB"),
            ),
        )
    )
    assert call.body.inputs[0].place == Span(5, 4, 8)
    assert content_of(call, 1) == b"abcd"
    assert call.body.outputs == [WantedOutput("OA", Span(5, 0, 8)), WantedOutput("OB", None)]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"shared_memory_byte_size": 8},
            "'shared_memory_byte_size' can not be specified without 'shared_memory_region' parameter for tensor 'IA'",
        ),
        (
            {"shared_memory_byte_size": 8, "shared_memory_offset": 1},
            "'shared_memory_offset' can not be specified without 'shared_memory_region' parameter for tensor 'IA'",
        ),
        (
            {"shared_memory_region": "r"},
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor 'IA'",
        ),
        ({"shared_memory_region": 1}, "invalid value type for 'shared_memory_region' parameter for tensor 'IA', expected string_param."),
        (
            {"shared_memory_region": "r", "shared_memory_byte_size": "8"},
            "invalid value type for 'shared_memory_byte_size' parameter for tensor 'IA', expected int64_param.",
        ),
        (
            {"shared_memory_region": "r", "shared_memory_offset": 1.0, "shared_memory_byte_size": 8},
            "invalid value type for 'shared_memory_offset' parameter for tensor 'IA', expected int64_param.",
        ),
    ],
)
def test_parts_of_regions_that_are_refused(given: dict[str, Any], text: str) -> None:
    assert refusal(request(tensor(**given), raw=(b"abcd",))) == (Code.INVALID_ARG, text)


def test_an_unknown_region_and_contents_beside_one() -> None:
    assert refusal(request(tensor(shared_memory_region="", shared_memory_byte_size=8))) == (
        Code.NOT_FOUND,
        "Unable to find shared memory region: ''",
    )
    both = tensor(shared_memory_region="r", shared_memory_byte_size=8, contents=Contents(int_contents=[1]))
    assert refusal(request(both))[1] == "unexpected 'content' provided when using shared memory for input tensor 'IA' for model 'id'"
    assert content_of(read(request(tensor(foo="x", triton_z=1), raw=(b"abcd",)))) == b"abcd"


# outputs


def test_outputs_as_classes() -> None:
    call = read(request(outputs=(Output(name="OA", parameters=parameters({"classification": 3, "foo": 1})), Output(name="OB"))))
    assert call.classes == {"OA": 3}
    assert [output.name for output in call.body.outputs] == ["OA", "OB"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"classification": 0}, "invalid value for 'classification' parameter, expected >= 0"),
        ({"classification": -1}, "invalid value for 'classification' parameter, expected >= 0"),
        ({"classification": "1"}, "invalid value type for 'classification' parameter, expected int64_param"),
        ({"classification": ...}, "invalid value type for 'classification' parameter, expected int64_param"),
        (
            {"classification": 1, "shared_memory_region": "r", "shared_memory_byte_size": 8},
            "output can't set both 'shared_memory_region' and 'classification'",
        ),
    ],
)
def test_classes_that_are_refused(given: dict[str, Any], text: str) -> None:
    assert refusal(request(outputs=(Output(name="OA", parameters=parameters(given)),))) == (Code.INVALID_ARG, text)


# parameters


def test_parameters() -> None:
    given: dict[str, Any] = {
        "sequence_id": -1,
        "sequence_start": True,
        "sequence_end": True,
        "priority": 3,
        "timeout": -1,
        "k": 1,
        "b": False,
        "s": "é",
        "d": 1.5,
    }
    call = read(request(**given, triton_enable_empty_final_response=True, headers="h", binary_data_output=True, Triton_x="y"))
    assert call.body.parameters == {"k": 1, "b": False, "s": "é", "d": 1.5, "headers": "h", "binary_data_output": True, "Triton_x": "y"}
    assert call.body.parameters["b"] is False
    assert (call.priority, call.timeout_us, call.empty_final) == (3, 2**64 - 1, True)
    context = call.body.context
    assert context is not None and context.correlation_id == 2**64 - 1 and context.timeout_us == 2**64 - 1
    text = read(request(sequence_id="a" * 128)).body.context
    assert text is not None and text.correlation_id == "a" * 128
    assert read(request(priority=Parameter(uint64_param=2**64 - 1))).priority == 2**64 - 1
    assert read(request(sequence_start=False, sequence_end=False, timeout=0)).body.context is None


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("sequence_id", True, "invalid value type for 'sequence_id' parameter, expected int64_param or string_param."),
        ("sequence_id", ..., "invalid value type for 'sequence_id' parameter, expected int64_param or string_param."),
        ("sequence_start", 1, "invalid value type for 'sequence_start' parameter, expected bool_param."),
        ("sequence_end", "true", "invalid value type for 'sequence_end' parameter, expected bool_param."),
        ("priority", "1", "invalid value type for 'priority' parameter, expected int64_param or uint64_param."),
        ("priority", -1, "invalid value for 'priority', expected value >= 0."),
        ("timeout", "1", "invalid value type for 'timeout' parameter, expected int64_param."),
        (
            "triton_enable_empty_final_response",
            1,
            "invalid value type for 'triton_enable_empty_final_response' parameter, expected bool_param.",
        ),
        ("k", ..., "invalid value type for 'k' parameter, expected int64_param, bool_param, or string_param."),
        ("k", Parameter(uint64_param=1), "invalid value type for 'k' parameter, expected int64_param, bool_param, or string_param."),
        (
            "triton_",
            1,
            "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting with 'triton_' are allowed: triton_enable_empty_final_response",
        ),
    ],
)
def test_parameters_that_are_refused(name: str, value: Any, text: str) -> None:
    """Whatever is wrong with the tensors."""
    assert refusal(request(tensor(), **{name: value})) == (Code.INVALID_ARG, text)


def test_a_sequence_id_that_is_too_long() -> None:
    assert refusal(request(sequence_id="a" * 129)) == (Code.UNSUPPORTED, "string correlation ID cannot be longer than 128 characters")


def test_headers_become_parameters() -> None:
    pattern = re.compile("x-.*", re.IGNORECASE)
    call = read(request(k=1), headers=[("x-a", "1"), ("other", "2")], forwarded=pattern)
    assert call.body.parameters == {"k": 1, "x-a": "1"}
