"""Versions whose answers are kept: what stands for them in the cache, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tensorfarm.server.dispatch.cached import Caching
from tensorfarm.server.dispatch.request import Request
from tensorfarm.server.dispatch.response_cache import Entry, Found, Inserted, LocalCache
from tensorfarm.server.repository.change import Edition
from tensorfarm.server.repository.folder import Folder
from tensorfarm.server.repository.shared_copy import SharedCopy
from tensorfarm.server.repository.version import ModelVersion
from tensorfarm.workers.contract.messages import RequestBody
from tensorfarm.workers.contract.status import StatusError, unavailable

from .test_creation import House, in_house

CACHED = "} response_cache { enable: true"
"""Behind the instance group of a configuration."""


class Store:
    """A store that answers when it is told to, if it is ``late``."""

    largest_byte_size = 1 << 20

    def __init__(self, shared: bool = False, late: bool = False) -> None:
        self.shared = shared
        self.late = late
        self.waiting: list[Callable[[], None]] = []
        self.keys: list[bytes] = []
        self._inner = LocalCache(1 << 20)

    def look_up(self, key: bytes, found: Found) -> None:
        self.keys.append(key)
        if self.late:
            self.waiting.append(lambda: self._inner.look_up(key, found))
        else:
            self._inner.look_up(key, found)

    def insert(self, key: bytes, entry: Entry, inserted: Inserted) -> None:
        self._inner.insert(key, entry, inserted)


def keep(house: House, store: Store) -> None:
    def beside(work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        pytest.fail("nothing is large")

    house.creation.caching = Caching(store, lambda lease: memoryview(b""), beside)


def edition(house: House, stamps: object = None) -> Edition:
    """Of the files as they are, if nothing else is said."""
    folder = Folder(str(house.directory))
    seen = folder.stamps("m") if stamps is None else stamps
    return Edition("m", house.config(1, CACHED), (1,), seen, SharedCopy(folder.copy("m", seen), house.released.append))  # type: ignore[arg-type]


def ask(house: House, served: ModelVersion) -> Request:
    request = Request(RequestBody("", 1, [], [], {}), 0, house.responses.append)
    served.enter(request)
    return request


async def key_of(house: House, store: Store, made: Edition) -> bytes:
    """What a load of the model calls a request."""
    served = await house.create(made)
    ask(house, served)
    removal = asyncio.get_running_loop().create_task(house.creation.remove(served))
    while not removal.done():
        await asyncio.sleep(0)
        house.finish()
    return store.keys[-1]


def test_without_a_cache_nothing_stands_in_front(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        served = await house.create(edition(house))
        assert served.cached is None
        assert not served.statistics.caching
        await house.creation.remove(served)

    in_house(tmp_path, play)


def test_without_the_model_asking_for_it_neither(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        keep(house, Store())
        served = await house.create(house.edition())
        assert served.cached is None
        await house.creation.remove(served)

    in_house(tmp_path, play)


def test_each_load_has_answers_of_its_own(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        store = Store()
        keep(house, store)
        assert await key_of(house, store, edition(house)) != await key_of(house, store, edition(house))

    in_house(tmp_path, play)


def test_servers_that_share_a_cache_share_answers_of_equal_files(tmp_path: Path) -> None:
    found = []

    async def play(house: House) -> None:
        store = Store(shared=True)
        keep(house, store)
        found.append(await key_of(house, store, edition(house)))
        (house.directory / "m" / "1" / "weights").write_text(tmp_path.name)
        found.append(await key_of(house, store, edition(house)))

    for place in ("a", "b"):
        in_house(tmp_path / place, play)
    assert found[0] == found[2]
    assert found[1] == found[3]
    assert found[0] != found[1]


def test_files_that_change_during_a_load_are_shared_with_nobody(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        store = Store(shared=True)
        keep(house, store)
        plain = await key_of(house, store, edition(house))
        stale = [await key_of(house, store, edition(house, {"1/": None, "1/model.py": "another"})) for _ in range(2)]
        assert len({plain, *stale}) == 3

    in_house(tmp_path, play)


def test_the_end_waits_for_requests_that_are_being_looked_up(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        store = Store(late=True)
        keep(house, store)
        served = await house.create(edition(house))
        ask(house, served)
        assert (served.in_flight, served.idle, served.statistics.pending_count) == (1, False, 1)
        removal = asyncio.get_running_loop().create_task(house.creation.remove(served))
        for _ in range(10):
            await asyncio.sleep(0)
        assert served.stopping
        assert not served.scheduler.stopping
        with pytest.raises(StatusError, match="stopping"):
            ask(house, served)
        store.waiting.pop()()
        await house.until(lambda: house.sent)
        assert served.scheduler.stopping
        house.finish()
        await removal
        assert [response.error for response in house.responses] == [None]

    in_house(tmp_path, play)


def test_what_is_looked_up_at_the_very_end_is_answered(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        store = Store(late=True)
        keep(house, store)
        served = await house.create(edition(house))
        ask(house, served)
        house.generations.abandon(unavailable("too late"))
        assert [response.error and response.error.message for response in house.responses] == ["too late"]
        await house.creation.remove(served)

    in_house(tmp_path, play)
