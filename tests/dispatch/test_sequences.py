"""Sequences under a virtual clock: places, rows, controls, backlog, time-outs, dying workers."""

from __future__ import annotations

import pytest

from tensorfarm.server.dispatch.delay_hooks import DelayHooks, delay_hooks
from tensorfarm.workers.contract.messages import Fault
from tensorfarm.workers.contract.status import Code, StatusError, unavailable

from .sequence_bench import END, MS, START, SequenceBench, controls

DIED = unavailable("the worker died")
OLDEST = "oldest { max_candidate_sequences: 4 preferred_batch_size: [ 4 ] }"


def refusal(bench: SequenceBench, correlation_id: int | str, flags: int = 0) -> str:
    with pytest.raises(StatusError) as raised:
        bench.ask(correlation_id, flags)
    return f"{raised.value.code.name} {raised.value.message}"


def test_a_sequence_has_its_controls() -> None:
    bench = SequenceBench()
    bench.model()
    seen = []
    for flags in (START, 0, END):
        bench.ask(7, flags)
        (batch,) = bench.sent
        assert batch.bodies is not None
        seen.append(controls(batch.bodies[0]))
        assert batch.bodies[0].inputs[1].shape == (1, 1)
        assert batch.bodies[0].context is not None and batch.bodies[0].context.slot == 0
        bench.finish(batch)
    assert seen == [
        {"START": 1, "END": 0.0, "READY": True, "CORRID": 7},
        {"START": 0, "END": 0.0, "READY": True, "CORRID": 7},
        {"START": 0, "END": 1.0, "READY": True, "CORRID": 7},
    ]
    assert bench.errors() == [""] * 3


def test_controls_of_a_model_that_does_not_batch_have_no_batch_dim() -> None:
    bench = SequenceBench()
    bench.model(max_batch_size=0)
    bench.ask(7, START)
    (batch,) = bench.sent
    assert batch.bodies is not None and {tensor.shape for tensor in batch.bodies[0].inputs[1:]} == {(1,)}


def test_a_body_is_not_given_its_controls_twice() -> None:
    bench = SequenceBench()
    scheduler = bench.model(OLDEST, max_batch_size=1)
    # Two are bound: the one that runs, and one behind it.
    bench.ask(1, START, "a")
    bench.ask(2, START, "b")
    assert bench.all_rows() == [["a"], ["b"]]
    bench.sent.clear()
    (instance,) = bench.instances
    bench.dispatcher.instance_down(scheduler, instance, DIED)
    bench.turn()
    assert bench.errors() == ["UNAVAILABLE the worker died"]
    bench.dispatcher.instance_up(scheduler, instance)
    bench.turn()
    (batch,) = bench.sent
    assert bench.rows() == ["b"] and batch.bodies is not None
    assert [tensor.name for tensor in batch.bodies[0].inputs] == ["X", "START", "END", "READY", "CORRID"]


def test_direct_rows_are_places_and_empty_ones_below_the_last_are_filled() -> None:
    bench = SequenceBench()
    scheduler = bench.model()
    for number, name in enumerate("abc", 1):
        bench.ask(number, START, f"{name}1")
    assert bench.rows() == ["a1"]
    for number, name in ((2, "b2"), (1, "a2")):
        bench.ask(number, 0, name)
    bench.finish(bench.sent[0])
    assert bench.rows() == ["a2", "b1", "c1"]
    bench.finish(bench.sent[0])
    assert bench.rows() == ["-", "b2"], "a batch ends with its last request"
    (batch,) = bench.sent
    assert batch.bodies is not None
    filler = batch.bodies[0]
    assert controls(filler) == {"START": 0, "END": 0.0, "READY": False, "CORRID": 0}
    assert filler.context is not None and (filler.context.slot, filler.context.flags) == (-1, 0)
    assert (filler.id, filler.inputs[0].shape) == ("", (1, 1))
    bench.finish(batch)
    statistics = scheduler.statistics
    assert (statistics.inference_count, statistics.execution_count, statistics.success_count) == (5, 3, 5)
    assert {size: row.count for size, row in statistics.batches.items()} == {1: 1, 2: 1, 3: 1}
    assert scheduler.in_flight == 0 == statistics.pending_count


def test_new_sequences_take_the_lowest_place_of_all_instances() -> None:
    bench = SequenceBench()
    bench.model(max_batch_size=2, instances=2)
    placed = []
    for number in range(1, 5):
        bench.ask(number, START, str(number))
        (batch,) = bench.sent
        assert batch.bodies is not None and batch.bodies[-1].context is not None
        placed.append((batch.instance.number, batch.bodies[-1].context.slot))
        bench.finish(batch)
    assert placed == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_rows_whose_shapes_differ_go_one_after_the_other() -> None:
    bench = SequenceBench()
    bench.model(dims="-1")
    bench.ask(9, START | END, "first")
    bench.ask(1, START, "a", width=1)
    bench.ask(2, START, "b", width=2)
    bench.ask(3, START, "c", width=1)
    assert bench.run() == [["first"], ["-", "a", "-", "c"], ["-", "-", "b"]]
    for number, width in ((1, 1), (2, 2), (3, 1), (4, 2)):
        bench.ask(number, 0 if number < 4 else START, str(number), width=width)
    assert bench.run() == [["-", "1"], ["4", "-", "2", "-"], ["-", "-", "-", "3"]]


@pytest.mark.parametrize("strategy", ["direct { }", OLDEST])
def test_errors(strategy: str) -> None:
    bench = SequenceBench()
    bench.model(strategy)
    no_id = "INVALID_ARG inference request to model 'm' must specify a non-zero or non-empty correlation ID"
    no_start = "INVALID_ARG inference request for sequence {} to model 'm' must specify the START flag on the first request of the sequence"
    assert refusal(bench, 0, START) == no_id == refusal(bench, "")
    assert refusal(bench, 7) == no_start.format(7) == refusal(bench, 7, END)
    assert refusal(bench, "abc", START) == (
        "INVALID_ARG sequence batching control 'CORRID' data-type is 'BYTES', but model 'm' expects 'UINT64'"
    )
    two = bench.sequence_request(0)
    two.body = type(two.body)("", 2, two.body.inputs, [], {}, two.body.context)
    with pytest.raises(StatusError, match="must specify batch-size 1 due to requirements of sequence batcher$"):
        bench.dispatcher.submit(bench.model_scheduler, two)
    bench.ask(7, START | END)
    assert refusal(bench, 7) == no_start.format(7), "its end has come, though it has not run"
    assert bench.model_scheduler.in_flight == 1


def test_a_start_in_the_middle_begins_anew_in_the_same_place() -> None:
    bench = SequenceBench()
    bench.model()
    bench.ask(1, START, "a")
    bench.ask(2, START, "b")
    bench.run()
    bench.ask(2, START, "again")
    assert bench.rows() == ["-", "again"]
    assert [("sequence 2" in line, "'m'" in line) for line in bench.warnings] == [(True, True)]


def test_the_backlog_is_served_sequence_by_sequence() -> None:
    bench = SequenceBench()
    bench.model(max_batch_size=1)
    bench.ask(1, START, "a1")
    for number, flags, name in ((2, START, "b1"), (3, START, "c1"), (2, 0, "b2"), (3, END, "c2"), (2, END, "b3"), (4, START | END, "d1")):
        bench.ask(number, flags, name)
    bench.ask(2, START | END, "b4")
    assert bench.model_scheduler.statistics.pending_count == 7
    bench.ask(1, END, "a2")
    assert [row for rows in bench.run() for row in rows] == ["a1", "a2", "b1", "b2", "b3", "c1", "c2", "d1", "b4"]


def test_a_silent_sequence_ends_and_its_place_goes_to_the_next() -> None:
    bench = SequenceBench()
    bench.model(max_batch_size=1)
    bench.ask(1, START, "a")
    bench.run()
    bench.ask(2, START, "b")
    bench.advance(999 * MS)
    assert not bench.sent
    bench.advance(1 * MS)
    assert bench.rows() == ["b"]
    assert "must specify the START flag" in refusal(bench, 1)


def test_a_sequence_is_not_silent_while_the_model_works_for_it() -> None:
    bench = SequenceBench()
    bench.model(max_batch_size=1)
    bench.ask(1, START, "a")
    bench.advance(5_000 * MS)
    bench.run()
    bench.advance(900 * MS)
    bench.ask(1, 0, "more")
    assert bench.run() == [["more"]]


def test_a_time_limit_counts_in_the_backlog_and_takes_the_whole_sequence() -> None:
    bench = SequenceBench()
    scheduler = bench.model(max_batch_size=1)
    bench.ask(1, START, "a", timeout_us=100)
    bench.ask(2, START, "b1")
    bench.ask(2, 0, "b2", timeout_us=300_000)
    bench.ask(3, START, "c")
    bench.advance(299 * MS)
    assert not bench.responses
    bench.advance(1 * MS)
    assert bench.errors() == ["UNAVAILABLE timeout of the corresponding sequence has been expired"] * 2
    assert scheduler.statistics.failures == [2, 0, 0, 0]
    assert "must specify the START flag" in refusal(bench, 2)
    bench.ask(1, END, "end")
    assert [row for rows in bench.run() for row in rows] == ["a", "end", "c"]


def test_direct_waits_for_its_rows_to_be_used() -> None:
    bench = SequenceBench()
    scheduler = bench.model("direct { max_queue_delay_microseconds: 100000 minimum_slot_utilization: 0.5 }")
    bench.ask(1, START, "a")
    assert not bench.sent
    bench.advance(50 * MS)
    bench.ask(2, START, "b")
    assert bench.run() == [["a", "b"]]
    bench.ask(2, 0, "c")
    bench.advance(99 * MS)
    assert not bench.sent
    bench.advance(1 * MS)
    assert bench.run() == [["-", "c"]]
    assert scheduler.statistics.cuts == [0, 0, 1, 0, 0, 1]


def test_oldest_batches_one_request_of_each_sequence() -> None:
    bench = SequenceBench()
    bench.model(OLDEST)
    for instance in bench.instances:
        instance.execution_ns = 10**9
    bench.ask(9, START | END, "first")
    for number, flags, name in ((1, START, "a1"), (1, 0, "a2"), (2, START, "b1"), (3, START, "c1"), (2, END, "b2")):
        bench.ask(number, flags, name)
    assert bench.run() == [["first"], ["a1", "b1", "c1"], ["a2", "b2"]]


def test_oldest_waits_for_its_delay() -> None:
    bench = SequenceBench()
    bench.model("oldest { max_candidate_sequences: 4 preferred_batch_size: [ 2 ] max_queue_delay_microseconds: 100000 }")
    bench.ask(1, START, "a")
    bench.advance(100 * MS - 1)
    assert not bench.sent
    bench.advance(1)
    assert bench.run() == [["a"]]
    bench.ask(1, 0, "a2")
    bench.ask(2, START, "b")
    assert bench.run() == [["a2", "b"]]


def test_no_response_of_oldest_waits_for_another_instance() -> None:
    bench = SequenceBench()
    bench.model("oldest { max_candidate_sequences: 1 preserve_ordering: true }", max_batch_size=1, instances=2)
    bench.ask(1, START, "a")
    second = bench.ask(2, START, "b")
    bench.ask(3, START, "backlog")
    third = bench.ask(2, END, "b2")
    # Held for the one in the backlog, which waits for its sequence's place, its client would never send the end.
    for request in (second, third):
        bench.finish(bench.sent[1])
        assert bench.answered()[-1] is request


def test_a_failed_request_does_not_end_its_sequence() -> None:
    bench = SequenceBench()
    bench.model()
    bench.ask(1, START)
    bench.finish(bench.sent[0], Fault(Code.INTERNAL, "no"))
    bench.ask(1, END)
    bench.finish(bench.sent[0])
    assert bench.errors() == ["INTERNAL no", ""]


def test_cancelling_a_waiting_request_ends_its_sequence() -> None:
    bench = SequenceBench()
    scheduler = bench.model(max_batch_size=1)
    bench.ask(1, START, "a")
    bench.ask(1, 0, "before")
    middle = bench.ask(1, 0, "b")
    bench.ask(1, 0, "behind")
    bench.ask(2, START, "next")
    bench.dispatcher.cancel(scheduler, middle)
    bench.turn()
    assert bench.errors() == ["CANCELLED ", "CANCELLED "]
    assert "must specify the START flag" in refusal(bench, 1)
    assert [row for rows in bench.run() for row in rows] == ["a", "before", "next"]
    assert scheduler.statistics.failures == [0, 2, 0, 0]
    assert scheduler.statistics.pending_count == 0


@pytest.mark.parametrize("strategy", ["direct { }", OLDEST])
def test_a_dead_worker_costs_the_sequences_whose_state_it_held(strategy: str) -> None:
    bench = SequenceBench()
    scheduler = bench.model(strategy, max_batch_size=1 if "direct" in strategy else 4, instances=2)
    bench.ask(1, START)
    bench.run()
    bench.ask(2, START)
    bench.run()
    bench.responses.clear()
    bench.ask(1, 0, "running")
    bench.ask(1, 0, "behind")
    victim = bench.instances[0]
    assert bench.sent[0].instance is victim
    bench.sent.clear()
    bench.dispatcher.instance_down(scheduler, victim, DIED)
    bench.turn()
    lost = "UNAVAILABLE the state of sequence 1 of model 'm' was lost when its worker ended; begin the sequence again"
    assert bench.errors() == ["UNAVAILABLE the worker died", lost]
    assert refusal(bench, 1) == f"{lost} with the START flag"
    bench.responses.clear()
    bench.ask(2, END, "goes on")
    bench.ask(1, START, "anew")
    assert sorted(row for rows in bench.run() for row in rows) == ["anew", "goes on"]
    bench.dispatcher.instance_up(scheduler, victim)
    bench.turn()
    bench.ask(5, START, "there")
    assert bench.sent[0].instance is victim
    bench.run()
    assert bench.errors() == [""] * 3
    assert scheduler.in_flight == 0 == scheduler.statistics.pending_count


def test_sequences_that_had_not_begun_move_to_another_instance() -> None:
    bench = SequenceBench()
    scheduler = bench.model(OLDEST, max_batch_size=1, instances=1)
    for instance in bench.instances:
        instance.execution_ns = 10**9
    bench.ask(1, START, "a")
    bench.ask(2, START, "b1")
    bench.ask(2, END, "b2")
    bench.sent.clear()
    bench.dispatcher.instance_down(scheduler, bench.instances[0], DIED)
    bench.turn()
    assert bench.errors() == ["UNAVAILABLE the worker died"]
    bench.dispatcher.instance_up(scheduler, bench.instances[0])
    bench.turn()
    assert bench.run() == [["b1"], ["b2"]]


def test_an_instance_that_leaves_keeps_its_sequences_to_their_end() -> None:
    bench = SequenceBench()
    scheduler = bench.model(max_batch_size=1, instances=2)
    bench.ask(1, START, "a")
    bench.run()
    gone: list[bool] = []
    bench.dispatcher.when_free(scheduler, bench.instances[0], lambda: gone.append(True))
    bench.turn()
    bench.ask(2, START, "b")
    assert bench.sent[0].instance is bench.instances[1]
    bench.ask(1, 0, "a2")
    assert bench.sent[1].instance is bench.instances[0]
    bench.run()
    assert not gone
    bench.ask(1, END, "end")
    bench.run()
    assert gone


def test_a_version_that_stops_finishes_what_waits_but_not_what_might_come() -> None:
    bench = SequenceBench()
    scheduler = bench.model(max_batch_size=1)
    bench.ask(1, START, "silent")
    bench.run()
    bench.ask(2, START, "backlog")
    scheduler.stopping = True
    done: list[bool] = []
    bench.dispatcher.when_idle(scheduler, lambda: done.append(True))
    bench.turn()
    assert bench.run() == [["backlog"]]
    assert done
    assert "Server is stopping" in refusal(bench, 3, START)


def test_a_server_that_drains_lets_no_sequence_begin() -> None:
    bench = SequenceBench()
    scheduler = bench.model()
    bench.ask(1, START)
    bench.run()
    scheduler.draining = True
    assert "Server is stopping" in refusal(bench, 2, START)
    bench.ask(1, END)
    bench.run()
    assert bench.errors() == ["", ""]


def test_an_iterative_request_comes_again_until_it_is_answered() -> None:
    bench = SequenceBench()
    scheduler = bench.model("iterative_sequence: true", max_batch_size=1)
    bench.ask(0, END, "a")
    bench.ask(0, 0, "b")
    flags = []
    for again in ([0], [0], []):
        (batch,) = bench.sent
        assert bench.rows() == ["a"] and batch.bodies is not None and batch.bodies[0].context is not None
        flags.append((batch.bodies[0].context.correlation_id, batch.bodies[0].context.flags, controls(batch.bodies[0])["START"]))
        bench.finish_again(batch, again)
    assert flags == [(1, START, 1), (1, 0, 0), (1, 0, 0)]
    assert bench.rows() == ["b"]
    bench.finish_again(bench.sent[0], [])
    assert bench.errors() == ["", ""]
    statistics = scheduler.statistics
    assert (statistics.success_count, statistics.inference_count, statistics.execution_count) == (4, 4, 4)
    assert scheduler.in_flight == 0 == statistics.pending_count


def test_an_iterative_request_without_an_id_gets_one_of_the_kind_that_the_model_is_told() -> None:
    bench = SequenceBench()
    text = 'control_input { name: "NAME" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_STRING } }'
    bench.model(f"iterative_sequence: true {text}", max_batch_size=1, controls="")
    bench.ask(0)
    (batch,) = bench.sent
    assert batch.bodies is not None
    (tensor,) = [tensor for tensor in batch.bodies[0].inputs if tensor.name == "NAME"]
    assert bytes(tensor.place.content) == b"\1\0\0\0001"  # type: ignore[union-attr]


def test_an_iterative_request_whose_client_has_gone_does_not_come_again() -> None:
    bench = SequenceBench()
    scheduler = bench.model("iterative_sequence: true", max_batch_size=1)
    request = bench.ask(0)
    bench.dispatcher.cancel(scheduler, request)
    bench.finish_again(bench.sent[0], [0])
    assert bench.errors() == ["CANCELLED "]
    assert not bench.sent
    assert scheduler.in_flight == 0 == scheduler.statistics.pending_count


def test_delay_hooks_hold_the_first_batch() -> None:
    bench = SequenceBench()
    bench.model(max_batch_size=1, hooks=DelayHooks(2, 1))
    bench.ask(1, START, "a1")
    bench.ask(1, 0, "a2")
    assert not bench.sent
    bench.ask(2, START, "b1")
    assert bench.rows() == ["a1"]
    oldest = SequenceBench()
    oldest.model(OLDEST, hooks=DelayHooks(3, 5))
    for number, flags in ((1, START), (1, 0), (2, START)):
        oldest.ask(number, flags, str(number))
        assert not oldest.sent
    oldest.ask(3, START, "3")
    assert oldest.rows() == ["1", "2", "3"]


def test_delay_hooks_do_not_hold_up_an_end() -> None:
    bench = SequenceBench()
    scheduler = bench.model(max_batch_size=1, hooks=DelayHooks(2, 0))
    bench.ask(1, START, "a")
    scheduler.stopping = True
    bench.dispatcher.when_idle(scheduler, lambda: None)
    bench.turn()
    assert bench.run() == [["a"]]


def test_delay_hooks_come_from_the_environment() -> None:
    said: list[str] = []
    environment = {"TRITONSERVER_DELAY_SCHEDULER": "3", "TRITONSERVER_BACKLOG_DELAY_SCHEDULER": "many"}
    assert delay_hooks(environment, said.append) == DelayHooks(3, 0)
    assert len(said) == 1 and "TRITONSERVER_BACKLOG_DELAY_SCHEDULER" in said[0]
