"""Sequences of Python models: state that goes from request to request, rows without a request, requests that come again."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tensorfarm.shm.placement import Inline, Span
from tensorfarm.workers.contract.messages import Done, Execute, RequestBody, RequestContext, Tensor, WantedOutput
from tensorfarm.workers.python import triton_python_backend_utils as pb
from tensorfarm.workers.python.errors import TritonError, TritonModelException
from tensorfarm.workers.python.execution import FINAL
from tensorfarm.workers.python.places import Places
from tensorfarm.workers.states import states_of

from ..real_memory import inline
from .test_execution import LARGE, REFUSED, Stage, outcome, stage

__all__ = ["stage"]

START, END = 1, 2
AGAIN = pb.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE
NUMPY = {"TYPE_INT32": np.int32, "TYPE_STRING": np.object_, "TYPE_BF16": np.uint16}


def state(data_type: str = "TYPE_INT32", dims: tuple[int, ...] = (1,), initial: bool = True, name: str = "STATE") -> dict[str, Any]:
    begin = {"name": "zero", "data_type": data_type, "dims": [str(dim) for dim in dims], "zero_data": True}
    made = {"input_name": f"{name}_IN", "output_name": f"{name}_OUT", "data_type": data_type, "dims": list(dims)}
    return {**made, "initial_state": [begin] if initial else []}


def show(
    stage: Stage, work: Callable[[list[Any]], Any], *states: dict[str, Any], iterative: bool = False, decoupled: bool = False, rows: int = 0
) -> None:
    """A sequence model whose ``execute`` this is, with ``rows`` as its largest batch."""
    config = {"name": "m", "max_batch_size": rows, "sequence_batching": {"state": list(states), "iterative_sequence": iterative}}
    stage.show(work, decoupled, Places(states_of(config, "/models/m"), rows > 0, rows > 0), iterative)


def body(value: int, slot: int = 0, flags: int = 0, *outputs: str | WantedOutput, place: Any = None, id: int | str = 7) -> RequestBody:
    at = inline(bytes([value])) if place is None else place
    wanted = [output if isinstance(output, WantedOutput) else WantedOutput(output) for output in outputs]
    context = RequestContext(id if slot >= 0 else 0, flags, slot=slot)
    return RequestBody("", 1, [Tensor("IN", "UINT8", (at.byte_size,), at)], wanted, {}, context)


def input_of(request: Any, name: str) -> Any:
    tensor = pb.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def out(value: Any, *states: Any) -> pb.InferenceResponse:
    """A response with one number, and tensors of state."""
    return pb.InferenceResponse([pb.Tensor("OUT", np.array([value], np.uint8)), *states])


def number(value: int, name: str = "STATE_OUT") -> pb.Tensor:
    return pb.Tensor(name, np.array([value], np.int32))


def summing(requests: list[Any]) -> list[Any]:
    """Each answers with the sum of its sequence so far."""
    sums = [input_of(request, "STATE_IN") + int(input_of(request, "IN")[0]) for request in requests]
    return [out(int(value.flat[0]), pb.Tensor("STATE_OUT", value)) for value in sums]


def results(stage: Stage, done: Done) -> list[Any]:
    return [outcome(stage, result) for result in done.results]


# state


def test_state_goes_from_request_to_request_of_its_place(stage: Stage) -> None:
    show(stage, summing, state())
    assert results(stage, stage.run(body(1, 0, START), body(10, 3, START))) == [[1], [10]]
    assert results(stage, stage.run(body(20, 3), body(2, 0))) == [[30], [3]]
    assert results(stage, stage.run(body(30, 3, END))) == [[60]]
    assert results(stage, stage.run(body(3, 0))) == [[6]]
    # Begun anew before it has ended, and another sequence at a place where one has.
    assert results(stage, stage.run(body(4, 0, START), body(5, 3, START | END))) == [[4], [5]]
    assert results(stage, stage.run(body(4, 0), body(6, 3, START))) == [[8], [6]]


def test_only_listed_states_are_delivered(stage: Stage) -> None:
    """``OTHER`` is both: the fake model has it among its outputs."""
    both = {**state(), "output_name": "OTHER"}

    def work(requests: list[Any]) -> Any:
        return [out(1, number(5, "OTHER"), number(6, "SECOND_OUT")) for _ in requests]

    show(stage, work, both, state(name="SECOND"))
    for wanted, names in (((), ["OUT", "OTHER"]), (("OUT",), ["OUT"]), (("OTHER",), ["OTHER"])):
        (result,) = stage.run(body(1, 0, START, *wanted)).results
        assert result is not None and [tensor.name for tensor in result.outputs] == names


def test_what_the_model_sees_beside_its_inputs(stage: Stage) -> None:
    seen: list[Any] = []

    def work(requests: list[Any]) -> Any:
        for request in requests:
            seen.append([(tensor.name(), tensor.shape(), tensor.as_numpy().tolist()) for tensor in request.inputs()])
        return [out(0) for _ in requests]

    show(stage, work, state(dims=(2,)), state("TYPE_STRING", (1,), name="TEXT"), rows=4)
    stage.run(body(9, 0, START))
    assert seen == [[("IN", [1], [9]), ("STATE_IN", [1, 2], [[0, 0]]), ("TEXT_IN", [1, 1], [[b""]])]]


def test_a_state_may_take_the_place_of_an_input(stage: Stage) -> None:
    """As in the original, where its name is that of one."""
    seen: list[Any] = []

    def work(requests: list[Any]) -> Any:
        seen.append([(tensor.name(), tensor.as_numpy().tolist()) for tensor in requests[0].inputs()])
        return [out(0, number(len(seen)))]

    show(stage, work, {**state(), "input_name": "IN"})
    stage.run(body(9, 0, START))
    stage.run(body(9))
    assert seen == [[("IN", [0])], [("IN", [1])]]


@pytest.mark.parametrize("data_type", NUMPY)
def test_every_kind_of_state_comes_back(stage: Stage, data_type: str) -> None:
    """Texts, which lie in arrays of objects, and numbers that numpy has no type for."""
    given = {"TYPE_INT32": [-5, 6], "TYPE_STRING": ["é", b"\0"], "TYPE_BF16": [0x3F80, 0x4000]}[data_type]
    seen: list[Any] = []

    def work(requests: list[Any]) -> Any:
        tensor = requests[0].inputs()[1]
        seen.append((tensor.triton_dtype(), tensor.shape(), tensor._array.tolist()))
        array = np.array(given, NUMPY[data_type])
        made = pb.Tensor.holding("STATE_OUT", "BF16", array) if data_type == "TYPE_BF16" else pb.Tensor("STATE_OUT", array)
        response = out(0, made)
        array[:] = array[::-1].copy()
        return [response]

    show(stage, work, state(data_type, (2,)))
    stage.run(body(0, 0, START))
    stage.run(body(0))
    kept = ["é".encode(), b"\0"][::-1] if data_type == "TYPE_STRING" else given[::-1]
    assert [kind for kind, _, _ in seen] == [seen[0][0]] * 2
    assert [shape for _, shape, _ in seen] == [[2], [2]] and seen[1][2] == kept


def test_a_model_may_write_to_what_it_gets_and_keep_what_it_gives(stage: Stage) -> None:
    kept: list[Any] = []

    def work(requests: list[Any]) -> Any:
        found = input_of(requests[0], "STATE_IN")
        value = int(found[0])
        found[:] = 77
        if input_of(requests[0], "IN")[0] == 1:
            return [out(value)]
        kept.append(np.array([value + 1], np.int32))
        return [out(value, pb.Tensor("STATE_OUT", kept[-1]))]

    show(stage, work, state())
    values = [results(stage, stage.run(body(0, 0, START)))]
    kept[0][:] = 88
    values += [results(stage, stage.run(body(1))) for _ in range(2)]
    assert values == [[[0]], [[1]], [[1]]], "what is not given stays as it was"


def test_a_state_of_a_variable_size_grows(stage: Stage) -> None:
    def work(requests: list[Any]) -> Any:
        found = input_of(requests[0], "STATE_IN")
        grown = np.append(found, np.int32(len(found)))
        return [out(len(found), pb.Tensor("STATE_OUT", grown))]

    show(stage, work, state(dims=(-1,), initial=False))
    sizes = [results(stage, stage.run(body(0, 0, flags)))[0][0] for flags in (START, 0, 0, START)]
    assert sizes == [1, 2, 3, 1]


@pytest.mark.parametrize("what", ["error", "raise", "none", "wrong region"])
def test_after_a_failure_the_state_is_as_it_was(stage: Stage, what: str) -> None:
    def work(requests: list[Any]) -> Any:
        (response,) = summing(requests)
        if input_of(requests[0], "IN")[0] != 100:
            return [response]
        if what == "error":
            return [pb.InferenceResponse(response.output_tensors(), TritonError("no"))]
        if what == "raise":
            raise ValueError("no")
        return [response if what == "wrong region" else None]

    show(stage, work, state())
    stage.run(body(1, 0, START))
    outputs = [WantedOutput("OUT", stage.world.spanned(0, b""))] if what == "wrong region" else []
    (failed,) = results(stage, stage.run(body(100, 0, 0, *outputs)))
    assert isinstance(failed, str)
    assert results(stage, stage.run(body(2))) == [[3]]


def test_a_state_that_cannot_be_kept_is_an_error(stage: Stage) -> None:
    """Of its own request: the sequence goes on from what it had."""
    odd = {50: np.zeros(1, np.float32), 51: np.array(["x"], np.object_), 52: np.zeros(3, np.int32), 53: np.zeros((1, 1), np.int32)}
    says = {50: "FP32 of shape [1]", 51: "BYTES of shape [1]", 52: "INT32 of shape [3]", 53: "INT32 of shape [1, 1]"}

    def work(requests: list[Any]) -> Any:
        value = int(input_of(requests[0], "IN")[0])
        if value not in odd:
            return [out(0, *(pb.Tensor(f"{name}_OUT", input_of(requests[0], f"{name}_IN") + value) for name in ("STATE", "MORE")))]
        return [out(value, number(99), pb.Tensor("MORE_OUT", odd[value]))]

    show(stage, work, state(), state(name="MORE"))
    stage.run(body(1, 0, START))
    for value, text in says.items():
        (failed,) = results(stage, stage.run(body(value)))
        assert failed == f"state 'MORE_OUT' is INT32 of shape [1], but the model has answered with {text}"
        assert stage.world.outputs.used_byte_size == 0
        assert [tensor.as_numpy().tolist() for tensor in unchanged(stage, body(0))[1:]] == [[1], [1]], "not the one without the other"
        stage.model.work = work


def test_a_sequence_that_begins_badly_has_nothing_of_the_one_before(stage: Stage) -> None:
    """Its first request's input cannot be read, so that the model never sees it."""
    show(stage, summing, state())
    stage.run(body(1, 0, START))
    bad = Tensor("TEXT", "BYTES", (1,), stage.world.spanned(0, b"\xff\0\0\0"))
    begin = body(0, 0, START)
    failing = RequestBody(begin.id, 1, [*begin.inputs, bad], [], {}, begin.context)
    (failed,) = results(stage, stage.run(failing))
    assert isinstance(failed, str)
    assert results(stage, stage.run(body(2))) == [[2]]


def test_a_large_state(stage: Stage) -> None:
    def work(requests: list[Any]) -> Any:
        found = input_of(requests[0], "STATE_IN")
        return [out(int(found[-1]), pb.Tensor("STATE_OUT", found + 1))]

    show(stage, work, state(dims=(LARGE,)))
    assert [results(stage, stage.run(body(0, 0, flags)))[0][0] for flags in (START, 0, 0)] == [0, 1, 2]
    assert stage.world.outputs.used_byte_size == 0, "states lie in the model's process alone"


def test_inputs_in_shared_memory_beside_a_state(stage: Stage) -> None:
    show(stage, summing, state())
    place = stage.world.leased(bytes([5]) * LARGE)
    assert results(stage, stage.run(body(0, 0, START, place=place))) == [[5]]
    assert results(stage, stage.run(body(0, 0, 0, place=place))) == [[10]]


def unchanged(stage: Stage, *bodies: RequestBody) -> list[Any]:
    """What a model finds that changes nothing."""
    found: list[Any] = []

    def work(requests: list[Any]) -> Any:
        for request in requests:
            found.extend(request.inputs())
        return [out(0) for _ in requests]

    stage.model.work = work
    stage.run(*bodies)
    return found


# senders


def test_what_a_sender_sends_is_kept(stage: Stage) -> None:
    """The last of several, before the end is told."""
    order: list[Any] = []

    def work(requests: list[Any]) -> Any:
        (value,) = [int(input_of(request, "STATE_IN")[0]) for request in requests]
        sender = requests[0].get_response_sender()
        sender.send(out(value, number(value + 1)))
        sender.send(out(value, number(value + 2)))
        sender.send(flags=FINAL)
        order.append(value)

    show(stage, work, state(), decoupled=True)
    for flags in (START, 0, 0):
        stage.run(body(0, 0, flags))
    assert order == [0, 2, 4]


def test_a_late_sender_changes_nothing_of_the_next_sequence(stage: Stage) -> None:
    kept: list[Any] = []

    def work(requests: list[Any]) -> Any:
        kept.append((requests[0].get_response_sender(), int(input_of(requests[0], "STATE_IN")[0])))

    show(stage, work, state(), decoupled=True)
    stage.run(body(0, 0, START))
    kept[0][0].send(out(1, number(5)))
    stage.run(body(0, 0, END))
    kept[1][0].send(out(1, number(6)), FINAL)
    assert stage.model.places._states._kept == {}, "nothing is held of a sequence that is over"
    stage.run(body(0, 0, START))
    kept[0][0].send(out(1, number(7)), FINAL)
    stage.run(body(0))
    assert [value for _, value in kept] == [0, 5, 0, 0]
    for sender, _ in kept[2:]:
        sender.send(flags=FINAL)
    kept.clear()


def test_a_late_sender_changes_nothing_of_a_sequence_that_began_badly(stage: Stage) -> None:
    kept: list[Any] = []
    show(stage, lambda requests: kept.append(requests[0].get_response_sender()), state(), decoupled=True)
    stage.run(body(0, 0, START))
    begin = body(0, 0, START)
    bad = Tensor("TEXT", "BYTES", (1,), stage.world.spanned(0, b"\xff\0\0\0"))
    assert results(stage, stage.run(RequestBody("", 1, [*begin.inputs, bad], [], {}, begin.context))) != [None]
    kept[0].send(out(1, number(5)), FINAL)
    stage.model.decoupled = False
    assert [tensor.as_numpy().tolist() for tensor in unchanged(stage, body(0))] == [[0], [0]]


# rows without a request


def test_a_row_without_a_request(stage: Stage) -> None:
    """The model sees it, and nothing of what it answers is stored or kept."""
    seen: list[Any] = []

    def work(requests: list[Any]) -> Any:
        for request in requests:
            seen.append((request.correlation_id(), request.flags(), request.requested_output_names(), request.request_id()))
        return [
            pb.InferenceResponse([pb.Tensor("OUT", np.full(LARGE, 3, np.uint8)), *response.output_tensors()[1:]])
            for response in summing(requests)
        ]

    show(stage, work, state(), rows=4)
    done = stage.run(body(1, -1), body(2, 1, START, id="seven"))
    assert seen == [(0, 0, set(), ""), ("seven", START, {"OUT", "OTHER"}, "")]
    assert results(stage, done) == [[], [3]] and stage.world.outputs.used_byte_size == 0
    stage.model.work = summing
    assert results(stage, stage.run(body(1, -1), body(2, 1))) == [[], [4]]


# requests that come again


def test_a_request_comes_again_and_is_not_answered(stage: Stage) -> None:
    rounds: list[int] = []

    def work(requests: list[Any]) -> Any:
        rounds.append(requests[0].flags())
        if len(rounds) < 3:
            requests[0].set_release_flags(AGAIN)
            return [None, out(2)]
        return [out(1), out(2)]

    show(stage, work, iterative=True)
    for flags in (START, 0):
        done = stage.run(body(1, 0, flags), body(2, 1, START))
        assert done.again == [0] and done.failed == [] and results(stage, done) == [None, [2]]
        assert stage.open_batches == 0
    done = stage.run(body(1, 0), body(2, 1, START))
    assert done.again == [] and results(stage, done) == [[1], [2]]
    assert rounds == [START, 0, 0] and stage.said == []


def test_state_outlives_the_rounds_of_a_last_request(stage: Stage) -> None:
    def work(requests: list[Any]) -> Any:
        value = int(input_of(requests[0], "STATE_IN")[0])
        if value < 2:
            sender = requests[0].get_response_sender()
            sender.send(out(value, number(value + 1)))
            requests[0].set_release_flags(AGAIN)
            return
        requests[0].get_response_sender().send(out(value), FINAL)

    show(stage, work, state(), iterative=True, decoupled=True)
    again = [stage.run(body(0, 0, flags)).again for flags in (START | END, END, END)]
    assert again == [[0], [0], []]
    assert [(said.final, outcome(stage, said.result)) for said in stage.said] == [(False, [0]), (False, [1]), (True, [2])]
    stage.said.clear()
    stage.run(body(0, 0, END))
    assert [outcome(stage, said.result) for said in stage.said] == [[0]], "then it has gone"


def test_the_sender_of_an_earlier_round_is_closed(stage: Stage) -> None:
    senders: list[Any] = []

    def work(requests: list[Any]) -> Any:
        senders.append(requests[0].get_response_sender())
        senders[-1].send(out(len(senders)))
        if len(senders) < 2:
            requests[0].set_release_flags(AGAIN)

    show(stage, work, iterative=True, decoupled=True)
    assert stage.run(body(0, 0, START), number=5).again == [0]
    with pytest.raises(TritonModelException, match="closed"):
        senders[0].send(out(9))
    assert stage.run(body(0), number=6).again == [] and stage.open_batches == 1
    senders[1].send(flags=FINAL)
    assert [(said.batch, said.final, outcome(stage, said.result)) for said in stage.said] == [
        (5, False, [1]),
        (6, False, [2]),
        (6, True, None),
    ]
    senders.clear()
    gc.collect()
    assert stage.calls.asides == [] and stage.open_batches == 0


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("iterative", [False, True])
def test_the_end_of_a_round_is_told_behind_its_responses(stage: Stage, decoupled: bool, iterative: bool) -> None:
    """By the same socket, where senders may have sent some: with a round's end, the server is done with its number."""
    show(stage, lambda requests: None, iterative=iterative, decoupled=decoupled)
    voice = stage.execution.voice
    assert (voice is not None) == (decoupled and iterative)
    if voice is not None:
        voice(stage.run(body(0)))
        assert isinstance(stage.said[-1], Done)


def test_what_is_answered_does_not_come_again(stage: Stage) -> None:
    def work(requests: list[Any]) -> Any:
        requests[0].get_response_sender().send(out(1), FINAL)
        requests[0].set_release_flags(AGAIN)
        return [None]

    show(stage, work, iterative=True)
    done = stage.run(body(0, 0, START))
    assert done.again == [] and results(stage, done) == [None] and done.failed == []
    assert [(said.final, outcome(stage, said.result)) for said in stage.said] == [(True, [1])]


def test_a_plain_model_sends_its_one_response_in_its_last_round(stage: Stage) -> None:
    """What it sends in an earlier one is all that its client can get."""

    def work(requests: list[Any]) -> Any:
        requests[0].get_response_sender().send(out(1))
        requests[0].set_release_flags(AGAIN)
        return [None]

    show(stage, work, iterative=True)
    assert stage.run(body(0, 0, START)).again == []
    assert [said.final for said in stage.said] == [False, True]
    assert "cannot send more than one response" in outcome(stage, stage.said[1].result) and stage.open_batches == 0


@pytest.mark.parametrize("iterative", [False, True])
def test_a_response_beside_the_wish_to_come_again(stage: Stage, iterative: bool) -> None:
    def work(requests: list[Any]) -> Any:
        requests[1].set_release_flags(AGAIN)
        return [out(1), out(2)]

    show(stage, work, iterative=iterative)
    done = stage.run(body(0, 0), body(0, 1))
    text = (
        f"{REFUSED}Expected a None object in the execute function return list for reschduled request, "
        "found type '<class 'c_python_backend_utils.InferenceResponse'>'."
    )
    assert results(stage, done) == [text] * 2 and done.failed == [0, 1] and done.again == []


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("taken", [False, True])
def test_other_models_cannot_have_a_request_again(stage: Stage, decoupled: bool, taken: bool) -> None:
    """Not even where the sender could still answer it: nobody would know when to."""

    def work(requests: list[Any]) -> Any:
        if taken:
            requests[0].get_response_sender()
        requests[0].set_release_flags(AGAIN)
        return None if decoupled else [None]

    show(stage, work, decoupled=decoupled)
    done = stage.run(body(0, 0, START))
    (failed,) = results(stage, done)
    assert failed == (
        "Failed to release request: Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, while the model is not "
        "configured to handle such a flag."
    )
    assert done.again == [] and stage.open_batches == 0


@pytest.mark.parametrize("flags", [0, 1, 3, 99])
def test_other_release_flags_mean_nothing(stage: Stage, flags: int) -> None:
    def work(requests: list[Any]) -> Any:
        requests[0].set_release_flags(flags)
        return [out(4)]

    show(stage, work, iterative=True)
    done = stage.run(body(0, 0, START))
    assert results(stage, done) == [[4]] and done.again == []


def test_the_rounds_of_coroutines(stage: Stage) -> None:
    """Those of decoupled models as well: only their end tells which requests come again."""
    asked: list[int] = []

    async def work(requests: list[Any]) -> Any:
        await asyncio.sleep(0)
        asked.append(1)
        if len(asked) < 2:
            requests[0].set_release_flags(AGAIN)
        else:
            requests[0].get_response_sender().send(out(2), FINAL)

    show(stage, work, iterative=True, decoupled=True)
    assert [stage.run(body(0, 0, flags)).again for flags in (START, 0)] == [[0], []]
    assert [outcome(stage, said.result) for said in stage.said] == [[2]]


def test_inputs_end_with_their_round(stage: Stage) -> None:
    """What a model keeps of them stays its own; the request brings them anew."""
    kept: list[Any] = []
    span: Span = stage.world.spanned(0, b"\5" * LARGE)

    def work(requests: list[Any]) -> Any:
        kept.append(input_of(requests[0], "IN"))
        requests[0].set_release_flags(AGAIN)
        return [None]

    show(stage, work, iterative=True)
    assert stage.run(body(0, 0, START, place=span)).again == [0]
    assert len(stage.calls.settled) == 1
    stage.world.spanned(0, b"\6" * LARGE)
    assert stage.run(body(0, 0, 0, place=span)).again == [0]
    assert [set(array.tolist()) for array in kept] == [{5}, {6}]


def test_a_warm_up_goes_through_all_rounds(stage: Stage) -> None:
    asked: list[int] = []

    def work(requests: list[Any]) -> Any:
        asked.append(len(requests))
        for request in requests[: 3 - len(asked)]:
            request.set_release_flags(AGAIN)
        count = max(3 - len(asked), 0)
        return [None] * count + [out(1)] * (len(requests) - count)

    show(stage, work, iterative=True)
    sample = RequestBody("", 1, [Tensor("IN", "UINT8", (1,), inline(b"\1"))], [], {})
    _, errors = stage.execution.rehearse(Execute(0, [sample] * 3))
    assert errors == [] and asked == [3, 2, 1] and stage.open_batches == 0


def test_a_warm_up_sample_brings_its_state_or_begins(stage: Stage) -> None:
    seen: list[Any] = []

    def work(requests: list[Any]) -> Any:
        seen.append([input_of(request, "STATE_IN").tolist() for request in requests])
        return [out(1, number(9)) for _ in requests]

    show(stage, work, state())
    plain = RequestBody("", 1, [Tensor("IN", "UINT8", (1,), inline(b"\1"))], [], {})
    own = Tensor("STATE_IN", "INT32", (1,), Inline(memoryview(np.array([4], np.int32).tobytes())))
    for sample in (plain, plain, RequestBody("", 1, [*plain.inputs, own], [], {})):
        _, errors = stage.execution.rehearse(Execute(0, [sample] * 2))
        assert errors == []
    assert seen == [[[0], [0]], [[0], [0]], [[4], [4]]]
