"""Which cache the command line names, and what is wrong with it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from tensorfarm.server.caches import CacheThreads, local_families, open_cache
from tensorfarm.server.command_line import parse
from tensorfarm.server.dispatch.response_cache import Entry, LocalCache
from tensorfarm.server.log import Log, LogSettings
from tensorfarm.workers.contract.status import Code, StatusError


def opened(log_path: Path, *flags: str) -> object:
    async def work() -> object:
        log = Log(LogSettings(log_file=str(log_path)))
        try:
            return await open_cache(parse(["--model-repository=r", *flags]), log)
        finally:
            log.close()

    return asyncio.run(work())


def test_none_unless_one_is_named(tmp_path: Path) -> None:
    assert opened(tmp_path / "log") is None


@pytest.mark.parametrize("flag", ["--cache-config=local,size=1048576", "--response-cache-byte-size=1048576"])
def test_a_cache_in_this_process(tmp_path: Path, flag: str) -> None:
    cache = opened(tmp_path / "log", flag)
    assert isinstance(cache, LocalCache)
    assert cache.byte_size == 1048576


def test_a_setting_that_there_is_not_is_warned_about(tmp_path: Path) -> None:
    assert isinstance(opened(tmp_path / "log", "--cache-config=local,size=2048", "--cache-config=local,colour=red"), LocalCache)
    assert "the cache 'local' has no setting 'colour'" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (["foo,a=b", "--cache-directory=/d"], Code.INVALID_ARG, "unable to find 'libtritoncache_foo.so' for cache. Searched: /d. The caches built in here are local and redis"),
        (["local,size=1000", "--cache-directory="], Code.INVALID_ARG, "cache directory can not be empty"),
        (["local,other=1"], Code.INVALID_ARG, "Failed to initialize LocalCache: config didn't contain a valid 'size' field."),
        (["local,size=abc"], Code.INTERNAL, "Failed to initialize LocalCache: 'size' must be a whole number of bytes above 512, not 'abc'"),
        (["local,size=-1"], Code.INTERNAL, "Failed to initialize LocalCache: 'size' must be a whole number of bytes above 512, not '-1'"),
        (["local,size=10"], Code.INTERNAL, "Failed to initialize LocalCache: 'size' must be a whole number of bytes above 512, not '10'"),
        (["local,size=99999999999999999999"], Code.INTERNAL, "Failed to initialize LocalCache: 'size' must be a whole number of bytes above 512, not '99999999999999999999'"),
    ],
)  # fmt: skip
def test_what_cannot_be_had(tmp_path: Path, flags: list[str], code: Code, text: str) -> None:
    first, *others = flags
    with pytest.raises(StatusError) as refused:
        opened(tmp_path / "log", f"--cache-config={first}", *others)
    assert (refused.value.code, refused.value.message) == (code, text)


def test_redis_needs_an_address(tmp_path: Path) -> None:
    pytest.importorskip("redis")
    with pytest.raises(StatusError, match="didn't specify address"):
        opened(tmp_path / "log", "--cache-config=redis,host=h")


def test_what_the_metrics_page_says_of_it() -> None:
    cache = LocalCache(2000)
    cache.insert(b"a", Entry((), 1500), lambda known: None)
    cache.look_up(b"a", lambda found: None)
    cache.look_up(b"b", lambda found: None)
    cache.insert(b"c", Entry((), 1000), lambda known: None)
    values = {family.name: family.samples[0].value for family in local_families(cache)}
    assert values == {
        "nv_cache_util": 0.5,
        "nv_cache_num_entries": 1,
        "nv_cache_num_hits": 1,
        "nv_cache_num_misses": 1,
        "nv_cache_num_lookups": 2,
        "nv_cache_num_evictions": 1,
    }


def test_threads_hand_their_results_to_the_loop() -> None:
    async def work() -> None:
        threads = CacheThreads(asyncio.get_running_loop())
        told: asyncio.Future[tuple[object, bool]] = asyncio.get_running_loop().create_future()
        own = threading.get_ident()
        threads(lambda: threading.get_ident() != own, lambda result: told.set_result((result, threading.get_ident() == own)))
        assert await asyncio.wait_for(told, 5) == (True, True)
        threads.close()

    asyncio.run(work())
