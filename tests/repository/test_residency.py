"""Models that load when they are first asked: thousands of interleavings of everything that can happen to them."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tensorfarm.server.repository.demand import Need
from tensorfarm.workers.contract.status import Code, StatusError, unavailable

from .residency_farm import ASKED, RANKS, SECOND_NS, SIZES, Call, Client, Farm, need_of


class ResidencyMachine(RuleBasedStateMachine):
    """Demands, nested demands, ensembles, loads that fail, cancellations, in any order."""

    @initialize(
        count=st.one_of(st.none(), st.integers(1, 5)),
        byte_size=st.one_of(st.none(), st.integers(1, 120)),
        hears_all=st.booleans(),
        at_once=st.sampled_from([False, False, False, True]),
    )
    def start(self, count: int | None, byte_size: int | None, hears_all: bool, at_once: bool) -> None:
        self.farm = Farm(count, byte_size, hears_all, at_once)

    @rule(name=st.sampled_from(RANKS))
    def a_client_asks(self, name: str) -> None:
        farm = self.farm
        client = farm.ask(name)
        count = farm.core.budget.count
        if client is not None and count is not None and len(need_of(name).closure()) > count:
            assert isinstance(client.answers[0], StatusError) and "--lazy-model-count" in client.answers[0].message

    @precondition(lambda self: self.farm.able())
    @rule(pick=st.integers(0, 1000), asked=st.integers(0, 1000))
    def a_request_asks(self, pick: int, asked: int) -> None:
        able = self.farm.able()
        call = able[pick % len(able)]
        targets = list(ASKED.get(call.name) or RANKS[RANKS.index(call.name) + 1 :])
        if targets:
            waits = self.farm.ask(targets[asked % len(targets)], call)
            assert waits is None or call.name not in ASKED, "an ensemble's members are there as long as it is"

    @precondition(lambda self: self.farm.able())
    @rule(pick=st.integers(0, 1000))
    def a_request_ends(self, pick: int) -> None:
        able = self.farm.able()
        self.farm.finish(able[pick % len(able)])

    @precondition(lambda self: self.farm.loading)
    @rule(pick=st.integers(0, 1000))
    def a_load_ends(self, pick: int) -> None:
        self.farm.end_load(self.farm.loading[pick % len(self.farm.loading)])

    @precondition(lambda self: self.farm.unloading)
    @rule(pick=st.integers(0, 1000))
    def an_unload_ends(self, pick: int) -> None:
        self.farm.end_unload(self.farm.unloading[pick % len(self.farm.unloading)])

    @precondition(lambda self: any(client.waits for client in self.farm.clients))
    @rule(pick=st.integers(0, 1000))
    def somebody_goes(self, pick: int) -> None:
        waiting = [client for client in self.farm.clients if client.waits]
        self.farm.cancel(waiting[pick % len(waiting)])

    @rule(name=st.sampled_from(RANKS), breaks=st.booleans())
    def files_change(self, name: str, breaks: bool) -> None:
        (self.farm.failing.add if breaks else self.farm.failing.discard)(name)
        self.farm.core.forget_failure(name)

    @rule(seconds=st.integers(1, 100))
    def time_passes(self, seconds: int) -> None:
        self.farm.now_ns += seconds * SECOND_NS

    @rule()
    def all_ends(self) -> None:
        self.farm.settle()

    @invariant()
    def it_holds(self) -> None:
        if hasattr(self, "farm"):
            self.farm.check()

    def teardown(self) -> None:
        if hasattr(self, "farm"):
            self.farm.settle()


TestResidency = ResidencyMachine.TestCase
TestResidency.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)


@pytest.mark.parametrize("seed", range(8))
def test_a_storm_of_everything(seed: int) -> None:
    """Long runs in narrow budgets, with many requests that ask others: where circles are."""
    pick = random.Random(seed)
    refusals = 0
    for _ in range(150):
        count = pick.choice([None, 1, 2, 2, 3, 3, 4, 4, 5, 6])
        byte_size = pick.choice([None, None, 40, 70, 100])
        farm = Farm(count, byte_size, pick.random() < 0.5, pick.random() < 0.2, pick.random() < 0.5)
        names = pick.sample(RANKS, pick.randint(3, len(RANKS)))
        farm.failing = {name for name in names if pick.random() < 0.05}
        for _ in range(60):
            kind = pick.random()
            able = farm.able()
            if kind < 0.2:
                farm.ask(pick.choice(names))
            elif kind < 0.55 and able:
                call = pick.choice(able)
                if targets := list(ASKED.get(call.name) or RANKS[RANKS.index(call.name) + 1 :]):
                    client = farm.ask(pick.choice(targets), call)
                    refusals += client is not None and bool(client.answers) and client.answers[0] is not None
            elif kind < 0.65 and able:
                farm.finish(pick.choice(able))
            elif kind < 0.68 and (waiting := [client for client in farm.clients if client.waits]):
                farm.cancel(pick.choice(waiting))
            elif kind < 0.9 and farm.loading:
                farm.end_load(pick.choice(farm.loading))
            elif farm.unloading:
                farm.end_unload(pick.choice(farm.unloading))
            farm.check()
        farm.settle()
    assert refusals, "some asked for what could never come"


def run_loads(farm: Farm) -> None:
    """Let loads and unloads end until there are none."""
    while farm.loading or farm.unloading:
        farm.end_load(farm.loading[0]) if farm.loading else farm.end_unload(farm.unloading[0])


def started(farm: Farm, name: str) -> Call:
    """A request in flight to a model, which is loaded for it."""
    farm.ask(name)
    run_loads(farm)
    return farm.calls[name][-1]


def error_of(client: Client | None) -> StatusError:
    assert client is not None
    (error,) = client.answers
    assert error is not None
    return error


def test_demands_for_one_model_share_its_load() -> None:
    farm = Farm(1, None)
    clients = [farm.ask("a") for _ in range(3)]
    assert farm.loading == ["a"]
    farm.end_load("a")
    assert farm.loads == 1 and len(farm.calls["a"]) == 3
    assert all(client is not None and client.answers == [None] for client in clients)
    farm.settle()


def test_the_least_recently_used_leaves() -> None:
    farm = Farm(3, None)
    for name in "abc":
        farm.finish(started(farm, name))
    farm.finish(started(farm, "a"))
    farm.ask("d")
    assert farm.unloading == ["b"] and farm.loading == []
    farm.end_unload("b")
    assert farm.loading == ["d"] and farm.core.names == ["c", "a", "d"]
    farm.settle()


def test_fifty_models_in_five_places() -> None:
    farm = Farm(5, None)
    names = [f"m{number}" for number in range(50)]
    for name in names:
        SIZES.setdefault(name, 1)
        farm.calls[name] = []
    try:
        for name in (*names, *names):
            farm.ask(name)
            farm.check()
        answered = 0
        while farm.core.waiting:
            run_loads(farm)
            answered += 1
            for calls in farm.calls.values():
                if calls:
                    farm.finish(calls[0])
            farm.check()
        assert all(client.answers == [None] for client in farm.clients)
    finally:
        for name in names:
            del SIZES[name]


def test_an_ensemble_comes_and_goes_with_its_members() -> None:
    farm = Farm(4, None)
    farm.finish(started(farm, "a"))
    farm.finish(started(farm, "b"))
    farm.ask("pair")
    assert farm.unloading == ["a"] and not farm.loading, "all of them get their places together"
    farm.end_unload("a")
    assert farm.loading == ["c", "d"]
    farm.end_load("c")
    assert farm.loading == ["d"]
    farm.end_load("d")
    assert farm.loading == ["pair"]
    farm.end_load("pair")
    farm.finish(farm.calls["pair"][0])
    farm.finish(started(farm, "b"))
    farm.ask("e")
    assert farm.unloading == ["pair"], "before its members, though they were not used since"
    farm.settle()


def test_what_can_never_fit_is_refused_at_once() -> None:
    farm = Farm(2, None)
    error = error_of(farm.ask("pair"))
    assert error.code is Code.UNAVAILABLE and "it is 3 models, and --lazy-model-count allows 2" in error.message
    assert not farm.core.names


def test_a_members_failure_is_the_ensembles() -> None:
    farm = Farm(4, None)
    farm.failing = {"c"}
    client = farm.ask("pair")
    farm.end_load("c")
    assert error_of(client).message == "c is broken"
    assert farm.core.names == ["d"], "the ensemble has not begun, so it is not there"
    assert error_of(farm.ask("pair")).message == "c is broken"
    farm.settle()


def test_a_failure_is_remembered_for_longer_each_time() -> None:
    farm = Farm(1, None)
    farm.failing = {"a"}
    for seconds in (1, 2, 4, 8, 16, 30, 30):
        client = farm.ask("a")
        assert farm.loading == ["a"]
        farm.end_load("a")
        assert error_of(client).message == "a is broken"
        farm.now_ns += seconds * SECOND_NS - 1
        assert error_of(farm.ask("a")).message == "a is broken" and not farm.loading
        farm.now_ns += 1
    farm.ask("a")
    farm.end_load("a")
    farm.failing.clear()
    farm.core.forget_failure("a")
    farm.ask("a")
    farm.end_load("a")
    assert len(farm.calls["a"]) == 1 and len(farm.core._failures) == 0
    farm.settle()


def test_old_failures_are_forgotten() -> None:
    farm = Farm(None, None)
    farm.failing = {"a", "b"}
    farm.ask("a")
    farm.end_load("a")
    farm.now_ns += 62 * SECOND_NS
    farm.ask("b")
    farm.end_load("b")
    assert len(farm.core._failures) == 1


def test_bytes_are_measured_after_each_that_leaves() -> None:
    farm = Farm(None, 60)
    for name in "abc":
        farm.finish(started(farm, name))
    farm.ask("d")
    farm.core.reconsider()
    assert farm.unloading == ["a"]
    farm.end_unload("a")
    assert farm.unloading == ["b"], "30 are used, and 40 are to come"
    farm.end_unload("b")
    assert farm.loading == ["d"] and farm.core.names == ["c", "d"]
    farm.settle()
    assert farm.oversize == []


def test_a_model_above_the_budget_is_loaded_alone() -> None:
    farm = Farm(None, 25)
    call = started(farm, "b")
    farm.ask("a")
    assert not farm.unloading and not farm.loading and farm.core.closed
    farm.finish(call)
    farm.end_unload("b")
    assert farm.loading == ["a"] and farm.oversize == ["a"]
    farm.settle()


def test_a_call_that_could_only_wait_for_its_caller_is_refused() -> None:
    farm = Farm(1, None)
    call = started(farm, "a")
    error = error_of(farm.ask("b", call))
    assert error.code is Code.UNAVAILABLE and "raise --lazy-model-count" in error.message
    farm.settle()
    farm = Farm(None, 40)
    call = started(farm, "a")
    assert "raise --lazy-memory-byte-size" in error_of(farm.ask("b", call)).message
    farm.settle()


def test_two_that_wait_for_each_other_to_leave() -> None:
    farm = Farm(2, None)
    first, second = started(farm, "a"), started(farm, "b")
    client = farm.ask("c", first)
    assert client is not None and client.waits, "b may end"
    assert "would wait for models that wait for it" in error_of(farm.ask("d", second)).message
    assert client.waits
    farm.finish(second)
    run_loads(farm)
    assert client.answers == [None]
    farm.settle()


def test_a_call_between_models_that_are_there_can_close_a_circle() -> None:
    farm = Farm(2, None)
    first, second = started(farm, "a"), started(farm, "b")
    client = farm.ask("c", first)
    assert client is not None and client.waits
    assert farm.ask("a", second) is None, "it queues behind the request that waits"
    assert "would wait for models that wait for it" in error_of(client).message
    farm.settle()


def test_a_smaller_demand_goes_first_where_the_larger_waits_for_its_caller() -> None:
    farm = Farm(4, None)
    first, second = started(farm, "a"), started(farm, "b")
    others = [started(farm, "e"), started(farm, "d")]
    large = farm.ask("pair", first)
    assert large is not None and large.waits
    farm.finish(others[1])
    run_loads(farm)
    assert large.waits
    # Now pair needs three places beside a and b, which is one too many until b has its answer.
    small = farm.ask("f", second)
    assert small is not None
    farm.finish(others[0])
    run_loads(farm)
    assert small.answers == [None] and large.waits
    farm.settle()
    assert large.answers == [None]


def test_demands_of_models_go_before_those_of_clients() -> None:
    farm = Farm(2, None)
    first, second = started(farm, "a"), started(farm, "b")
    client = farm.ask("c")
    nested = farm.ask("d", first)
    farm.finish(second)
    run_loads(farm)
    assert nested is not None and nested.answers == [None]
    assert client is not None and client.waits
    farm.settle()


@pytest.mark.parametrize("hears_all", [True, False])
def test_hot_models_make_room_for_one_that_waits(hears_all: bool) -> None:
    farm = Farm(2, None, hears_all)
    for name in "ab":
        started(farm, name)
    waiting = farm.ask("c")
    assert waiting is not None
    for _ in range(4):
        for name in "ab":
            farm.ask(name)
            if farm.calls[name]:
                farm.finish(farm.calls[name][0])
        run_loads(farm)
    assert waiting.answers == [None]
    farm.settle()


def test_calls_without_end_do_not_hold_up_a_client() -> None:
    """Each request to ``a`` asks ``b`` or ``c`` in turn, two of them at a time, and new ones keep coming."""
    farm = Farm(2, None, parallel=True)
    turn = 0
    started(farm, "a")
    farm.ask("a")
    waiting = farm.ask("d")
    assert waiting is not None
    for _ in range(40):
        farm.ask("a")
        for call in list(farm.calls["a"]):
            if call.child is None:
                turn += 1
                farm.ask("bc"[turn % 2], call)
        if farm.loading:
            farm.end_load(farm.loading[0])
        elif farm.unloading:
            farm.end_unload(farm.unloading[0])
        for name in "bc":
            for call in list(farm.calls[name]):
                parent = call.parent
                farm.finish(call)
                farm.ask("a")
                if parent is not None and parent.child is None:
                    farm.finish(parent)
        if not waiting.waits:
            break
    assert waiting.answers == [None]
    farm.settle()


def test_requests_that_wait_are_let_in_when_room_is_on_its_way() -> None:
    farm = Farm(2, None)
    first, second = started(farm, "a"), started(farm, "b")
    farm.ask("c")
    assert farm.core.closed
    behind = farm.ask("b")
    assert behind is not None and behind.waits
    farm.finish(first)
    assert farm.unloading == ["a"] and behind.answers == [None] and not farm.core.closed
    assert len(farm.calls["b"]) == 2 and second in farm.calls["b"]
    farm.settle()


def test_the_last_who_goes_takes_the_wish_with_him() -> None:
    farm = Farm(1, None)
    call = started(farm, "a")
    clients = [farm.ask("b"), farm.ask("b")]
    for client in clients:
        assert farm.core.closed and client is not None
        farm.cancel(client)
    assert not farm.core.closed and not farm.core._wishes and farm.core.used("a")
    farm.finish(call)
    assert farm.core.names == ["a"]
    farm.settle()


def test_one_who_fails_in_his_turn_does_not_hold_up_the_others() -> None:
    farm = Farm(1, None)

    def fail(error: StatusError | None) -> None:
        raise ValueError

    farm.core.demand(need_of("a"), fail)
    client = farm.ask("a")
    with pytest.raises(ValueError):
        farm.end_load("a")
    assert client is not None and client.answers == [None]
    farm.settle()


def test_a_model_lost_for_another_reason_is_loaded_again() -> None:
    farm = Farm(3, None)
    farm.finish(started(farm, "pair"))
    farm.loaded.remove("c")
    farm.core.unloaded("c")
    client = farm.ask("c")
    assert client is not None and farm.loading == ["c"]
    farm.settle()


def test_an_ensemble_with_new_members_lets_go_of_the_old() -> None:
    farm = Farm(2, None)
    answers: list[StatusError | None] = []
    farm.core.demand(Need("f", 1, (Need("a"),)), answers.append)
    run_loads(farm)
    farm.core.demand(Need("f", 1, (Need("b"),)), answers.append)
    assert farm.unloading == ["a"]
    run_loads(farm)
    assert answers == [None, None] and farm.core.names == ["f", "b"]
    farm.settle()


def test_once_overtaken_a_client_is_not_overtaken_by_newcomers() -> None:
    farm = Farm(2, None, parallel=True)
    first = started(farm, "a")
    farm.ask("a")
    second = farm.calls["a"][1]
    farm.ask("b", first)
    run_loads(farm)
    waiting = farm.ask("d")
    assert waiting is not None and farm.core.closed
    farm.finish(farm.calls["b"][0])
    assert farm.unloading == ["b"] and not farm.core.closed, "room is on its way"
    assert farm.ask("a") is None
    farm.ask("c", second)
    run_loads(farm)
    assert farm.calls["c"] and waiting.waits, "a request in flight needed the room first"
    farm.finish(farm.calls["c"][0])
    assert farm.unloading == ["c"] and farm.core.closed, "no more of them are let in now"
    assert farm.ask("a") is not None
    run_loads(farm)
    assert waiting.answers == [None]
    farm.settle()


def test_a_call_is_let_in_where_clients_wait() -> None:
    farm = Farm(2, None)
    call = started(farm, "a")
    started(farm, "b")
    farm.ask("c")
    assert farm.core.closed and farm.ask("b") is not None
    assert farm.ask("b", call) is None, "what is in flight must be able to end"
    farm.settle()
    call = started(farm, "a")
    started(farm, "b")
    farm.ask("c")
    answers: list[StatusError | None] = []
    assert farm.core.closed
    farm.core.demand(need_of("b"), answers.append, "a")
    assert answers == [None]
    farm.settle()


def test_nothing_leaves_that_somebody_waits_for_with_others() -> None:
    farm = Farm(3, None)
    farm.finish(started(farm, "pair"))
    farm.loaded.remove("c")
    farm.core.unloaded("c")
    whole = farm.ask_core("pair")
    assert farm.loading == ["c"]
    farm.ask("e")
    assert not farm.unloading, "pair is here, and is waited for until c is"
    farm.end_load("c")
    assert whole == [None]
    farm.settle()


def test_what_is_on_its_way_counts_with_all_that_it_will_take() -> None:
    farm = Farm(None, 60)
    farm.ask("a")
    farm.ask("d")
    assert farm.loading == ["a"], "15 are used, 30 may be to come, and 40 are wanted"
    farm.settle()


def test_a_demand_for_what_comes_for_another_does_not_wait_in_line() -> None:
    farm = Farm(3, None)
    call = started(farm, "a")
    for name in ("pair", "e"):
        farm.ask(name)
    member = farm.ask("c")
    farm.finish(call)
    farm.end_unload("a")
    farm.end_load("c")
    assert member is not None and member.answers == [None] and farm.core.waiting == 2
    farm.settle()


def test_at_the_end_all_that_wait_are_told_and_nothing_begins() -> None:
    farm = Farm(1, None)
    stopping = unavailable("the end")
    first, other = farm.ask_core("a"), farm.ask_core("b")
    farm.core.abandon(stopping)
    assert first == [stopping] and other == [stopping] and farm.core.waiting == 0
    assert farm.ask_core("c") == [stopping]
    farm.end_load("a")
    assert farm.loads == 1 and farm.core.resident("a")
    assert farm.ask_core("b") == [stopping] and not farm.unloading


def test_a_failure_of_what_an_ensemble_runs_is_known_beforehand() -> None:
    farm = Farm(None, None)
    assert farm.core.failure(need_of("pair")) is None
    farm.failing.add("c")
    farm.ask_core("c")
    farm.end_load("c")
    for name in ("c", "pair", "whole"):
        failure = farm.core.failure(need_of(name))
        assert failure is not None and failure.message == "c is broken"
    assert farm.core.failure(need_of("d")) is None
