"""What a Python model of sequences is shown of requests whose inputs it cannot have."""

from __future__ import annotations

from typing import Any

import pytest

from tensorfarm.workers.contract.messages import RequestBody, RequestContext, Tensor
from tensorfarm.workers.python.execution import FINAL

from ..real_memory import inline
from .test_execution import LARGE, Stage, outcome, stage
from .test_sequences import AGAIN, END, START, body, input_of, number, out, results, show, state, unchanged

__all__ = ["stage"]


def spoilt(stage: Stage, value: int, slot: int, flags: int = 0, shape: tuple[int, ...] = (1,)) -> RequestBody:
    """A request with strings in its client's region that are none."""
    begin = body(value, slot, flags)
    bad = Tensor("TEXT", "BYTES", shape, stage.world.spanned(0, b"\xff\0\0\0"))
    return RequestBody(begin.id, 1, [*begin.inputs, bad], [], {}, begin.context)


def readable(stage: Stage, value: int, slot: int, flags: int = 0) -> RequestBody:
    good = body(value, slot, flags)
    return RequestBody(good.id, 1, [*good.inputs, Tensor("TEXT", "BYTES", (1,), inline(b"\1\0\0\0a"))], [], {}, good.context)


class Remembering:
    """A model that keeps what its sequences leave by itself: by row."""

    def __init__(self) -> None:
        self.sums: dict[int, int] = {}
        self.texts: list[Any] = []

    def execute(self, requests: list[Any]) -> Any:
        answers = []
        for row, request in enumerate(requests):
            self.texts.append(input_of(request, "TEXT").tolist())
            begun = 0 if request.flags() & START else self.sums.get(row, 0)
            self.sums[row] = begun + int(input_of(request, "IN")[0])
            answers.append(out(self.sums[row]))
            if request.flags() & END:
                del self.sums[row]
        return answers


def test_rows_stay_where_they_are(stage: Stage) -> None:
    """A model that knows its sequences by their rows mixes them up where one is missing."""
    model = Remembering()
    show(stage, model.execute, rows=4)
    begun = stage.run(*[readable(stage, number, row, START) for row, number in enumerate((1, 10, 60))])
    assert results(stage, begun) == [[1], [10], [60]]
    done = stage.run(readable(stage, 1, 0), spoilt(stage, 10, 1), readable(stage, 60, 2))
    first, failed, third = results(stage, done)
    assert (first, third) == ([2], [120]) and failed.startswith("incomplete string data") and done.failed == [1]
    assert model.texts[-3:] == [[b"a"], [b""], [b"a"]]
    # An empty row has the inputs of a row that is not.
    assert results(stage, stage.run(spoilt(stage, 1, -1), spoilt(stage, 1, 1), readable(stage, 60, 2)))[2] == [180]
    assert stage.open_batches == 0


@pytest.mark.parametrize("shape", [(1,), (2**40,), (3, 0)])
def test_a_model_sees_where_a_sequence_begins_and_ends(stage: Stage, shape: tuple[int, ...]) -> None:
    """Otherwise it would go on with what it has of another one, or keep it for ever."""
    model = Remembering()
    show(stage, model.execute)
    stage.run(readable(stage, 50, 0, START))
    (failed,) = results(stage, stage.run(spoilt(stage, 1, 0, START, shape)))
    assert isinstance(failed, str)
    assert results(stage, stage.run(readable(stage, 2, 0))) == [[3]]
    (failed,) = results(stage, stage.run(spoilt(stage, 1, 0)))
    assert isinstance(failed, str) and model.sums == {0: 3}, "a request in the midst that the model never sees changes nothing"
    stage.run(spoilt(stage, 1, 0, END, shape))
    assert model.sums == {} and stage.open_batches == 0


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_nobody_hears_what_a_model_says_to_it(stage: Stage, decoupled: bool, again: bool) -> None:
    def work(requests: list[Any]) -> Any:
        for request in requests:
            if again and request.flags():
                request.set_release_flags(AGAIN)
            request.get_response_sender().send(out(3, number(99)), FINAL)
        return None if decoupled else [None] * len(requests)

    show(stage, work, state(), iterative=again, decoupled=decoupled)
    done = stage.run(spoilt(stage, 1, 0, START), readable(stage, 1, 1))
    failed, answered = results(stage, done)
    assert isinstance(failed, str) and answered is None and done.failed == [0] and done.again == []
    assert [(said.index, said.final, outcome(stage, said.result)) for said in stage.said] == [(1, True, [3])]
    assert stage.open_batches == 0 and stage.calls.asides == []
    stage.model.decoupled = False
    assert [tensor.as_numpy().tolist() for tensor in unchanged(stage, body(0))] == [[0], [0]], "its state is as it was"


def test_a_model_that_fails_fails_each_once(stage: Stage) -> None:
    def work(requests: list[Any]) -> Any:
        raise ValueError("no")

    show(stage, work, state())
    done = stage.run(spoilt(stage, 1, 0, START), readable(stage, 1, 1))
    assert done.failed == [0, 1] and [text.split(":")[0] for text in results(stage, done)] == [
        "incomplete string data for inference input 'TEXT', expecting string of length 255 but only 0 bytes available",
        "Failed to process the request(s) for model 'm_0', message",
    ]


def test_a_row_without_a_request_shares_no_memory_with_one_that_has(stage: Stage) -> None:
    """That one's may be somebody else's as soon as it has been answered."""
    seen: list[Any] = []

    def work(requests: list[Any]) -> Any:
        requests[1].get_response_sender().send(out(1), FINAL)
        stage.world.spanned(0, b"\6" * LARGE)
        seen.append([set(input_of(requests[0], "IN").tolist()), input_of(requests[0], "TEXT").tolist()])

    show(stage, work, rows=4, decoupled=True)
    given = [Tensor("IN", "UINT8", (LARGE,), stage.world.spanned(0, b"\5" * LARGE))]
    given.append(Tensor("TEXT", "BYTES", (1, 2), stage.world.leased(b"\1\0\0\0a" * 2)))
    stage.run(*[RequestBody("", 1, given, [], {}, RequestContext(slot + 1, slot=slot)) for slot in (-1, 1)])
    assert seen == [[{0}, [[b"", b""]]]]
