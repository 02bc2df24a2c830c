"""Heads that come again, byte for byte: they are not parsed again, and nobody must be able to tell."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.door.malformed import Malformed
from tensorfarm.server.http import head as module
from tensorfarm.server.http.exchange import Head
from tensorfarm.server.http.head import HeadReader, announced_json_byte_size
from tensorfarm.server.http.limits import Limits

POST = b"POST /v2/models/m/infer?a=b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nX-Who: me \r\nInference-Header-Content-Length: 3\r\n\r\n"
GET = b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n"


def read(reader: HeadReader, content: bytes, step: int = 0) -> tuple[Head, int]:
    """Feed a head in pieces of ``step`` bytes (0: all at once); returns it and where it ended."""
    at = 0
    while reader.head is None:
        end = min(len(content), at + (step or len(content)))
        assert at < end, "the head is not complete"
        at = reader.feed(content, memoryview(content), at, end)
    made = reader.head
    reader.next()
    return made, at


def said(head: Head) -> list[object]:
    return [getattr(head, field.name) for field in fields(head) if field.name != "seen"]


def test_a_head_that_comes_again_is_the_same_one_on_every_connection() -> None:
    known: dict[bytes, Head] = {}
    first, second = HeadReader(Limits(), known), HeadReader(Limits(), known)
    (one, end), (two, _), (three, _) = read(first, POST + b"hello"), read(first, POST), read(second, POST)
    assert one is two is three
    assert end == len(POST)
    assert (one.method, one.path, one.query, one.content_length) == ("POST", "/v2/models/m/infer", "a=b", 5)
    assert one.header(b"x-who") == b"me" and one.original_names[2] == b"X-Who"
    assert announced_json_byte_size(one) == 3


def test_proxy_connection_says_nothing() -> None:
    """llhttp takes it for Connection: HTTP/1.0 must be held to its rules all the same."""
    with_it = b"POST / HTTP/1.0\r\nHost: x\r\nProxy-Connection: keep-alive\r\n"
    head, _ = read(HeadReader(Limits(), {}), with_it + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    assert (head.keep_alive, head.http_1_0, head.expects_continue) == (False, True, False)
    with pytest.raises(Malformed, match=r"HTTP/1\.0"):
        read(HeadReader(Limits(), {}), with_it + b"Transfer-Encoding: chunked\r\n\r\n")


def test_each_has_its_own_time() -> None:
    reader = HeadReader(Limits(), {})
    times = []
    for _ in range(3):
        read(reader, POST)
        times.append(reader.start_ns)
    assert 0 < times[0] < times[1] < times[2]


@given(st.lists(st.tuples(st.sampled_from([POST, GET, GET.replace(b"v2", b"v3"), POST.replace(b"me", b"us")]), st.integers(0, 50))))
def test_what_is_remembered_reads_as_what_is_parsed(heads: list[tuple[bytes, int]]) -> None:
    """Whatever came before, in whatever pieces."""
    known: dict[bytes, Head] = {}
    remembering = HeadReader(Limits(), known)
    for content, step in heads:
        assert said(read(remembering, content, step)[0]) == said(read(HeadReader(Limits(), {}), content)[0])
    assert set(known) <= {content for content, _ in heads}


def test_a_malformed_head_is_malformed_each_time() -> None:
    known: dict[bytes, Head] = {}
    for _ in range(3):
        with pytest.raises(Malformed):
            read(HeadReader(Limits(), known), GET.replace(b"host", b"not-host"))
    assert not known


def test_there_are_never_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_COUNT", 3)
    known: dict[bytes, Head] = {}
    reader = HeadReader(Limits(), known)
    for number in range(20):
        read(reader, GET.replace(b"v2", b"%d" % number))
        assert 1 <= len(known) <= 3


def test_a_large_head_is_not_kept() -> None:
    known: dict[bytes, Head] = {}
    large = GET.replace(b"host", b"padding: %b\r\nhost" % (b"x" * module.KEPT_BYTE_SIZE))
    assert read(HeadReader(Limits(), known), large)[0].path == "/v2"
    assert not known
