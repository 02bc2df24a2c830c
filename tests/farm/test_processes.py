"""The server's child processes: a kind of its own, who reads whose arena, and what is left of one that has gone."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import msgspec
import pytest
import uvloop

from tensorfarm.server.dispatch.request import Request
from tensorfarm.server.farm.child_process import ChildProcess
from tensorfarm.server.farm.launch import Launched, launch
from tensorfarm.server.farm.processes import Processes
from tensorfarm.server.regions import RegionRegistry
from tensorfarm.shm.arena import create_memory
from tensorfarm.shm.placement import Lease
from tensorfarm.workers.contract.messages import Hello, RequestBody
from tensorfarm.workers.contract.status import Code, StatusError

from ..shm.shm_objects import shm_object
from .harness import PATIENCE_S

ARENA_BYTE_SIZES = (1 << 20, 1 << 16)
REQUEST_BYTES = b"a request's input"

# A process that is no worker: it tells what it is given over its lifeline, and says back what it is told over its link.
PEER = """
import os, socket, sys
import msgspec, zmq
from tensorfarm.workers import lifeline
from tensorfarm.workers.contract.messages import Hello

def say(what, number=0, content=b""):
    link.send(msgspec.msgpack.encode([1, what, number, content]))

with socket.socket(fileno=int(sys.argv[-1])) as wire:
    lifeline.die_with_server()
    greeting, requests, own = lifeline.greeted(wire)
    os.pwrite(own, b"arena %d" % greeting.arena, 0)
    link = zmq.Context().socket(zmq.DEALER)
    link.connect(greeting.endpoint)
    say("too early")
    link.send(msgspec.msgpack.encode(Hello(greeting.token)))
    say("requests", 0, os.pread(requests, 17, 0))
    say("own", os.fstat(own).st_size)
    say("resident", greeting.resident_byte_size)
    link.send(b"rubbish")
    print("printed", flush=True)
    poller = zmq.Poller()
    poller.register(wire, zmq.POLLIN)
    poller.register(link, zmq.POLLIN)
    while True:
        for ready, _ in poller.poll():
            if ready is link:
                say("heard", 0, link.recv())
            elif (received := lifeline.receive(wire)) is None:
                os._exit(0)
            else:
                message, fd = received
                number = getattr(message, "arena", None) or message.region
                say(type(message).__name__, number, b"" if fd is None else os.pread(fd, 7, 0))
"""


class Said(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The one kind of message that such a process sends behind its Hello."""

    what: str
    number: int
    content: bytes


class Words(msgspec.Struct, frozen=True, array_like=True):
    """What it is told."""

    text: str


_decode = msgspec.msgpack.Decoder(Hello | Said).decode


class Yard:
    """Processes of that kind, and what was heard of each."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.regions = RegionRegistry()
        self.request_arena_fd = create_memory(1 << 12)
        os.pwrite(self.request_arena_fd, REQUEST_BYTES, 0)
        self.processes = Processes(self.loop, self.regions, self.request_arena_fd, ARENA_BYTE_SIZES)
        self.heard: dict[str, list[Said]] = {}
        self.lines: dict[str, list[str]] = {}
        self.ended: list[str] = []
        self.started: list[ChildProcess] = []

    def start(self, name: str, launched: Callable[[], Launched], arena_byte_sizes: tuple[int, int] | None = None) -> ChildProcess:
        heard, lines = self.heard.setdefault(name, []), self.lines.setdefault(name, [])

        def receive(process: ChildProcess, message: Hello | Said) -> None:
            assert process.name == name
            if isinstance(message, Said):
                heard.append(message)

        def ended(process: ChildProcess) -> None:
            self.ended.append(f"{process.name} {process.exit_text}")

        process = self.processes.start(name, receive, lines.append, ended, launched, _decode, arena_byte_sizes)
        self.started.append(process)
        return process

    async def peer(self, name: str, arena_byte_sizes: tuple[int, int] | None = None) -> ChildProcess:
        """A process that has said all it says of itself."""
        process = self.start(name, partial(launch, [sys.executable, "-c", PEER]), arena_byte_sizes)
        await self.until(lambda: len(self.heard[name]) == 3 and len(self.lines[name]) == 3, f"{name} to speak")
        return process

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = self.loop.time() + PATIENCE_S
        while not condition():
            assert self.loop.time() < deadline, f"waited for {what}: {self.heard} {self.lines} {self.ended}"
            await asyncio.sleep(0.005)

    async def hears(self, name: str, *said: Said) -> None:
        """It says these, and nothing else."""
        await self.until(lambda: len(self.heard[name]) >= len(said), f"what {name} says")
        assert self.heard[name] == list(said)
        self.heard[name].clear()

    async def close(self) -> None:
        for process in self.started:
            process.kill()
        await self.until(lambda: len(self.ended) == len(self.started), "all to end")
        self.processes.close()
        self.regions.close()
        os.close(self.request_arena_fd)


def run(work: Callable[[Yard], Awaitable[None]]) -> None:
    async def main() -> None:
        yard = Yard()
        try:
            await work(yard)
        finally:
            await yard.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def begin_of(arena: int) -> bytes:
    """What a process has written to its arena."""
    return b"arena %d" % arena


def test_a_process_speaks_as_its_kind_does() -> None:
    async def work(yard: Yard) -> None:
        process = await yard.peer("kin")
        assert sorted(yard.lines["kin"])[1:] == ["a message of a peer that does not have its token was dropped", "printed"]
        assert sorted(yard.lines["kin"])[0].startswith("a malformed message was dropped")
        own, resident = ARENA_BYTE_SIZES
        await yard.hears("kin", Said("requests", 0, REQUEST_BYTES), Said("own", own, b""), Said("resident", resident, b""))
        process.send(Words("hello there"))
        await yard.hears("kin", Said("heard", 0, msgspec.msgpack.encode(["hello there"])))

    run(work)


def test_an_arena_may_have_sizes_of_its_own() -> None:
    async def work(yard: Yard) -> None:
        process = await yard.peer("large", (1 << 22, 1 << 21))
        assert yard.heard["large"][1:] == [Said("own", 1 << 22, b""), Said("resident", 1 << 21, b"")]
        assert process.arena.byte_size == 1 << 22

    run(work)


def test_arenas_are_shared_once_and_disowned_at_the_end() -> None:
    async def work(yard: Yard) -> None:
        maker, reader = [await yard.peer(name) for name in ("maker", "reader")]
        for heard in yard.heard.values():
            heard.clear()
        number = maker.arena_number
        lease = Lease(number, 0, 7)
        assert number != reader.arena_number and bytes(yard.processes.view(lease)) == begin_of(number)
        for arena in (0, number, number, reader.arena_number):
            yard.processes.share(arena, reader)
        await yard.hears("reader", Said("Adopt", number, begin_of(number)))
        maker.kill()
        await yard.hears("reader", Said("Disown", number, b""))
        await yard.until(lambda: bool(yard.ended), "the end")
        assert yard.ended == ["maker was killed by signal 9 (SIGKILL)"] and maker.returncode == -signal.SIGKILL
        with pytest.raises(StatusError, match="has gone") as refused:
            yard.processes.view(lease)
        assert refused.value.code is Code.UNAVAILABLE
        yard.processes.share(number, reader)
        await yard.hears("reader", Said("Adopt", number, b""))
        assert yard.heard["maker"] == [], "who reads it is nothing to the maker"

    run(work)


def test_nobody_has_an_arena_any_more_when_its_end_is_told() -> None:
    async def work(yard: Yard) -> None:
        seen: list[str] = []

        def ended(process: ChildProcess) -> None:
            with suppress(StatusError):
                yard.processes.view(Lease(process.arena_number, 0, 1))
                seen.append("its arena")
            seen.append(process.exit_text)

        yard.processes.start("short", lambda *_: None, seen.append, ended, partial(launch, ["/bin/sh", "-c", "echo said; exit 3"]))
        await yard.until(lambda: len(seen) == 2, "the end")
        assert seen == ["said", "exited with code 3"]

    run(work)


def test_a_request_lends_what_it_uses() -> None:
    async def work(yard: Yard) -> None:
        maker, reader = [await yard.peer(name) for name in ("maker", "reader")]
        for heard in yard.heard.values():
            heard.clear()
        with shm_object(64) as client:
            client.write(0, b"shared!")
            yard.regions.register_system("region", client.key, 0, 64)
            region = yard.regions.span("region", 0, 64).region
            body = RequestBody("", 1, [], [], {})
            request = Request(body, 0, lambda response: None, regions=(region,), arenas=(maker.arena_number,))
            yard.processes.lend(request, reader)
            yard.processes.lend(request, reader)
            yard.regions.unregister_system("region")
            arena = maker.arena_number
            lent = [Said("Attach", region, b"shared!"), Said("Adopt", arena, begin_of(arena)), Said("Detach", region, b"")]
            await yard.hears("reader", *lent)
        maker.send(Words("anything else?"))
        await yard.hears("maker", Said("heard", 0, msgspec.msgpack.encode(["anything else?"])))

    run(work)


def test_a_process_that_cannot_be_started_leaves_nothing() -> None:
    async def work(yard: Yard) -> None:
        with pytest.raises(FileNotFoundError):
            yard.start("none", partial(launch, ["/no/such/program"]))
        process = await yard.peer("next")
        assert bytes(yard.processes.view(Lease(process.arena_number, 0, 7))) == begin_of(process.arena_number)
        assert yard.ended == []

    run(work)


def test_a_process_inherits_what_it_is_launched_with() -> None:
    ours, theirs = os.pipe()
    try:
        launched = launch(["/bin/sh", "-c", f'echo "$WORD $0" >/proc/self/fd/{theirs}'], {"WORD": "inherited"}, [theirs])
    finally:
        os.close(theirs)
    with open(ours) as inherited:
        assert inherited.read() == "inherited --lifeline\n"
    launched.end()


@pytest.mark.parametrize("end", [Processes.close, Processes.end_now])
def test_the_end_removes_the_folder_of_the_sockets(end: Callable[[Processes], None]) -> None:
    async def work(yard: Yard) -> None:
        folder = yard.processes._runtime.path
        process = await yard.peer("last")
        assert list(folder.glob("process-*"))
        process.kill()
        await yard.until(lambda: bool(yard.ended), "the end")
        end(yard.processes)
        assert not folder.exists()

    run(work)
