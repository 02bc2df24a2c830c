"""What stands in front of a version whose workers do not reach every GPU, with copies that are made when the test says so."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from tensorfarm.server.dispatch.carried import Location
from tensorfarm.server.dispatch.request import EndMark, Request, Response
from tensorfarm.server.statistics import FailureReason
from tensorfarm.shm.placement import DEVICE_START, Inline, Lease, Placement, Span
from tensorfarm.workers.contract.messages import Tensor, WantedOutput
from tensorfarm.workers.contract.status import Code, StatusError, internal, unavailable

from .carried_bench import FAR, NEAR, OTHER, SYSTEM, Bench, places, small, wanted

LATE = unavailable("Server is stopping; its exit timeout has expired")

# what needs no carrying


@pytest.mark.parametrize(
    ("worker", "inputs", "outputs"),
    [
        ("", (small(), Lease(0, 0, 8)), (WantedOutput("Y"),)),
        ("", (Span(SYSTEM, 0, 8), Lease(3, 0, 8)), (wanted(SYSTEM),)),
        ("gpu0", (Span(NEAR, 0, 8), Lease(5, DEVICE_START, 8)), (wanted(NEAR), WantedOutput("Z", None, True))),
    ],
)
def test_what_the_workers_reach_passes_through_untouched(worker: str, inputs: tuple[Placement, ...], outputs: Any) -> None:
    bench = Bench(worker)
    request = bench.request(*inputs, outputs=outputs)
    before = (request.body, request.on_response, request.on_finish, request.regions, request.arenas)
    bench.carried.submit(request)
    assert bench.behind == [request]
    after = (request.body, request.on_response, request.on_finish, request.regions, request.arenas)
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert bench.carried.idle and not bench.mover.fetches
    bench.carried.cancel(request)
    assert bench.withdrawn == [request]


def test_a_refusal_of_what_passes_through_is_raised() -> None:
    bench = Bench()
    bench.refusal = unavailable("full")
    with pytest.raises(StatusError, match="full"):
        bench.submit(small())
    assert not bench.heard


# inputs


def test_an_input_is_fetched_before_its_request_is_queued() -> None:
    bench = Bench()
    request = bench.submit(small(), Span(FAR, 16, 8), Span(SYSTEM, 0, 8), Lease(3, 0, 8))
    assert not bench.behind
    assert (bench.carried.in_flight, bench.flow.in_flight, bench.statistics.pending_count) == (1, 1, 1)
    (fetch,) = bench.mover.fetches
    assert (fetch.location, fetch.places) == (Location(1), [Span(FAR, 16, 8)])
    bench.mover.finish_fetch()
    assert bench.behind == [request]
    assert (bench.carried.in_flight, bench.flow.in_flight, bench.statistics.pending_count) == (0, 0, 0)
    (copy,) = bench.mover.memory.lent
    assert places(request) == [small(), copy, Span(SYSTEM, 0, 8), Lease(3, 0, 8)]
    assert request.body.inputs[1] == Tensor("X1", "UINT8", (8,), copy)
    # The worker is not to open a region that it does not reach.
    assert (request.regions, set(request.arenas)) == ((SYSTEM,), {3, 100})
    bench.answer(bench.output())
    assert bench.mover.memory.lent == []
    assert bench.heard[0] is request and bench.heard[1] is bench.responses[0]
    bench.check_empty()


def test_a_request_is_tied_to_the_gpu_of_its_regions_where_that_has_instances() -> None:
    """Nothing is carried then, and what lies on a second GPU is."""
    bench = Bench()
    bench.tied = {Location(1), Location(2)}
    request = bench.submit(Span(FAR, 0, 8), small(), outputs=(wanted(FAR),))
    assert bench.behind == [request] and request.device == 1 and not bench.mover.fetches
    both = bench.submit(Span(FAR, 0, 8), Span(OTHER, 0, 4), outputs=(wanted(FAR), wanted(OTHER, "Z")))
    (fetch,) = bench.mover.fetches
    assert (fetch.location, fetch.places) == (Location(2), [Span(OTHER, 0, 4)])
    bench.mover.finish_fetch()
    assert bench.behind == [request, both] and both.device == 1
    assert [output.span is not None for output in both.body.outputs] == [True, False]


def test_a_tensor_that_a_worker_has_left_ties_to_that_workers_gpu() -> None:
    bench = Bench()
    bench.tied = {Location(0, "gpu0")}
    request = bench.submit(Lease(5, DEVICE_START, 8))
    assert bench.behind == [request] and request.device == 0
    bench.submit(Span(NEAR, 0, 8))
    assert len(bench.mover.fetches) == 1


def test_inputs_of_several_gpus_are_fetched_from_each_at_once() -> None:
    bench = Bench("gpu0")
    inputs = (Span(FAR, 0, 8), Span(OTHER, 0, 4), Span(NEAR, 0, 8), Span(FAR, 8, 2), Lease(5, DEVICE_START, 8))
    request = bench.submit(*inputs, Lease(6, DEVICE_START, 8), Lease(7, DEVICE_START, 8))
    assert {fetch.location: fetch.places for fetch in bench.mover.fetches} == {
        Location(1): [inputs[0], inputs[3]],
        Location(2): [inputs[1]],
        # Of the same GPU, and yet only its own worker reaches it.
        Location(0, "m:1@gpu0"): [Lease(6, DEVICE_START, 8)],
        Location(1, "gpu1"): [Lease(7, DEVICE_START, 8)],
    }
    while bench.mover.fetches:
        assert not bench.behind
        bench.mover.fetches.pop().finish()
    sizes = [place.byte_size for place in places(request)]
    assert sizes == [8, 4, 8, 2, 8, 8, 8]
    assert [place for place in places(request) if place in inputs] == [inputs[2], inputs[4]]
    assert request.regions == (NEAR,)
    bench.answer()
    bench.check_empty()


def test_an_input_that_went_with_its_worker_is_refused_at_once() -> None:
    bench = Bench()
    with pytest.raises(StatusError, match="gone"):
        bench.submit(Lease(9, DEVICE_START, 8), Span(FAR, 0, 8))
    assert not bench.heard and not bench.mover.fetches
    bench.check_empty()


def test_a_fetch_that_fails_is_the_answer_once_the_others_have_ended() -> None:
    bench = Bench()
    request = bench.submit(Span(FAR, 0, 8), Span(OTHER, 0, 8), Span(NEAR, 0, 8))
    bench.mover.finish_fetch()
    bench.mover.finish_fetch(internal("no luck"))
    assert not bench.heard  # the third is still being read
    bench.mover.finish_fetch(internal("nor here"))
    assert bench.heard[0] is request
    (response,) = bench.responses
    assert response.error is not None and (response.error.message, response.final) == ("no luck", True)
    assert not bench.behind
    assert bench.statistics.failures[FailureReason.OTHER] == bench.statistics.fail_count == 1
    bench.check_empty()


def test_a_request_that_is_refused_after_its_inputs_have_come_is_answered() -> None:
    bench = Bench()
    request = bench.request(Span(FAR, 0, 8), outputs=(wanted(OTHER),))
    body, regions, deliver = request.body, request.regions, request.on_response
    bench.carried.submit(request)
    bench.refusal = unavailable("full")
    bench.mover.finish_fetch()
    assert bench.heard[0] is request
    assert bench.responses[0].error is bench.refusal
    assert (request.body, request.regions, request.on_response) == (body, regions, deliver)
    assert bench.statistics.failures[FailureReason.REJECTED] == 1
    bench.check_empty()


def test_a_refusal_before_anything_was_fetched_leaves_the_request_as_it_was() -> None:
    bench = Bench()
    bench.refusal = unavailable("full")
    request = bench.request(small(), outputs=(wanted(FAR),))
    before = (request.body, request.on_response, request.on_finish, request.regions, request.arenas)
    with pytest.raises(StatusError, match="full"):
        bench.carried.submit(request)
    assert before == (request.body, request.on_response, request.on_finish, request.regions, request.arenas)
    assert not bench.heard
    bench.check_empty()


@pytest.mark.parametrize(("content", "fits"), [(b"\1\0\0\0x\0\0\0\0", True), (b"\1\0\0\0x\0\0\0", False)])
def test_strings_that_nobody_has_looked_at_yet_are_checked(content: bytes, fits: bool) -> None:
    bench = Bench()
    bench.mover.memory.content = content
    span = Span(FAR, 0, len(content))
    bench.submit(span, tensors=[Tensor("S", "BYTES", (2,), span)])
    bench.mover.finish_fetch()
    assert bool(bench.behind) is fits
    if fits:
        bench.answer()
    else:
        error = bench.responses[0].error
        assert error is not None and error.code is Code.INVALID_ARG and "for inference input 'S' for model 'm'" in error.message
    bench.check_empty()


# cancelling


def test_a_request_cancelled_while_it_is_fetched_is_answered_after_that() -> None:
    bench = Bench()
    request = bench.submit(Span(FAR, 0, 8), Span(OTHER, 0, 8))
    bench.mover.finish_fetch()
    bench.carried.cancel(request)
    assert request.cancelled and not bench.heard and not bench.withdrawn
    bench.mover.finish_fetch(internal("no luck"))
    assert bench.heard[0] is request and not bench.behind
    error = bench.responses[0].error
    assert error is not None and (error.code, error.message) == (Code.CANCELLED, "")
    assert bench.statistics.failures[FailureReason.CANCELED] == bench.statistics.fail_count == 1
    bench.check_empty()


def test_a_request_cancelled_behind_or_while_its_outputs_are_put_is_withdrawn() -> None:
    bench = Bench()
    request = bench.submit(Span(FAR, 0, 8), outputs=(wanted(OTHER),))
    bench.mover.finish_fetch()
    bench.carried.cancel(request)
    assert bench.withdrawn == [request]
    bench.answer(bench.output())
    bench.carried.cancel(request)
    assert not bench.heard
    bench.mover.finish_put()
    assert [type(one) for one in bench.heard] == [Request, Response]
    bench.check_empty()


# outputs


def test_an_output_is_put_into_its_region_before_the_response_goes_on() -> None:
    bench = Bench()
    request = bench.submit(small(), outputs=(wanted(FAR, byte_size=16), WantedOutput("Z", None, True)))
    assert bench.behind == [request] and bench.carried.in_flight == 0
    assert (request.body.outputs, request.regions) == ([WantedOutput("Y"), WantedOutput("Z", None, True)], ())
    made, other = bench.output(), bench.output("Z")
    bench.answer(other, made)
    # The region is held, and so is what is copied to it.
    assert not bench.heard and len(bench.memory.lent) == 2
    assert (bench.carried.in_flight, bench.flow.in_flight, bench.statistics.pending_count) == (1, 1, 0)
    (put,) = bench.mover.puts
    assert (put.device, put.places, put.spans) == (1, [made.place], [Span(FAR, 0, 16)])
    bench.mover.finish_put()
    assert bench.heard[0] is request
    (response,) = bench.responses
    assert response.outputs == [other, Tensor("Y", "UINT8", (8,), Span(FAR, 0, 16))]
    assert (response.parameters, response.error, response.final) == ({"p": 1}, None, True)
    assert bytes(response.read(other)) == bytes(8)
    response.release()
    assert bench.memory.lent == []
    bench.check_empty()


def test_what_was_put_is_given_back_at_once_where_nothing_else_is_left_to_read() -> None:
    bench = Bench()
    bench.submit(outputs=(wanted(FAR), wanted(OTHER, "Z"), wanted(FAR, "W")))
    made = [bench.output("Y"), Tensor("Z", "UINT8", (4,), small()), bench.output("W"), Tensor("V", "UINT8", (4,), small())]
    bench.answer(*made)
    assert [(put.device, put.places) for put in bench.mover.puts] == [(1, [made[0].place, made[2].place]), (2, [small()])]
    bench.mover.puts.pop().finish()
    assert not bench.heard
    bench.mover.finish_put()
    assert bench.memory.lent == []
    assert [type(tensor.place) for tensor in bench.responses[0].outputs] == [Span, Span, Span, Inline]
    bench.check_empty()


def test_an_output_that_was_wanted_and_not_made_is_not_missed() -> None:
    bench = Bench()
    bench.submit(outputs=(wanted(FAR), WantedOutput("Z")))
    bench.answer(Tensor("Z", "UINT8", (4,), small()))
    assert not bench.mover.puts and len(bench.responses) == 1
    bench.check_empty()


def test_an_output_that_is_larger_than_its_region_part_is_an_error() -> None:
    bench = Bench()
    bench.submit(outputs=(wanted(FAR, "W"), wanted(FAR, byte_size=4)))
    bench.answer(bench.output("W"), bench.output(byte_size=8))
    assert not bench.mover.puts
    (response,) = bench.responses
    assert response.error is not None and response.error.code is Code.INTERNAL
    assert response.error.message == (
        "shared memory size specified with the request for output 'Y' (4 bytes) should be at least 8 bytes to hold the results"
    )
    assert (response.outputs, bench.memory.lent, len(bench.finished)) == ([], [], 1)
    bench.check_empty()


def test_a_put_that_fails_makes_an_error_of_the_response() -> None:
    bench = Bench()
    bench.submit(outputs=(wanted(FAR), wanted(OTHER, "Z")))
    bench.answer(bench.output(), bench.output("Z"), bench.output("W"))
    bench.mover.finish_put(internal("no luck"))
    assert not bench.heard  # the other one is still being read and written
    bench.mover.finish_put()
    (response,) = bench.responses
    assert response.error is not None and response.error.message == "no luck"
    assert (response.outputs, response.parameters, response.final, bench.memory.lent) == ([], {}, True, [])
    assert bench.statistics.failures[FailureReason.OTHER] == 1
    bench.check_empty()


def test_an_error_of_the_model_is_passed_on() -> None:
    bench = Bench()
    request = bench.submit(Span(FAR, 0, 8), outputs=(wanted(FAR),))
    bench.mover.finish_fetch()
    bench.answer(error=internal("the model failed"))
    assert bench.heard[0] is request
    assert bench.responses[0].error is not None and not bench.mover.puts
    bench.check_empty()


def test_responses_of_a_stream_keep_their_order_and_the_end_does_not_overtake() -> None:
    bench = Bench()
    request = bench.submit(outputs=(wanted(FAR), WantedOutput("Z")))
    bench.answer(bench.output(), final=False)
    bench.answer(bench.output("Z"), final=False)
    bench.answer(bench.output(), final=False)
    bench.answer(end=True)
    assert not bench.heard and len(bench.mover.puts) == 1  # one after the other: they may go to the same part of a region
    assert bench.carried.in_flight == 1
    bench.mover.finish_put(internal("no luck"))
    first, second = bench.responses
    assert first.error is not None and not first.final
    assert second.outputs[0].name == "Z" and second.error is None
    assert bench.finished == [] and len(bench.mover.puts) == 1
    bench.mover.finish_put()
    assert [type(one) for one in bench.heard[2:]] == [Response, Request, EndMark]
    assert bench.finished == [request]
    assert bench.statistics.fail_count == 1
    bench.check_empty()


def test_a_stream_is_still_known_behind_while_its_first_responses_are_put() -> None:
    bench = Bench()
    bench.submit(outputs=(wanted(FAR),))
    bench.answer(bench.output(), final=False)
    assert bench.carried.in_flight == 0 and not bench.carried.idle
    bench.mover.finish_put()
    bench.answer(bench.output())
    assert bench.carried.in_flight == 1
    bench.mover.finish_put()
    assert [type(one) for one in bench.heard] == [Response, Request, Response]
    bench.check_empty()


@pytest.mark.parametrize("only", [True, False])
def test_inputs_that_come_back_as_outputs_are_kept_until_the_response_is_released(only: bool) -> None:
    bench = Bench()
    request = bench.submit(Span(FAR, 0, 8), outputs=(wanted(FAR), WantedOutput("Z")))
    bench.mover.finish_fetch()
    (copy,) = places(request)
    on_finish, request.on_finish = request.on_finish, None
    assert on_finish is not None

    def release(leases: list[Lease]) -> None:
        bench.memory.give_back([lease for lease in leases if lease.arena == bench.memory.arena])
        on_finish()

    outputs = [Tensor("Y", "UINT8", (8,), copy)] + ([] if only else [bench.output("Z")])
    bench.behind.pop().on_response(Response(request, outputs, {}, None, True, bench.memory.view, release))
    assert bench.mover.memory.lent == [copy]
    bench.mover.finish_put()
    (response,) = bench.responses
    assert bench.finished == ([request] if only else [])
    assert bench.mover.memory.lent == ([] if only else [copy])
    response.release()
    assert bench.finished == [request]
    bench.check_empty()


# order


def test_requests_of_a_sequence_do_not_overtake_one_another() -> None:
    bench = Bench()
    first = bench.submit(Span(FAR, 0, 8), sequence=7)
    second = bench.submit(small(), sequence=7)
    third = bench.submit(Span(OTHER, 0, 8), sequence=7)
    fourth = bench.submit(small(), sequence=7)
    stranger = bench.submit(small(), sequence=8)
    nobody = bench.submit(small())
    assert bench.behind == [stranger, nobody]
    bench.mover.fetches.pop().finish()
    assert bench.behind == [stranger, nobody]
    bench.carried.cancel(second)
    bench.mover.finish_fetch()
    assert bench.behind == [stranger, nobody, first, third, fourth]
    assert bench.responses[0].request is second
    fifth = bench.submit(small(), sequence=7)
    assert bench.behind[-1] is fifth
    while bench.behind:
        bench.answer()
    bench.check_empty()


def test_a_sequence_goes_on_after_one_of_its_requests_has_failed() -> None:
    bench = Bench()
    bench.submit(Span(FAR, 0, 8), sequence=7)
    second = bench.submit(small(), sequence=7)
    bench.mover.finish_fetch(internal("no luck"))
    assert bench.behind == [second]
    bench.answer()
    bench.check_empty()


def test_responses_keep_the_order_of_requests_where_a_model_asks_for_it() -> None:
    bench = Bench(ordered=True)
    first = bench.submit(small())
    second = bench.submit(Span(FAR, 0, 8))
    third = bench.submit(small(), outputs=(wanted(FAR),))
    fourth = bench.submit(small())
    bench.mover.finish_fetch(internal("no luck"))
    assert bench.behind == [first, third, fourth]
    bench.behind.reverse()
    bench.answer()
    bench.answer(bench.output())
    assert not bench.responses
    bench.answer()
    assert [response.request for response in bench.responses] == [first, second]
    bench.mover.finish_put()
    assert [response.request for response in bench.responses] == [first, second, third, fourth]
    bench.check_empty()


# the end


def test_a_version_that_stops_lets_those_through_that_wait() -> None:
    bench = Bench()
    told: list[str] = []
    request = bench.submit(Span(FAR, 0, 8), outputs=(wanted(FAR),))
    bench.carried.stop(lambda: told.append("stopped"))
    bench.carried.when_idle(lambda: told.append("idle"))
    for place in (small(), Span(FAR, 0, 8)):
        with pytest.raises(StatusError, match="Server is stopping"):
            bench.submit(place)
    assert not told
    bench.mover.finish_fetch()
    assert (bench.behind, told) == ([request], ["stopped"])
    bench.answer(bench.output())
    assert told == ["stopped"]
    bench.mover.finish_put()
    assert told == ["stopped", "idle"]
    bench.check_empty()


def test_one_that_carries_nothing_stops_and_is_idle_at_once() -> None:
    bench = Bench()
    bench.submit(small())
    told: list[str] = []
    bench.carried.stop(lambda: told.append("stopped"))
    bench.carried.when_idle(lambda: told.append("idle"))
    assert told == ["stopped", "idle"]


def test_the_last_fetch_that_fails_lets_a_version_stop() -> None:
    bench = Bench()
    told: list[str] = []
    bench.submit(Span(FAR, 0, 8))
    bench.carried.stop(lambda: told.append("stopped"))
    bench.mover.finish_fetch(internal("no luck"))
    assert told == ["stopped"]


def test_what_is_carried_when_the_server_ends_is_answered() -> None:
    bench = Bench()
    fetched = bench.submit(Span(FAR, 0, 8), Span(OTHER, 0, 8), sequence=3)
    behind = bench.submit(small(), sequence=3)
    stream = bench.submit(outputs=(wanted(FAR),))
    put = bench.submit(outputs=(wanted(FAR),))
    bench.mover.finish_fetch()
    bench.answer(bench.output(), final=False)
    bench.answer(bench.output(), final=False)
    assert bench.behind == [stream, put]
    bench.behind.reverse()
    bench.answer(bench.output())
    fetches, puts = bench.mover.fetches, bench.mover.puts
    bench.carried.abandon(LATE)
    answered = [response.request for response in bench.responses]
    assert answered == [fetched, behind, stream, stream, put]
    assert all(response.error is not None and response.error.message == LATE.message for response in bench.responses)
    assert bench.finished == [fetched, behind, put]
    for fetch in fetches:
        fetch.finish()
    for late in puts:
        late.finish()
    assert len(bench.responses) == 5
    # The dispatcher fails what it has itself.
    bench.answer(error=LATE)
    assert bench.finished[-1] is stream
    bench.check_empty()


def test_a_receiver_that_fails_costs_the_others_nothing() -> None:
    bench = Bench()
    told: list[str] = []

    def fail(response: Response) -> None:
        raise ZeroDivisionError

    first = bench.request(Span(FAR, 0, 8), sequence=1)
    first.on_response = fail
    bench.carried.submit(first)
    second = bench.submit(small(), sequence=1)
    third = bench.request(outputs=(wanted(FAR),))
    third.on_response = fail
    bench.carried.submit(third)
    bench.carried.when_idle(lambda: told.append("idle"))
    with pytest.raises(ZeroDivisionError):
        bench.mover.finish_fetch(internal("no luck"))
    assert bench.behind == [third, second]
    bench.answer(bench.output())
    with pytest.raises(ZeroDivisionError):
        bench.mover.finish_put()
    bench.answer()
    assert (bench.finished, told) == ([first, third, second], ["idle"])
    bench.check_empty()


def test_requests_leave_no_circles() -> None:
    bench = Bench()
    gc.collect()
    gc.disable()
    try:
        gone = []
        for works in (True, False):
            request = bench.submit(Span(FAR, 0, 8), outputs=(wanted(FAR), WantedOutput("Z")))
            gone.append(weakref.ref(_token(request)))
            bench.mover.finish_fetch(None if works else internal("no luck"))
            if works:
                bench.answer(bench.output(), bench.output("Z"))
                bench.mover.finish_put()
            bench.release()
            del request
            bench.heard.clear()
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()


class _Token:
    pass


def _token(request: Request) -> _Token:
    """Something that lives as long as a request: requests have slots and take no weak references."""
    token = _Token()
    request.body.parameters["token"] = token  # type: ignore[assignment]
    return token
