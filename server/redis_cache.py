"""Answers that are kept in a Redis, which servers may share.

Lookups that come while one is on its way go together in the next. A Redis that does not answer in time is left alone until it
answers a probe: no request waits for it meanwhile, and none ever fails because of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ConnectionError, InvalidResponse, RedisError, ResponseError

from ..shm.datatypes import DATATYPES
from ..shm.placement import Inline
from ..workers.contract.messages import Tensor
from ..workers.contract.status import StatusError, internal, invalid
from ..workers.contract.strings import check_strings
from .dispatch.response_cache import Entry, Found, Inserted, entry_byte_size
from .log import Log

KEY_PREFIX = b"tensorfarm:response:1:"

LARGEST_BYTE_SIZE = 4 << 20
"""Larger answers are computed anew: they would hold up the small ones behind them."""

READ_COUNT = 16
"""Lookups that go together."""

WRITE_SECS = 2.0
WRITES_BYTE_SIZE = 64 << 20
"""How long keeping an answer may take, for which nobody waits; what would wait beside this much is not kept."""

PROBE_SECS = (1.0, 2.0, 4.0, 5.0)
"""How long a Redis that has failed is left alone; the last one again and again."""

FAILURES = (RedisError, OSError, ValueError)
"""What comes of a Redis that is down, slow (asyncio's TimeoutError is an OSError), or none: numbers in replies that are none."""

USERNAME_VARIABLE = "TRITONCACHE_REDIS_USERNAME"
PASSWORD_VARIABLE = "TRITONCACHE_REDIS_PASSWORD"  # noqa: S105  # its name


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """The settings of ``--cache-config=redis,…``, by the names they have there."""

    host: str
    port: int
    user: str = ""
    password: str = field(default="", repr=False)
    db: int = 0
    connect_timeout_ms: int = 500
    socket_timeout_ms: int = 100
    """How long an answer of the Redis may take."""
    wait_timeout_ms: int = 100
    """How long a lookup may wait for those before it."""
    pool_size: int = 2
    tls_enabled: bool = False
    cert: str = ""
    key: str = ""
    cacert: str = ""
    cacert_dir: str = ""


TEXTS = ("user", "password", "cert", "key", "cacert", "cacert_dir")
COUNTS = {"db": "db", "pool_size": "pool_size"}
TIMES = {name: f"{name}_ms" for name in ("connect_timeout", "socket_timeout", "wait_timeout")}
KNOWN = frozenset(("host", "port", "tls_enabled", *TEXTS, *COUNTS, *TIMES))


def redis_settings(given: Mapping[str, str], environment: Mapping[str, str]) -> RedisSettings:
    """What the command line asks for; user and password may come from the environment. Raises StatusError INVALID_ARG."""
    if "host" not in given or "port" not in given:
        raise invalid("Failed to initialize RedisCache, didn't specify address. It needs --cache-config=redis,host=… and redis,port=…")
    values: dict[str, Any] = {
        "user": environment.get(USERNAME_VARIABLE, ""),
        "password": environment.get(PASSWORD_VARIABLE, ""),
        "tls_enabled": given.get("tls_enabled") == "true",
    }
    values.update({name: given[name] for name in TEXTS if name in given})
    values.update({attribute: _number(given, name) for name, attribute in COUNTS.items() if name in given})
    # In the original 0 is for ever, which no request is made to wait.
    values.update({attribute: number for name, attribute in TIMES.items() if name in given and (number := _number(given, name))})
    settings = RedisSettings(given["host"], _number(given, "port"), **values)
    if not 0 < settings.port < 65536 or not settings.pool_size:
        raise invalid("Failed to initialize RedisCache: 'port' must be from 1 to 65535, and 'pool_size' at least 1")
    if settings.tls_enabled:
        for path in (settings.cert, settings.key, settings.cacert, settings.cacert_dir):
            if path and not os.access(path, os.R_OK):
                raise invalid(f"Failed to initialize RedisCache: {path} cannot be read")
    return settings


def _number(given: Mapping[str, str], name: str) -> int:
    text = given[name]
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise invalid(f"Failed to initialize RedisCache: '{name}' must be a whole number, not '{text}'")
    return int(text)


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    """A tensor as it is stored."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: memoryview


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[_Kept])


def encoded(entry: Entry) -> bytes:
    """An entry as it is stored: msgpack of plain fields."""
    kept = []
    for tensor in entry.outputs:
        assert type(tensor.place) is Inline
        kept.append(_Kept(tensor.name, tensor.datatype, tensor.shape, tensor.place.content))
    return _encoder.encode(kept)


def decoded(value: bytes) -> Entry:
    """The entry that is stored so. Raises ValueError for what is none."""
    kept = _decoder.decode(value)  # its errors are ValueErrors
    for tensor in kept:
        datatype = DATATYPES.get(tensor.datatype)
        if datatype is None or any(dim < 0 for dim in tensor.shape):
            raise ValueError("no such datatype, or no such shape")
        count = math.prod(tensor.shape)
        if datatype.byte_size and len(tensor.content) != count * datatype.byte_size:
            raise ValueError("the content does not fit the shape")
        if not datatype.byte_size:
            try:
                check_strings(tensor.name, "", tensor.content, count, "")
            except StatusError as error:
                raise ValueError(error.message) from None
    outputs = tuple([Tensor(one.name, one.datatype, one.shape, Inline(one.content)) for one in kept])
    return Entry(outputs, entry_byte_size(zip(outputs, [len(one.content) for one in kept], strict=True)))


class RedisCache:
    """A ``Store`` in a Redis. Loop thread only; ``open`` before anything else."""

    shared = True
    largest_byte_size = LARGEST_BYTE_SIZE

    def __init__(self, settings: RedisSettings, log: Log) -> None:
        self._settings = settings
        self._log = log
        self._loop = asyncio.get_running_loop()
        # With when each has waited long enough, and who looks at that while any waits.
        self._lookups: deque[tuple[bytes, Found, float]] = deque()
        self._patience: asyncio.TimerHandle | None = None
        self._writes: deque[tuple[bytes, Entry, Inserted]] = deque()
        self._writes_byte_size = 0
        self._work = asyncio.Event()
        self._up = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused = self._damaged = False

    @property
    def up(self) -> bool:
        """Does the Redis answer, as far as is known?"""
        return self._up.is_set()

    async def open(self) -> None:
        """Begin. A Redis that cannot be reached may come later; one that refuses us never will: StatusError INTERNAL."""
        self._up.set()
        try:
            await self._ping()
        except (AuthenticationError, ResponseError) as error:
            raise internal(f"Failed to initialize RedisCache: {error}") from None
        except FAILURES as error:
            self._fail(error)
        else:
            self._log.info(f"responses are kept in the Redis at {self._address}")
        for _ in range(self._settings.pool_size):
            self._spawn(self._lane())

    async def close(self) -> None:
        """End; what waits gets no answer."""
        if self._patience is not None:
            self._patience.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def look_up(self, key: bytes, found: Found) -> None:
        """As ``Store`` says."""
        if not self._up.is_set():
            found(None)
            return
        until = self._loop.time() + self._settings.wait_timeout_ms / 1000
        self._lookups.append((key, found, until))
        if self._patience is None:
            self._patience = self._loop.call_at(until, self._pass_over)
        self._work.set()

    def insert(self, key: bytes, entry: Entry, inserted: Inserted) -> None:
        """As ``Store`` says."""
        if not self._up.is_set() or self._writes_byte_size + entry.byte_size > WRITES_BYTE_SIZE:
            inserted(False)
            return
        self._writes_byte_size += entry.byte_size
        self._writes.append((key, entry, inserted))
        self._work.set()

    def _pass_over(self) -> None:
        """Answer the lookups that have waited long enough: every connection may be at an answer that takes long to be kept."""
        now = self._loop.time()
        while self._lookups and self._lookups[0][2] <= now:
            _, found, _ = self._lookups.popleft()
            self._loop.call_soon(found, None)
        self._patience = self._loop.call_at(self._lookups[0][2], self._pass_over) if self._lookups else None

    # connections

    @property
    def _address(self) -> str:
        return f"{self._settings.host}:{self._settings.port}"

    def _client(self) -> redis.asyncio.Redis:
        """A client with a connection of its own, which is made anew where the Redis has hung up since it was used last."""
        settings = self._settings
        tls: dict[str, Any] = {}
        if settings.tls_enabled:
            tls = {
                "ssl": True,
                "ssl_certfile": settings.cert or None,
                "ssl_keyfile": settings.key or None,
                "ssl_ca_certs": settings.cacert or None,
                "ssl_ca_path": settings.cacert_dir or None,
            }
        return redis.asyncio.Redis(
            host=settings.host,
            port=settings.port,
            db=settings.db,
            username=settings.user or None,
            password=settings.password or None,
            socket_connect_timeout=settings.connect_timeout_ms / 1000,
            protocol=2,
            single_connection_client=True,
            retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionError,)),
            **tls,
        )

    async def _ping(self, client: redis.asyncio.Redis | None = None) -> None:
        """Raises one of FAILURES."""
        own = client or self._client()
        try:
            async with asyncio.timeout((self._settings.connect_timeout_ms + self._settings.socket_timeout_ms) / 1000):
                await own.ping()
        finally:
            if client is None:
                await _closed(own)

    async def _lane(self) -> None:
        """One connection, which does one thing after the other."""
        while True:
            await self._up.wait()
            client = self._client()
            try:
                await self._ping(client)
                while self._up.is_set():
                    await self._next(client)
            except FAILURES as error:
                self._fail(error)
            finally:
                await _closed(client)

    async def _next(self, client: redis.asyncio.Redis) -> None:
        if self._lookups:
            await self._read(client)
        elif self._writes:
            await self._write(client)
        else:
            self._work.clear()
            await self._work.wait()

    async def _read(self, client: redis.asyncio.Redis) -> None:
        batch: list[tuple[bytes, Found]] = []
        while self._lookups and len(batch) < READ_COUNT:
            key, found, _ = self._lookups.popleft()
            batch.append((KEY_PREFIX + key, found))
        values: list[bytes | None] = [None] * len(batch)
        try:
            async with asyncio.timeout(self._settings.socket_timeout_ms / 1000):
                got: Any = await client.mget([key for key, _ in batch])
            if type(got) is not list or len(got) != len(batch) or not {bytes, type(None)}.issuperset(map(type, got)):
                raise InvalidResponse("it does not answer what it is asked")
            values = got
        finally:
            for (_, found), value in zip(batch, values, strict=True):
                # Not from here: what it leads to has nothing to do with this connection.
                self._loop.call_soon(found, self._entry(value))

    def _entry(self, value: bytes | None) -> Entry | None:
        if value is None:
            return None
        try:
            return decoded(value)
        except ValueError as error:
            if not self._damaged:
                self._damaged = True
                self._log.error(f"what the Redis at {self._address} has for a response is none, and is not used: {error}")
            return None

    async def _write(self, client: redis.asyncio.Redis) -> None:
        key, entry, inserted = self._writes.popleft()
        self._writes_byte_size -= entry.byte_size
        try:
            async with asyncio.timeout(max(WRITE_SECS, self._settings.socket_timeout_ms / 1000)):
                await client.set(KEY_PREFIX + key, encoded(entry))
            self._refused = False
        except ResponseError as error:  # it is full, or may only be read
            if not self._refused:
                self._refused = True
                self._log.error(f"the Redis at {self._address} keeps no responses: {error}")
        finally:
            self._loop.call_soon(inserted, False)

    # outages

    def _fail(self, error: Exception) -> None:
        """The Redis has not answered: nobody asks it until it does."""
        if not self._up.is_set():
            return
        self._up.clear()
        # Those who wait for work look at that as well.
        self._work.set()
        self._log.error(f"the Redis at {self._address} fails ({_reason(error)}); requests run without cached responses until it is back")
        lookups, self._lookups = self._lookups, deque()
        writes, self._writes = self._writes, deque()
        self._writes_byte_size = 0
        for _, found, _ in lookups:
            self._loop.call_soon(found, None)
        for _, _, inserted in writes:
            self._loop.call_soon(inserted, False)
        self._spawn(self._heal())

    async def _heal(self) -> None:
        pauses = list(reversed(PROBE_SECS))
        while not self._up.is_set():
            await asyncio.sleep(pauses.pop() if len(pauses) > 1 else pauses[0])
            with contextlib.suppress(*FAILURES):
                await self._ping()
                self._up.set()
        self._log.info(f"the Redis at {self._address} is back")

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _reason(error: Exception) -> str:
    return "it takes too long" if isinstance(error, TimeoutError) else str(error) or type(error).__name__


async def _closed(client: redis.asyncio.Redis) -> None:
    with contextlib.suppress(RedisError, OSError):
        await client.aclose()
