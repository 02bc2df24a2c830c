"""Batches of Python models: what is answered, by whom, how often, and what of it counts as failed."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tensorfarm.shm import copy_on_write
from tensorfarm.shm.placement import Lease, Placement, Span
from tensorfarm.workers.contract.messages import Cancel, Done, Execute, RequestBody, Respond, Result, Tensor, WantedOutput
from tensorfarm.workers.contract.status import Code
from tensorfarm.workers.main_thread import MainThread
from tensorfarm.workers.output import INLINE_BYTE_SIZE
from tensorfarm.workers.python import host
from tensorfarm.workers.python.errors import TritonError, TritonModelException
from tensorfarm.workers.python.execution import FINAL, Execution
from tensorfarm.workers.python.memory import ModelMemory
from tensorfarm.workers.python.module import Unimplemented
from tensorfarm.workers.python.response import InferenceResponse
from tensorfarm.workers.python.tensor import Tensor as ModelTensor

from ..real_memory import REGION_OFFSET, Bench, bench, inline, request
from .fake_host import FakeHost

# the process's one descriptor of it: opened before the leak check counts
copy_on_write._pagemap()

PATIENCE_S = 10.0
LARGE = INLINE_BYTE_SIZE + 1
REFUSED = "Failed to process the request(s) for model 'm_0', message: "


@dataclass
class FakeModel:
    """Its ``execute`` is what a test says."""

    work: Callable[[list[Any]], Any]
    decoupled: bool = False
    name: str = "m"
    instance: str = "m_0"
    output_names: frozenset[str] = frozenset({"OUT", "OTHER"})
    reshapes: dict[str, Any] = field(default_factory=dict)
    batching: bool = False
    places: Any = None
    iterative: bool = False
    logged: list[str] = field(default_factory=list)

    def execute(self, requests: list[Any]) -> Any:
        return self.work(requests)

    def log_error(self, text: str) -> None:
        self.logged.append(text)


class FakeCalls:
    """Runs asides when a test says, and notes what is waited for; ``settling`` is called at that time."""

    def __init__(self) -> None:
        self.asides: list[Callable[[], None]] = []
        self.settled: list[Any] = []
        self.settling: Callable[[], None] = lambda: None

    def aside(self, work: Callable[[], None]) -> None:
        self.asides.append(work)

    def flush(self) -> None:
        self.do_asides()

    def do_asides(self) -> None:
        asides, self.asides = self.asides, []
        for work in asides:
            work()

    def settle(self, inputs: Any) -> None:
        self.settled.append(inputs)
        self.settling()


class Stage:
    """An execution with a real memory, and what it has said."""

    def __init__(self, world: Bench) -> None:
        self.world = world
        self.said: list[Respond] = []
        self.heard = threading.Condition()
        self.calls = FakeCalls()
        self.numbers = iter(range(1, 1000))
        self.model = FakeModel(lambda requests: None)
        self.execution: Any = None

    def show(
        self, work: Callable[[list[Any]], Any], decoupled: bool = False, places: Any = None, iterative: bool = False, cpu_only: bool = True
    ) -> None:
        """A model whose ``execute`` this is."""
        self.model = FakeModel(work, decoupled, places=places, iterative=iterative)
        memory = self.world.memory
        memory.use_copy_on_write(lambda kind, number: None)
        memory.detach(5)
        self.world.attach(5, REGION_OFFSET, 1 << 20)
        model_memory = ModelMemory(memory, cpu_only=cpu_only)
        self.execution = Execution(self.model, memory, model_memory, self.calls, self._speak, MainThread())  # type: ignore[arg-type]

    def _speak(self, message: Respond) -> None:
        with self.heard:
            self.said.append(message)
            self.heard.notify_all()

    def run(self, *bodies: RequestBody, number: int = 0) -> Done:
        done: Done = self.execution.run(Execute(number or next(self.numbers), list(bodies) or [body(1)]))
        assert done.compute_start_ns <= done.input_end_ns <= done.output_start_ns <= done.compute_end_ns
        return done

    def until_said(self, count: int) -> list[Respond]:
        with self.heard:
            assert self.heard.wait_for(lambda: len(self.said) >= count, PATIENCE_S)
            return self.said

    @property
    def open_batches(self) -> int:
        return len(self.execution._batches)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(host, "current", FakeHost())
    with bench() as world:
        made = Stage(world)
        yield made
        loop = None if made.execution is None else made.execution._loop
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)
            while loop.is_running():
                pass
            loop.close()
        world.memory.use_copy_on_write(lambda kind, number: None)
        world.memory.detach(5)
        made.__dict__.clear()


def body(value: int, *outputs: str | WantedOutput, place: Placement | None = None, datatype: str = "UINT8") -> RequestBody:
    at = inline(bytes([value])) if place is None else place
    return request([Tensor("IN", datatype, (at.byte_size,) if datatype == "UINT8" else (1,), at)], outputs=outputs)


def value_of(asked: Any) -> int:
    return int(asked.inputs()[0].as_numpy()[0])


def answer(value: int, size: int = 1, name: str = "OUT") -> InferenceResponse:
    return InferenceResponse([ModelTensor(name, np.full(size, value, np.uint8))])


def echo(requests: list[Any]) -> list[InferenceResponse]:
    return [answer(value_of(one)) for one in requests]


def outcome(stage: Stage, result: Result | None) -> Any:
    """The first byte of each output, or a fault's text; leases go back."""
    if result is None:
        return None
    if result.fault is not None:
        assert result.outputs == []
        return result.fault.message
    contents = [stage.world.content(tensor.place) for tensor in result.outputs]
    for tensor in result.outputs:
        if isinstance(tensor.place, Lease):
            stage.world.memory.free(tensor.place)
    return [content[0] for content in contents]


def outcomes(stage: Stage, done: Done) -> list[Any]:
    found = [outcome(stage, result) for result in done.results]
    assert stage.world.outputs.used_byte_size == 0
    return found


def test_a_batch_is_answered_in_order(stage: Stage) -> None:
    stage.show(echo)
    done = stage.run(body(1), body(2), body(3))
    assert outcomes(stage, done) == [[1], [2], [3]] and done.failed == []
    assert stage.open_batches == 0 and stage.said == []


def test_only_what_was_asked_for_and_is_there(stage: Stage) -> None:
    def work(requests: list[Any]) -> Any:
        return [InferenceResponse([*answer(1).tensors, *answer(2, name="OTHER").tensors, *answer(3, name="NOSUCH").tensors])] * len(
            requests
        )

    stage.show(work)
    done = stage.run(body(0), body(0, "OTHER"), body(0, "OTHER", "OUT"), body(0, "NOSUCH"))
    assert [[tensor.name for tensor in result.outputs] for result in done.results if result] == [
        ["OUT", "OTHER"], ["OTHER"], ["OUT", "OTHER"], ["NOSUCH"],
    ]  # fmt: skip


def test_large_outputs_lie_in_the_arena_or_in_the_clients_region(stage: Stage) -> None:
    stage.show(lambda requests: [answer(7, LARGE) for _ in requests])
    done = stage.run(body(0), body(0, WantedOutput("OUT", Span(5, 0, LARGE))))
    places = [result.outputs[0].place for result in done.results if result]
    assert isinstance(places[0], Lease) and places[1] == Span(5, 0, LARGE)
    assert outcomes(stage, done) == [[7], [7]]


def test_a_region_that_is_too_small_costs_one_request(stage: Stage) -> None:
    stage.show(lambda requests: [InferenceResponse([*answer(6, LARGE, "OTHER").tensors, *answer(7, 4).tensors]) for _ in requests])
    done = stage.run(body(0, "OTHER", WantedOutput("OUT", Span(5, 0, 3))), body(0, "OUT"))
    first, second = outcomes(stage, done)
    assert first.startswith("shared memory size specified with the request for output 'OUT' (3 bytes)") and second == [7]


class Unspeakable:
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize("element", [Unspeakable(), "\ud800"])
def test_an_output_that_cannot_be_made_costs_one_request(stage: Stage, element: object) -> None:
    """What a model's objects raise on their way out does not end its process."""

    def work(requests: list[Any]) -> Any:
        bad = ModelTensor("OTHER", np.array([element], np.object_))
        return [InferenceResponse([*answer(1, LARGE).tensors, bad]), answer(2)]

    stage.show(work)
    first, second = outcomes(stage, stage.run(body(1), body(2)))
    assert first.startswith(REFUSED) and second == [2]


def test_a_response_is_an_error(stage: Stage) -> None:
    stage.show(lambda requests: [InferenceResponse(answer(1, LARGE).tensors, TritonError("nf \udcff", TritonError.NOT_FOUND))])
    done = stage.run()
    assert done.results[0] is not None and done.results[0].fault is not None and done.results[0].fault.code == Code.NOT_FOUND
    assert outcomes(stage, done) == ["nf \\udcff"]
    assert done.failed == [], "the model answers: to the original's statistics that is a success"


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
def test_what_execute_raises_is_everyones_answer(stage: Stage, error: type[BaseException]) -> None:
    def work(requests: list[Any]) -> Any:
        raise error("boom")

    stage.show(work)
    done = stage.run(body(1), body(2))
    text = outcomes(stage, done)
    line = work.__code__.co_firstlineno + 1
    assert text[0].startswith(f"{REFUSED}{error.__name__}: boom\n\nAt:\n  {__file__}({line}): work\n") and text[1] == text[0]
    assert done.failed == [0, 1] and stage.model.logged == text[:1] and stage.open_batches == 0


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        ((1,), "Expected a list in the execute return, found type '<class 'tuple'>'."),
        ([], "Number of InferenceResponse objects do not match the number of InferenceRequest objects. InferenceRequest(s) size is:1, "
             "and InferenceResponse(s) size is:0\n"),
        ([1], "Expected an 'InferenceResponse' object in the execute function return list, found type '<class 'int'>'."),
    ],
)  # fmt: skip
def test_what_execute_must_not_return(stage: Stage, returned: Any, text: str) -> None:
    stage.show(lambda requests: returned)
    done = stage.run()
    assert outcomes(stage, done) == [REFUSED + text] and done.failed == [0]


def test_a_model_without_execute(stage: Stage) -> None:
    def work(requests: list[Any]) -> Any:
        raise Unimplemented("does not implement")

    stage.show(work)
    assert outcomes(stage, stage.run()) == [REFUSED + "does not implement"]


@pytest.mark.parametrize("returned", [None, [None]])
def test_a_request_without_any_answer(stage: Stage, returned: Any) -> None:
    stage.show(lambda requests: returned)
    done = stage.run()
    assert outcomes(stage, done) == ["model 'm_0' returned no response to a request and has not taken its response sender"]
    assert done.failed == [] and stage.open_batches == 0


def test_the_list_of_requests_is_the_models_own(stage: Stage) -> None:
    """It may empty it, and it may keep it."""
    kept: list[Any] = []

    def work(requests: list[Any]) -> Any:
        kept.append(requests)
        return [answer(value_of(requests.pop(0))), None] if len(requests) > 1 else echo(requests)

    stage.show(work)
    first, second = outcomes(stage, stage.run(body(1), body(2)))
    assert first == [1] and second.startswith("model 'm_0' returned no response")
    assert outcomes(stage, stage.run(body(3))) == [[3]]
    assert [value_of(one) for one in kept[1]] == [3]


# inputs


def test_inputs_in_shared_memory(stage: Stage) -> None:
    kept: list[Any] = []

    def work(requests: list[Any]) -> Any:
        responses = []
        for one in requests:
            array = one.inputs()[0].as_numpy()
            array += 1
            responses.append(InferenceResponse([ModelTensor("OUT", array)]))
            kept.append(array)
        return responses

    stage.show(work)
    place = stage.world.leased(b"\5" * LARGE)
    span = stage.world.spanned(0, b"\6" * LARGE)
    assert outcomes(stage, stage.run(body(0, place=place), body(0, place=span), body(0, place=span))) == [[6], [7], [7]]
    stage.world.requests.view(place)[:] = bytes(LARGE)
    stage.world.spanned(0, bytes(LARGE))
    assert [set(array.tolist()) for array in kept] == [{6}, {7}, {7}]


def test_a_request_that_is_kept_unread_shows_what_it_had(stage: Stage) -> None:
    kept: list[Any] = []

    def work(requests: list[Any]) -> Any:
        kept.extend(requests)
        return [answer(1) for _ in requests]

    stage.show(work)
    place = stage.world.leased(b"\5" * LARGE)
    stage.run(body(0, place=place))
    stage.world.requests.view(place)[:] = bytes(LARGE)
    assert set(kept[0].inputs()[0].as_numpy().tolist()) == {5}


def test_a_bad_input_costs_one_request(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorfarm.workers.memory.ATTACH_TIMEOUT_SECS", 0.0)
    seen: list[int] = []

    def work(requests: list[Any]) -> Any:
        seen.append(len(requests))
        return echo(requests)

    stage.show(work)
    stage.world.memory.adopt(9, None)
    cut = body(0, place=stage.world.spanned(0, b"\5\0\0\0abc"), datatype="BYTES")
    done = stage.run(body(0, place=Span(77, 0, 1)), body(1), cut, body(0, place=Lease(9, 0, LARGE)), body(2))
    missing, first, strings, gone, second = outcomes(stage, done)
    assert missing == "a shared memory region did not reach the worker in time" and strings.startswith("incomplete string data")
    assert gone == "the worker that made a tensor has gone, and the tensor with it"
    assert (first, second, seen, done.failed) == ([1], [2], [2], [0, 2, 3])
    assert outcomes(stage, stage.run(cut, cut)) == [strings] * 2 and seen == [2]
    assert stage.open_batches == 0


# response senders


def test_one_answer_by_the_sender(stage: Stage) -> None:
    def work(requests: list[Any]) -> Any:
        requests[0].get_response_sender().send(answer(1), FINAL)
        return [None, *echo(requests[1:])]

    stage.show(work)
    done = stage.run(body(1), body(2), number=5)
    assert outcomes(stage, done) == [None, [2]] and done.failed == []
    (said,) = stage.said
    assert (said.batch, said.index, said.final, outcome(stage, said.result)) == (5, 0, True, [1])
    assert stage.open_batches == 0


def test_the_end_comes_apart_and_late(stage: Stage) -> None:
    kept: list[Any] = []

    def work(requests: list[Any]) -> Any:
        sender = requests[0].get_response_sender()
        sender.send(answer(1))
        kept.append(sender)

    stage.show(work)
    assert outcomes(stage, stage.run()) == [None] and stage.open_batches == 1
    kept[0].send(flags=FINAL)
    assert [(said.final, outcome(stage, said.result)) for said in stage.said] == [(False, [1]), (True, None)]
    assert stage.open_batches == 0
    kept.clear()
    assert stage.calls.asides == [], "a sender that has ended may go"


@pytest.mark.parametrize(
    ("sends", "text"),
    [
        ([(None, FINAL)], "Non-decoupled model cannot send complete final before sending a response."),
        ([(1, 0), (2, 0)], "Non-decoupled model cannot send more than one response."),
        ([(1, FINAL), (2, FINAL)], "Non-decoupled model cannot send more than one response."),
        ([(1, FINAL), (None, FINAL)], "Response sender has been closed."),
    ],
)
def test_what_the_sender_of_a_plain_model_refuses(stage: Stage, sends: list[tuple[Any, int]], text: str) -> None:
    raised: list[str] = []

    def work(requests: list[Any]) -> Any:
        sender = requests[0].get_response_sender()
        for value, flags in sends:
            try:
                sender.send(None if value is None else answer(value), flags)
            except TritonModelException as error:
                raised.append(str(error))

    stage.show(work)
    stage.run()
    assert raised == [f"Unable to send response. {text}"]
    stage.calls.do_asides()
    assert sum(said.final for said in stage.said) == 1, "whatever the model does, the request ends once"


def test_a_sender_beside_a_returned_response(stage: Stage) -> None:
    """The client gets what the sender sent first, and the error as the end."""

    def work(requests: list[Any]) -> Any:
        requests[0].get_response_sender().send(answer(1), 0)
        return [answer(2, LARGE)]

    stage.show(work)
    done = stage.run()
    assert outcomes(stage, done) == [None] and done.failed == [0]
    assert [said.final for said in stage.said] == [False, True]
    assert "cannot send more than one response" in outcome(stage, stage.said[1].result)
    assert stage.open_batches == 0


def test_a_dropped_sender_is_an_error(stage: Stage) -> None:
    stage.show(lambda requests: [one.get_response_sender() for one in requests] and None)
    stage.run(body(1), body(2))
    gc.collect()
    assert stage.said == [], "not where the sender dies: any lock may be held there"
    stage.calls.do_asides()
    assert sorted(said.index for said in stage.said) == [0, 1] and all(said.final for said in stage.said)
    text = "model 'm_0' has dropped a request's response sender without sending its final response"
    assert [outcome(stage, said.result) for said in stage.said] == [text] * 2 and stage.open_batches == 0


def test_a_response_that_cannot_be_sent_ends_the_request_all_the_same(stage: Stage) -> None:
    def work(requests: list[Any]) -> Any:
        bad = InferenceResponse([ModelTensor("OUT", np.array(["\ud800"], np.object_))])
        requests[0].get_response_sender().send(bad, FINAL)

    stage.show(work, decoupled=True)
    stage.run()
    (said,) = stage.said
    assert said.final and outcome(stage, said.result).startswith(REFUSED)


def test_responses_from_many_threads(stage: Stage) -> None:
    threads: list[threading.Thread] = []

    def work(requests: list[Any]) -> Any:
        for one in requests:
            sender = one.get_response_sender()
            threads.append(threading.Thread(target=lambda sender=sender: [sender.send(answer(1)), sender.send(answer(2), FINAL)]))
            threads[-1].start()

    stage.show(work, decoupled=True)
    stage.run(*[body(value) for value in range(16)])
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(said.index for said in stage.said if said.final) == list(range(16)) and len(stage.said) == 32
    assert stage.open_batches == 0


def test_decoupled_models_must_not_return_anything(stage: Stage) -> None:
    def work(requests: list[Any]) -> Any:
        requests[0].get_response_sender().send(answer(1), FINAL)
        return []

    stage.show(work, decoupled=True)
    done = stage.run(body(1), body(2))
    first, second = outcomes(stage, done)
    assert first is None and second.endswith("is using the decoupled mode and the execute function must return None.")
    assert done.failed == [0, 1] and [said.final for said in stage.said] == [True]


def test_the_inputs_end_before_the_last_response_goes(stage: Stage) -> None:
    """From then on the client may write to its region: models that were passed it must have read it, and what is kept is the model's."""
    order: list[str] = []
    kept: list[Any] = []
    span = stage.world.spanned(0, b"\5" * LARGE)
    stage.calls.settling = lambda: order.append("settled")

    def work(requests: list[Any]) -> Any:
        kept.append((requests[0].get_response_sender(), requests[0].inputs()[0].as_numpy()))

    stage.show(work, decoupled=True)
    stage.run(body(0, place=span))
    assert order == []
    sender, array = kept[0]
    sender.send(answer(1))
    assert order == []
    speak = stage.execution._speak
    stage.execution._speak = lambda message: (order.append("said"), stage.world.spanned(0, bytes(LARGE)), speak(message))
    sender.send(flags=FINAL)
    assert order == ["settled", "said"] and set(array.tolist()) == {5}


# cancelling


@pytest.mark.parametrize("early", [False, True], ids=["while it runs", "while it waits in the worker"])
def test_a_cancelled_request(stage: Stage, early: bool) -> None:
    seen: list[list[bool]] = []

    def work(requests: list[Any]) -> Any:
        if not early:
            stage.execution.cancel(Cancel(8, 1))
        seen.append([one.is_cancelled() for one in requests])
        assert seen[-1] == [one.get_response_sender().is_cancelled() for one in requests]
        return echo(requests)

    stage.show(work)
    if early:
        stage.execution.cancel(Cancel(8, 1))
        stage.execution.cancel(Cancel(9, 0))
    stage.run(body(1), body(2), number=8)
    assert seen == [[False, True]]
    stage.run(number=9)
    assert seen[1] == [early]
    for number in (3, 8, 9):
        stage.execution.cancel(Cancel(number, 0))
    assert not stage.execution._early_cancels, "what is over is not remembered"


# coroutines


def test_a_coroutine_is_waited_for(stage: Stage) -> None:
    async def work(requests: list[Any]) -> Any:
        await asyncio.sleep(0)
        return echo(requests)

    stage.show(work)
    assert outcomes(stage, stage.run(body(1), body(2))) == [[1], [2]]


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.parametrize("decoupled", [False, True])
def test_a_coroutine_that_raises(stage: Stage, error: type[BaseException], decoupled: bool) -> None:
    """The loop goes on: the next batch is served."""
    senders: list[Any] = []

    async def work(requests: list[Any]) -> Any:
        await asyncio.sleep(0)
        if value_of(requests[0]) == 9:
            raise error("no")
        if not decoupled:
            return echo(requests)
        senders.append(requests[0].get_response_sender())
        senders[0].send(answer(2), FINAL)

    stage.show(work, decoupled)
    done = stage.run(body(9))
    text = outcome(stage, stage.until_said(1)[0].result if decoupled else done.results[0])
    assert text.startswith(f"{REFUSED}{error.__name__}: no") and "concurrent" not in text and "asyncio" not in text
    done = stage.run(body(2))
    assert outcome(stage, stage.until_said(2)[1].result if decoupled else done.results[0]) == [2]
    assert stage.open_batches == 0


def test_decoupled_coroutines_run_beside_each_other(stage: Stage) -> None:
    met: list[asyncio.Event] = []

    async def work(requests: list[Any]) -> Any:
        met.append(asyncio.Event())
        if len(met) == 2:
            met[0].set()
            met[1].set()
        await met[-1].wait()
        for one in requests:
            one.get_response_sender().send(answer(value_of(one)), FINAL)

    stage.show(work, decoupled=True)
    assert outcomes(stage, stage.run(body(1), body(2))) == [None, None] and stage.said == []
    stage.run(body(3))
    assert sorted(outcome(stage, said.result)[0] for said in stage.until_said(3)) == [1, 2, 3]
    assert stage.open_batches == 0


def test_a_decoupled_coroutine_that_answers_nobody(stage: Stage) -> None:
    kept: list[Any] = []

    async def work(requests: list[Any]) -> Any:
        await asyncio.sleep(0)
        kept.append(requests[0])
        kept.append(requests[1].get_response_sender())

    stage.show(work, decoupled=True)
    stage.run(body(1), body(2), body(3))
    said = stage.until_said(2)
    assert sorted(one.index for one in said) == [0, 2], "the second can still be answered"
    kept[1].send(answer(2), FINAL)
    assert stage.until_said(3)[2].index == 1 and stage.open_batches == 0
