"""Circles of waiting: found when nothing else can move, and never otherwise."""

from __future__ import annotations

import itertools

import pytest

from tensorfarm.server.dispatch.batching import BatchPolicy, BatchScheduler
from tensorfarm.server.dispatch.instance import Instance
from tensorfarm.server.dispatch.queue import QueuePolicy, RequestQueue
from tensorfarm.server.dispatch.request import Request
from tensorfarm.server.dispatch.scheduler import Scheduler
from tensorfarm.server.dispatch.waiting import WaitGraph
from tensorfarm.server.statistics import VersionStatistics
from tensorfarm.workers.contract.messages import RequestBody

NUMBERS = itertools.count(1)
INSTANCES: list[Instance] = []
"""Those of the test that runs."""


@pytest.fixture(autouse=True)
def no_instances() -> None:
    INSTANCES.clear()


def model(*instances: int) -> Scheduler:
    scheduler = BatchScheduler(BatchPolicy(), RequestQueue(QueuePolicy()), None, NUMBERS, VersionStatistics())
    for number in instances:
        INSTANCES.append(Instance(number, f"m_{number}", execution_ns=10**9))
        scheduler.instance_up(INSTANCES[-1])
    return scheduler


def ask(graph: WaitGraph, scheduler: Scheduler, caller: int = 0) -> Request:
    """Queue a request, for which the batch that an instance runs waits, and let the scheduler bind what it can."""
    caller = next((instance.batches[0].number for instance in INSTANCES if instance.number == caller), 0)
    request = Request(RequestBody("", 1, [], [], {}), 0, lambda response: None, caller=caller)
    scheduler.submit(request, 0)
    scheduler.decide(0)
    if caller:
        graph.add(scheduler, request)
    return request


def test_a_model_that_calls_itself() -> None:
    graph, alone = WaitGraph(), model(1)
    ask(graph, alone)
    assert graph.circle(ask(graph, alone, caller=1))


def test_a_second_instance_is_enough_once() -> None:
    graph, pair = WaitGraph(), model(1, 2)
    ask(graph, pair)
    first = ask(graph, pair, caller=1)
    assert not graph.circle(first)
    second = ask(graph, pair, caller=2)
    assert graph.circle(second) and graph.circle(first)


def test_two_models_that_wait_for_each_other() -> None:
    graph, one, other = WaitGraph(), model(1), model(2)
    ask(graph, one)
    ask(graph, other)
    first = ask(graph, other, caller=1)
    assert not graph.circle(first)
    second = ask(graph, one, caller=2)
    assert graph.circle(second)
    graph.remove(second)
    assert not graph.circle(first)


def test_waiting_for_one_that_is_busy_is_no_circle() -> None:
    graph, one, other = WaitGraph(), model(1), model(2)
    ask(graph, one)
    ask(graph, other)
    ask(graph, other)
    assert not graph.circle(ask(graph, other, caller=1))


def test_a_model_without_instances_is_waited_for() -> None:
    graph, gone = WaitGraph(), model()
    assert not graph.circle(ask(graph, gone, caller=1))
