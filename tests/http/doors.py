"""What the HTTP tests share: doors on a loop of their own, raw clients, a transport without a socket."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import uvloop

from tensorfarm.server.door.tls import Tls
from tensorfarm.server.http.exchange import Answer, Cancel, HttpRequest, Reply
from tensorfarm.server.http.http2 import Http2
from tensorfarm.server.http.limits import Limits
from tensorfarm.server.http.listener import HttpDoor
from tensorfarm.shm.arena import Arena, create_memory

T = TypeVar("T")

uvloop.new_event_loop().close()  # libuv opens a pipe for signals once per process: no leak of any one test

PATIENCE_S = 10.0
BRISK = Limits(sweep_s=0.02, head_s=0.2, body_idle_s=0.2, keep_alive_idle_s=0.2, stalled_reply_s=0.3, linger_s=0.2)


def run(make: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine on a fresh uvloop, bounded in time."""

    async def bounded() -> T:
        return await asyncio.wait_for(make(), 3 * PATIENCE_S)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


@contextmanager
def an_arena(byte_size: int = 1 << 24) -> Iterator[Arena]:
    """An arena that must be empty in the end."""
    fd = create_memory(byte_size)
    arena = Arena(1, fd, byte_size)
    try:
        yield arena
        assert arena.used_byte_size == 0, "a request's block was not given back"
    finally:
        os.close(fd)


@asynccontextmanager
async def a_door(
    handle: Callable[[HttpRequest, Answer], Cancel | None],
    arena: Arena | None = None,
    limits: Limits | None = None,
    http2: Http2 | None = None,
    tls: Tls | None = None,
) -> AsyncIterator[HttpDoor]:
    """A door on a free loopback port."""
    door = HttpDoor(handle, arena, http2, limits)
    await door.start("127.0.0.1", 0, False, tls)
    try:
        yield door
    finally:
        await asyncio.wait_for(door.close(), PATIENCE_S)
        assert door.connection_count == 0


class Client:
    """A raw client of a door."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, content: bytes) -> None:
        self.writer.write(content)
        await asyncio.wait_for(self.writer.drain(), PATIENCE_S)

    async def reply(self, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
        """The next reply: status, headers (names lower-case), body."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
        size = 0 if head_only else int(headers.get("content-length", "0"))
        body = await asyncio.wait_for(self.reader.readexactly(size), PATIENCE_S)
        return int(lines[0].split()[1]), headers, body

    async def head(self) -> tuple[int, dict[str, str]]:
        """The next reply's status and headers (names lower-case)."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        lines = head.decode().split("\r\n")
        return int(lines[0].split()[1]), {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }

    async def chunk(self) -> bytes:
        """The next chunk of a reply, empty for the last one."""
        size = int(await asyncio.wait_for(self.reader.readuntil(b"\r\n"), PATIENCE_S), 16)
        content = await asyncio.wait_for(self.reader.readexactly(size + 2), PATIENCE_S)
        assert content[size:] == b"\r\n"
        return content[:size]

    async def chunks(self) -> list[bytes]:
        """All chunks up to the last one."""
        found = []
        while content := await self.chunk():
            found.append(content)
        return found

    async def rest(self) -> bytes:
        """Everything up to the server's close."""
        try:
            return await asyncio.wait_for(self.reader.read(), PATIENCE_S)
        except ConnectionResetError:
            return b""

    def abort(self) -> None:
        self.writer.transport.abort()

    def reset(self) -> None:
        """End the connection as a client that died does."""
        own = self.writer.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@asynccontextmanager
async def a_client(door: HttpDoor) -> AsyncIterator[Client]:
    """A raw connection to a door."""
    client = Client(*await asyncio.open_connection("127.0.0.1", door.port))
    try:
        yield client
    finally:
        client.abort()


def replies_in(stream: bytes) -> list[tuple[int, bytes]]:
    """The complete replies in a stream, as (status, body); anything left over fails."""
    found = []
    while stream:
        head, separator, stream = stream.partition(b"\r\n\r\n")
        assert separator, head
        size = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
        found.append((int(head.split()[1]), stream[:size]))
        stream = stream[size:]
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, bounded in time."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


class Recorder:
    """A handler that keeps what it saw and echoes the body's bytes (at once, or when told)."""

    def __init__(self, at_once: bool = True) -> None:
        self.seen: list[tuple[str, str, str, bytes]] = []
        self.headers: list[list[tuple[bytes, bytes]]] = []
        self.held: list[tuple[HttpRequest, Answer, bytes]] = []
        self.cancelled: list[str] = []
        self.at_once = at_once

    def __call__(self, request: HttpRequest, answer: Answer) -> Cancel | None:
        content = bytes(request.body.view)
        request.body.release()
        self.seen.append((request.head.method, request.head.path, request.head.query, content))
        self.headers.append(request.head.headers)
        if self.at_once:
            answer(Reply(200, (), (content,)))
            return None
        self.held.append((request, answer, content))
        return lambda: self.cancelled.append(request.head.path)

    def answer_next(self) -> None:
        _, answer, content = self.held.pop(0)
        answer(Reply(200, (), (content,)))


class QuietTransport(asyncio.Transport):
    """A transport that takes everything at once; for driving a connection by hand."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written = b""
        self.unsent = 0
        self.closed = False
        self.aborted = False
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def writelines(self, list_of_data: Any) -> None:
        self.written += b"".join(list_of_data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
