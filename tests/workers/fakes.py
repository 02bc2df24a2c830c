"""Doubles for the threads of a worker: a channel made of queues, and a backend that does what a test says."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tensorfarm.workers.backends.backend import ModelSource
from tensorfarm.workers.batch import Batch, Memory
from tensorfarm.workers.batch_runner import BatchRunner
from tensorfarm.workers.contract.messages import FromWorker, InstanceSpec, Note, ToInstance

PATIENCE_S = 10.0


class FakeChannel:
    """An instance's socket: the test puts messages in and takes answers out."""

    def __init__(self) -> None:
        self.inbox: queue.Queue[ToInstance | BaseException] = queue.Queue()
        self.outbox: queue.Queue[FromWorker] = queue.Queue()
        self.closed = threading.Event()

    def receive(self) -> ToInstance:
        message = self.inbox.get()
        if isinstance(message, BaseException):
            raise message
        return message

    def send(self, message: FromWorker) -> None:
        self.outbox.put(message)

    def close(self) -> None:
        self.closed.set()

    def answer(self) -> FromWorker:
        return self.outbox.get(timeout=PATIENCE_S)


class FakeControl:
    """The worker's control socket, as far as it is sent to."""

    def __init__(self) -> None:
        self.outbox: queue.Queue[FromWorker] = queue.Queue()

    def send(self, message: FromWorker) -> None:
        self.outbox.put(message)

    def answer(self) -> FromWorker:
        return self.outbox.get(timeout=PATIENCE_S)


def answer_with_input(batch: Batch) -> None:
    """OUT is IN."""
    array = batch.input("IN")
    batch.set_output("OUT", batch.tensors("IN")[0].datatype, array)


@dataclass
class FakeExecutor:
    """Runs ``work``; ``batch_sizes`` are those of the batches it was given."""

    work: Callable[[Batch], None] = answer_with_input
    batch_sizes: list[int] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)
    close_error: Exception | None = None

    def execute(self, batch: Batch) -> None:
        self.batch_sizes.append(len(batch.requests))
        self.work(batch)

    def close(self) -> None:
        self.closed.set()
        if self.close_error is not None:
            raise self.close_error


@dataclass
class FakeModel:
    """Makes executors, up to ``room`` of them."""

    room: int = 100
    executors: list[FakeExecutor] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)

    def runner(self, instance: InstanceSpec, memory: Memory) -> BatchRunner:
        return BatchRunner(self.executor(), memory, "m")

    checks = False

    def ready(self) -> bool:
        return True

    def executor(self) -> FakeExecutor:
        if len(self.executors) == self.room:
            raise MemoryError
        self.executors.append(FakeExecutor())
        return self.executors[-1]

    def close(self) -> None:
        self.closed.set()


@dataclass
class FakeBackend:
    """Loads ``model`` once ``go`` is set; ``error`` is raised instead, where there is one."""

    model: FakeModel = field(default_factory=FakeModel)
    go: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None
    sources: list[ModelSource] = field(default_factory=list)

    def complete(self, source: ModelSource) -> list[Any]:
        source.config.max_batch_size = 7
        return [Note("W", "guessed")]

    def compare(self, source: ModelSource) -> None:
        pass

    def load(self, source: ModelSource) -> FakeModel:
        assert self.go.wait(PATIENCE_S)
        self.sources.append(source)
        if self.error is not None:
            raise self.error
        return self.model
