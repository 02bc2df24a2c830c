from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tensorfarm.workers.contract.messages import RequestBody, RequestContext, WantedOutput
from tensorfarm.workers.python import triton_python_backend_utils as pb
from tensorfarm.workers.python.errors import TritonModelException
from tensorfarm.workers.python.request import InferenceRequest
from tensorfarm.workers.python.response import InferenceResponse
from tensorfarm.workers.python.tensor import Tensor

from .fake_host import FakeHost, FakeMemory, FakeResponder, wire

INPUT = Tensor("I", np.arange(3, dtype=np.int32))


def made(**given: Any) -> InferenceRequest:
    return InferenceRequest(**({"inputs": [INPUT], "requested_output_names": ["O"], "model_name": "other"} | given))


def body(**given: Any) -> RequestBody:
    inputs = [wire("A", "INT32", (1,), bytes(4)), wire("B", "INT32", (1,), bytes(4))]
    return RequestBody(**({"id": "rid", "batch_size": 1, "inputs": inputs, "outputs": [], "parameters": {}} | given))


def test_a_received_request() -> None:
    responder = FakeResponder()
    context = RequestContext("seq", 3, 1000, '{"traceparent":"x"}')
    parameters = {"k": 1, "f": 1.5, "t": True, "s": 'é"'}
    wanted = [WantedOutput("O1"), WantedOutput("O2")]
    request = InferenceRequest.received(body(outputs=wanted, parameters=parameters, context=context), FakeMemory(), responder)
    assert isinstance(request, pb.InferenceRequest)
    assert request.request_id() == "rid"
    assert request.correlation_id() == "seq" and request.flags() == 3 and request.timeout() == 1000
    assert request.requested_output_names() == {"O1", "O2"}
    assert request.parameters() == '{"k":1,"f":1.5,"t":true,"s":"é\\""}'
    assert request.trace().get_context() == '{"traceparent":"x"}'
    assert not request.is_cancelled()
    responder.cancelled = True
    assert request.is_cancelled()


def test_a_received_request_without_the_rest() -> None:
    request = InferenceRequest.received(body(), FakeMemory(), FakeResponder(), frozenset({"X", "Y"}))
    assert (request.correlation_id(), request.flags(), request.timeout(), request.parameters()) == (0, 0, 0, "{}")
    assert request.requested_output_names() == {"X", "Y"}
    assert request.trace().get_context() is None
    assert request.model_name == "" and request.priority == 0


def test_inputs_are_made_once_and_only_when_asked_for() -> None:
    memory = FakeMemory()
    request = InferenceRequest.received(body(), memory, FakeResponder())
    first = request.inputs()
    assert [tensor.name() for tensor in first] == ["A", "B"]
    assert request.inputs() is not first and request.inputs()[0] is first[0]
    assert pb.get_input_tensor_by_name(request, "B") is first[1]
    assert pb.get_input_tensor_by_name(request, "C") is None
    assert memory.asked == 0


def test_flags_can_be_changed() -> None:
    for request in (made(), InferenceRequest.received(body(context=RequestContext(5, 1)), FakeMemory(), FakeResponder())):
        request.set_flags(2)
        assert request.flags() == 2
        with pytest.raises(TypeError):
            request.set_flags(-1)
    assert request.correlation_id() == 5 and request.flags() == 2


def test_release_flags() -> None:
    request = InferenceRequest.received(body(), FakeMemory(), FakeResponder())
    assert request.release_flags == 0
    request.set_release_flags(pb.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
    assert request.release_flags == 2
    with pytest.raises(TypeError):
        request.set_release_flags(-1)


def test_one_sender() -> None:
    responder = FakeResponder()
    request = InferenceRequest.received(body(), FakeMemory(), responder)
    sender = request.get_response_sender()
    assert request.get_response_sender() is sender
    response = InferenceResponse()
    sender.send(response)
    sender.send(flags=1)
    assert responder.sent == [(response, 0), (None, 1)]


def test_a_made_request() -> None:
    memory = pb.PreferredMemory(pb.TRITONSERVER_MEMORY_GPU, 1)
    trace = pb.InferenceTrace("up")
    request = InferenceRequest("id", 4, [INPUT], ["O", "O", "P"], "other", 7, 1, 20, memory, trace, {"a": 1, "b": "é"})
    assert (request.request_id(), request.correlation_id(), request.flags(), request.timeout()) == ("id", 4, 1, 20)
    assert (request.model_name, request.model_version, request.priority) == ("other", 7, 0)
    assert request.inputs() == [INPUT] and request.requested_output_names() == {"O", "P"}
    assert request.parameters() == '{"a": 1, "b": "\\u00e9"}' and request.parameters_dict == {"a": 1, "b": "é"}
    assert request.preferred_memory is memory and request.trace_ is trace and request.trace() is trace
    assert not request.is_cancelled()


def test_what_is_left_out() -> None:
    request = made()
    assert (request.request_id(), request.correlation_id(), request.model_version, request.timeout()) == ("", 0, -1, 0)
    assert request.parameters() == "{}" and json.loads(request.parameters()) == {}
    assert request.trace().get_context() is None


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"inputs": [INPUT, None]}, "Input tensor for request with id '' and model name 'other' should not be empty."),
        ({"requested_output_names": [""]}, "Requested output name for request with id '' and model name 'other' should not be empty."),
        ({"correlation_id": 1.5}, "Correlation ID must be integer or string"),
        ({"parameters": {1: 1}}, "Expect parameters keys to have type str, found type <class 'int'>"),
        ({"parameters": {"a": 1.5}}, "Expect parameters values to have type bool/int/str, found type <class 'float'>"),
        ({"parameters": [1]}, "Expect N8pybind114dictE, got <class 'list'>"),
    ],
)
def test_what_the_protocol_does_not_have(given: dict[str, Any], text: str) -> None:
    with pytest.raises(TritonModelException) as raised:
        made(**given)
    assert str(raised.value) == text


@pytest.mark.parametrize("number", [-1, 2**64])
def test_a_correlation_id_that_is_no_unsigned_number(number: int) -> None:
    with pytest.raises(RuntimeError):
        made(correlation_id=number)


@pytest.mark.parametrize(
    "given",
    [
        {"request_id": 3},
        {"correlation_id": None},
        {"inputs": [1]},
        {"inputs": INPUT},
        {"requested_output_names": [1]},
        {"requested_output_names": "O"},
        {"model_name": None},
        {"model_version": "1"},
        {"flags": -1},
        {"timeout": -1},
        {"timeout": 1.5},
        {"preferred_memory": 0},
        {"trace": 3},
    ],
)
def test_other_types(given: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="incompatible"):
        made(**given)


def test_what_must_be_there() -> None:
    for missing in ("inputs", "requested_output_names", "model_name"):
        given: dict[str, Any] = {"inputs": [], "requested_output_names": [], "model_name": "m"}
        del given[missing]
        with pytest.raises(TypeError):
            InferenceRequest(**given)


def test_correlation_ids() -> None:
    assert made(correlation_id="abc").correlation_id() == "abc"
    assert made(correlation_id=2**63).correlation_id() == 2**63
    assert made(correlation_id=True).correlation_id() == 1


def test_a_made_request_has_nobody_to_respond_to() -> None:
    with pytest.raises(TritonModelException) as raised:
        made().get_response_sender().send(InferenceResponse())
    assert str(raised.value) == "Unable to send response. Response sender has no reference to the decoupled state of the model."


def test_exec(fake_host: FakeHost) -> None:
    request = made()
    assert request.exec() is fake_host.response
    several = request.exec(decoupled=True)
    assert isinstance(several, Iterator) and list(several) == [fake_host.response]
    assert fake_host.called == [(request, False), (request, True)]
    with pytest.raises(TypeError):
        request.exec(decoupled=1)  # type: ignore[arg-type]


def test_async_exec_waits_in_another_thread(fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def call(request: InferenceRequest, decoupled: bool) -> Any:
        threads.append(threading.current_thread())
        return iter([fake_host.response]) if decoupled else fake_host.response

    monkeypatch.setattr(fake_host, "call", call)

    async def both() -> tuple[Any, Any]:
        return await asyncio.gather(made().async_exec(), made().async_exec(decoupled=True))

    one, several = asyncio.run(both())
    assert one is fake_host.response and list(several) == [fake_host.response]
    assert threading.current_thread() not in threads
    with pytest.raises(RuntimeError, match="no running event loop"):
        made().async_exec()


def test_unknown_attributes_are_unknown() -> None:
    for request in (made(), InferenceRequest.received(body(), FakeMemory(), FakeResponder())):
        with pytest.raises(AttributeError, match="'InferenceRequest' object has no attribute 'nothing'"):
            request.nothing  # noqa: B018
