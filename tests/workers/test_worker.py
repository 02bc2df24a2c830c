"""A worker's control messages, with a backend that does what a test says."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest

from tensorfarm.shm.placement import Lease, Span
from tensorfarm.shm.system import open_object
from tensorfarm.workers.batch import Batch
from tensorfarm.workers.contract.configuration import ModelConfig, document, parse_document, parse_text
from tensorfarm.workers.contract.messages import (
    Attach,
    Close,
    Detach,
    Done,
    Execute,
    Extend,
    Failed,
    Fault,
    Inspect,
    Inspected,
    InstanceReady,
    InstanceSpec,
    Load,
    Loaded,
    Note,
    Return,
    Shrink,
    Stop,
    Tensor,
    Unload,
    Unloaded,
)
from tensorfarm.workers.contract.status import Code, StatusError, invalid, unsupported
from tensorfarm.workers.main_thread import MainThread
from tensorfarm.workers.worker import Worker

from .fakes import PATIENCE_S, FakeBackend, FakeChannel, FakeControl, FakeExecutor
from .real_memory import Bench, bench, inline, request

CONFIG = document(ModelConfig(name="m", backend="fake"))


class Room:
    """A worker with its control socket and the sockets that its instances make."""

    def __init__(self, memory: Bench) -> None:
        self.control = FakeControl()
        self.channels: list[FakeChannel] = []
        self._made = threading.Semaphore(0)
        self.backend = FakeBackend()
        self.memory = memory
        self.worker = Worker(self.control, self._channel, memory.memory, MainThread(), b"token")  # type: ignore[arg-type]
        self.worker._backends["fake"] = self.backend

    def _channel(self) -> FakeChannel:
        channel = FakeChannel()
        self.channels.append(channel)
        self._made.release()
        return channel

    def ready(self, count: int) -> dict[int, FakeChannel]:
        """The sockets of the next instances that say they are ready, by the instance's number."""
        found = {}
        for _ in range(count):
            assert self._made.acquire(timeout=PATIENCE_S)
        for channel in self.channels[-count:]:
            message = channel.answer()
            assert isinstance(message, InstanceReady)
            found[message.instance] = channel
        return found

    def load(self, count: int = 2, backend: str = "fake", config: bytes = CONFIG) -> Load:
        return Load(1, 10, "m", backend, "/models/m", 3, config, {"key": "value"}, specs(*range(count)))

    def close(self, *channels: FakeChannel) -> None:
        for channel in channels:
            channel.inbox.put(Close())


def specs(*numbers: int) -> list[InstanceSpec]:
    return [InstanceSpec(number, f"m_{number}", "KIND_CPU", 0) for number in numbers]


@pytest.fixture
def room() -> Iterator[Room]:
    with bench() as memory:
        made = Room(memory)
        yield made
        made.__dict__.clear()


def test_load_and_unload(room: Room) -> None:
    room.backend.go.set()
    assert room.worker.handle(room.load())
    assert room.control.answer() == Loaded(1)
    source = room.backend.sources[0]
    assert (source.directory, source.version, source.config.name, source.settings) == ("/models/m", 3, "m", {"key": "value"})
    channels = room.ready(2)
    assert sorted(channels) == [0, 1]
    room.close(*channels.values())
    assert room.worker.handle(Unload(2, 10))
    assert room.control.answer() == Unloaded(2)
    assert room.backend.model.closed.is_set() and all(executor.closed.is_set() for executor in room.backend.model.executors)
    room.worker.handle(Unload(3, 10))
    assert room.control.answer() == Unloaded(3)


def test_an_unload_that_overtakes_the_loading_waits_for_it(room: Room) -> None:
    room.worker.handle(room.load(1))
    room.worker.handle(Unload(2, 10))
    room.backend.go.set()
    assert room.control.answer() == Loaded(1)
    channels = room.ready(1)
    assert not room.backend.model.closed.is_set()
    room.close(*channels.values())
    assert room.control.answer() == Unloaded(2)
    assert room.backend.model.closed.is_set()


@pytest.mark.parametrize(("error", "fault"), [
    (lambda: unsupported("no such thing here"), Fault(Code.UNSUPPORTED, "no such thing here")),
    (lambda: ValueError("in /models/m/1/model.onnx"), Fault(Code.INTERNAL, "the backend failed with ValueError")),
])  # fmt: skip
def test_a_load_that_fails_leaves_nothing(room: Room, error: Callable[[], Exception], fault: Fault) -> None:
    room.backend.error = error()
    room.backend.go.set()
    room.worker.handle(room.load())
    assert room.control.answer() == Failed(1, fault)
    assert room.worker._models == {}
    room.worker.handle(Unload(2, 10))
    assert room.control.answer() == Unloaded(2)


def test_an_instance_that_cannot_be_made_takes_the_others_with_it(room: Room) -> None:
    room.backend.go.set()
    room.backend.model.room = 2
    room.worker.handle(room.load(3))
    assert room.control.answer() == Failed(1, Fault(Code.INTERNAL, "the backend failed with MemoryError"))
    assert [executor.closed.is_set() for executor in room.backend.model.executors] == [True, True]
    assert room.backend.model.closed.is_set()
    assert room.channels == [] and room.worker._models == {}


def test_an_instance_that_does_not_end_keeps_its_model(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorfarm.workers.worker.CLOSE_TIMEOUT_SECS", 0.01)
    room.backend.go.set()
    room.worker.handle(room.load(1))
    assert room.control.answer() == Loaded(1)
    room.worker.handle(Unload(2, 10))
    message = "m_0 did not end within 0.01 s; the model's memory is not given back"
    assert room.control.answer() == Failed(2, Fault(Code.INTERNAL, message))
    assert not room.backend.model.closed.is_set()
    room.close(*room.ready(1).values())
    assert room.backend.model.executors[0].closed.wait(PATIENCE_S)


def test_instances_come_and_go_while_the_others_serve(room: Room) -> None:
    room.backend.go.set()
    room.worker.handle(room.load(1))
    # It waits for the loading.
    room.worker.handle(Extend(2, 10, CONFIG, specs(1, 2)))
    assert room.control.answer() == Loaded(1)
    assert room.control.answer() == Loaded(2)
    channels = room.ready(3)
    assert sorted(channels) == [0, 1, 2]
    first, second, third = room.backend.model.executors
    room.worker.handle(Shrink(3, 10, [0, 2]))
    room.close(channels[0], channels[2])
    assert room.control.answer() == Unloaded(3)
    assert first.closed.is_set() and third.closed.is_set() and not second.closed.is_set()
    channels[1].inbox.put(Execute(5, [request([Tensor("IN", "INT8", (1, 1), inline(b"1"))])]))
    assert isinstance(channels[1].answer(), Done)
    room.worker.handle(Unload(4, 10))
    room.close(channels[1])
    assert room.control.answer() == Unloaded(4)
    assert second.closed.is_set() and room.backend.model.closed.is_set()


def test_instances_of_a_model_that_is_not_there(room: Room) -> None:
    room.worker.handle(Extend(2, 10, CONFIG, specs(1)))
    assert room.control.answer() == Failed(2, Fault(Code.UNAVAILABLE, "the model is not loaded in this worker"))
    room.worker.handle(Shrink(3, 10, [1]))
    assert room.control.answer() == Unloaded(3)


def test_more_instances_than_can_be_made_leave_the_model_as_it_was(room: Room) -> None:
    room.backend.go.set()
    room.backend.model.room = 2
    room.worker.handle(room.load(1))
    assert room.control.answer() == Loaded(1)
    channels = room.ready(1)
    room.worker.handle(Extend(2, 10, CONFIG, specs(1, 2)))
    assert room.control.answer() == Failed(2, Fault(Code.INTERNAL, "the backend failed with MemoryError"))
    assert [executor.closed.is_set() for executor in room.backend.model.executors] == [False, True]
    assert not room.backend.model.closed.is_set() and len(room.channels) == 1
    room.worker.handle(Unload(3, 10))
    room.close(*channels.values())
    assert room.control.answer() == Unloaded(3)


WARM = parse_text(
    """
    name: "m" backend: "fake" max_batch_size: 4
    input { name: "IN" data_type: TYPE_INT8 dims: 1 } output { name: "OUT" data_type: TYPE_INT8 dims: 1 }
    model_warmup { name: "one" batch_size: 2 inputs { key: "IN" value { data_type: TYPE_INT8 dims: 1 zero_data: true } } }
    """,
    "config.pbtxt",
)


def test_every_instance_is_warmed_up_before_it_says_that_it_is_ready(room: Room) -> None:
    room.backend.go.set()
    room.worker.handle(room.load(2, config=document(WARM)))
    assert room.control.answer() == Loaded(1)
    assert [executor.batch_sizes for executor in room.backend.model.executors] == [[2], [2]]
    channels = room.ready(2)
    room.worker.handle(Extend(2, 10, document(WARM), specs(7)))
    assert room.control.answer() == Loaded(2)
    assert room.backend.model.executors[2].batch_sizes == [2]
    channels |= room.ready(1)
    room.worker.handle(Unload(3, 10))
    room.close(*channels.values())
    assert room.control.answer() == Unloaded(3)


def test_one_instance_that_cannot_be_warmed_up_fails_the_load(room: Room) -> None:
    def fail(batch: Batch) -> None:
        raise invalid("too cold")

    room.backend.go.set()
    makes = room.backend.model.executor

    def executor() -> FakeExecutor:
        made = makes()
        if len(room.backend.model.executors) == 2:
            made.work = fail
        return made

    room.backend.model.executor = executor  # type: ignore[method-assign]
    room.worker.handle(room.load(3, config=document(WARM)))
    said = "failed to run warmup sample 'one': too cold; too cold; "
    assert room.control.answer() == Failed(1, Fault(Code.INVALID_ARG, said))
    assert all(executor.closed.is_set() for executor in room.backend.model.executors) and room.backend.model.closed.is_set()
    assert room.channels == [] and room.worker._models == {}, "nobody has heard of any of them"


def test_inspect_completes_a_configuration(room: Room) -> None:
    room.worker.handle(Inspect(1, "fake", "/models/m", 3, CONFIG, {}, True))
    answer = room.control.answer()
    assert isinstance(answer, Inspected) and answer.notes == [Note("W", "guessed")]
    assert parse_document(answer.config).max_batch_size == 7
    room.worker.handle(Inspect(2, "fake", "/models/m", 3, CONFIG, {}, False))
    assert room.control.answer() == Inspected(2, CONFIG, [])


def test_an_unknown_backend(room: Room) -> None:
    room.worker.handle(room.load(1, "os"))
    answer = room.control.answer()
    assert isinstance(answer, Failed) and answer.fault.message.startswith("unable to find backend library for backend 'os'")


def test_returned_leases_and_stop(room: Room) -> None:
    leases = [room.memory.memory.reserve(10) for _ in range(2)]
    assert room.worker.handle(Return([lease.offset for lease in leases]))
    assert room.memory.outputs.used_byte_size == 0
    assert not room.worker.handle(Stop())


def test_regions_come_and_go_over_the_lifeline(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    view: Callable[[Span | Lease], memoryview] = room.memory.memory.view
    monkeypatch.setattr("tensorfarm.workers.memory.ATTACH_TIMEOUT_SECS", 0.0)
    fd = open_object(room.memory.client.key)
    room.worker.handle_lifeline(Attach(8, 0, 4), fd)
    assert len(view(Span(8, 0, 4))) == 4
    with pytest.raises(OSError):
        os.fstat(fd)
    room.worker.handle_lifeline(Detach(8), None)
    with pytest.raises(StatusError):
        view(Span(8, 0, 4))
    room.worker.handle_lifeline(Attach(9, 0, 4), None)
    with pytest.raises(StatusError, match="too many open files"):
        view(Span(9, 0, 4))
