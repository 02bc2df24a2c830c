"""The arenas that reach a front end over its lifeline, while its loop goes on."""

from __future__ import annotations

import array
import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from tensorfarm.server.front_end.arenas import Arenas
from tensorfarm.shm.arena import Arena, create_memory, read_only
from tensorfarm.shm.placement import Lease
from tensorfarm.workers.contract.messages import Adopt, Disown, LifelineMessage
from tensorfarm.workers.contract.status import Code, StatusError

from .scripts import runner

PATIENCE_S = 10.0
OWN, OTHER = 7, 9
SIZE = 1 << 20


def memory(content: bytes) -> int:
    """A descriptor of an arena that begins with ``content``, for somebody who only reads it."""
    fd = create_memory(SIZE)
    os.pwrite(fd, content, 0)
    readable = read_only(fd)
    os.close(fd)
    return readable


class Ends:
    """Arenas, and the server process's end of the lifeline."""

    def __init__(self) -> None:
        self.server, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours = ours
        fd = create_memory(SIZE)
        self.own = Arena(OWN, fd, SIZE)
        os.close(fd)
        self.arrivals = 0
        self.arenas = Arenas(asyncio.get_running_loop(), ours, self.own, memory(b"server"), self._arrived)

    def _arrived(self) -> None:
        self.arrivals += 1

    def send(self, message: LifelineMessage, *fds: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.server.sendmsg([msgspec.msgpack.encode(message)], rights)
        for fd in fds:
            os.close(fd)

    async def arrival(self, count: int = 1) -> None:
        async def wait() -> None:
            while self.arrivals < count:
                await asyncio.sleep(0.001)

        await asyncio.wait_for(wait(), PATIENCE_S)

    def close(self) -> None:
        self.arenas.close()
        self.server.close()
        self._ours.close()


Run = Callable[[Callable[[Ends], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def run() -> Run:
    return runner(Ends)


def gone(arenas: Arenas, number: int) -> StatusError:
    with pytest.raises(StatusError) as raised:
        arenas.view(Lease(number, 0, 4))
    return raised.value


def test_those_that_are_there_from_the_start(run: Run) -> None:
    async def script(ends: Ends) -> None:
        block = ends.own.reserve(4)
        block.view[:] = b"mine"
        assert bytes(ends.arenas.view(Lease(OWN, block.offset, 4))) == b"mine"
        server = ends.arenas.view(Lease(0, 0, 6))
        assert bytes(server) == b"server" and server.readonly
        assert ends.arenas.has(0) and ends.arenas.has(OWN) and not ends.arenas.has(OTHER)
        block.release()

    run(script)


def test_one_that_comes_is_told(run: Run) -> None:
    async def script(ends: Ends) -> None:
        ends.send(Adopt(OTHER), memory(b"theirs"))
        await ends.arrival()
        view = ends.arenas.view(Lease(OTHER, 0, 6))
        assert bytes(view) == b"theirs" and view.readonly
        with pytest.raises(ValueError):
            ends.arenas.view(Lease(OTHER, SIZE - 1, 2))

    run(script)


def test_one_that_has_come_already_is_found_at_once(run: Run) -> None:
    async def script(ends: Ends) -> None:
        ends.send(Adopt(OTHER), memory(b"theirs"))
        ends.send(Adopt(OTHER + 1), memory(b"others"))
        assert ends.arenas.has(OTHER) and ends.arenas.has(OTHER + 1)
        assert bytes(ends.arenas.view(Lease(OTHER + 1, 0, 6))) == b"others"

    run(script)


def test_one_that_has_gone(run: Run) -> None:
    async def script(ends: Ends) -> None:
        ends.send(Adopt(OTHER), memory(b"theirs"))
        assert ends.arenas.has(OTHER)
        kept = ends.arenas.view(Lease(OTHER, 0, 6))
        # This may overtake answers, and means nothing yet.
        ends.send(Disown(OTHER))
        await ends.arrival()
        assert bytes(ends.arenas.view(Lease(OTHER, 0, 6))) == b"theirs"
        ends.arenas.gone(OTHER)
        ends.arenas.gone(OTHER + 1)
        error = gone(ends.arenas, OTHER)
        assert (error.code, error.message) == (Code.UNAVAILABLE, "the worker that made a tensor has gone, and the tensor with it")
        # Nobody waits for it.
        assert ends.arenas.has(OTHER)
        assert bytes(kept) == b"theirs"

    run(script)


def test_one_whose_descriptor_was_lost(run: Run) -> None:
    async def script(ends: Ends) -> None:
        ends.send(Adopt(OTHER))
        assert ends.arenas.has(OTHER) and gone(ends.arenas, OTHER).code is Code.UNAVAILABLE

    run(script)


def test_descriptors_are_closed(run: Run) -> None:
    async def script(ends: Ends) -> None:
        ends.send(Adopt(OTHER), memory(b"theirs"))
        assert ends.arenas.has(OTHER)
        before = len(os.listdir("/proc/self/fd"))
        for number in range(100, 120):
            ends.send(Adopt(number), memory(b"theirs"))
            assert ends.arenas.has(number)
            ends.arenas.gone(number)
        assert len(os.listdir("/proc/self/fd")) == before

    run(script)


SCRIPT = """
import asyncio, os, socket, sys
from tensorfarm.server.front_end.arenas import Arenas
from tensorfarm.shm.arena import Arena, create_memory

async def main():
    lifeline = socket.socket(fileno=int(sys.argv[1]))
    arenas = Arenas(asyncio.get_running_loop(), lifeline, Arena(7, create_memory(4096), 4096), create_memory(4096))
    print("there", flush=True)
    await asyncio.sleep(60)

try:
    asyncio.run(main())
finally:
    print("late", flush=True)
"""


def test_the_end_of_the_server_process_is_the_end() -> None:
    server, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with server, theirs:
        words = [sys.executable, "-c", SCRIPT, str(theirs.fileno())]
        with subprocess.Popen(words, stdout=subprocess.PIPE, pass_fds=(theirs.fileno(),)) as process:
            theirs.close()
            assert process.stdout is not None and process.stdout.readline() == b"there\n"
            server.close()
            assert process.stdout.read() == b"" and process.wait(PATIENCE_S) == 0
