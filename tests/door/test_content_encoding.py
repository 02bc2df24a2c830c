"""Compressed request and response bodies. Choices were asked of release 24.10."""

from __future__ import annotations

import asyncio
import gzip
import random
import threading
import tracemalloc
import weakref
import zlib
from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.door import content_encoding
from tensorfarm.server.door.content_encoding import (
    Beside,
    UnknownEncoding,
    Unwanted,
    Wanted,
    chosen_encoding,
    compress,
    decompress,
    is_compressed,
)
from tensorfarm.workers.contract.status import Code, StatusError

ACCEPTED = [
    ("gzip", "gzip"),
    ("deflate", "deflate"),
    ("identity", "identity"),
    ("", "identity"),
    ("br", "identity"),
    ("*", "identity"),
    ("GZIP", "identity"),
    ("gzip;q=0", "identity"),
    ("gzip,deflate", "gzip"),
    (", gzip", "gzip"),
    (" gzip", "gzip"),
    ("gzip;q=0.5, deflate;q=0.8", "deflate"),
    ("deflate;q=0.3,gzip;q=0.3", "deflate"),
    ("identity;q=1,gzip;q=1", "identity"),
    ("identity;q=0.5,gzip;q=0.4", "identity"),
    ("gzip ;q=1", "identity"),
    ("gzip; q=0.9", "identity"),
    ("gzip;Q=1", "identity"),
    ("gzip;q=x", "identity"),
    ("gzip;q=", "identity"),
    ("gzip;q=1;x=2", "gzip"),
    ("gzip;level=9", "identity"),
    (";;,=q", "identity"),
]


@pytest.mark.parametrize(("accepted", "chosen"), ACCEPTED)
def test_chosen(accepted: str, chosen: str) -> None:
    assert chosen_encoding(accepted.encode()) == chosen


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate"])
def test_compressed(encoding: bytes) -> None:
    assert is_compressed(encoding)


def test_identity_is_not_compressed() -> None:
    assert not is_compressed(b"identity")


@pytest.mark.parametrize("encoding", [b"", b"br", b"GZIP", b"gzip, deflate", b"x-gzip"])
def test_unknown(encoding: bytes) -> None:
    with pytest.raises(UnknownEncoding, match="Unsupported compression type") as caught:
        is_compressed(encoding)
    assert caught.value.code is Code.UNSUPPORTED


@given(st.binary(min_size=1), st.sampled_from(["gzip", "deflate"]))
def test_round_trip(content: bytes, encoding: str) -> None:
    assert decompress(memoryview(compress([content, memoryview(content)], encoding)), 2 * len(content)) == content * 2


def test_the_formats_are_what_they_are_called() -> None:
    assert gzip.decompress(compress([b"x"], "gzip")) == b"x" == zlib.decompress(compress([b"x"], "deflate"))


@pytest.mark.parametrize(
    "content", [gzip.compress(b"hello") + b"rest", gzip.compress(b"hello") + gzip.compress(b"more"), gzip.compress(b"hello")[:-8]]
)
def test_only_the_first_stream_counts_and_may_end_early(content: bytes) -> None:
    assert decompress(memoryview(content), 100) == b"hello"


@pytest.mark.parametrize(("content", "text"), [(b"", "nothing to be decompressed"), (b"hello", "unable to decompress the request body")])
def test_faults(content: bytes, text: str) -> None:
    with pytest.raises(StatusError) as caught:
        decompress(memoryview(content), 100)
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARG, text)


def test_limit() -> None:
    packed = memoryview(gzip.compress(b"x" * 1000))
    assert len(decompress(packed, 1000)) == 1000
    with pytest.raises(StatusError) as caught:
        decompress(packed, 999)
    assert caught.value.message == (
        "Decompressed data size exceeds the maximum allowed value of 999 bytes. Use --http-max-input-size to increase the limit."
    )


def test_a_bomb_is_not_inflated() -> None:
    packer = zlib.compressobj()
    bomb = memoryview(b"".join([packer.compress(bytes(1 << 20)) for _ in range(64)]) + packer.flush())
    tracemalloc.start()
    try:
        with pytest.raises(StatusError, match="Decompressed data size exceeds"):
            decompress(bomb, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("work", ["decompress", "compress"])
def test_stops_soon_once_it_is_unwanted(work: str) -> None:
    content = random.Random(1).randbytes(8 << 20)
    answers = iter([True, True, True, False])
    with pytest.raises(Unwanted):
        if work == "compress":
            compress([content], "gzip", lambda: next(answers))
        else:
            decompress(memoryview(gzip.compress(content, 1)), 16 << 20, lambda: next(answers))
    assert list(answers) == []


@pytest.mark.parametrize("size", [(256 << 10) - 30, 256 << 10, (256 << 10) + 1, 3_000_000])
def test_long_streams(size: int) -> None:
    """Of what does not get smaller, and of what gets much smaller."""
    for content in (random.Random(2).randbytes(size), bytes(size)):
        whole = compress([content[:1000], memoryview(content)[1000:]], "deflate")
        assert decompress(memoryview(whole), size) == content
        assert content.startswith(decompress(memoryview(whole)[:-100], size))


def test_work_that_never_begins_holds_nothing() -> None:
    class Body:
        def undo(self, wanted: Wanted) -> bytes:
            raise AssertionError("it was cancelled")

    free = threading.Event()
    busy = [content_encoding._POOL.submit(free.wait, 20) for _ in range(2)]

    async def scenario() -> None:
        body = Body()
        known = weakref.ref(body)
        outcomes: list[Future[bytes]] = []
        job = Beside(body.undo, outcomes.append)
        del body
        assert known() is not None
        assert job.cancel()
        assert known() is None
        free.set()
        await asyncio.wrap_future(content_encoding._POOL.submit(lambda: None))
        assert outcomes == []

    try:
        asyncio.run(scenario())
    finally:
        free.set()
        for job in busy:
            job.result()
