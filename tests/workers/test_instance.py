"""An instance's thread: batches in, answers out, and what goes wrong on the way."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tensorfarm.shm.datatypes import serialize_bytes
from tensorfarm.shm.placement import Span
from tensorfarm.workers import memory as memory_module
from tensorfarm.workers.batch import Batch
from tensorfarm.workers.batch_runner import BatchRunner
from tensorfarm.workers.contract.messages import Close, Done, Execute, Fault, InstanceReady, RequestBody, Tensor
from tensorfarm.workers.contract.status import Code, invalid
from tensorfarm.workers.instance import Instance
from tensorfarm.workers.output import INLINE_BYTE_SIZE

from .fakes import PATIENCE_S, FakeChannel, FakeExecutor
from .real_memory import REGION, Bench, bench, inline, request

TOKEN = b"token"


@pytest.fixture
def world() -> Iterator[Bench]:
    with bench() as made:
        yield made


class Running:
    """A started instance; ``close`` ends it."""

    def __init__(self, world: Bench, executor: FakeExecutor, voice: Callable[[Done], None] | None = None) -> None:
        self.channel = FakeChannel()
        self.executor = executor
        runner = BatchRunner(executor, world.memory, "m")
        runner.voice = voice
        self.instance = Instance(4, "m_0", runner, lambda: self.channel, TOKEN)  # type: ignore[arg-type,return-value]
        self.instance.start()
        self.instance.wait_warm()
        self.instance.open()
        assert self.channel.answer() == InstanceReady(TOKEN, 4)

    def run(self, requests: list[RequestBody]) -> Done:
        self.channel.inbox.put(Execute(9, requests))
        done = self.channel.answer()
        assert isinstance(done, Done) and done.batch == 9
        assert done.compute_start_ns <= done.input_end_ns <= done.output_start_ns <= done.compute_end_ns
        return done

    def close(self) -> None:
        self.channel.inbox.put(Close())
        assert self.instance.join(PATIENCE_S)
        assert self.channel.closed.is_set() and self.executor.closed.is_set()


def one(value: int) -> RequestBody:
    return request([Tensor("IN", "INT8", (1, 1), inline(bytes([value])))])


def outputs(done: Done) -> list[bytes | Fault]:
    return [result.fault or bytes(result.outputs[0].place.content) for result in done.results]  # type: ignore[union-attr]


def test_batches_are_answered_in_order_until_it_closes(world: Bench) -> None:
    running = Running(world, FakeExecutor())
    assert outputs(running.run([one(1), one(2)])) == [b"\1", b"\2"]
    assert outputs(running.run([one(3)])) == [b"\3"]
    running.close()


def test_a_runner_may_have_a_voice_of_its_own(world: Bench) -> None:
    """Over which the ends of its batches go, and nothing else."""
    told: queue.SimpleQueue[Done] = queue.SimpleQueue()
    running = Running(world, FakeExecutor(), told.put)
    running.channel.inbox.put(Execute(9, [one(1)]))
    assert outputs(told.get(timeout=PATIENCE_S)) == [b"\1"]
    assert running.channel.outbox.empty()
    running.close()


@pytest.mark.parametrize(("error", "code", "text"), [
    (lambda: invalid("a word to the client"), Code.INVALID_ARG, "a word to the client"),
    (lambda: ValueError("/secret/path"), Code.INTERNAL, "the backend failed with ValueError"),
    (MemoryError, Code.INTERNAL, "the backend failed with MemoryError"),
])  # fmt: skip
def test_what_a_model_raises_is_told_and_the_next_batch_runs(world: Bench, error: Callable[[], Exception], code: Code, text: str) -> None:
    def fail(batch: Batch) -> None:
        batch.set_output("OUT", "INT8", np.zeros((batch.batch_size, 2 * INLINE_BYTE_SIZE), np.int8))
        raise error()

    executor = FakeExecutor(fail)
    running = Running(world, executor)
    assert outputs(running.run([one(1), one(2)])) == [Fault(code, text)] * 2
    assert world.outputs.used_byte_size == 0
    executor.work = FakeExecutor().work
    assert outputs(running.run([one(3)])) == [b"\3"]
    running.close()


def test_one_clients_bad_strings_do_not_cost_the_others_their_answers(world: Bench) -> None:
    def strings(*elements: bytes) -> RequestBody:
        return request([Tensor("IN", "BYTES", (1, 1), inline(serialize_bytes(elements)))])

    bad = request([Tensor("IN", "BYTES", (1, 1), world.spanned(0, b"\5\0\0\0abc"))])
    executor = FakeExecutor()
    running = Running(world, executor)
    two = request([Tensor("IN", "BYTES", (1, 1), world.spanned(64, serialize_bytes([b"b", b"c"])))])
    done = running.run([bad, strings(b"a"), two, strings(b"d"), bad])
    cut = Fault(
        Code.INVALID_ARG, "incomplete string data for inference input 'IN', expecting string of length 5 but only 3 bytes available"
    )
    assert outputs(done) == [
        cut,
        serialize_bytes([b"a"]),
        Fault(
            Code.INVALID_ARG,
            "[request id: <id_unknown>] unexpected number of string elements 2 for inference input 'IN' for model 'm', expecting 1",
        ),
        serialize_bytes([b"d"]),
        cut,
    ]
    assert executor.batch_sizes == [5, 4, 3, 2]
    assert outputs(running.run([bad, bad])) == [cut, cut]
    assert outputs(running.run([bad])) == [cut]
    running.close()


def test_one_clients_shrunk_region_does_not_cost_the_others_their_answers(world: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "ATTACH_TIMEOUT_SECS", 0.0)
    running = Running(world, FakeExecutor())
    good = request([Tensor("IN", "INT8", (1, 2), world.leased(b"ok"))])
    shrunk, missing = (request([Tensor("IN", "INT8", (1, 2), Span(number, 0, 2))]) for number in (REGION, 99))
    world.client.truncate(0)
    first, second, third = outputs(running.run([shrunk, good, missing]))
    assert isinstance(first, Fault) and first.message.startswith("the shared memory object behind a region is smaller")
    assert second == b"ok"
    assert third == Fault(Code.UNAVAILABLE, "a shared memory region did not reach the worker in time")
    running.close()


def test_an_executor_that_cannot_close_ends_quietly(world: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    running = Running(world, FakeExecutor(close_error=RuntimeError("cannot close")))
    running.close()
    assert "cannot close" in capfd.readouterr().err


def test_a_busy_instance_does_not_end_in_time(world: Bench) -> None:
    go = threading.Event()
    running = Running(world, FakeExecutor(lambda batch: None if go.wait(PATIENCE_S) else None))
    running.channel.inbox.put(Execute(9, [one(1)]))
    running.channel.inbox.put(Close())
    assert not running.instance.join(0.01)
    go.set()
    assert isinstance(running.channel.answer(), Done)
    assert running.instance.join(PATIENCE_S)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_model_that_ends_its_thread_is_noticed(world: Bench, error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's hook for such ends is told even of SystemExit, which threads usually keep to themselves."""
    told: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: told.append(failure.exc_type))

    def leave(batch: Batch) -> None:
        raise error

    running = Running(world, FakeExecutor(leave))
    running.channel.inbox.put(Execute(9, [one(1)]))
    assert running.instance.join(PATIENCE_S)
    assert told == [error] and running.channel.closed.is_set()
