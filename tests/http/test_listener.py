"""A door as a whole: its looks at the time go on whatever happens, and it leaves descriptors to others."""

from __future__ import annotations

import asyncio

import pytest

from tensorfarm.server import descriptors
from tensorfarm.server.http.connection import Connection
from tensorfarm.server.http.http2 import Http2
from tensorfarm.server.http.http2_connection import Http2Connection
from tensorfarm.server.http.listener import HttpDoor
from tensorfarm.server.http.metrics_page import metrics_door
from tensorfarm.server.regions import RegionRegistry
from tests.http.doors import BRISK, Recorder, a_client, a_door, run, until

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"


@pytest.mark.parametrize("http2", [False, True])
def test_a_connection_that_fails_costs_only_itself(http2: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The others' time limits hold, in that look and in later ones; the log tells of it."""
    kind: type[Connection] | type[Http2Connection] = Http2Connection if http2 else Connection
    sweep = kind.sweep
    bad: list[object] = []

    def fail_first(connection: Connection | Http2Connection, now: float) -> None:
        if not bad:
            bad.append(connection)
        if connection is bad[0]:
            raise ZeroDivisionError
        sweep(connection, now)  # type: ignore[arg-type]

    async def app(scope: object, receive: object, send: object) -> None:
        raise AssertionError("nobody asks")

    async def scenario() -> None:
        async with a_door(Recorder(), None, BRISK, Http2(app, BRISK)) as door, a_client(door) as first, a_client(door) as second:
            for client in (first, second):
                await client.send(PREFACE if http2 else b"GET / HT")
            await until(lambda: door.connection_count == 2 and (door.http2 is None or door.http2.connection_count == 2 * http2))
            monkeypatch.setattr(kind, "sweep", fail_first)
            await asyncio.gather(first.rest(), second.rest())
            await until(lambda: door.connection_count == 0)
            before = door.now
            await until(lambda: door.now > before)

    run(scenario)
    assert len(bad) == 1
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]


@pytest.mark.parametrize("most", [256, 1024, 4096, descriptors.MOST])
def test_doors_leave_descriptors_to_the_rest(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both doors full and as many regions as there may be: a tenth is left for workers, models and files."""
    monkeypatch.setattr(descriptors, "limit", lambda: most)

    async def scenario() -> None:
        doors = [HttpDoor(Recorder()), metrics_door(lambda: b"")]
        try:
            for door in doors:
                await door.start("127.0.0.1", 0, False)
            held = sum(door._most + door._spare for door in doors)
            assert held + RegionRegistry()._capacity <= most * 9 // 10
            assert all(door._most >= 16 and door._spare >= 2 for door in doors)
        finally:
            for door in doors:
                await door.close()

    run(scenario)
