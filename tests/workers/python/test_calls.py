"""Calls to other models from inside: what is sent, lent and given back, and the questions beside them."""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tensorfarm.shm import copy_on_write
from tensorfarm.shm.placement import Inline, Lease, Span
from tensorfarm.workers.contract.messages import (
    Answer,
    AskReady,
    Call,
    CancelCall,
    Execute,
    Fault,
    Measure,
    Release,
    Reply,
    RequestContext,
    Result,
    Say,
)
from tensorfarm.workers.contract.messages import Tensor as WireTensor
from tensorfarm.workers.contract.status import Code, StatusError
from tensorfarm.workers.inbox import Inbox
from tensorfarm.workers.output import INLINE_BYTE_SIZE
from tensorfarm.workers.python.calls import Calls
from tensorfarm.workers.python.errors import TritonModelException
from tensorfarm.workers.python.memory import ModelMemory, SharedInputs
from tensorfarm.workers.python.request import InferenceRequest
from tensorfarm.workers.python.tensor import Tensor

from ..real_memory import ARENA_BYTE_SIZE, REGION_OFFSET, Bench, bench

# the process's one descriptor of it: opened before the leak check counts
copy_on_write._pagemap()

PATIENCE_S = 10.0
LARGE = INLINE_BYTE_SIZE + 1


class Line:
    """The server at the other end: what it hears is taken by ``heard``, what it answers is put in by ``answer``."""

    def __init__(self, world: Bench) -> None:
        self.world = world
        self.said: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.memory = ModelMemory(world.memory)
        world.memory.detach(5)
        world.attach(5, REGION_OFFSET, 1 << 20)
        self.calls = Calls(self.say, world.memory, self.memory, "m_0", "/models/m/1")
        self.calls.open = True
        self.threads: list[threading.Thread] = []

    def say(self, message: Any) -> None:
        if isinstance(message, Call | Say):
            for text in (getattr(message, "text", ""), getattr(message, "model", "")):
                text.encode()
        self.said.put(message)

    def heard(self, kind: type) -> Any:
        message = self.said.get(timeout=PATIENCE_S)
        assert isinstance(message, kind), message
        return message

    @property
    def silent(self) -> bool:
        return self.said.empty()

    def aside(self, work: Callable[[], Any]) -> queue.SimpleQueue[Any]:
        """Do something in another thread, and give what comes of it."""
        outcome: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def run() -> None:
            try:
                outcome.put(work())
            except Exception as error:  # noqa: BLE001  # told to the test
                outcome.put(error)

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()
        return outcome

    def exec(self, *tensors: Tensor, decoupled: bool = False, **more: Any) -> queue.SimpleQueue[Any]:
        request = InferenceRequest(inputs=list(tensors), requested_output_names=["OUT"], model_name="other", **more)
        return self.aside(lambda: self.calls.call(request, decoupled))

    def answer(self, call: Call, *outputs: WireTensor, loan: int = 0, final: bool = True) -> None:
        self.calls.answered(Answer(call.call, loan, Result(list(outputs)), final))

    def lent(self, byte: int) -> WireTensor:
        """An output of another worker, which lies here in the server's arena."""
        return WireTensor("OUT", "UINT8", (LARGE,), self.world.leased(bytes([byte]) * LARGE))

    def asides_done(self) -> None:
        """Everything that was put off has been done."""
        done = threading.Event()
        self.calls.aside(done.set)
        assert done.wait(PATIENCE_S)


@pytest.fixture
def line() -> Iterator[Line]:
    with bench() as world:
        made = Line(world)
        yield made
        for thread in made.threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        assert made.calls._pending == {} and made.calls._questions == {}
        gc.collect()
        made.asides_done()
        world.memory.use_copy_on_write(lambda kind, number: None)
        world.memory.detach(5)
        # their thread lives as long as this process
        made.calls.__dict__.pop("_memory")
        made.calls.__dict__.pop("_devices")
        made.calls.__dict__.pop("_model_memory")
        made.calls.__dict__.pop("_speak")
        made.__dict__.clear()


def array(value: int, size: int = 1) -> Tensor:
    return Tensor("IN", np.full(size, value, np.uint8))


def got(outcome: queue.SimpleQueue[Any]) -> Any:
    return outcome.get(timeout=PATIENCE_S)


def small(value: int) -> WireTensor:
    return WireTensor("OUT", "UINT8", (1,), Inline(memoryview(bytes([value]))))


def value(response: Any) -> int:
    assert not response.has_error(), response.error().message()
    return int(response.output_tensors()[0].as_numpy()[0])


def received(line: Line, place: Lease | Span) -> tuple[SharedInputs, Tensor]:
    """An input of a request that this process is executing."""
    inputs = SharedInputs(line.memory)
    tensor = Tensor.received(WireTensor("IN", "UINT8", (place.byte_size,), place), inputs)
    inputs.watch([tensor])
    return inputs, tensor


def test_a_call(line: Line) -> None:
    line.calls.batch = 9
    outcome = line.exec(array(5), request_id="id", correlation_id="nine", flags=3, timeout=50, parameters={"a": 1}, model_version=4)
    call = line.heard(Call)
    assert (call.batch, call.model, call.version, call.decoupled) == (9, "other", 4, False)
    assert (call.body.id, call.body.parameters, call.body.context) == ("id", {"a": 1}, RequestContext("nine", 3, 50))
    assert [output.name for output in call.body.outputs] == ["OUT"]
    assert bytes(call.body.inputs[0].place.content) == b"\5"
    line.answer(call, small(6))
    assert value(got(outcome)) == 6 and line.silent


def test_a_correlation_id_that_is_too_long(line: Line) -> None:
    """Counted in bytes; the server never hears of the call."""
    response = got(line.exec(array(5), correlation_id="é" * 65))
    assert response.error().code() == Code.INTERNAL
    assert response.error().message() == (
        "Model other - Error when running inference: string correlation ID cannot be longer than 128 characters"
    )
    outcome = line.exec(array(5), correlation_id="é" * 64)
    call = line.heard(Call)
    assert call.body.context == RequestContext("é" * 64)
    line.answer(call)
    assert not got(outcome).has_error()


def test_only_while_the_model_executes(line: Line) -> None:
    line.calls.open = False
    assert isinstance(got(line.exec(array(1))), TritonModelException) and line.silent


def test_an_error(line: Line) -> None:
    outcome = line.exec()
    line.calls.answered(Answer(line.heard(Call).call, 0, Result([], {}, Fault(Code.NOT_FOUND, "nf")), True))
    response = got(outcome)
    assert (response.error().code(), response.error().message()) == (Code.NOT_FOUND, "nf")


def test_calls_beside_each_other(line: Line) -> None:
    outcomes = [line.exec(array(number)) for number in range(5)]
    calls = [line.heard(Call) for _ in range(5)]
    assert len({call.call for call in calls}) == 5
    for call in reversed(calls):
        line.answer(call, small(call.body.inputs[0].place.content[0] + 10))
    assert [value(got(outcome)) for outcome in outcomes] == [10, 11, 12, 13, 14]


# inputs


def test_a_large_input_is_copied_to_the_arena_until_the_call_ends(line: Line) -> None:
    tensor = array(7, LARGE)
    outcome = line.exec(tensor)
    call = line.heard(Call)
    place = call.body.inputs[0].place
    assert isinstance(place, Lease) and place.arena == 1 and line.world.outputs.used_byte_size
    tensor.as_numpy()[:] = 0
    assert set(line.world.content(place)) == {7}
    line.answer(call, small(1))
    assert value(got(outcome)) == 1 and line.world.outputs.used_byte_size == 0


def test_no_room_for_an_input(line: Line) -> None:
    full = line.world.memory.reserve(ARENA_BYTE_SIZE - 40960)
    response = got(line.exec(Tensor("A", np.zeros(LARGE, np.uint8)), Tensor("B", np.zeros(LARGE, np.uint8))))
    assert response.error().code() is Code.UNAVAILABLE and line.silent
    (response,) = got(line.exec(array(1, 2 * LARGE), decoupled=True))
    assert response.error().code() is Code.UNAVAILABLE
    line.world.memory.free(full)
    assert line.world.outputs.used_byte_size == 0, "what had been copied comes back"


@pytest.mark.parametrize("element", ["\ud800", object])
def test_an_input_that_cannot_be_made(line: Line, element: Any) -> None:
    class Unspeakable:
        def __str__(self) -> str:
            raise ValueError

    bad = Tensor("B", np.array([Unspeakable() if element is object else element], np.object_))
    assert isinstance(got(line.exec(array(7, LARGE), bad)), ValueError)
    assert line.world.outputs.used_byte_size == 0 and line.calls._pending == {} and line.silent


def test_a_call_that_cannot_be_said(line: Line) -> None:
    """A text with surrogates: nothing of it is left, and a request whose input it was to pass on can end."""
    inputs, tensor = received(line, line.world.leased(b"\5" * LARGE))
    request = InferenceRequest(inputs=[tensor, array(7, LARGE)], requested_output_names=["OUT"], model_name="\ud800")
    with pytest.raises(UnicodeEncodeError):
        line.calls.call(request, False)
    assert line.world.outputs.used_byte_size == 0
    del tensor, request
    inputs.finish()
    line.calls.settle(inputs)


def test_an_input_is_passed_on_where_it_lies(line: Line) -> None:
    places = [line.world.leased(b"\5" * LARGE), line.world.spanned(0, b"\6" * LARGE)]
    opened = [received(line, place) for place in places]
    outcome = line.exec(*[tensor for _, tensor in opened])
    call = line.heard(Call)
    assert [tensor.place for tensor in call.body.inputs] == places and line.world.outputs.used_byte_size == 0
    line.answer(call, small(1))
    assert value(got(outcome)) == 1


def test_an_input_that_the_model_has_touched_is_copied(line: Line) -> None:
    inputs, tensor = received(line, line.world.leased(b"\5" * LARGE))
    tensor.as_numpy()[:] += 1
    outcome = line.exec(tensor)
    call = line.heard(Call)
    assert call.body.inputs[0].place.arena == 1 and set(line.world.content(call.body.inputs[0].place)) == {6}
    line.answer(call, small(1))
    assert value(got(outcome)) == 1


def test_a_request_does_not_end_before_those_have_read_it_that_it_was_passed_to(line: Line) -> None:
    first, tensor = received(line, line.world.leased(b"\5" * LARGE))
    other, _ = received(line, line.world.leased(b"\6" * LARGE))
    outcome = line.exec(tensor)
    call = line.heard(Call)
    line.calls.settle(other)
    first.finish()
    settled = line.aside(lambda: line.calls.settle(first))
    assert settled.empty()
    line.answer(call, small(1), final=False)
    assert settled.empty()
    line.calls.answered(Answer(call.call, 0, None, True))
    assert got(settled) is None and value(got(outcome)) == 1


def test_a_call_with_several_responses_reads_nothing_of_a_request(line: Line) -> None:
    """They may come long after its end."""
    inputs, tensor = received(line, line.world.leased(b"\5" * LARGE))
    responses = got(line.exec(tensor, decoupled=True))
    call = line.heard(Call)
    assert call.body.inputs[0].place.arena == 1
    inputs.finish()
    line.calls.settle(inputs)
    line.answer(call)
    assert len(list(responses)) == 1


# outputs


def test_outputs_are_lent_as_long_as_anything_of_them_lives(line: Line) -> None:
    outcome = line.exec()
    line.answer(line.heard(Call), line.lent(3), line.lent(4), loan=8)
    response = got(outcome)
    first, second = response.output_tensors()
    part = first.as_numpy()[10:20]
    part[:] += 1
    del response, first
    del second
    line.asides_done()
    assert line.silent and set(part.tolist()) == {4}
    del part
    assert line.heard(Release).loans == [8]


def test_outputs_that_nobody_looks_at(line: Line) -> None:
    outcome = line.exec()
    line.answer(line.heard(Call), line.lent(3), loan=8)
    got(outcome)
    assert line.heard(Release).loans == [8]


def test_an_output_that_is_passed_on_stays_lent_until_that_call_has_ended(line: Line) -> None:
    outcome = line.exec()
    output = line.lent(3)
    line.answer(line.heard(Call), output, loan=8)
    response = got(outcome)
    tensor = response.output_tensors()[0]
    del response
    outcome = line.exec(tensor)
    call = line.heard(Call)
    assert call.body.inputs[0].place == output.place
    del tensor
    line.asides_done()
    assert line.silent
    line.answer(call, small(1))
    assert line.heard(Release).loans == [8] and value(got(outcome)) == 1


def test_a_producer_that_has_died(line: Line) -> None:
    line.world.memory.adopt(7, None)
    outcome = line.exec()
    line.answer(line.heard(Call), WireTensor("OUT", "UINT8", (LARGE,), Lease(7, 0, LARGE)), loan=8)
    response = got(outcome)

    def failure(response: Any) -> str:
        # without the frames that a caught error keeps
        try:
            response.output_tensors()[0].as_numpy()
        except StatusError as error:
            return error.message
        return ""

    assert failure(response) == "the worker that made a tensor has gone, and the tensor with it"
    del response
    assert line.heard(Release).loans == [8]


# several responses


def test_responses_as_they_come(line: Line) -> None:
    responses = got(line.exec(decoupled=True))
    call = line.heard(Call)
    assert call.decoupled
    line.answer(call, small(1), final=False)
    assert value(next(responses)) == 1
    line.answer(call, line.lent(2), loan=5, final=False)
    line.calls.answered(Answer(call.call, 0, None, True))
    assert [len(response.output_tensors()) for response in responses] == [1, 1, 0], "iterated again from the first"
    assert [len(response.output_tensors()) for response in responses] == [1, 1, 0]
    responses.cancel()
    assert line.silent, "it has ended"
    del responses
    assert line.heard(Release).loans == [5]


def test_cancelling(line: Line) -> None:
    responses = got(line.exec(decoupled=True))
    call = line.heard(Call)
    responses.cancel()
    assert line.heard(CancelCall).call == call.call
    line.answer(call)
    list(responses)


def test_responses_that_nobody_takes_are_given_back(line: Line) -> None:
    """Those that have come, and those that come later; the call goes on, because what else it does may be wanted."""
    responses = got(line.exec(array(7, LARGE), decoupled=True))
    call = line.heard(Call)
    for loan in (1, 2):
        line.answer(call, line.lent(loan), loan=loan, final=False)
    taken = next(responses)
    del responses
    assert line.heard(Release).loans == [2]
    line.answer(call, line.lent(3), loan=3, final=False)
    assert line.heard(Release).loans == [3]
    line.calls.answered(Answer(call.call, 0, None, True))
    assert line.silent and line.world.outputs.used_byte_size == 0 and value(taken) == 1
    del taken
    assert line.heard(Release).loans == [1]


def test_an_answer_to_nothing(line: Line) -> None:
    line.calls.answered(Answer(99, 0, Result([]), True))


# questions, and what is told


def test_a_question_and_its_reply(line: Line) -> None:
    outcomes = [line.aside(lambda: line.calls.ask(AskReady(0, "m", ""))) for _ in range(2)]
    first, second = line.heard(AskReady), line.heard(AskReady)
    assert first.question != second.question and first.model == "m"
    line.calls.replied(Reply(second.question, True))
    line.calls.replied(Reply(first.question, None, Fault(Code.INVALID_ARG, "no")))
    outcome = [got(one) for one in outcomes]
    (failure,) = [one for one in outcome if isinstance(one, StatusError)]
    assert True in outcome and (failure.code, failure.message) == (Code.INVALID_ARG, "no")


def test_what_is_told_goes_before_what_is_asked_later(line: Line) -> None:
    line.calls.tell(Measure(1, "increment", 1.0))
    outcome = line.aside(lambda: line.calls.ask(AskReady(0, "m", "")))
    assert line.heard(Measure).value == 1.0
    line.calls.replied(Reply(line.heard(AskReady).question, 3))
    assert got(outcome) == 3


def test_what_cannot_be_said_ends_nothing(line: Line) -> None:
    def say(message: Any) -> None:
        getattr(message, "model", getattr(message, "text", "")).encode()
        line.said.put(message)

    line.calls._speak = say
    line.calls.tell(Say("I", "\ud800", "model.py", 1))
    assert isinstance(got(line.aside(lambda: line.calls.ask(AskReady(0, "\ud800", "")))), StatusError)
    line.calls.tell(Say("I", "text", "model.py", 1))
    assert line.heard(Say).text == "text"


def test_the_instances_own_thread_takes_its_answer_from_its_inbox(line: Line) -> None:
    """Calls of other threads, and decoupled ones, are answered by the control thread."""
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    inbox = Inbox(messages.get)
    inbox.answered = line.calls.answered
    batch = Execute(9, [])

    def work() -> None:
        line.calls.answer_to(5, inbox)
        request = InferenceRequest(inputs=[], requested_output_names=["OUT"], model_name="other")
        response = line.calls.call(request, False)
        line.calls.call(request, True)
        outcome.put((response, inbox.next()))
        # The identity of a thread that has ended may be the next one's.
        assert over.wait(PATIENCE_S)

    outcome: queue.SimpleQueue[Any] = queue.SimpleQueue()
    over = threading.Event()
    line.aside(work)
    call = line.heard(Call)
    assert call.instance == 5
    messages.put(batch)
    messages.put(Answer(call.call, 0, Result([WireTensor("OUT", "UINT8", (1,), Inline(memoryview(b"a")))]), True))
    response, following = outcome.get(timeout=PATIENCE_S)
    assert response.output_tensors()[0].as_numpy() == b"a"[0] and following == batch
    streamed = line.heard(Call)
    assert streamed.instance == 0
    line.answer(streamed)
    line.exec()
    assert (other := line.heard(Call)).instance == 0
    line.answer(other)
    over.set()


def test_a_call_that_is_broken_off_is_waited_for_where_its_answer_comes(line: Line) -> None:
    """A signal handler of the model may raise in the midst of it; the request whose memory it reads must not end before it."""
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def receive() -> Any:
        message = messages.get(timeout=PATIENCE_S)
        if isinstance(message, BaseException):
            raise message
        return message

    inbox = Inbox(receive)
    inbox.answered = line.calls.answered
    inputs = SharedInputs(line.memory)
    tensor = Tensor.received(line.lent(3), inputs)
    broken: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> None:
        line.calls.answer_to(5, inbox)
        request = InferenceRequest(inputs=[tensor], requested_output_names=["OUT"], model_name="other")
        try:
            line.calls.call(request, False)
        except InterruptedError as error:
            broken.put(error)
        line.calls.settle(inputs)
        broken.put("settled")

    line.aside(work)
    call = line.heard(Call)
    messages.put(InterruptedError())
    assert isinstance(broken.get(timeout=PATIENCE_S), InterruptedError)
    messages.put(Answer(call.call, 8, Result([line.lent(4)]), True))
    assert broken.get(timeout=PATIENCE_S) == "settled"
    assert line.heard(Release) == Release([8])
