"""Instances that share resources: who may run, whose turn comes, and that everybody's does."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tensorfarm.server.dispatch.instance import Instance
from tensorfarm.server.dispatch.rate_limiter import GLOBAL, Pool, RateLimiter, needs_of
from tensorfarm.server.option_values import EVERY_DEVICE, Resource
from tensorfarm.workers.contract.configuration import model_config
from tensorfarm.workers.contract.status import Code, StatusError

NUMBERS = itertools.count(1)


class Bench:
    """A limiter, and instances that are named by letters."""

    def __init__(self, *explicit: Resource) -> None:
        self.limiter = RateLimiter(explicit)
        self.instances: dict[str, Instance] = {}

    def add(self, name: str, needs: Mapping[str, int] | None = None, priority: int = 0, device: int = 0) -> None:
        instance = Instance(next(NUMBERS), name)
        self.limiter.register(instance, {Pool(device, resource): count for resource, count in (needs or {}).items()}, priority)
        self.instances[name] = instance

    def choose(self, names: Iterable[str], waits: str = "") -> str | None:
        waiting = [self.instances[name] for name in waits]
        chosen = self.limiter.choose([self.instances[name] for name in names], lambda instance: instance in waiting)
        return None if chosen is None else chosen.name

    def start(self, names: Iterable[str]) -> str:
        """Start all that may run; returns their names."""
        left, started = list(names), ""
        while (name := self.choose(left)) is not None:
            self.limiter.take(self.instances[name])
            left.remove(name)
            started += name
        return started

    def end(self, *names: str) -> None:
        for name in names:
            self.limiter.give_back(self.instances[name])

    def one_by_one(self, names: str, count: int) -> str:
        """The order of executions, each of them alone, where all always have work."""
        order = ""
        for _ in range(count):
            name = self.choose(names)
            assert name is not None
            self.limiter.take(self.instances[name])
            self.end(name)
            order += name
        return order


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(StatusError) as caught:
        action()
    assert caught.value.code is Code.INVALID_ARG
    return caught.value.message


def limits(*resources: tuple[str, int, bool]) -> Any:
    message = model_config.ModelRateLimiter()
    for name, count, everywhere in resources:
        message.resources.add(name=name, count=count, **{"global": everywhere})
    return message


# whose turn it is


def test_those_that_ran_least_go_first_and_the_earlier_of_two_that_ran_as_much() -> None:
    bench = Bench()
    for name in "abc":
        bench.add(name)
    assert bench.one_by_one("abc", 7) == "abcabca"
    assert bench.one_by_one("ab", 2) == "ba"
    assert bench.one_by_one("abc", 2) == "cb"


@pytest.mark.parametrize(("priorities", "shares"), [((1, 2), (20, 10)), ((2, 3), (18, 12)), ((0, 1), (15, 15)), ((1, 3), (22, 8))])
def test_a_priority_divides_the_turns(priorities: tuple[int, int], shares: tuple[int, int]) -> None:
    bench = Bench()
    for name, priority in zip("ab", priorities, strict=True):
        bench.add(name, {"R": 1}, priority)
    order = bench.one_by_one("ab", 30)
    assert (order.count("a"), order.count("b")) == shares


def test_who_has_waited_long_for_work_catches_up() -> None:
    bench = Bench()
    bench.add("a")
    bench.add("b")
    assert bench.one_by_one("a", 5) == "aaaaa"
    assert bench.one_by_one("ab", 7) == "bbbbbab"


# resources


def test_what_shares_a_resource_takes_turns() -> None:
    bench = Bench()
    for name in "abcd":
        bench.add(name, {"R": 2})
    assert bench.start("abcd") == "a"
    assert bench.start("bcd") == ""
    bench.end("a")
    assert bench.start("abcd") == "b"


def test_there_is_as_much_as_the_neediest_instance_asks_for() -> None:
    bench = Bench()
    bench.add("a", {"R": 1})
    bench.add("b", {"R": 1})
    assert bench.start("ab") == "a"
    bench.add("c", {"R": 3})
    assert bench.start("b") == "b"
    bench.end("a", "b")
    assert bench.start("c") == "c"
    bench.limiter.forget(bench.instances["c"])
    assert bench.start("ab") == "a"
    bench.end("a")
    assert bench.start("ab") == "b"


def test_explicit_resources_are_all_there_is() -> None:
    bench = Bench(Resource("R", 4, EVERY_DEVICE))
    for name in "abc":
        bench.add(name, {"R": 2})
    assert bench.start("abc") == "ab"
    assert refusal(lambda: bench.add("d", {"R": 5})).startswith('Resource count for "R" is limited to 4 which will prevent scheduling')
    assert 'Resource count for "S" is limited to 0 ' in refusal(lambda: bench.add("d", {"S": 1}))
    bench.add("e", {"S": 0})
    bench.limiter.forget(bench.instances["a"])
    assert bench.start("ce") == "ce"


@pytest.mark.parametrize(
    ("explicit", "device", "limit"),
    [
        ((Resource("R", 2, EVERY_DEVICE),), 0, 2),
        ((Resource("R", 2, 0),), 0, 2),
        ((Resource("R", 2, 0),), 1, 0),
        ((Resource("R", 2, 0), Resource("R", 3, EVERY_DEVICE)), 0, 3),
        ((Resource("R", 2, EVERY_DEVICE), Resource("R", 3, 1)), 1, 3),
        ((Resource("R", 2, EVERY_DEVICE), Resource("R", 3, 1)), 0, 2),
        ((Resource("R", 2, 0), Resource("R", 3, 1)), GLOBAL, 3),
        ((Resource("S", 9, EVERY_DEVICE),), 0, 0),
    ],
)
def test_what_flags_say_of_a_device(explicit: tuple[Resource, ...], device: int, limit: int) -> None:
    bench = Bench(*explicit)
    bench.add("a", {"R": limit}, device=device)
    assert bench.start("a") == "a"
    assert refusal(lambda: bench.add("b", {"R": limit + 1}, device=device)) == (
        f'Resource count for "R" is limited to {limit} which will prevent scheduling of one or more model instances, '
        f"the minimum required count is {limit + 1}"
    )


def test_of_several_that_are_short_the_global_ones_are_named_first_and_then_by_name() -> None:
    limiter = RateLimiter([Resource("Q", 1, EVERY_DEVICE)])
    needs = {Pool(0, "Z"): 1, Pool(0, "A"): 1, Pool(GLOBAL, "M"): 1}
    for name in ("M", "A", "Z"):
        assert f'"{name}"' in refusal(lambda: limiter.register(Instance(0, "a"), needs))
        del needs[min(needs)]


def test_a_negative_count_is_no_limit() -> None:
    bench = Bench(Resource("R", -1, EVERY_DEVICE))
    for name in "abc":
        bench.add(name, {"R": 1 << 31})
    assert bench.start("abc") == "abc"


def test_devices_have_their_own_and_global_resources_are_shared() -> None:
    bench = Bench()
    bench.add("a", {"R": 1}, device=0)
    bench.add("b", {"R": 1}, device=1)
    assert bench.start("ab") == "ab"
    bench.add("c", {"G": 1}, device=GLOBAL)
    bench.add("d", {"G": 1}, device=GLOBAL)
    assert bench.start("cd") == "c"


BOTH = 'Resource "R" is present as both global and device-specific resource in the model configuration.'


def test_a_name_is_global_or_of_devices() -> None:
    bench = Bench()
    bench.add("a", {"R": 1, "S": 1})
    assert refusal(lambda: bench.add("b", {"R": 5, "S": 1}, device=GLOBAL)) == BOTH
    assert bench.start("a") == "a"
    bench.end("a")
    # What was refused has left nothing behind.
    bench.add("b", {"R": 1})
    assert bench.start("ab") == "b"
    bench.limiter.forget(bench.instances["a"])
    bench.limiter.forget(bench.instances["b"])
    bench.add("c", {"R": 1}, device=GLOBAL)
    needs = needs_of(limits(("T", 1, False), ("T", 1, True)), 0)
    assert refusal(lambda: bench.limiter.register(Instance(0, "d"), needs)) == BOTH.replace('"R"', '"T"')


def test_too_small_a_count_is_told_before_that() -> None:
    bench = Bench(Resource("R", 1, EVERY_DEVICE))
    bench.add("a", {"R": 1})
    assert "limited to 1" in refusal(lambda: bench.add("b", {"R": 2}, device=GLOBAL))
    assert refusal(lambda: bench.add("b", {"R": 1}, device=GLOBAL)) == BOTH


def test_of_a_resource_that_is_named_twice_the_last_count_is_kept() -> None:
    resources = [("R", 4, False), ("R", 2, False), ("G", 1, True), ("G", 3, True)]
    assert needs_of(limits(*resources), 7) == {Pool(7, "R"): 2, Pool(GLOBAL, "G"): 3}
    assert needs_of(limits(), 0) == {}


def test_what_an_instance_held_comes_back_with_its_end() -> None:
    bench = Bench()
    bench.add("a", {"R": 1})
    bench.add("b", {"R": 1})
    assert bench.start("ab") == "a"
    bench.limiter.forget(bench.instances["a"])
    assert bench.start("b") == "b"
    # It has nothing left to give back.
    bench.end("a")
    bench.end("b", "b")
    bench.add("c", {"R": 1})
    assert bench.start("bc") == "c"
    assert bench.start("b") == ""


# who holds back whom


def test_one_that_waits_holds_back_those_that_compete_with_it_and_nobody_else() -> None:
    bench = Bench(Resource("R", 4, EVERY_DEVICE), Resource("S", 1, EVERY_DEVICE), Resource("T", 1, EVERY_DEVICE))
    bench.add("a", {"R": 1})
    bench.add("b", {"R": 4, "S": 1})
    bench.add("c", {"R": 1})
    bench.add("d", {"S": 1})
    bench.add("e", {"T": 1})
    bench.add("f")
    assert bench.start("a") == "a"
    assert bench.start("bcdef") == "ef"
    bench.end("a", "e", "f")
    assert bench.start("abcdef") == "bef"
    bench.end("b")
    assert bench.start("abcd") == "cda"


def test_who_needs_none_of_a_resource_is_not_held_back_for_it() -> None:
    bench = Bench()
    bench.add("a", {"R": 1})
    bench.add("b", {"R": 1, "S": 0})
    bench.add("c", {"R": 0, "S": 1})
    assert bench.start("a") == "a"
    assert bench.start("bc") == "c"


def test_one_that_is_held_back_holds_nobody_back() -> None:
    bench = Bench()
    bench.add("a", {"R": 2})
    bench.add("b", {"R": 2})
    bench.add("c", {"R": 1, "S": 1})
    bench.add("d", {"S": 1})
    assert bench.start("abcd") == "ad"
    bench.end("d")
    assert bench.start("bcd") == "d"
    bench.end("a", "d")
    assert bench.start("bcd") == "b"
    # Now it is short itself.
    assert bench.start("cd") == ""
    bench.end("b")
    assert bench.start("cd") == "c"


def test_much_is_gathered_though_little_is_wanted_all_the_time() -> None:
    bench = Bench(Resource("R", 4, EVERY_DEVICE))
    bench.add("z", {"R": 4})
    for name in "abcdefgh":
        bench.add(name, {"R": 1})
    running: list[str] = []
    counts: Counter[str] = Counter()
    for _ in range(900):
        started = bench.start([name for name in bench.instances if name not in running])
        running += started
        counts.update(started)
        bench.end(running.pop(0))
    assert set(counts) == set(bench.instances)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_nobody_is_held_back_for_one_that_waits_for_the_callers_of_others() -> None:
    """A batch of ``a`` waits for an answer of ``c``, and ``b`` for what ``a`` holds."""
    bench = Bench(Resource("R", 3, EVERY_DEVICE))
    bench.add("a", {"R": 1})
    bench.add("b", {"R": 3})
    bench.add("c", {"R": 1})
    bench.add("d", {"R": 1})
    assert bench.start("a") == "a"
    assert bench.choose("bc") is None
    assert bench.choose("bc", waits="a") == "c"
    assert bench.start("d") == "d"
    assert bench.choose("bc", waits="d") == "c"
    bench.end("a", "d")
    assert bench.choose("bc", waits="a") == "b"


def test_who_can_never_run_while_others_wait_for_it_is_stuck() -> None:
    bench = Bench(Resource("R", 3, EVERY_DEVICE))
    bench.add("a", {"R": 1})
    bench.add("b", {"R": 3})
    bench.add("c", {"R": 2})
    assert bench.start("a") == "a"
    stuck = bench.limiter.stuck
    a, b, c = bench.instances.values()
    assert not stuck(b, lambda instance: False)
    assert stuck(b, lambda instance: instance is a)
    assert not stuck(c, lambda instance: instance is a)
    assert bench.start("c") == "c"
    assert not stuck(b, lambda instance: False)
    assert stuck(b, lambda instance: instance is c)


# everything at once

POOLS = [Pool(0, "R"), Pool(1, "R"), Pool(0, "S"), Pool(GLOBAL, "G")]
FLAGS = (Resource("R", 3, EVERY_DEVICE), Resource("R", 4, 1), Resource("S", 2, 0), Resource("G", 3, 5))
EXPLICIT = {POOLS[0]: 3, POOLS[1]: 4, POOLS[2]: 2, POOLS[3]: 3}


class LimiterMachine(RuleBasedStateMachine):
    """Instances come, run, end, die and leave; what is chosen is compared with the rule, read literally."""

    flags: tuple[Resource, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.limiter = RateLimiter(self.flags)
        self.needs: dict[Instance, dict[Pool, int]] = {}
        self.weights: dict[Instance, int] = {}
        self.executions: Counter[Instance] = Counter()
        self.running: dict[Instance, None] = {}
        self.wanting: set[Instance] = set()

    def available(self, pool: Pool) -> int:
        return EXPLICIT[pool] if self.flags else max(needs.get(pool, 0) for needs in self.needs.values())

    def free(self, pool: Pool, running: Iterable[Instance]) -> int:
        return self.available(pool) - sum(self.needs[instance].get(pool, 0) for instance in running)

    def fits(self, instance: Instance, running: Iterable[Instance]) -> bool:
        running = list(running)
        return all(count <= self.free(pool, running) for pool, count in self.needs[instance].items())

    def competes(self, one: Instance, other: Instance) -> bool:
        return any(count and self.needs[other].get(pool) for pool, count in self.needs[one].items())

    def turns(self) -> list[Instance]:
        """Those that want to run, in the order of their turns."""
        order = list(self.needs)
        return sorted(self.wanting - self.running.keys(), key=lambda one: (self.executions[one] * self.weights[one], order.index(one)))

    def expected(self, waits: set[Instance]) -> Instance | None:
        ahead: list[Instance] = []
        for instance in self.turns():
            if any(self.competes(instance, other) for other in ahead):
                continue
            if self.fits(instance, self.running):
                return instance
            if self.fits(instance, self.running.keys() & waits):
                ahead.append(instance)
        return None

    def one(self, data: st.DataObject, instances: Iterable[Instance]) -> Instance:
        return data.draw(st.sampled_from(sorted(instances, key=lambda instance: instance.number)))

    @rule(needs=st.dictionaries(st.sampled_from(POOLS), st.integers(0, 5), max_size=3), priority=st.integers(0, 3))
    def come(self, needs: dict[Pool, int], priority: int) -> None:
        instance = Instance(next(NUMBERS), "i")
        if self.flags and any(count > EXPLICIT[pool] for pool, count in needs.items()):
            assert "limited to" in refusal(lambda: self.limiter.register(instance, needs, priority))
            return
        self.limiter.register(instance, needs, priority)
        self.needs[instance], self.weights[instance] = needs, max(priority, 1)

    @precondition(lambda self: self.needs)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        instance = self.one(data, self.needs)
        self.limiter.forget(instance)
        del self.needs[instance]
        self.running.pop(instance, None)
        self.wanting.discard(instance)

    @precondition(lambda self: self.needs)
    @rule(data=st.data())
    def want(self, data: st.DataObject) -> None:
        self.wanting.add(self.one(data, self.needs))

    @rule()
    def want_all(self) -> None:
        self.wanting.update(self.needs)

    @precondition(lambda self: self.wanting - self.running.keys())
    @rule(data=st.data())
    def lose_interest(self, data: st.DataObject) -> None:
        self.wanting.remove(self.one(data, self.wanting - self.running.keys()))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        instance = self.one(data, self.running)
        self.limiter.give_back(instance)
        del self.running[instance]

    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        waits = data.draw(st.sets(st.sampled_from(sorted(self.running, key=lambda one: one.number)))) if self.running else set()
        chosen = self.limiter.choose(self.wanting - self.running.keys(), lambda instance: instance in waits)
        assert chosen is self.expected(waits)
        if chosen is not None:
            self.start(chosen)

    def start(self, instance: Instance) -> None:
        self.limiter.take(instance)
        self.running[instance] = None
        self.executions[instance] += 1

    @precondition(lambda self: self.wanting)
    @rule(ends=st.lists(st.integers(0, 9), min_size=1, max_size=10))
    def everybody_gets_a_turn(self, ends: list[int]) -> None:
        """However the others go on, and whichever of them ends next: ``ends``, and every third time the one that has run for longest."""
        waited = {instance: self.executions[instance] for instance in self.turns()}
        for number in range(1000):
            while (chosen := self.limiter.choose(self.wanting - self.running.keys())) is not None:
                assert chosen is self.expected(set())
                self.start(chosen)
            if all(self.executions[instance] > count for instance, count in waited.items()):
                break
            running = list(self.running)
            instance = running[ends[number % len(ends)] % len(running) if number % 3 else 0]
            self.limiter.give_back(instance)
            del self.running[instance]
        else:
            raise AssertionError("somebody waits for ever")

    @invariant()
    def idle_resources_are_not_kept_from_the_only_one_that_wants_them(self) -> None:
        if not self.running:
            turns = self.turns()
            assert self.limiter.choose(turns) is (turns[0] if turns else None)


class ExplicitMachine(LimiterMachine):
    """The same with resources that flags name."""

    flags = FLAGS


TestAsNeeded = LimiterMachine.TestCase
TestAsNeeded.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestExplicit = ExplicitMachine.TestCase
TestExplicit.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
