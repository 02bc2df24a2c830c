"""Real front ends of a server of which there is only what they need: processes, sockets, and somebody who answers."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Coroutine
from socket import socket
from typing import Any, cast

import uvloop

from tensorfarm.server.command_line import parse
from tensorfarm.server.door.listening import listen_together, new_socket
from tensorfarm.server.farm.child_process import ChildProcess
from tensorfarm.server.farm.processes import Processes
from tensorfarm.server.front_end.front_ends import FrontEnds
from tensorfarm.server.front_end.messages import AnsweredHttp, AskHttp, Find, FromFrontEnd, ToFrontEnd
from tensorfarm.server.log import Log
from tensorfarm.server.options import Options
from tensorfarm.server.regions import RegionRegistry
from tensorfarm.shm.arena import create_memory
from tensorfarm.workers.contract.status import StatusError

# libuv makes a pipe with its first loop and keeps it: that is to be before the leak check looks
uvloop.new_event_loop().close()

PATIENCE_S = 20.0
HERE = "127.0.0.1"
SIZES = (64 << 20, 16 << 20)


def options(*words: str, count: int = 2) -> Options:
    """What the command line says, with so many front ends."""
    return parse(["--model-repository=models", f"--front-ends={count}", *words], {})


class Lines(Log):
    """A log whose lines are kept, with the process that said them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str, int | None]] = []

    def record(self, severity: str, message: str, place: str, pid: int | None = None) -> None:
        self.lines.append((severity, message, pid))

    def texts(self, severity: str) -> list[str]:
        return [message for one, message, _ in self.lines if one == severity]


class Answering:
    """A session: answers HTTP with the path that was asked for."""

    in_flight = 0

    def __init__(self, house: House, tell: Callable[[ToFrontEnd], None], share: Callable[[int], None], arena: int) -> None:
        self.tell = tell
        self.share = share
        self.arena = arena
        self.heard: list[FromFrontEnd] = []
        self.ended = False
        self.held: list[AskHttp] = []
        self._house = house

    def receive(self, message: FromFrontEnd) -> None:
        if isinstance(message, Find):
            raise LookupError(message.model)
        self.heard.append(message)
        if isinstance(message, AskHttp):
            self.held.append(message)
            if not self._house.holding:
                self.answer()

    def answer(self) -> None:
        """Answer all that was asked."""
        held, self.held = self.held, []
        for message in held:
            self.tell(AnsweredHttp(message.question, 200, [(b"content-type", b"text/plain")], message.path.encode()))

    def end(self) -> None:
        self.ended = True


class House:
    """A server of front ends only. ``holding``: what is asked is not answered yet."""

    def __init__(self, wanted: Options) -> None:
        self.loop = asyncio.get_running_loop()
        self.log = Lines()
        self.holding = False
        self.sessions: list[Answering] = []
        self._regions = RegionRegistry()
        self._arena_fd = create_memory(1 << 20)
        self.processes = Processes(self.loop, self._regions, self._arena_fd, SIZES)
        self.front_ends = FrontEnds(
            self.loop, self.processes, wanted, self.log, cast(Any, self._session), lambda model, reason, count: None
        )
        self.sockets = [new_socket(HERE) for _ in range(wanted.front_ends)]
        self.port = 0

    def _session(self, tell: Callable[[ToFrontEnd], None], share: Callable[[int], None], arena: int) -> Answering:
        session = Answering(self, tell, share, arena)
        self.sessions.append(session)
        return session

    def launch(self, grpc: list[socket] | None = None) -> None:
        """Start them."""
        self.front_ends.launch(self.sockets, grpc or [])

    async def open(self) -> None:
        """Bind the port and open the doors."""
        self.port = listen_together(self.sockets, HERE, 0, False)
        try:
            await asyncio.wait_for(self.front_ends.open(), PATIENCE_S)
        except StatusError as error:
            error.add_note(f"{self.log.lines}")
            raise

    def children(self) -> list[ChildProcess]:
        """Those that run, oldest first."""
        places = cast(Any, self.front_ends)._places
        return sorted([place.process for place in places if place.process is not None], key=lambda one: int(one.arena_number))

    async def until(self, condition: Callable[[], object], what: str) -> None:
        async def wait() -> None:
            while not condition():
                await asyncio.sleep(0.005)

        try:
            await asyncio.wait_for(wait(), PATIENCE_S)
        except TimeoutError:
            raise AssertionError(f"waited in vain for: {what}\n{self.log.lines}") from None

    async def kill(self) -> ChildProcess:
        """Kill the oldest, and wait until that is known."""
        process = self.children()[0]
        process.kill()
        await self.until(lambda: process.returncode is not None, "it to be dead")
        return process

    async def get(self, path: str = "/v2/health/live") -> bytes:
        """What a new client gets."""
        reader, writer = await asyncio.open_connection(HERE, self.port)
        try:
            return await ask(reader, writer, path)
        finally:
            writer.close()

    async def close(self) -> None:
        await asyncio.wait_for(self.front_ends.close(), PATIENCE_S)
        self.processes.close()
        self._regions.close()
        for one in self.sockets:
            one.close()
        os.close(self._arena_fd)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str = "/v2/health/live") -> bytes:
    """The body of a reply."""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
    assert head.startswith(b"HTTP/1.1 200 "), head
    found = re.search(rb"(?i)content-length: (\d+)", head)
    assert found is not None
    return await reader.readexactly(int(found[1]))


def run(script: Callable[[House], Coroutine[Any, Any, None]], wanted: Options | None = None) -> None:
    """Run a test's script with a house."""

    async def main() -> None:
        house = House(wanted or options())
        try:
            await script(house)
        finally:
            await house.close()
            house.__dict__.clear()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
