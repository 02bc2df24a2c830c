"""What one client, and all of them together, may cost: times by a clock of our own, memory, connections."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from tensorfarm.server.http.connection import Connection
from tensorfarm.server.http.exchange import Answer, Cancel, HttpRequest, Reply
from tensorfarm.server.http.limits import Limits
from tensorfarm.server.http.listener import HttpDoor
from tensorfarm.shm.arena import Arena
from tests.http.doors import BRISK, Client, QuietTransport, Recorder, a_client, a_door, an_arena, replies_in, run, until

GET = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"
PROBE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


class Clocked:
    """A connection on a door whose clock stands until it is moved."""

    def __init__(self, recorder: Recorder, arena: Arena | None = None, limits: Limits | None = None, door: HttpDoor | None = None) -> None:
        self.door = door or HttpDoor(recorder, arena, None, limits)
        self.door.now = self.door.now or 1000.0
        self.transport = QuietTransport()
        self.connection = Connection(self.door)
        self.connection.connection_made(self.transport)

    def send(self, content: bytes) -> int:
        """Bytes from the client, as long as they are read; returns how many were."""
        sent = 0
        while sent < len(content) and self.transport.reading and not self.transport.closed:
            room = self.connection.get_buffer(-1)
            count = min(len(room), len(content) - sent)
            room[:count] = content[sent : sent + count]
            self.connection.buffer_updated(count)
            sent += count
        return sent

    def after(self, seconds: float) -> bool:
        """Let time pass, one look of the door per second; whether the connection is still open."""
        end = self.door.now + seconds
        while self.door.now < end:
            self.door.now = min(end, self.door.now + 1.0)
            self.connection.sweep(self.door.now)
        return not self.transport.closed

    @property
    def statuses(self) -> list[int]:
        """What was answered."""
        return [status for status, _ in replies_in(self.transport.written)]


def test_a_head_has_ten_seconds() -> None:
    """From its first byte on, and not one more for bytes that dribble in."""
    client = Clocked(Recorder())
    assert client.after(100)
    client.send(b"GET / HTTP/1.1\r\nHost: x\r\nA: ")
    for _ in range(10):
        client.send(b"b")
        assert client.after(1)
    assert not client.after(1)
    assert client.statuses == [408]
    assert client.send(b"\r\n\r\n") == 0


def test_a_head_behind_a_long_request_has_them_too() -> None:
    """While a request is being answered its successor's time does not run."""
    recorder = Recorder(at_once=False)
    client = Clocked(recorder)
    client.send(GET % 1 + b"GET /2 HT")
    assert client.after(1000)
    recorder.answer_next()
    assert client.after(9)
    client.send(b"TP/1.1\r\nHost: x\r\n\r\n")
    assert client.after(1)
    recorder.answer_next()
    client.send(b"GET ")
    assert client.after(10)
    assert not client.after(1)
    assert client.statuses == [200, 200, 408]


@pytest.mark.parametrize("head", [POST % 500_000, POST % 5000, CHUNKED + b"7a120\r\n"])
def test_a_body_has_thirty_seconds_for_each_part(head: bytes) -> None:
    """One that stops is told so after thirty seconds; one that dribbles byte by byte is one that stops."""
    for dribble in (b"", b"x"):
        with an_arena() as arena:
            client = Clocked(Recorder(), arena)
            client.send(head)
            for _ in range(30):
                assert client.after(1)
                client.send(dribble)
            assert not client.after(1)
            assert client.statuses == [408]
            client.connection.connection_lost(None)


def test_a_slow_body_arrives() -> None:
    """Four KiB in each half minute are enough, for hours."""
    with an_arena() as arena:
        recorder = Recorder()
        client = Clocked(recorder, arena)
        client.send(POST % 409_600)
        for _ in range(100):
            assert client.after(29)
            client.send(bytes(4096))
        assert client.statuses == [200]
    assert len(recorder.seen[0][3]) == 409_600


def test_a_body_that_claims_much_must_bring_more() -> None:
    """One part in 256 of what it holds and has not filled, each half minute: 32 KiB for 8 MiB."""
    limits = Limits(claim_byte_size=8 << 20)
    for part, stays in ((4096, False), (32_768, True)):
        with an_arena(64 << 20) as arena:
            client = Clocked(Recorder(), arena, limits)
            client.send(POST % (8 << 20))
            for _ in range(10):
                client.after(29)
                client.send(bytes(part))
            assert client.statuses == ([] if stays else [408])
            client.connection.connection_lost(None)


def test_a_body_behind_a_long_request_has_its_time_too() -> None:
    """It could have come: its memory is given back at once, and the client told after the reply before."""
    recorder = Recorder(at_once=False)
    with an_arena() as arena:
        client = Clocked(recorder, arena)
        client.send(GET % 1 + POST % 500_000 + bytes(5000))
        assert client.after(31)
        assert arena.used_byte_size > 0
        client.after(1)
        assert arena.used_byte_size == 0
        assert client.statuses == []
        recorder.answer_next()
        assert client.statuses == [200, 408]


def test_a_body_that_we_do_not_let_come_has_all_its_time() -> None:
    """We do not read while a reply has not left; we have not said 100 yet; then it begins."""
    recorder = Recorder(at_once=False)
    with an_arena() as arena:
        held_back = Clocked(recorder, arena, Limits(stalled_reply_s=0.0))
        held_back.send(GET % 1 + POST % 500_000)
        held_back.connection.pause_writing()
        recorder.answer_next()
        assert not held_back.transport.reading
        assert held_back.after(1000)
        held_back.connection.resume_writing()
        assert held_back.transport.reading
        unasked = Clocked(recorder, arena)
        unasked.send(GET % 1 + (POST % 500_000).replace(b"Host", b"Expect: 100-continue\r\nHost"))
        assert unasked.after(1000)
        recorder.answer_next()
        assert unasked.statuses == [200, 100]
        for client in (held_back, unasked):
            assert client.after(30)
            client.after(1)
            assert client.statuses[-1] == 408


def test_chunk_lines_are_no_progress() -> None:
    """A body of chunks that never come to anything ends like any other that stops."""
    with an_arena() as arena:
        client = Clocked(Recorder(), arena)
        client.send(CHUNKED)
        for _ in range(30):
            assert client.after(1)
            client.send(b"1;" + b"a" * 200 + b"\r\nx\r\n")
        assert not client.after(1)
        assert client.statuses == [408]
        client.connection.connection_lost(None)


@pytest.mark.parametrize("said", [b"", GET % 1])
def test_an_idle_connection_is_closed_in_the_end(said: bytes) -> None:
    """Without a word: there is no request to answer."""
    client = Clocked(Recorder(), None, Limits(keep_alive_idle_s=60.0))
    client.send(said)
    assert client.after(60)
    assert not client.after(1)
    assert client.statuses == [200] * bool(said)


def test_no_limit_is_no_limit() -> None:
    """Times of 0."""
    limits = Limits(head_s=0.0, body_idle_s=0.0, keep_alive_idle_s=0.0, stalled_reply_s=0.0)
    for said in (b"", b"GET ", POST % 10):
        client = Clocked(Recorder(), None, limits)
        client.send(said)
        assert client.after(10_000)


def test_a_reply_must_leave() -> None:
    """A client that takes less than 4 KiB of its reply in a minute is dropped, and the reply's memory freed; a slow one is not."""
    sent: list[int] = []

    def handle(request: HttpRequest, answer: Answer) -> Cancel | None:
        answer(Reply(200, (), (memoryview(bytes(1 << 20)),), on_sent=lambda: sent.append(1)))
        return None

    for a_minute, stays in ((0, False), (4095, False), (4096, True)):
        sent.clear()
        client = Clocked(Recorder(), None, None, HttpDoor(handle))
        client.transport.unsent = 1 << 20
        client.send(GET % 1)
        client.connection.pause_writing()
        for _ in range(10):
            client.after(59)
            client.transport.unsent -= a_minute
        assert client.transport.aborted is not stays
        assert sent == []
        client.connection.connection_lost(None)
        assert sent == [1]


def test_a_refused_client_has_five_seconds_to_go() -> None:
    """It may send on for that long after its last bytes, so that it reads why; then it is cut off."""
    client = Clocked(Recorder())
    client.send(b"nonsense\r\n\r\n")
    assert client.statuses == [400]
    client.transport.closed = False
    for _ in range(3):
        assert client.after(5)
        client.send(b"more")
    assert client.after(5)
    assert not client.after(1)
    assert client.transport.aborted


def test_a_refused_client_has_thirty_seconds_in_all() -> None:
    """However steadily it sends on."""
    client = Clocked(Recorder())
    client.send(b"nonsense\r\n\r\n")
    client.transport.closed = False
    for _ in range(7):
        assert client.after(4)
        assert client.send(b"x") == 1
    assert client.after(2)
    assert not client.after(1)
    assert client.transport.aborted


def test_a_last_reply_is_not_cut_while_it_is_taken() -> None:
    """The time to go begins when the reply has left; until then the client only has to take it, and sending is not taking."""
    for takes in (True, False):
        recorder = Recorder(at_once=False)
        client = Clocked(recorder)
        client.send(GET % 1 + b"GET /2")
        client.door.exiting = True
        client.transport.unsent = 1 << 20
        client.connection.pause_writing()
        recorder.answer_next()
        assert client.statuses == [200]
        client.transport.closed = False
        for _ in range(20):
            client.after(4)
            client.connection.close_if_idle()
            client.send(b"x")
            client.transport.unsent -= 4096 * takes
        assert client.transport.aborted is not takes
        assert client.transport.closed is not takes
        if takes:
            client.connection.resume_writing()
            assert client.after(5)
            assert not client.after(1)
        client.connection.connection_lost(None)


SLOW = {
    "nothing at all": (b"", []),
    "half a head": (b"GET / HTTP/1.1\r\nHo", [408]),
    "half a body": (POST % 10 + b"12345", [408]),
    "half a chunk": (CHUNKED + b"5\r\nhe", [408]),
    "a request, then nothing": (GET % 1, [200]),
    "a request, then half a head": (GET % 1 + b"GET", [200, 408]),
}


@pytest.mark.parametrize("name", SLOW)
def test_slow_clients_are_closed(name: str) -> None:
    """The same on sockets, by the door's own clock."""
    raw, statuses = SLOW[name]

    async def scenario() -> bytes:
        async with a_door(Recorder(), None, BRISK) as door, a_client(door) as client:
            await client.send(raw)
            return await client.rest()

    assert [status for status, _ in replies_in(run(scenario))] == statuses


# memory


def test_a_connection_has_few_attributes() -> None:
    """CPython lets objects share the names of fewer than 30; beyond that each costs more memory and time."""
    assert len(vars(Clocked(Recorder()).connection)) < 30


def test_what_waits_on_a_connection_is_bounded() -> None:
    """Behind a request that is being answered no more than eight wait, nor more than their share of the memory for that."""
    recorder = Recorder(at_once=False)
    limits = Limits(waiting_byte_size=1 << 20)
    door = HttpDoor(recorder, None, None, limits)
    clients = [Clocked(recorder, None, None, door) for _ in range(40)]
    message = POST % 60_000 + bytes(60_000)
    for client in clients:
        client.send(message * 20)
    waiting = [len(exchange.request.body.view) for client in clients for exchange in client.connection._waiting]
    stashed = [len(client.connection._stash) for client in clients]
    assert sum(waiting) <= limits.waiting_byte_size
    assert max(stashed) <= 2 * len(door.read_buffer)
    assert not any(client.transport.reading for client in clients)
    alone = Clocked(recorder)
    alone.send(message * 20)
    assert len(alone.connection._waiting) == 8
    for client in clients:
        client.connection.connection_lost(None)


def test_those_who_wait_are_answered_in_the_end() -> None:
    """A door so crowded that nothing may wait answers pipelined requests one by one."""
    recorder = Recorder(at_once=False)
    door = HttpDoor(recorder, None, None, Limits(waiting_byte_size=1))
    clients = [Clocked(recorder, None, None, door) for _ in range(3)]
    message = b"".join(GET % number for number in range(30)) + (POST % 3000 + bytes(3000)) * 3
    unsent = dict.fromkeys(range(3), message)
    while recorder.held or any(unsent.values()):
        for number, client in enumerate(clients):
            unsent[number] = unsent[number][client.send(unsent[number]) :]
        if recorder.held:
            recorder.answer_next()
    for client in clients:
        assert client.statuses == [200] * 33


# connections


async def _closed(client: Client) -> bool:
    return await client.rest() == b""


def test_idle_connections_make_room() -> None:
    """At the limit the one that has been idle for longest goes; those at work, and those that were heard later, stay."""
    recorder = Recorder(at_once=False)

    async def scenario() -> None:
        async with a_door(recorder, None, Limits(connections=3, sweep_s=0.01, reclaim_idle_s=0.0)) as door, AsyncExitStack() as stack:

            async def connect() -> Client:
                return await stack.enter_async_context(a_client(door))

            busy, idle, fresh = await connect(), await connect(), await connect()
            await busy.send(GET % 1)
            await until(lambda: len(recorder.held) == 1)
            await idle.send(GET % 1)
            await until(lambda: len(recorder.held) == 2)
            recorder.held.append(recorder.held.pop(0))
            recorder.answer_next()
            assert (await idle.reply())[0] == 200
            before = door.now
            await until(lambda: door.now > before)
            await fresh.send(GET % 2)
            await until(lambda: len(recorder.held) == 2)
            recorder.held.append(recorder.held.pop(0))
            recorder.answer_next()
            assert (await fresh.reply())[0] == 200
            newcomer = await connect()
            await newcomer.send(GET % 3)
            await until(lambda: len(recorder.held) == 2)
            recorder.answer_next()
            recorder.answer_next()
            assert (await busy.reply())[0] == 200
            assert (await newcomer.reply())[0] == 200

    run(scenario)


def test_refused_clients_that_do_not_go_make_room() -> None:
    """Like idle ones, whatever they still send."""
    door = HttpDoor(Recorder(), None, None, Limits(connections=2))
    refused = [Clocked(Recorder(), door=door) for _ in range(2)]
    for client in refused:
        client.send(b"nonsense\r\n\r\n")
        client.transport.closed = False
    for _ in range(2):
        # they share a clock: 4 s in all, each time
        assert all([client.after(2) for client in refused])
        for client in refused:
            client.send(b"x")
    assert not any(client.transport.closed for client in refused)
    newcomer = Clocked(Recorder(), door=door)
    assert all(client.transport.closed for client in refused)
    assert not newcomer.transport.closed


def test_a_crowd_at_work_does_not_keep_a_probe_out() -> None:
    """Beyond the limit health is still told; everything else hears 503. Beyond the spare ones too there is 503 at once."""
    recorder = Recorder(at_once=False)

    async def scenario() -> None:
        limits = Limits(connections=2, spare_connections=2, sweep_s=0.02, linger_s=0.1)
        with an_arena() as arena:
            async with a_door(recorder, arena, limits) as door, AsyncExitStack() as stack:

                async def connect() -> Client:
                    return await stack.enter_async_context(a_client(door))

                for number in (1, 2):
                    await (await connect()).send(GET % number)
                await until(lambda: len(recorder.held) == 2)
                for said in (GET % 3, POST % 5 + b"12345", POST % 1_000_000 + bytes(1000)):
                    client = await connect()
                    await client.send(said)
                    assert [status for status, _ in replies_in(await client.rest())] == [503]
                for path in (b"/v2/health/live", b"/v2/health/ready", b"/v2/models/m/ready", b"/metrics"):
                    client = await connect()
                    await client.send(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)
                    await until(lambda: len(recorder.held) == 3)
                    recorder.held.insert(0, recorder.held.pop())
                    recorder.answer_next()
                    status, headers, _ = await client.reply()
                    assert (status, headers["connection"]) == (200, "close")
                await until(lambda: door.connection_count == 2)
                spare = [await connect() for _ in range(2)]
                for client in spare:
                    await client.send(b"GET /v2/health/li")
                await until(lambda: door.connection_count == 4)
                one_more = await connect()
                assert [status for status, _ in replies_in(await one_more.rest())] == [503]
                recorder.answer_next()
                recorder.answer_next()

    run(scenario)
    assert [path for _, path, _, _ in recorder.seen[:2]] == ["/1", "/2"]


def test_those_who_have_just_been_served_stay() -> None:
    """A connection in use is idle now and then; only one that has been for some seconds gives way."""

    async def scenario() -> None:
        async with a_door(Recorder(), None, Limits(connections=2, linger_s=0.1)) as door, AsyncExitStack() as stack:
            served = [await stack.enter_async_context(a_client(door)) for _ in range(2)]
            for client in served:
                await client.send(PROBE)
                assert (await client.reply())[0] == 200
            newcomer = await stack.enter_async_context(a_client(door))
            await newcomer.send(GET % 1)
            assert (await newcomer.reply())[0] == 503
            for client in served:
                await client.send(PROBE)
                assert (await client.reply())[0] == 200

    run(scenario)


def test_many_newcomers_at_once_find_room() -> None:
    """A full door of idle connections takes as many new ones, and each is served."""

    async def scenario() -> None:
        async with a_door(Recorder(), None, Limits(connections=100, reclaim_idle_s=0.0)) as door, AsyncExitStack() as stack:
            old = [await stack.enter_async_context(a_client(door)) for _ in range(100)]
            for client in old:
                await client.send(PROBE)
                assert (await client.reply())[0] == 200
            new = [await stack.enter_async_context(a_client(door)) for _ in range(90)]
            for client in new:
                await client.send(PROBE)
            replies = await asyncio.gather(*(client.reply() for client in new))
            assert [status for status, _, _ in replies] == [200] * 90
            assert door.connection_count <= 100 + 32

    run(scenario)
