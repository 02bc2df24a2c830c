from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tensorfarm.server.admission import NO_LIMIT, UNLIMITED, Admission, AdmissionLimits, Overloaded
from tensorfarm.server.statistics import VersionStatistics
from tensorfarm.workers.contract.status import Code

S = 1_000_000_000


@dataclass
class Flow:
    in_flight: int = 0


@dataclass
class Arena:
    used_byte_size: int = 0


@dataclass
class Version:
    name: str = "m"
    in_flight: int = 0
    statistics: VersionStatistics = field(default_factory=VersionStatistics)


class World:
    """Everything that an admission looks at; ``asks`` is what a door does."""

    def __init__(self, requests: int = 0, byte_size: int = 0, models: dict[str, int] | None = None) -> None:
        self.flow = Flow()
        self.arena = Arena()
        self.version = Version()
        self.now_ns = 0
        limits = AdmissionLimits(requests, byte_size, models or {})
        self.admission = Admission(limits, self.flow, self.arena, lambda: [self.version], lambda: self.now_ns)

    def asks(self, version: Version | None = None) -> Overloaded | None:
        admission = self.admission
        if self.flow.in_flight >= admission.most or admission.per_model:
            try:
                admission.check(version or self.version)
            except Overloaded as refusal:
                assert refusal.code is Code.UNAVAILABLE
                return refusal
        return None


def test_without_limits_nobody_has_to_ask() -> None:
    world = World()
    world.flow.in_flight = 10**9
    world.admission.hold(10**15)
    assert world.admission.most == NO_LIMIT and not world.admission.per_model
    assert world.asks() is None


def test_requests_of_all_models() -> None:
    world = World(requests=3)
    world.flow.in_flight = 2
    assert world.asks() is None
    world.flow.in_flight = 3
    refusal = world.asks()
    assert refusal is not None and refusal.message == "too many requests in flight (limit 3); retry after 1 s"
    world.flow.in_flight = 2
    assert world.asks() is None
    assert world.admission.refused == {("m", "REQUESTS"): 1}


def test_requests_of_one_model() -> None:
    world = World(models={"m": 2, "free": 0, "": 5})
    m, other, free = Version("m", 2), Version("other", 4), Version("free", 999)
    refusal = world.asks(m)
    assert refusal is not None and refusal.message == "too many requests in flight for model 'm' (limit 2); retry after 1 s"
    assert world.asks(other) is None and world.asks(free) is None
    other.in_flight = 5
    assert world.asks(other) is not None
    m.in_flight = 1
    assert world.asks(m) is None
    assert world.admission.refused == {("m", "MODEL_REQUESTS"): 1, ("other", "MODEL_REQUESTS"): 1}


def test_when_to_come_again() -> None:
    world = World(requests=20, models={"m": 10})
    world.flow.in_flight, world.version.in_flight = 20, 10
    assert world.asks() is not None
    world.now_ns = 2 * S
    world.version.statistics.success_count = 3
    world.version.statistics.fail_count = 1
    refusal = world.asks()
    assert refusal is not None and refusal.retry_after_s == 5 and "; retry after 5 s" in refusal.message


def test_bytes_in_ordinary_memory_and_in_the_arena() -> None:
    world = World(byte_size=100)
    admission = world.admission
    admission.hold(60)
    world.arena.used_byte_size = 40
    assert world.asks() is None and not admission.full
    admission.hold(1)
    refusal = world.asks()
    assert refusal is not None
    assert refusal.message == "too many bytes of requests and replies in flight (limit 100); retry after 1 s"
    admission.let_go(1)
    assert world.asks() is None and admission.most == NO_LIMIT
    admission.hold(1)
    world.arena.used_byte_size = 0
    assert admission.most == 0, "nobody tells it of the arena"
    assert world.asks() is None and admission.most == NO_LIMIT, "so it looks when it is asked"
    assert admission.refused == {("m", "BYTES"): 1}


def test_a_body_that_is_announced() -> None:
    world = World(byte_size=100)
    world.admission.hold(50)
    world.admission.check_body(world.version, 50)
    with pytest.raises(Overloaded, match="too many bytes"):
        world.admission.check_body(world.version, 51)
    world.admission.check_bytes(50)
    with pytest.raises(Overloaded):
        world.admission.check_bytes(51)
    assert world.admission.refused == {("m", "BYTES"): 1, ("", "BYTES"): 1}


def test_what_is_given_back_while_there_is_still_too_much() -> None:
    world = World(requests=7, byte_size=100)
    for _ in range(3):
        world.admission.hold(60)
    world.admission.let_go(60)
    assert world.admission.most == 0
    world.admission.let_go(60)
    assert world.admission.most == 7
    world.admission.let_go(60)
    assert world.admission.held_byte_size == 0


def test_where_nothing_is_counted() -> None:
    UNLIMITED.hold(5)
    assert UNLIMITED.held_byte_size == 0
    UNLIMITED.check_bytes(1 << 60)
