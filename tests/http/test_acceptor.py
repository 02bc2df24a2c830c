"""Descriptors run out: new connections wait, open ones are served, and nothing spins."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import time
from collections.abc import Iterator

import pytest

from tensorfarm.server import descriptors
from tensorfarm.server.http.limits import Limits
from tests.http.doors import PATIENCE_S, Recorder, a_client, a_door, run, until

GET = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"
"x".encode("idna")  # the codec is loaded from files at first use, which connecting is
BUSY = b"GET /0 HTTP/1.1\r\nHo"


@contextlib.contextmanager
def few_descriptors(more: int) -> Iterator[None]:
    """No descriptor beyond the next ``more`` can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def clients(count: int) -> list[socket.socket]:
    """Sockets that are not connected yet."""
    made = [socket.socket() for _ in range(count)]
    for one in made:
        one.setblocking(False)
    return made


@pytest.mark.parametrize("more", [0, 1, 20])
def test_new_connections_wait_while_descriptors_are_few(more: int) -> None:
    """Nobody is hung up on: all are served once there are descriptors again; until then the open connection is."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with a_door(Recorder(), None, Limits(sweep_s=0.05)) as door, a_client(door) as kept:
            await kept.send(GET % 1)
            assert (await kept.reply())[0] == 200
            crowd = clients(40)
            with few_descriptors(more):
                for one in crowd:
                    await loop.sock_connect(one, ("127.0.0.1", door.port))
                    await loop.sock_sendall(one, BUSY)
                await until(lambda: door._acceptor is not None and door._acceptor.resting)
                began, used = time.monotonic(), time.process_time()
                for number in range(20):
                    await kept.send(GET % number)
                    assert (await kept.reply())[0] == 200
                    await asyncio.sleep(0.01)
                assert time.process_time() - used < 0.7 * (time.monotonic() - began), "it spins"
                assert door.connection_count <= 1 + more
            for one in crowd:
                await loop.sock_sendall(one, b"st: x\r\n\r\n")
            for one in crowd:
                reply = await asyncio.wait_for(loop.sock_recv(one, 1000), PATIENCE_S)
                assert reply.startswith(b"HTTP/1.1 200 ")
                one.close()

    run(scenario)


def test_idle_connections_give_theirs_up() -> None:
    """Where descriptors are few those go whom nobody needs, and the newcomer is served."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with a_door(Recorder(), None, Limits(sweep_s=0.05, reclaim_idle_s=0.0)) as door:
            idle, late = clients(8), clients(1)
            for one in idle:
                await loop.sock_connect(one, ("127.0.0.1", door.port))
            await until(lambda: door.connection_count == 8)
            with few_descriptors(0):
                await loop.sock_connect(late[0], ("127.0.0.1", door.port))
                await loop.sock_sendall(late[0], GET % 1)
                # the limit stays where it is, so that what they give up is not enough for the house's own reserve
                assert await asyncio.wait_for(loop.sock_recv(idle[0], 1000), PATIENCE_S) == b""
            assert (await asyncio.wait_for(loop.sock_recv(late[0], 1000), PATIENCE_S)).startswith(b"HTTP/1.1 200 ")
            for one in idle + late:
                one.close()

    run(scenario)


def test_a_door_that_rests_can_close() -> None:
    """Nothing stays behind, and those who waited are reset."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        first, waiting = clients(2)
        with few_descriptors(3):
            async with a_door(Recorder(), None, Limits(sweep_s=0.02)) as door:
                await loop.sock_connect(first, ("127.0.0.1", door.port))
                await until(lambda: door._acceptor is not None and door._acceptor.resting)
                await loop.sock_connect(waiting, ("127.0.0.1", door.port))
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(loop.sock_recv(waiting, 1), PATIENCE_S)
        first.close()
        waiting.close()

    run(scenario)


def test_small_replies_leave_at_once() -> None:
    """Accepted sockets do not collect small packets."""
    seen = []

    async def scenario() -> None:
        async with a_door(Recorder()) as door, a_client(door) as client:
            await client.send(GET % 1)
            await client.reply()
            (connection,) = door._connections
            seen.append(connection._transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    run(scenario)
    assert seen[0]


def test_the_limit_is_raised_to_what_is_allowed() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        assert descriptors.limit() == min(soft, 256)
        wanted = descriptors.MOST if hard == resource.RLIM_INFINITY else min(hard, descriptors.MOST)
        assert descriptors.raise_limit() == wanted
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (wanted, hard)
        assert not descriptors.few_left(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
