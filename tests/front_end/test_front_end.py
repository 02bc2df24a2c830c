"""What a front end does with what it is told: in order, and never before the memory that it is about has come."""

from __future__ import annotations

import array
import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from tensorfarm.server.farm.channel import Channel, new_context
from tensorfarm.server.front_end.forwarded_log import ForwardedLog
from tensorfarm.server.front_end.front_end import FrontEnd
from tensorfarm.server.front_end.messages import (
    Finished,
    FromFrontEnd,
    FrontEndFrame,
    Logged,
    Refusal,
    Refused,
    Responded,
    Said,
    ToFrontEnd,
    Told,
)
from tensorfarm.shm.arena import Arena, create_memory, read_only
from tensorfarm.shm.placement import Inline, Lease
from tensorfarm.workers.contract.messages import Adopt, Greeting, Hello, LifelineMessage, Tensor

from .scripts import runner

PATIENCE_S = 10.0
OWN, OTHER = 7, 9
SIZE = 1 << 20

_decode = msgspec.msgpack.Decoder(FrontEndFrame).decode


class Taking:
    """A service that keeps what it gets."""

    def __init__(self) -> None:
        self.taken: list[ToFrontEnd] = []

    def receive(self, message: ToFrontEnd) -> None:
        if isinstance(message, Refused):
            raise LookupError(message.refusal.message)
        self.taken.append(message)


class Ends:
    """A front end without doors in this process, and the server process's ends of its link and lifeline."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.heard: list[tuple[bytes, Hello | Said]] = []
        self.service = Taking()
        self._context = new_context()
        self._channel = Channel(self._context, "ipc://front-end", loop, lambda *heard: self.heard.append(heard), print, _decode)
        self._lifeline, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory = create_memory(SIZE)
        greeting = Greeting("ipc://front-end", b"token", OWN, SIZE)
        self.front_end = FrontEnd(greeting, self._theirs, Arena(OWN, memory, SIZE), read_only(memory), None, None)
        self._memory = memory
        cast(Any, self.front_end)._service = self.service

    async def tell(self, *messages: ToFrontEnd) -> None:
        await self.until(lambda: self.heard)
        self._channel.send(self.heard[0][0], Told(list(messages)))

    def pass_on(self, message: LifelineMessage, fd: int) -> None:
        self._lifeline.sendmsg([msgspec.msgpack.encode(message)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
        os.close(fd)

    async def until(self, condition: Callable[[], object]) -> None:
        async def wait() -> None:
            while not condition():
                await asyncio.sleep(0.001)

        await asyncio.wait_for(wait(), PATIENCE_S)

    def close(self) -> None:
        parts = cast(Any, self.front_end)
        parts._arenas.close()
        parts._link.close()
        self._channel.close()
        self._context.destroy(0)
        self._lifeline.close()
        self._theirs.close()
        os.close(self._memory)


Run = Callable[[Callable[[Ends], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)  # the address of a socket has little room

    return runner(Ends)


def response(number: int, place: Lease | Inline) -> Responded:
    return Responded(number, [Tensor("X", "UINT8", (1,), place)])


def test_what_is_told_is_taken_in_order(run: Run) -> None:
    async def script(ends: Ends) -> None:
        told: list[ToFrontEnd] = [
            response(1, Inline(memoryview(b"a"))),
            response(2, Lease(0, 0, 1)),
            response(3, Lease(OWN, 0, 1)),
            Finished([1]),
        ]
        await ends.tell(*told)
        await ends.until(lambda: len(ends.service.taken) == 4)
        assert ends.service.taken == told

    run(script)


def test_a_response_waits_for_its_arena_and_all_wait_behind_it(run: Run) -> None:
    async def script(ends: Ends) -> None:
        told: list[ToFrontEnd] = [Finished([1]), response(2, Lease(OTHER, 0, 1)), response(3, Inline(memoryview(b"b"))), Finished([2])]
        await ends.tell(*told)
        await ends.tell(Finished([3]))
        waiting = cast(Any, ends.front_end)._heard
        await ends.until(lambda: len(waiting) == 4)
        assert ends.service.taken == told[:1]
        fd = create_memory(SIZE)
        ends.pass_on(Adopt(OTHER), fd)
        await ends.until(lambda: len(ends.service.taken) == 5)
        assert ends.service.taken == [*told, Finished([3])]

    run(script)


def test_a_message_that_fails_does_not_take_the_others_with_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a log keeps of a failure would look like something left behind.
    logged: list[str] = []
    monkeypatch.setattr(logging.getLogger("tensorfarm.server.front_end.front_end"), "exception", logged.append)

    async def script(ends: Ends) -> None:
        await ends.tell(Refused(1, Refusal(1, "on purpose")), Finished([2]))
        await ends.until(lambda: ends.service.taken)
        assert ends.service.taken == [Finished([2])]

    run(script)
    assert logged == ["a message of the server process could not be taken"]


# its log


def test_lines_of_the_log_are_told() -> None:
    told: list[FromFrontEnd] = []
    log = ForwardedLog(told.append)
    log.info("one")
    log.warning("two")
    log.error("three")
    assert [(line.severity, line.message) for line in told if isinstance(line, Logged)] == [("I", "one"), ("W", "two"), ("E", "three")]
    assert all(isinstance(line, Logged) and line.place.startswith("test_front_end.py:") for line in told)


def test_lines_of_other_threads_are_told_by_the_loop(run: Run) -> None:
    """What a library warns of while it is imported, say."""

    async def script(ends: Ends) -> None:
        # What only the loop's thread may do is then refused to others.
        asyncio.get_running_loop().set_debug(True)
        failures: list[str] = []

        def warn() -> None:
            try:
                cast(Any, ends.front_end)._log.warning("elsewhere")
            except RuntimeError as error:
                failures.append(str(error))

        thread = threading.Thread(target=warn)
        thread.start()
        thread.join()
        assert failures == []
        await ends.until(lambda: len(ends.heard) == 2)
        frame = ends.heard[1][1]
        assert isinstance(frame, Said)
        assert [line.message for line in frame.messages if isinstance(line, Logged)] == ["elsewhere"]

    run(script)
