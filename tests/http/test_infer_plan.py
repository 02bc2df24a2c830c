"""JSON parts that come again, byte for byte: what is kept of them must never show."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.door.body import InlineBody
from tensorfarm.server.door.scratch import Scratch
from tensorfarm.server.http import infer_plan
from tensorfarm.server.http.infer_call import IN_BINARY, IN_REGION, InferCall, infer_settings
from tensorfarm.server.http.infer_request import read_request
from tensorfarm.server.http.inference import infer_guarded
from tensorfarm.shm.placement import Span
from tensorfarm.workers.contract.messages import WantedOutput
from tensorfarm.workers.contract.status import StatusError

from .echo_service import EchoService, echo_signature, http_request, post, spec
from .infer_reading import LIMIT, TYPES, content_of, inputs, read, refusal, tensor

TWO = inputs(
    tensor(shape=[2], binary_data_size=8), tensor("IUINT8", "UINT8", [3], binary_data_size=3), parameters={"priority": 4, "p": "x"}
)


@pytest.fixture(autouse=True)
def no_plans() -> None:
    infer_plan.PLANS.clear()


def seen(call: InferCall) -> list[Any]:
    contents = [content_of(call, at) for at in range(len(call.body.inputs))]
    body = (
        [(item.name, item.datatype, item.shape) for item in call.body.inputs],
        call.body.outputs,
        call.body.parameters,
        call.body.batch_size,
    )
    return [contents, body, call.form, call.forms, call.priority, call.timeout_us, call.body.context]


def test_the_second_time_reads_the_same_with_its_own_tensors() -> None:
    first, second = read(TWO, b"abcdefghxyz"), read(TWO, b"ABCDEFGHXYZ")
    assert len(infer_plan.PLANS) == 1
    assert seen(first)[1:] == seen(second)[1:]
    assert (seen(first)[0], seen(second)[0]) == ([b"abcdefgh", b"xyz"], [b"ABCDEFGH", b"XYZ"])
    assert second.priority == 4 and second.body.parameters == {"p": "x"}


def test_another_length_of_body_is_still_an_error() -> None:
    read(TWO, b"abcdefghxyz")
    assert "expecting 1 additional bytes" in refusal(TWO, b"abcdefghxy")[1]
    assert "unexpected additional input data" in refusal(TWO, b"abcdefghxyz!")[1]


def test_models_that_batch_and_models_that_do_not_share_a_plan() -> None:
    request = inputs(tensor(shape=[2, 1], binary_data_size=8))
    batching = echo_signature("b", [spec("IINT32", "INT32", 1, batching=True)], max_batch_size=4)
    assert [read(request, bytes(8), signature=signature).body.batch_size for signature in (TYPES, batching, TYPES)] == [1, 2, 1]


@pytest.mark.parametrize(
    "request_",
    [
        inputs(tensor(shape=[1], binary_data_size=4), id="7"),
        inputs(tensor(data=[1])),
        inputs(tensor(shape=[1100] * 1, binary_data_size=4400), parameters={f"p{at}": "x" * 50 for at in range(100)}),
    ],
    ids=["id", "JSON tensor", "long"],
)
def test_what_is_not_kept(request_: dict[str, Any]) -> None:
    size = sum(item.get("parameters", {}).get("binary_data_size", 0) for item in request_["inputs"])
    for _ in range(2):
        read(request_, bytes(size))
    assert not infer_plan.PLANS


def test_regions_are_looked_up_each_time() -> None:
    """A region that was unregistered, or registered anew, between two equal requests."""
    text = json.dumps(
        inputs(
            tensor(shared_memory_region="in", shared_memory_offset=8, shared_memory_byte_size=4),
            tensor("IUINT8", "UINT8", [2], binary_data_size=2),
            outputs=[
                {"name": "OUINT8", "parameters": {"binary_data": True}},
                {"name": "OINT32", "parameters": {"shared_memory_region": "out", "shared_memory_byte_size": 4}},
            ],
        )
    ).encode()
    service = EchoService({}, regions_by_name={"in": 1, "out": 2})

    def again() -> InferCall:
        request = http_request(text + b"ab")
        plan = infer_plan.known_plan(request.body.view, len(text))
        if plan is not None:
            assert plan.uses_regions
            return replace(plan.terms, body=plan.request_body(request.body, TYPES, service.regions))
        return read_request(request, len(text), TYPES, service.regions, Scratch(), infer_settings(LIMIT, ""))

    for first, second in ((1, 2), (1, 2), (5, 6)):
        service.regions_by_name = {"in": first, "out": second}
        call = again()
        assert call.body.inputs[0].place == Span(first, 8, 4)
        assert content_of(call, 1) == b"ab"
        assert call.body.outputs == [WantedOutput("OUINT8"), WantedOutput("OINT32", Span(second, 0, 4))]
        assert call.forms == {"OUINT8": IN_BINARY, "OINT32": IN_REGION}
    assert len(infer_plan.PLANS) == 1
    for gone in ("in", "out"):
        service.regions_by_name = {"in": 1, "out": 2}
        del service.regions_by_name[gone]
        with pytest.raises(StatusError, match=f"^Unable to find shared memory region: '{gone}'$"):
            again()


def test_forwarded_headers_stay_with_their_request() -> None:
    request = inputs(tensor(binary_data_size=4))
    forwarded = read(request, bytes(4), headers={"X-Who": "me"}, forward="x-who")
    assert forwarded.body.parameters == {"X-Who": "me"}
    assert read(request, bytes(4)).body.parameters == {}
    assert read(request, bytes(4), headers={"X-Who": "you"}, forward="x-who").body.parameters == {"X-Who": "you"}
    assert read(request, bytes(4)).body.parameters == {}


def test_there_are_never_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infer_plan, "PLAN_COUNT", 3)
    for priority in range(10):
        read(inputs(tensor(binary_data_size=4), parameters={"priority": priority}), bytes(4))
        assert len(infer_plan.PLANS) <= 3


NAMES = st.sampled_from(["IINT32", "IUINT8", "IFP32"])


@given(st.lists(st.tuples(NAMES, st.integers(0, 3)), unique_by=lambda item: item[0]), st.booleans(), st.booleans())
def test_a_plan_reads_as_the_first_reading_did(items: list[tuple[str, int]], listed: bool, binary: bool) -> None:
    infer_plan.PLANS.clear()
    width = {"IINT32": 4, "IUINT8": 1, "IFP32": 4}
    request = inputs(*[tensor(name, name[1:], [count], binary_data_size=count * width[name]) for name, count in items])
    if listed:
        request["outputs"] = [{"name": f"O{name[1:]}", "parameters": {"binary_data": binary}} for name, _ in items]
    else:
        request["parameters"] = {"binary_data_output": binary, "timeout": 5}
    tail = bytes(range(sum(count * width[name] for name, count in items)))
    first, second = read(request, tail), read(request, tail)
    assert seen(first) == seen(second)
    assert len(infer_plan.PLANS) == 1
    if listed and binary:
        assert all(form == IN_BINARY for form in (second.forms or {}).values())


def test_a_plan_keeps_nothing_of_the_body() -> None:
    """Else a client could make the server hold on to thousands of bodies."""

    class Seen(bytearray):
        pass

    text = json.dumps(inputs(tensor(shape=[4], binary_data_size=16))).encode()
    content = Seen(text + bytes(16))
    gone = weakref.ref(content)
    body = InlineBody(content)
    read_request(http_request(body), len(text), TYPES, EchoService({}).regions, Scratch(), infer_settings(LIMIT, ""))
    assert len(infer_plan.PLANS) == 1
    del body, content
    assert gone() is None


# the checks against the model


def packed(request: dict[str, Any], tail: bytes) -> tuple[bytes, dict[str, str]]:
    text = json.dumps(request).encode()
    return text + tail, {"Inference-Header-Content-Length": str(len(text))}


def test_a_repeated_request_that_only_its_sizes_could_spoil_is_checked_once() -> None:
    service = EchoService({"m": echo_signature("m", [spec("IINT32", "INT32", 2)])})
    for value in (b"abcdefgh", b"ABCDEFGH", b"12345678"):
        reply = post(service, "m", *packed(inputs(tensor(shape=[2], binary_data_size=8), parameters={"binary_data_output": True}), value))
        assert reply.status == 200 and bytes(reply.body[1]) == value
    # The first one makes the plan, so it is not read from it.
    assert service.unchecked == 2


def test_another_model_checks_for_itself() -> None:
    """The same JSON part fits one model and not the other, whoever came first."""
    request = packed(inputs(tensor(shape=[2], binary_data_size=8)), bytes(8))
    fits, too_wide = (echo_signature(f"m{width}", [spec("IINT32", "INT32", width)]) for width in (2, 3))
    service = EchoService({"fits": fits, "wide": too_wide})
    statuses = [post(service, name, *request).status for name in ("fits", "fits", "wide", "fits", "wide", "wide", "fits")]
    assert statuses == [200, 200, 400, 200, 400, 400, 200]


def test_content_is_checked_each_time() -> None:
    """A BYTES tensor of the same size is well-formed one time and not the next."""
    service = EchoService({"m": echo_signature("m", [spec("IBYTES", "BYTES", 1)])})
    request = inputs(tensor("IBYTES", "BYTES", [1], binary_data_size=6))
    good, bad = b"\2\0\0\0hi", b"\3\0\0\0hi"
    assert [post(service, "m", *packed(request, value)).status for value in (good, good, bad, good, bad)] == [200, 200, 400, 200, 400]
    assert not service.unchecked


def test_a_batch_beyond_the_maximum_is_refused_each_time() -> None:
    service = EchoService({"m": echo_signature("m", [spec("IINT32", "INT32", 1, batching=True)], max_batch_size=2)})
    request = packed(inputs(tensor(shape=[3, 1], binary_data_size=12)), bytes(12))
    assert [post(service, "m", *request).status for _ in range(3)] == [400, 400, 400]
    assert not service.unchecked


def test_regions_are_held_each_time() -> None:
    service = EchoService({"m": echo_signature("m", [spec("IINT32", "INT32", 1)])}, regions_by_name={"r": 7})
    place = {"shared_memory_region": "r", "shared_memory_byte_size": 4}
    request = inputs(tensor(shape=[1], **place), outputs=[{"name": "OINT32", "parameters": place}])
    for _ in range(3):
        post(service, "m", json.dumps(request).encode())
    assert len(service.submitted) == 3 and not service.unchecked


def test_who_may_not_use_regions_does_not_get_them_from_a_plan() -> None:
    service = EchoService({"m": echo_signature("m", [spec("IINT32", "INT32", 1)])}, regions_by_name={"r": 7}, remote_shm=False)
    place = {"shared_memory_region": "r", "shared_memory_byte_size": 4}
    text = json.dumps(inputs(tensor(shape=[1], **place), outputs=[{"name": "OINT32", "parameters": place}])).encode()
    statuses = []
    for local in (True, True, False, True, False):
        request = http_request(text)
        request.peer_is_local = local
        infer_guarded(service, "m", "", request, lambda reply: statuses.append(reply.status))  # type: ignore[arg-type]
    assert statuses == [200, 200, 404, 200, 404]


def test_a_part_of_many_small_items_is_not_kept() -> None:
    """As objects it is many times as large as its text."""
    request = inputs(tensor(shape=[1], binary_data_size=4), parameters={str(number): 1 for number in range(70)})
    read(request, bytes(4))
    assert not infer_plan.PLANS
