"""The cache for responses that the command line names, and the threads that work for it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from ..workers.contract.status import internal, invalid
from .dispatch.response_cache import ENTRY_OVERHEAD, LocalCache
from .log import Log
from .options import Options
from .prometheus_text import Family, Sample

if TYPE_CHECKING:
    from .redis_cache import RedisCache

BUILT_IN = ("local", "redis")


async def open_cache(options: Options, log: Log) -> LocalCache | RedisCache | None:
    """The cache of ``--cache-config``, ready for use; None where there is none. Raises StatusError where it cannot be had."""
    if not options.cache_config:
        return None
    if not options.cache_directory:
        raise invalid("cache directory can not be empty")
    ((name, settings),) = options.cache_config.items()
    if name not in BUILT_IN:
        raise invalid(
            f"unable to find 'libtritoncache_{name}.so' for cache. Searched: {options.cache_directory}. "
            f"The caches built in here are {' and '.join(BUILT_IN)}"
        )
    if name == "local":
        _warn_unknown(name, set(settings) - {"size"}, log)
        cache = LocalCache(local_byte_size(settings.get("size")))
        log.info(f"responses are kept in this process, in {cache.byte_size} bytes")
        return cache
    try:
        from . import redis_cache
    except ImportError:
        raise internal(
            "Failed to initialize RedisCache: the package redis is missing or broken. Install tensorfarm with the extra redis"
        ) from None
    _warn_unknown(name, set(settings) - redis_cache.KNOWN, log)
    shared = redis_cache.RedisCache(redis_cache.redis_settings(settings, os.environ), log)
    await shared.open()
    return shared


def local_byte_size(text: str | None) -> int:
    """The size of a cache in this process, in bytes. Raises StatusError."""
    if text is None:
        raise invalid("Failed to initialize LocalCache: config didn't contain a valid 'size' field.")
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) > ENTRY_OVERHEAD):
        raise internal(f"Failed to initialize LocalCache: 'size' must be a whole number of bytes above {ENTRY_OVERHEAD}, not '{text}'")
    return int(text)


def _warn_unknown(cache: str, names: set[str], log: Log) -> None:
    for name in sorted(names):
        log.warning(f"the cache '{cache}' has no setting '{name}'")


def local_families(cache: LocalCache) -> list[Family]:
    """What the metrics page has of a cache in this process as a whole."""
    return [
        Family(name, "gauge", help_text, [Sample({}, value)])
        for name, help_text, value in (
            ("nv_cache_util", "Cache utilization [0.0 - 1.0]", cache.used_byte_size / cache.byte_size),
            ("nv_cache_num_entries", "Number of responses stored in response cache", len(cache)),
            ("nv_cache_num_hits", "Number of cache hits in response cache", cache.hit_count),
            ("nv_cache_num_misses", "Number of cache misses in response cache", cache.lookup_count - cache.hit_count),
            ("nv_cache_num_lookups", "Number of cache lookups in response cache", cache.lookup_count),
            ("nv_cache_num_evictions", "Number of cache evictions in response cache", cache.eviction_count),
        )
    ]


class CacheThreads:
    """Two threads for what would hold the loop: names and copies of large requests and answers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._threads = ThreadPoolExecutor(2, "cache")

    def __call__(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Do ``work`` in one of them, and call ``done`` with its result on the loop."""
        self._loop.run_in_executor(self._threads, work).add_done_callback(partial(_tell, done))

    def close(self) -> None:
        """End them; what has not begun is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _tell(done: Callable[[Any], None], future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        done(future.result())
