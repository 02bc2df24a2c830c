"""Answers in a real Redis, and what requests notice of one that is down, slow, full, or somebody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

pytest.importorskip("redis")

from tensorfarm.server import redis_cache
from tensorfarm.server.dispatch.response_cache import Entry, entry_byte_size
from tensorfarm.server.log import Log, LogSettings
from tensorfarm.server.redis_cache import KEY_PREFIX, RedisCache, decoded, encoded, redis_settings
from tensorfarm.shm.placement import Inline
from tensorfarm.workers.contract.messages import Tensor
from tensorfarm.workers.contract.status import Code, StatusError

from ..certificates import Authority
from ..redis_server import RedisServer, needs_redis, redis_server
from ..servers import free_ports


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    return tmp_path / "log"


def entry(content: bytes = b"\1\2\3\4", datatype: str = "INT32", shape: tuple[int, ...] = (1, 1)) -> Entry:
    tensors = [Tensor("Y", datatype, shape, Inline(memoryview(content))), Tensor("Z", "UINT8", (0,), Inline(memoryview(b"")))]
    return Entry(tuple(tensors), entry_byte_size([(one, one.place.byte_size) for one in tensors]))


def said(found: Entry | None) -> list[tuple[str, str, tuple[int, ...], bytes]] | None:
    return None if found is None else [(one.name, one.datatype, one.shape, bytes(one.place.content)) for one in found.outputs]  # type: ignore[union-attr]


class Client:
    """A cache, with its answers as things to wait for."""

    def __init__(self, cache: RedisCache, log_path: Path) -> None:
        self.cache = cache
        self._log_path = log_path

    async def get(self, key: bytes) -> Entry | None:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Entry | None] = loop.create_future()
        self.cache.look_up(key, answer.set_result)
        return await asyncio.wait_for(answer, 10)

    async def put(self, key: bytes, one: Entry) -> None:
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.cache.insert(key, one, answer.set_result)
        assert not await asyncio.wait_for(answer, 10)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(15):
            while not condition():
                await asyncio.sleep(0.01)

    @property
    def log(self) -> list[str]:
        return [line for line in self._log_path.read_text().splitlines() if "Redis" in line]


@asynccontextmanager
async def opened(port: int, log_path: Path, **settings: str) -> AsyncIterator[Client]:
    log = Log(LogSettings(log_file=str(log_path)))
    cache = RedisCache(redis_settings({"host": "127.0.0.1", "port": str(port), **settings}, {}), log)
    try:
        await cache.open()
        yield Client(cache, log_path)
    finally:
        await cache.close()
        log.close()


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await work()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(whole())


@needs_redis
def test_what_one_server_keeps_another_finds(server: RedisServer, log_path: Path) -> None:
    async def work() -> None:
        async with opened(server.port, log_path) as one, opened(server.port, log_path) as two:
            assert await one.get(b"a") is None
            await one.put(b"a", entry())
            assert said(await two.get(b"a")) == said(entry())
            assert await two.get(b"b") is None

    run(work)
    assert KEY_PREFIX + b"a" in server.keys()


@needs_redis
def test_many_lookups_share_few_journeys(server: RedisServer, log_path: Path) -> None:
    async def work() -> None:
        async with opened(server.port, log_path, pool_size="1") as client:
            for number in range(0, 300, 3):
                await client.put(b"many%d" % number, entry(bytes([number % 256]) * 4))
            before = _calls(server)
            found = await asyncio.gather(*[client.get(b"many%d" % number) for number in range(300)])
            assert [number for number, one in enumerate(found) if one] == list(range(0, 300, 3))
            assert said(found[9]) == said(entry(b"\x09" * 4))
            assert _calls(server) - before <= 300 / redis_cache.READ_COUNT + 3

    run(work)


def _calls(server: RedisServer) -> int:
    for line in server.command("INFO", "commandstats").decode().splitlines():
        if line.startswith("cmdstat_mget:"):
            return int(line.partition("calls=")[2].partition(",")[0])
    return 0


@needs_redis
def test_user_password_and_database(log_path: Path) -> None:
    async def work() -> None:
        with redis_server("--user", "farm", "on", ">secret", "~*", "+@all", "--user", "default", "off") as server:
            async with opened(server.port, log_path, user="farm", password="secret", db="3") as client:
                await client.put(b"a", entry())
                assert said(await client.get(b"a")) == said(entry())
            async with opened(server.port, log_path, user="farm", password="secret") as client:
                assert await client.get(b"a") is None
            with pytest.raises(StatusError, match="Failed to initialize RedisCache") as refused:
                async with opened(server.port, log_path, user="farm", password="wrong-word"):
                    pass
            assert refused.value.code is Code.INTERNAL
            assert "wrong-word" not in refused.value.message

    run(work)
    assert "secret" not in log_path.read_text()


@needs_redis
def test_tls(tmp_path: Path, log_path: Path) -> None:
    authority = Authority(tmp_path / "tls")
    own, client_pair = authority.pair("redis"), authority.pair("client")
    (tls_port,) = free_ports(1)

    async def work() -> None:
        files = ("--tls-cert-file", str(own.cert), "--tls-key-file", str(own.key), "--tls-ca-cert-file", str(authority.root))
        with redis_server("--tls-port", str(tls_port), *files):
            named = {"cacert": str(authority.root), "cert": str(client_pair.cert), "key": str(client_pair.key)}
            async with opened(tls_port, log_path, tls_enabled="true", **named) as client:
                await client.put(b"a", entry())
                assert said(await client.get(b"a")) == said(entry())

    run(work)


@needs_redis
def test_a_redis_that_goes_and_comes(log_path: Path) -> None:
    async def work() -> None:
        with redis_server() as server:
            async with opened(server.port, log_path) as client:
                await client.put(b"a", entry())
                server.stop()
                assert await client.get(b"a") is None
                assert not client.cache.up
                for _ in range(100):
                    assert await client.get(b"a") is None
                    await client.put(b"a", entry())
                server.start()
                await client.until(lambda: client.cache.up)
                assert await client.get(b"a") is None
                await client.put(b"a", entry())
                assert said(await client.get(b"a")) == said(entry())
                assert [line.rpartition(f":{server.port} ")[2].split()[0] for line in client.log[1:]] == ["fails", "is"]
                assert client.log[2].endswith('is back"')

    run(work)


@needs_redis
def test_connections_that_a_redis_has_closed_are_no_outage(log_path: Path) -> None:
    async def work() -> None:
        with redis_server() as server:
            async with opened(server.port, log_path) as client:
                await client.put(b"a", entry())
                server.command("CLIENT", "KILL", "TYPE", "normal")
                assert said(await client.get(b"a")) == said(entry())
                assert not any("fails" in line for line in client.log)

    run(work)


@needs_redis
def test_a_redis_that_is_slow_costs_one_time_out_and_no_more(log_path: Path) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        with redis_server() as server:
            async with opened(server.port, log_path, socket_timeout="150") as client:
                await client.put(b"a", entry())
                server.freeze()
                began = loop.time()
                answers = await asyncio.gather(*[client.get(b"a") for _ in range(100)])
                took = loop.time() - began
                assert answers == [None] * 100
                assert 0.1 < took < 1.0
                began = loop.time()
                assert await client.get(b"a") is None
                assert loop.time() - began < 0.05
                server.thaw()
                await client.until(lambda: client.cache.up)
                assert said(await client.get(b"a")) == said(entry())
                assert sum("fails" in line for line in client.log) == 1

    run(work)


@asynccontextmanager
async def stand_in(replies: dict[bytes, bytes]) -> AsyncIterator[int]:
    """The port of something that answers each command with the bytes that ``replies`` has for it then; otherwise with PONG."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            words = []
            for _ in range(int(line[1:])):
                words.append((await reader.readexactly(int((await reader.readline())[1:]) + 2))[:-2])
            writer.write(replies.get(words[0], b"+PONG\r\n"))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    "reply",
    [
        *(b"+OK\r\n", b":2\r\n", b"$-1\r\n", b"*1\r\n$-1\r\n", b"*4\r\n$-1\r\n$-1\r\n$-1\r\n$-1\r\n", b"*3\r\n:1\r\n:2\r\n:3\r\n"),
        *(b"*3\r\n-ERR one\r\n$-1\r\n$-1\r\n", b"$many\r\n", b"*3\r\n$x\r\n", b"!\r\n", b"-CROSSSLOT no\r\n"),
    ],
)
def test_what_is_no_redis_costs_no_request_its_answer(reply: bytes, log_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every lookup is a miss, those behind the first as well, and what is asked later finds it at work again."""
    monkeypatch.setattr(redis_cache, "PROBE_SECS", (0.02,))

    async def work() -> None:
        replies = {b"MGET": reply}
        async with stand_in(replies) as port, opened(port, log_path, socket_timeout="1000") as client:
            assert await asyncio.gather(*[client.get(b"%d" % number) for number in range(3)]) == [None] * 3
            assert not client.cache.up
            replies[b"MGET"] = b"*1\r\n$%d\r\n%b\r\n" % (len(encoded(entry())), encoded(entry()))
            await client.until(lambda: client.cache.up)
            assert said(await client.get(b"a")) == said(entry())

    run(work)


def test_answers_that_take_long_to_be_kept_hold_up_no_lookup(log_path: Path) -> None:
    """Every connection is at one; a lookup waits for as long as it may, and no longer."""

    async def work() -> None:
        loop = asyncio.get_running_loop()
        async with stand_in({b"SET": b""}) as port, opened(port, log_path, pool_size="2", wait_timeout="50") as client:
            kept: list[bool] = []
            for _ in range(2):
                client.cache.insert(b"a", entry(), kept.append)
            await client.until(lambda: not client.cache._writes)
            began = loop.time()
            assert await asyncio.gather(*[client.get(b"b") for _ in range(20)]) == [None] * 20
            assert loop.time() - began < 1.0
            assert client.cache.up and kept == []

    run(work)


@needs_redis
def test_one_that_is_not_there_yet_is_waited_for(log_path: Path) -> None:
    async def work() -> None:
        with redis_server() as server:
            server.stop()
            async with opened(server.port, log_path) as client:
                assert await client.get(b"a") is None
                server.start()
                await client.until(lambda: client.cache.up)
                await client.put(b"a", entry())
                assert said(await client.get(b"a")) == said(entry())

    run(work)


@needs_redis
def test_a_full_redis_is_read_all_the_same(log_path: Path) -> None:
    async def work() -> None:
        with redis_server() as server:
            async with opened(server.port, log_path) as client:
                await client.put(b"a", entry())
                server.command("CONFIG", "SET", "maxmemory", "1")
                for _ in range(3):
                    await client.put(b"b", entry())
                assert client.cache.up
                assert said(await client.get(b"a")) == said(entry())
                assert await client.get(b"b") is None
                assert sum("keeps no responses" in line for line in client.log) == 1

    run(work)


@needs_redis
@pytest.mark.parametrize("value", [b"", b"nonsense", b"\xc0", encoded(entry())[:-1], b"\x80\x04K\x01."])
def test_what_is_no_answer_is_a_miss(server: RedisServer, log_path: Path, value: bytes) -> None:
    async def work() -> None:
        async with opened(server.port, log_path) as client:
            server.command("SET", KEY_PREFIX + b"odd", value)
            for _ in range(2):
                assert await client.get(b"odd") is None
            assert client.cache.up
            assert sum("is none" in line for line in client.log) == 1

    run(work)


@needs_redis
def test_writes_that_would_take_too_much_memory_are_dropped(server: RedisServer, log_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_cache, "WRITES_BYTE_SIZE", 3000)

    async def work() -> None:
        async with opened(server.port, log_path) as client:
            await asyncio.gather(*[client.put(b"w%d" % number, entry()) for number in range(5)])
            found = [await client.get(b"w%d" % number) for number in range(5)]
            assert [one is not None for one in found] == [True, False, False, False, False]
            await client.put(b"w1", entry())
            assert await client.get(b"w1") is not None

    run(work)


def test_entries_survive_the_journey() -> None:
    one = entry(b"\1\0\0\0a\0\0\0\0", "BYTES", (2,))
    assert said(decoded(encoded(one))) == said(one)
    assert decoded(encoded(one)).byte_size == one.byte_size


@pytest.mark.parametrize(
    "wrong",
    [
        entry(b"\1\2\3"),
        entry(shape=(2, 1)),
        entry(shape=(-1, -1)),
        entry(datatype="INT33"),
        entry(b"\5\0\0\0a", "BYTES", (1,)),
        entry(b"\1\0\0\0a", "BYTES", (2,)),
    ],
)
def test_tensors_that_do_not_fit_are_refused(wrong: Entry) -> None:
    with pytest.raises(ValueError):
        decoded(encoded(wrong))


# settings


def test_settings() -> None:
    environment = {"TRITONCACHE_REDIS_USERNAME": "u", "TRITONCACHE_REDIS_PASSWORD": "p"}
    plain = redis_settings({"host": "h", "port": "6379"}, environment)
    assert (plain.host, plain.port, plain.user, plain.password, plain.db, plain.tls_enabled) == ("h", 6379, "u", "p", 0, False)
    assert "p" not in repr(plain).replace("port", "").replace("pool", "").replace("password", "")
    given = {"host": "h", "port": "1", "user": "v", "password": "q", "db": "2", "socket_timeout": "7", "connect_timeout": "0"}
    full = redis_settings({**given, "tls_enabled": "true"}, environment)
    assert (full.user, full.password, full.db, full.socket_timeout_ms, full.tls_enabled) == ("v", "q", 2, 7, True)
    assert full.connect_timeout_ms == plain.connect_timeout_ms  # 0 is not for ever here


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({}, "didn't specify address"),
        ({"host": "h"}, "didn't specify address"),
        ({"port": "6379"}, "didn't specify address"),
        ({"host": "h", "port": "x"}, "'port' must be a whole number, not 'x'"),
        ({"host": "h", "port": "70000"}, "'port' must be from 1"),
        ({"host": "h", "port": "1", "pool_size": "0"}, "'pool_size' at least 1"),
        ({"host": "h", "port": "1", "db": "-1"}, "'db' must be"),
        ({"host": "h", "port": "1", "tls_enabled": "true", "cert": "/no/such/file"}, "/no/such/file cannot be read"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, str], word: str) -> None:
    with pytest.raises(StatusError, match=word):
        redis_settings(given, {})
