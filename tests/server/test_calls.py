"""Calls of models to models: what is asked, what is lent and comes back, and callers that end in the middle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tensorfarm.server.calls import ModelCalls
from tensorfarm.server.dispatch.request import EndMark, Request, Response
from tensorfarm.server.repository.demand import NotResident
from tensorfarm.shm.placement import Inline, Lease, Span
from tensorfarm.workers.contract.messages import (
    Answer,
    Call,
    CancelCall,
    Fault,
    Release,
    RequestBody,
    RequestContext,
    Result,
    Tensor,
)
from tensorfarm.workers.contract.status import Code, StatusError, invalid, not_found, unavailable

IN_ARENA = [Tensor("OUT", "INT8", (2,), Lease(3, 0, 2)), Tensor("OTHER", "INT8", (2,), Lease(4, 8, 2))]
INLINE = [Tensor("OUT", "INT8", (1,), Inline(memoryview(b"a"))), Tensor("IN REGION", "INT8", (1,), Span(7, 0, 1))]


@dataclass(eq=False)
class FakeCaller:
    name: str = "w"
    said: list[Answer] = field(default_factory=list)
    instances: list[int] = field(default_factory=list)

    def answer(self, instance: int, message: Answer) -> None:
        self.said.append(message)
        self.instances.append(instance)


@dataclass
class FakeSignature:
    decoupled: bool = False


@dataclass
class FakeTarget:
    signature: Any = field(default_factory=FakeSignature)


@dataclass(eq=False)
class FakeAwaited:
    """A wait for a model."""

    on_ready: Any
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class Office:
    """Model calls with a server that does what a test says. Models of ``absent`` must be brought first."""

    def __init__(self) -> None:
        self.targets: dict[tuple[str, int], FakeTarget] = {("m", -1): FakeTarget(), ("stream", -1): FakeTarget(FakeSignature(True))}
        self.asked: list[Request] = []
        self.cancelled: list[Request] = []
        self.shared: list[tuple[int, FakeCaller]] = []
        self.given_back: list[Lease] = []
        self.refusal: StatusError | None = None
        self.absent: set[str] = set()
        self.brought: list[tuple[str, FakeCaller, FakeAwaited]] = []
        self.caller = FakeCaller()
        self.calls = ModelCalls(self._find, self._ask, lambda arena, caller: self.shared.append((arena, caller)), lambda: 77, self._bring)

    def _bring(self, absent: NotResident, on_ready: Any, caller: FakeCaller) -> Any:
        awaited = FakeAwaited(on_ready)
        self.brought.append((absent.name, caller, awaited))
        if self.refusal is not None:
            on_ready(self.refusal)
        return awaited

    def _find(self, model: str, version: int) -> FakeTarget:
        if model in self.absent:
            raise NotResident(model)
        if (model, version) not in self.targets:
            raise not_found("Request for unknown model")
        return self.targets[model, version]

    def _ask(self, model: str, version: int, request: Request) -> Any:
        if self.refusal is not None:
            raise self.refusal
        self.asked.append(request)
        return lambda: self.cancelled.append(request)

    def call(self, number: int = 1, model: str = "m", version: int = -1, caller: FakeCaller | None = None, **more: Any) -> None:
        inputs = [Tensor(name, "INT8", (1,), Inline(memoryview(b"a"))) for name in more.pop("inputs", ["A"])]
        body = RequestBody(more.pop("request_id", ""), 1, inputs, [], {}, more.pop("context", None))
        self.calls.call(Call(number, 9, model, version, body, **more), caller or self.caller)

    def respond(self, outputs: list[Tensor], at: int = -1, final: bool = True, error: StatusError | None = None) -> None:
        request = self.asked[at]
        request.on_response(Response(request, outputs, {"p": 1}, error, final, None, self.given_back.extend))

    def end(self, at: int = -1) -> None:
        self.asked[at].on_response(EndMark(self.asked[at], []))

    @property
    def answer(self) -> Answer:
        message = self.caller.said[-1]
        assert isinstance(message, Answer)
        return message


@pytest.fixture
def office() -> Office:
    return Office()


def refusal(office: Office) -> tuple[int, str]:
    assert office.answer.final and office.answer.loan == 0 and office.answer.result is not None
    fault = office.answer.result.fault
    assert fault is not None and office.calls.count == 0
    return fault.code, fault.message


def test_a_call_is_an_ordinary_request(office: Office) -> None:
    office.call(context=RequestContext(0, 0, 500), priority=3)
    (request,) = office.asked
    assert (request.priority, request.timeout_us, request.caller, request.start_ns) == (3, 500, 9, 77)
    assert office.calls.count == 1
    office.respond(INLINE)
    assert office.caller.said == [Answer(1, 0, Result(INLINE, {"p": 1}), True)]
    assert office.calls.count == 0 and office.given_back == [] and office.shared == []


def test_outputs_in_arenas_are_lent_until_the_caller_has_finished(office: Office) -> None:
    office.call()
    office.respond(IN_ARENA)
    assert sorted(office.shared, key=lambda pair: pair[0]) == [(3, office.caller), (4, office.caller)]
    loan = office.answer.loan
    assert loan and office.answer.result == Result(IN_ARENA, {"p": 1}) and office.given_back == []
    office.calls.release(Release([loan + 1]), office.caller)
    office.calls.release(Release([loan]), FakeCaller())
    assert office.given_back == [], "neither another loan nor another worker's"
    office.calls.release(Release([loan]), office.caller)
    office.calls.release(Release([loan]), office.caller)
    assert office.given_back == [Lease(3, 0, 2), Lease(4, 8, 2)]


def test_the_arena_is_shared_before_the_answer_goes(office: Office) -> None:
    """A lease that comes before its arena would have to be waited for."""
    order: list[str] = []
    office.calls._share = lambda arena, caller: order.append("share")
    office.caller.answer = lambda instance, message: order.append("answer")  # type: ignore[method-assign]
    office.call()
    office.respond(IN_ARENA)
    assert order == ["share", "share", "answer"]


def test_an_error_and_what_came_with_it(office: Office) -> None:
    office.call()
    office.respond(IN_ARENA, error=StatusError(Code.NOT_FOUND, "nf"))
    assert refusal(office) == (Code.NOT_FOUND, "nf")
    assert len(office.given_back) == 2


def test_several_responses_and_their_end(office: Office) -> None:
    office.call(model="stream", decoupled=True)
    office.respond(INLINE, final=False)
    office.respond(IN_ARENA, final=False)
    assert not office.answer.final and office.calls.count == 1
    office.end()
    assert office.answer == Answer(1, 0, None, True)
    first, second, _ = office.caller.said
    assert isinstance(first, Answer) and isinstance(second, Answer) and second.loan
    assert office.calls.count == 0 and office.given_back == []
    office.calls.release(Release([second.loan]), office.caller)
    assert len(office.given_back) == 2


@pytest.mark.parametrize(("model", "version"), [("nosuch", -1), ("m", 9), ("m", -2)])
def test_an_unknown_target(office: Office, model: str, version: int) -> None:
    office.targets["m", -2] = FakeTarget()
    office.call(model=model, version=version)
    text = f"Model {model} - Error when running inference: Failed for execute the inference request. Model '{model}' is not ready."
    assert refusal(office) == (Code.INTERNAL, text)
    assert office.asked == []


def test_a_decoupled_target_must_be_asked_as_one(office: Office) -> None:
    office.call(model="stream")
    code, text = refusal(office)
    assert code == Code.INTERNAL and text.startswith("Model stream - Error when running inference: Model stream is using the decoupled.")


def test_an_input_named_twice(office: Office) -> None:
    office.call(inputs=["A", "B", "A"])
    text = "Model m - Error when running inference: [request id: <id_unknown>] input 'A' already exists in request"
    assert refusal(office) == (Code.INTERNAL, text)


@pytest.mark.parametrize(("error", "code"), [(invalid("bad"), Code.INTERNAL), (unavailable("full"), Code.UNAVAILABLE)])
def test_a_refused_request(office: Office, error: StatusError, code: Code) -> None:
    office.refusal = error
    office.call()
    assert refusal(office) == (code, f"Model m - Error when running inference: {error.message}")


def test_the_caller_does_not_wait_any_more(office: Office) -> None:
    office.call(1)
    office.call(2)
    office.calls.cancel(CancelCall(2), office.caller)
    office.calls.cancel(CancelCall(3), office.caller)
    office.calls.cancel(CancelCall(1), FakeCaller())
    assert office.cancelled == [office.asked[1]]
    office.respond([], at=1, error=StatusError(Code.CANCELLED, ""))
    assert office.answer == Answer(2, 0, Result([], {}, Fault(Code.CANCELLED, "")), True)
    office.calls.cancel(CancelCall(2), office.caller)
    assert len(office.cancelled) == 1, "it has ended"


def test_a_caller_that_dies(office: Office) -> None:
    """Its open calls are withdrawn, what it was lent comes back, and what is still answered is let go of at once."""
    other = FakeCaller()
    office.call(1)
    office.call(2)
    office.call(1, caller=other)
    office.respond(IN_ARENA, at=0)
    office.calls.gone(office.caller)
    assert office.cancelled == [office.asked[1]] and office.given_back == [Lease(3, 0, 2), Lease(4, 8, 2)]
    office.respond(IN_ARENA, at=1)
    assert len(office.given_back) == 4 and len(office.caller.said) == 1
    assert office.calls.count == 1
    office.respond(INLINE, at=2)
    assert len(other.said) == 1 and office.calls.count == 0
    office.calls.gone(office.caller)
    office.calls.release(Release([1]), office.caller)
    assert len(office.given_back) == 4


def test_a_withdrawal_that_is_answered_at_once(office: Office) -> None:
    """As one that was still in the queue is."""

    def ask(model: str, version: int, request: Request) -> Any:
        return lambda: request.on_response(Response(request, [], error=StatusError(Code.CANCELLED, "")))

    office.calls._ask = ask
    office.call()
    office.calls.gone(office.caller)
    assert office.caller.said == [] and office.calls.count == 0


def test_an_answer_before_the_call_has_begun(office: Office) -> None:
    def ask(model: str, version: int, request: Request) -> Any:
        request.on_response(Response(request, INLINE))
        return lambda: None

    office.calls._ask = ask
    office.call()
    assert office.calls.count == 0
    office.calls.cancel(CancelCall(1), office.caller)


def test_a_call_waits_for_its_model_to_be_loaded(office: Office) -> None:
    office.absent.add("m")
    office.call()
    ((name, caller, awaited),) = office.brought
    assert (name, caller) == ("m", office.caller) and not office.asked and not office.caller.said
    assert office.calls.calling("m") == {"w"} and office.calls.calling("n") == set()
    office.absent.clear()
    awaited.on_ready(None)
    assert len(office.asked) == 1 and office.calls.calling("m") == {"w"}
    office.respond(INLINE)
    assert office.caller.said == [Answer(1, 0, Result(INLINE, {"p": 1}), True)] and office.calls.count == 0
    assert office.calls.calling("m") == set()


@pytest.mark.parametrize("at_once", [False, True])
def test_a_model_that_cannot_be_loaded_for_a_call(office: Office, at_once: bool) -> None:
    office.absent.add("m")
    office.refusal = unavailable("no room") if at_once else None
    office.call()
    if not at_once:
        office.brought[0][2].on_ready(unavailable("no room"))
    assert refusal(office) == (Code.UNAVAILABLE, "Model m - Error when running inference: no room")
    office.calls.cancel(CancelCall(1), office.caller)
    assert len(office.caller.said) == 1, "it is over"


def test_a_call_that_is_given_up_while_its_model_loads(office: Office) -> None:
    office.absent.add("m")
    office.call()
    awaited = office.brought[0][2]
    office.calls.cancel(CancelCall(1), office.caller)
    assert awaited.cancelled and refusal(office) == (Code.CANCELLED, "")
    awaited.on_ready(None)
    assert not office.asked and len(office.caller.said) == 1


def test_a_caller_that_ends_while_a_model_loads_for_it(office: Office) -> None:
    office.absent.add("m")
    office.call()
    awaited = office.brought[0][2]
    office.calls.gone(office.caller)
    assert awaited.cancelled and not office.caller.said and office.calls.count == 0
    awaited.on_ready(None)
    assert not office.asked
