"""Ensembles under a virtual clock, one situation at a time."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from tensorfarm.server.dispatch.ensemble_plan import fitted
from tensorfarm.server.dispatch.request import EndMark, Response
from tensorfarm.server.statistics import FailureReason
from tensorfarm.shm.placement import Inline, Lease, Span
from tensorfarm.workers.contract.messages import Done, RequestContext, Tensor, WantedOutput
from tensorfarm.workers.contract.status import Code, StatusError, invalid, unavailable

from .ensemble_bench import CONTENT, Bench, ensemble_config, model, step

CHAIN = ensemble_config([step("a", {"IN": "X"}, {"OUT": "T"}), step("b", {"IN": "T"}, {"OUT": "Y"})], ["X"], ["Y"])
A, B, C = (model(name, ["IN"], ["OUT"]) for name in "abc")
FLOW = model("flow", ["IN"], ["OUT"], decoupled=True)
FLOW2 = model("flow2", ["IN"], ["OUT"], decoupled=True)
JOIN = model("join", ["L", "R"], ["OUT", "MORE"])


def test_a_chain_hands_tensors_on_where_they_lie() -> None:
    bench = Bench(CHAIN, A, B)
    bench.ask(id="q", parameters={"p": 1}, priority=3, timeout_us=7)
    assert bench.names() == ["a"]
    first = bench.waiting("a").request
    assert (first.body.id, first.body.parameters, first.priority, first.timeout_us) == ("q", {"p": 1}, 3, 7)
    assert [output.name for output in first.body.outputs] == ["OUT"]
    upstream = bench.answer("a")
    assert bench.names() == ["b"]
    second = bench.waiting("b")
    assert second.inputs() == {"IN": Tensor("IN", "INT32", (4,), upstream.outputs[0].place)}
    assert bench.released == []
    last = bench.answer("b")
    assert bench.released == [upstream]
    (response,) = bench.responses
    assert response.final
    assert response.error is None
    assert response.outputs == [Tensor("Y", "INT32", (4,), last.outputs[0].place)]
    assert bytes(response.read(response.outputs[0])) == f"b {last.outputs[0].place.offset}".encode()
    assert bench.finished == ["request"]
    response.release()
    assert bench.released == [upstream, last]
    assert bench.ensemble.idle


def test_a_response_says_which_sequence_it_belongs_to() -> None:
    bench = Bench(CHAIN, A, B)
    bench.ask(context=RequestContext(5, 1, 9, "t"))
    bench.answer("a", parameters={"color": "red"})
    assert bench.waiting("b").request.body.context == RequestContext(5, 1, 9, "t")
    bench.answer("b", parameters={"color": "blue"})
    assert bench.responses[0].parameters == {"sequence_id": 5, "sequence_start": True, "sequence_end": False}


def test_a_step_may_put_what_follows_in_another_sequence() -> None:
    bench = Bench(CHAIN, A, B)
    bench.ask(context=RequestContext(5, 1, 9, "t"))
    bench.answer("a", parameters={"sequence_id": "other", "sequence_start": False, "sequence_end": True})
    assert bench.waiting("b").request.body.context == RequestContext("other", 2, 9, "t")
    bench.answer("b")
    assert bench.responses[0].parameters == {"sequence_id": "other", "sequence_start": False, "sequence_end": True}


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"sequence_id": True}, "expected parameter 'sequence_id' to be TRITONSERVER_PARAMETER_INT or TRITONSERVER_PARAMETER_STRING"),
        ({"sequence_start": 1}, "expect parameter 'sequence_start' to be TRITONSERVER_PARAMETER_BOOL"),
        ({"sequence_end": "x"}, "expect parameter 'sequence_end' to be TRITONSERVER_PARAMETER_BOOL"),
    ],
)
def test_sequence_parameters_of_another_type_are_refused(parameters: dict[str, Any], text: str) -> None:
    bench = Bench(CHAIN, A, B)
    bench.ask()
    bench.answer("a", parameters=parameters)
    (response,) = bench.responses
    assert response.error is not None
    assert (response.error.code, response.error.message) == (Code.INVALID_ARG, f"in ensemble 'E', {text}")
    assert bench.released == bench.made


def test_of_two_sequences_that_meet_the_first_counts() -> None:
    config = ensemble_config(
        [step("a", {"IN": "X"}, {"OUT": "T"}), step("b", {"IN": "X"}, {"OUT": "U"}), step("join", {"L": "T", "R": "U"}, {"OUT": "Y"})],
        ["X"],
        ["Y"],
    )
    bench = Bench(config, A, B, JOIN)
    bench.ask()
    bench.answer("b", parameters={"sequence_id": 2})
    bench.answer("a", parameters={"sequence_id": 1})
    assert bench.waiting("join").request.body.context == RequestContext(1)
    assert len(bench.warnings) == 1


def test_a_tensor_may_have_several_consumers_and_be_an_output() -> None:
    config = ensemble_config(
        [step("a", {"IN": "X"}, {"OUT": "T"}), step("b", {"IN": "T"}, {"OUT": "Y"}), step("c", {"IN": "T"}, {"OUT": "Z"})],
        ["X"],
        ["Y", "T", "Z"],
    )
    bench = Bench(config, A, B, C)
    bench.ask()
    shared = bench.answer("a")
    assert bench.names() == ["b", "c"]
    bench.answer("c")
    bench.answer("b")
    (response,) = bench.responses
    assert [tensor.name for tensor in response.outputs] == ["Y", "T", "Z"]
    assert bench.released == []
    for tensor in response.outputs:
        assert bytes(response.read(tensor)).startswith({"Y": b"b", "T": b"a", "Z": b"c"}[tensor.name])
    response.release()
    response.release()
    assert sorted(map(id, bench.released)) == sorted(map(id, bench.made))
    assert shared in bench.released


def test_steps_that_no_wanted_output_needs_are_left_out() -> None:
    config = ensemble_config(
        [step("join", {"L": "X", "R": "X"}, {"OUT": "T", "MORE": "Y"}), step("b", {"IN": "T"}, {"OUT": "Z"})], ["X"], ["Y", "Z"]
    )
    bench = Bench(config, JOIN, B)
    bench.ask("Y")
    assert [output.name for output in bench.waiting("join").request.body.outputs] == ["MORE"]
    bench.answer("join", "MORE", "OUT")
    (response,) = bench.responses
    assert [tensor.name for tensor in response.outputs] == ["Y"]
    assert bench.names() == []


def test_an_output_for_a_region_is_asked_of_its_producer() -> None:
    span = Span(3, 64, 16)
    bench = Bench(CHAIN, A, B)
    bench.ask(WantedOutput("Y", span))
    bench.answer("a")
    assert bench.waiting("b").request.body.outputs == [WantedOutput("OUT", span)]


def test_what_a_member_leaves_out_is_missing_further_on() -> None:
    config = ensemble_config(
        [step("join", {"L": "X", "R": "X"}, {"OUT": "T", "MORE": "Y"}), step("b", {"IN": "T"}, {"OUT": "Z"})], ["X"], ["Y", "Z"]
    )
    bench = Bench(config, JOIN, B)
    bench.ask()
    bench.answer("join", "MORE")
    assert bench.waiting("b").inputs() == {}
    bench.answer("b", "-")
    (response,) = bench.responses
    assert [tensor.name for tensor in response.outputs] == ["Y"]
    response.release()
    assert len(bench.released) == 2


def test_an_answer_without_outputs_is_an_answer() -> None:
    bench = Bench(CHAIN, A, B)
    bench.ask()
    bench.answer("a")
    bench.answer("b", "-")
    (response,) = bench.responses
    assert (response.error, response.outputs, response.parameters) == (None, [], {})


def test_optional_inputs_that_did_not_come_are_skipped() -> None:
    config = ensemble_config([step("join", {"L": "X", "R": "O"}, {"OUT": "Y"})], ["X", "O"], ["Y"])
    bench = Bench(config, JOIN)
    bench.ask(inputs={"X": Tensor("X", "INT32", (4,), Inline(CONTENT))})
    assert list(bench.waiting("join").inputs()) == ["L"]


def test_the_first_error_ends_the_whole_once_nothing_runs() -> None:
    config = ensemble_config(
        [
            step("a", {"IN": "X"}, {"OUT": "T"}),
            step("b", {"IN": "X"}, {"OUT": "U"}),
            step("join", {"L": "T", "R": "U"}, {"OUT": "Y"}),
        ],
        ["X"],
        ["Y"],
    )
    bench = Bench(config, A, B, JOIN)
    bench.ask()
    other = bench.waiting("b")
    bench.answer("a", error=unavailable("no luck"))
    assert other.cancelled == 1
    assert bench.responses == []
    assert bench.finished == []
    bench.answer(other, error=StatusError(Code.CANCELLED, ""))
    (response,) = bench.responses
    assert response.error is not None
    assert (response.error.code, response.error.message) == (Code.UNAVAILABLE, "in ensemble 'E', no luck")
    assert bench.released == bench.made
    assert bench.finished == ["request"]
    assert bench.statistics.fail_count == 1
    assert bench.statistics.failures[FailureReason.OTHER] == 1
    assert bench.statistics.execution_count == 0


def test_a_member_that_refuses_a_step_fails_the_whole() -> None:
    bench = Bench(CHAIN, A, B)
    bench.refuse["b"] = invalid("[request id: q] unexpected shape")
    bench.ask()
    bench.answer("a")
    (response,) = bench.responses
    assert response.error is not None
    assert response.error.message == "in ensemble 'E', [request id: q] unexpected shape"
    assert bench.released == bench.made


def test_answers_that_come_while_a_step_is_submitted() -> None:
    bench = Bench(CHAIN, A, B)
    bench.at_once = {"a": bench.answer, "b": bench.answer}
    bench.ask()
    (response,) = bench.responses
    assert response.error is None
    response.release()
    assert len(bench.released) == 2


def test_a_step_that_fails_the_whole_while_it_is_submitted_is_cancelled() -> None:
    config = ensemble_config([step("flow", {"IN": "X"}, {"OUT": "Y"})], ["X"], ["Y"])
    bench = Bench(config, FLOW)
    bench.at_once["flow"] = lambda asked: bench.answer(asked, error=invalid("bad"), final=False)
    bench.ask()
    flow = bench.waiting("flow")
    assert flow.cancelled == 1
    assert [response.final for response in bench.responses] == [False]
    bench.end(flow)
    assert [response.final for response in bench.responses] == [False, True]


def test_what_was_held_back_of_a_failed_request_takes_nobodys_place() -> None:
    config = ensemble_config([step("flow", {"IN": "X"}, {"OUT": "T"}), step("a", {"IN": "T"}, {"OUT": "Y"})], ["X"], ["Y"], max_inflight=1)
    bench = Bench(config, FLOW, A)
    for _ in range(2):
        request = bench.ask()
        flow = bench.waiting("flow")
        for _ in range(3):
            bench.answer(flow, "OUT", final=False)
        bench.ensemble.cancel(request)
        bench.end(flow)
        bench.answer("a")
    assert bench.names() == []
    assert bench.ensemble.idle
    assert sorted(map(id, bench.released)) == sorted(map(id, bench.made))


def test_cancelling_reaches_the_steps_and_begins_no_more() -> None:
    bench = Bench(CHAIN, A, B)
    request = bench.ask()
    running = bench.waiting("a")
    bench.ensemble.cancel(request)
    assert running.cancelled == 1
    assert bench.responses == []
    bench.answer(running)
    (response,) = bench.responses
    assert response.error is not None
    assert (response.error.code, response.error.message) == (Code.CANCELLED, "")
    assert bench.released == bench.made
    assert bench.names() == []
    assert bench.statistics.failures[FailureReason.CANCELED] == 1
    bench.ensemble.cancel(request)


def test_what_was_never_set_is_a_deadlock() -> None:
    """A member that was reloaded as a decoupled one may never answer."""
    bench = Bench(CHAIN, A, B)
    bench.ask(id="q")
    bench.answer("a")
    bench.end("b")
    (response,) = bench.responses
    assert response.error is not None
    assert response.error.code is Code.INVALID_ARG
    assert response.error.message == (
        "in ensemble 'E', [request id: q] unexpected deadlock, at least one output is not set while no more ensemble steps can be made"
    )
    assert bench.released == bench.made
    assert bench.statistics.fail_count == 1


def test_a_member_that_is_not_decoupled_has_one_response() -> None:
    bench = Bench(CHAIN, A, B)
    bench.ask()
    asked = bench.waiting("a")
    bench.answer(asked, final=False)
    bench.end(asked)
    asked = bench.waiting("b")
    bench.answer(asked, final=False)
    assert bench.responses == []
    bench.end(asked)
    assert [(response.final, response.error) for response in bench.responses] == [(True, None)]
    bench.ask()
    asked = bench.waiting("a")
    bench.answer(asked, final=False)
    bench.answer(asked)
    assert len(bench.responses) == 1
    bench.answer("b")
    error = bench.responses[1].error
    assert error is not None
    assert error.message == "in ensemble 'E', model 'a' gave several responses although it is not decoupled"
    bench.responses[0].release()
    assert sorted(map(id, bench.released)) == sorted(map(id, bench.made))


def test_a_stopping_ensemble_takes_no_more() -> None:
    bench = Bench(CHAIN, A, B)
    bench.ask()
    bench.ensemble.stopping = True
    idle: list[bool] = []
    bench.ensemble.when_idle(lambda: idle.append(True))
    with pytest.raises(StatusError, match="Server is stopping"):
        bench.ask()
    assert bench.ensemble.in_flight == 1
    bench.answer("a")
    assert not idle
    bench.answer("b")
    assert idle == [True]


def test_batch_dims_come_and_go_between_neighbours() -> None:
    assert fitted((4,), False, (4,), True) == (1, 4)
    assert fitted((2, 4), False, (4,), True) == (2, 4)
    assert fitted((7,), False, (-1,), True) == (1, 7)
    assert fitted((1, 4), True, (4,), False) == (4,)
    assert fitted((2, 4), True, (4,), False) == (2, 4)
    assert fitted((1, 4), True, (-1, 4), False) == (1, 4)
    assert fitted((3, 4), True, (4,), True) == (3, 4)
    batching = model("a", ["IN"], ["OUT"], max_batch_size=8)
    bench = Bench(CHAIN, batching, B)
    bench.ask()
    assert bench.waiting("a").inputs()["IN"].shape == (1, 4)
    bench.answer("a", shape=(1, 4))
    assert bench.waiting("b").inputs()["IN"].shape == (4,)
    bench.answer("b")
    assert bench.responses[0].outputs[0].shape == (4,)


def test_an_input_may_be_an_output() -> None:
    config = ensemble_config([step("a", {"IN": "X"}, {"OUT": "Y"})], ["X"], ["Y", "X"])
    bench = Bench(config, A)
    bench.ask(inputs={"X": Tensor("X", "INT32", (4,), Lease(0, 0, 16))})
    bench.answer("a")
    (response,) = bench.responses
    assert bytes(response.read(response.outputs[1])) == b"request " * 2
    bench.ask(inputs={"X": Tensor("X", "INT32", (4,), Span(1, 0, 16))})
    made = bench.answer("a")
    assert bench.responses[1].error is not None
    assert bench.responses[1].error.code is Code.UNSUPPORTED
    assert made in bench.released


def test_each_response_of_a_decoupled_step_runs_what_follows_once() -> None:
    config = ensemble_config([step("flow", {"IN": "X"}, {"OUT": "T"}), step("a", {"IN": "T"}, {"OUT": "Y"})], ["X"], ["Y"])
    bench = Bench(config, FLOW, A)
    assert bench.plan.decoupled
    bench.ask()
    flow = bench.waiting("flow")
    for _ in range(3):
        bench.answer(flow, "OUT", final=False)
    assert bench.names() == ["flow", "a", "a", "a"]
    bench.answer("a")
    assert [response.final for response in bench.responses] == [False]
    bench.answer("a")
    bench.end(flow)
    assert len(bench.responses) == 2
    assert bench.finished == []
    bench.answer("a")
    assert [response.final for response in bench.responses] == [False, False, True]
    assert bench.responses[2].outputs
    assert bench.finished == ["request"]
    for response in bench.responses:
        response.release()
    assert sorted(map(id, bench.released)) == sorted(map(id, bench.made))
    assert bench.statistics.success_count == 1


def test_an_end_mark_where_the_last_response_has_gone() -> None:
    config = ensemble_config([step("flow", {"IN": "X"}, {"OUT": "Y"})], ["X"], ["Y"])
    bench = Bench(config, FLOW)
    bench.ask()
    flow = bench.waiting("flow")
    bench.answer(flow, "OUT", final=False)
    bench.end(flow)
    assert [(bool(response.outputs), response.final) for response in bench.responses] == [(True, False), (False, True)]
    assert type(bench.responses[1]) is EndMark
    bench.ask()
    bench.end("flow")
    assert [response.final for response in bench.responses] == [False, True, True]
    bench.ask()
    bench.answer("flow")
    assert (bool(bench.responses[3].outputs), bench.responses[3].final) == (True, True)


def test_an_empty_response_of_a_decoupled_step_is_one() -> None:
    config = ensemble_config([step("flow", {"IN": "X"}, {"OUT": "Y"})], ["X"], ["Y"])
    bench = Bench(config, FLOW)
    bench.ask()
    bench.answer(bench.waiting("flow"), "-", final=False)
    assert [(response.outputs, response.parameters, response.final) for response in bench.responses] == [([], {}, False)]


def test_responses_of_one_wave_belong_together() -> None:
    """What joins a decoupled step's tensor with one made from it gets those of the same response."""
    config = ensemble_config(
        [step("flow", {"IN": "X"}, {"OUT": "T"}), step("a", {"IN": "T"}, {"OUT": "U"}), step("join", {"L": "T", "R": "U"}, {"OUT": "Y"})],
        ["X"],
        ["Y", "T"],
    )
    bench = Bench(config, FLOW, A, JOIN)
    bench.ask()
    flow = bench.waiting("flow")
    made = [bench.answer(flow, "OUT", final=False) for _ in range(2)]
    first, second = (asked for asked in bench.asked if asked.member == "a")
    later = bench.answer(second)
    joined = bench.waiting("join")
    assert joined.inputs()["L"].place == made[1].outputs[0].place
    assert joined.inputs()["R"].place == later.outputs[0].place
    bench.answer(joined)
    assert bench.responses[0].outputs[1].place == made[1].outputs[0].place
    bench.answer(first)
    assert bench.waiting("join").inputs()["L"].place == made[0].outputs[0].place


def test_one_decoupled_step_may_feed_another() -> None:
    config = ensemble_config([step("flow", {"IN": "X"}, {"OUT": "T"}), step("flow2", {"IN": "T"}, {"OUT": "Y"})], ["X"], ["Y"])
    bench = Bench(config, FLOW, FLOW2)
    bench.ask()
    flow = bench.waiting("flow")
    for _ in range(2):
        bench.answer(flow, "OUT", final=False)
    bench.end(flow)
    first, second = bench.asked
    bench.answer(first, "OUT", final=False)
    bench.answer(second, "OUT", final=False)
    bench.answer(first, "OUT", final=False)
    bench.end(first)
    bench.end(second)
    assert [(len(response.outputs), response.final) for response in bench.responses] == [(1, False)] * 3 + [(0, True)]


def test_an_error_of_a_decoupled_ensemble_is_told_at_once() -> None:
    config = ensemble_config([step("flow", {"IN": "X"}, {"OUT": "T"}), step("a", {"IN": "T"}, {"OUT": "Y"})], ["X"], ["Y"])
    bench = Bench(config, FLOW, A)
    bench.ask()
    flow = bench.waiting("flow")
    bench.answer(flow, "OUT", final=False)
    bench.answer("a", error=invalid("bad"))
    assert flow.cancelled == 1
    (response,) = bench.responses
    assert response.error is not None
    assert not response.final
    bench.answer(flow, "OUT", final=False)
    bench.end(flow)
    assert [(response.final, response.error is None) for response in bench.responses] == [(False, False), (True, True)]
    assert sorted(map(id, bench.released)) == sorted(map(id, bench.made))
    assert bench.statistics.fail_count == 1
    assert bench.statistics.success_count == 0


def test_tensors_of_different_decoupled_steps_do_not_meet() -> None:
    for steps, outputs in (
        ([step("flow", {"IN": "X"}, {"OUT": "T"}), step("join", {"L": "T", "R": "X"}, {"OUT": "Y"})], ["Y"]),
        ([step("flow", {"IN": "X"}, {"OUT": "Y"}), step("flow2", {"IN": "X"}, {"OUT": "Z"})], ["Y", "Z"]),
        ([step("flow", {"IN": "X"}, {"OUT": "Y"}), step("a", {"IN": "X"}, {"OUT": "Z"})], ["Y", "Z"]),
    ):
        with pytest.raises(StatusError) as raised:
            Bench(ensemble_config(steps, ["X"], outputs), FLOW, FLOW2, A, JOIN)
        assert raised.value.reason == (
            "Invalid argument: in ensemble E, step of model 'E' receives inputs originated from different decoupled models"
        )


def test_nothing_is_held_back_of_what_a_batch_waits_for() -> None:
    """It may be the very batch of a step that runs: a model that calls the ensemble it is part of."""
    config = ensemble_config([step("flow", {"IN": "X"}, {"OUT": "T"}), step("a", {"IN": "T"}, {"OUT": "Y"})], ["X"], ["Y"], max_inflight=1)
    bench = Bench(config, FLOW, A)
    for caller in (0, 7):
        bench.ask(caller=caller)
        bench.answer(bench.waiting("flow"), "OUT", final=False)
        bench.end("flow")
    assert bench.names() == ["a", "a"]
    for _ in range(2):
        bench.answer("a")
    for response in bench.responses:
        response.release()
    assert bench.ensemble.idle


def test_a_limit_holds_back_what_a_decoupled_step_is_ahead() -> None:
    config = ensemble_config([step("flow", {"IN": "X"}, {"OUT": "T"}), step("a", {"IN": "T"}, {"OUT": "Y"})], ["X"], ["Y"], max_inflight=2)
    bench = Bench(config, FLOW, A)
    bench.ask()
    flow = bench.waiting("flow")
    made = [bench.answer(flow, "OUT", final=False) for _ in range(4)]
    bench.end(flow)
    other = bench.ask()
    bench.answer(bench.waiting("flow"), "OUT", final=False)
    assert bench.names() == ["a", "a", "flow"]
    bench.answer("a")
    assert bench.names() == ["a", "flow", "a"]
    bench.ensemble.cancel(other)
    bench.end("flow")
    for _ in range(3):
        bench.answer("a")
    assert bench.names() == []
    places = [asked.inputs()["IN"].place for asked in bench.everything if asked.member == "a"]
    assert places == [response.outputs[0].place for response in made]
    assert [response.final for response in bench.responses if response.request is not other] == [False, False, False, True]
    for response in bench.responses:
        response.release()
    assert sorted(map(id, bench.released)) == sorted(map(id, bench.made))


def test_what_steps_take_is_summed() -> None:
    bench = Bench(CHAIN, A, B)
    request = bench.ask()
    for member, start in (("a", 100), ("b", 1000)):
        on_execution = bench.waiting(member).request.on_execution
        assert on_execution is not None
        on_execution(Done(1, [], start, start + 1, start + 11, start + 111))
        bench.answer(member)
    statistics = bench.statistics
    assert (statistics.compute_input_ns, statistics.compute_infer_ns, statistics.compute_output_ns) == (2, 20, 200)
    assert (statistics.success_count, statistics.execution_count, statistics.inference_count) == (1, 1, 1)
    assert 0 < statistics.queue_ns < statistics.success_ns < bench.now_ns - request.start_ns
    on_execution(Done(1, [], 0, 1, 2, 3))
    assert (statistics.compute_input_ns, statistics.batches[1].input_ns, statistics.execution_count) == (3, 3, 1)


def test_a_request_leaves_no_circle_behind() -> None:
    """The server's collector runs rarely."""
    bench = Bench(CHAIN, A, B)
    del bench.everything[:], bench.made[:], bench.released[:]

    def one() -> None:
        bench.ask()
        bench.answer("a")
        bench.answer("b")
        bench.ask()
        bench.answer("a", error=invalid("bad"))
        for response in bench.responses:
            response.release()
        for kept in (bench.everything, bench.made, bench.released, bench.responses):
            kept.clear()

    one()
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            one()
        assert gc.collect() < 10
    finally:
        gc.enable()


def test_a_receiver_that_fails_costs_no_other_request_its_answer() -> None:
    config = ensemble_config([step("flow", {"IN": "X"}, {"OUT": "T"}), step("a", {"IN": "T"}, {"OUT": "Y"})], ["X"], ["Y"], max_inflight=1)
    bench = Bench(config, FLOW, A)
    broken = bench.ask()

    def fail(response: Response) -> None:
        raise RuntimeError("receiver")

    broken.on_response = fail
    flow = bench.waiting("flow")
    for _ in range(3):
        bench.answer(flow, "OUT", final=False)
    with pytest.raises(RuntimeError, match="receiver"):
        bench.answer("a")
    for call in bench.soon:
        call()
    assert bench.names() == ["flow", "a"]
