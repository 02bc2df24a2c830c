"""Requests that are nearly right, by the hundreds: whatever comes, the answer is HTTP, at once, and no program error.

In the spirit of the fuzz test of Triton's own repository: twenty URLs, methods, versions, headers, bodies, and then bytes
taken out, put in and changed.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..model_repository import IDENTITIES, PLAIN, Flavour, write_repository
from ..servers import Server, tensorfarm
from ..wire import compact

PATIENCE_S = 10.0
MODELS = (PLAIN, *(one for one in IDENTITIES if one.name in ("identity_uint8", "identity_bytes")))
PLAIN_BODY = compact({"inputs": [{"name": f"INPUT{at}", "shape": [16], "datatype": "INT32", "data": list(range(16))} for at in (0, 1)]})
_BINARY = {"name": "INPUT0", "shape": [4], "datatype": "UINT8", "parameters": {"binary_data_size": 4}}
BINARY_HEAD = compact({"inputs": [_BINARY], "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": True}}]})
REGION = compact({"key": "/no-such-key", "offset": 0, "byte_size": 64})

URLS = (
    *("/", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/plain", "/v2/models/plain/config", "/v2/models/plain/ready"),
    *("/v2/models/plain/versions/1", "/v2/models/plain/stats", "/v2/models/stats", "/v2/models/plain/infer", "/v2/models/nosuch/infer"),
    *("/v2/models/identity_uint8/infer", "/v2/models/identity_bytes/versions/1/infer", "/v2/models/plain/generate"),
    *("/v2/repository/index", "/v2/repository/models/plain/load", "/v2/systemsharedmemory/status", "/v2/logging", "/v2/trace/setting"),
    *("/v2/systemsharedmemory/region/r/register", "/v2/cudasharedmemory/region/r/unregister", "/metrics", "*", "http://localhost/v2"),
)
METHODS = ("GET", "POST", "POST", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "M-SEARCH", "get", "")
VERSIONS = ("HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.2", "RTSP/1.0", "HTTP/", "")
HEADERS = (
    *(b"Host: localhost", b"Host: localhost", b"Host: localhost", b"Host: a b", b"Connection: close", b"Connection: keep-alive"),
    *(b"Expect: 100-continue", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Content-Length: 7", b"Content-Length: -1"),
    *(b"Content-Encoding: gzip", b"Content-Encoding: br", b"Accept-Encoding: gzip;q=0.5, deflate", b"Content-Type: application/json"),
    *(b"Inference-Header-Content-Length: %d" % len(BINARY_HEAD), b"Inference-Header-Content-Length: 99999999999999999999"),
    *(b"Upgrade: h2c", b"Content-Length: 99999999999999999", b"Origin: http://evil", b"X: \xff\xfe", b"Y:", b" folded", b"nonsense"),
)
BODIES = (
    *(b"", b"{}", b"[]", b"null", b"[" * 3000, b'{"a":' * 3000, b"NaN", b"\xef\xbb\xbf{}", b"\0", PLAIN_BODY, BINARY_HEAD + b"\1\2\3\4"),
    *(REGION, b'{"log_verbose_level":0}', b'{"ready":true}', b"\x1f\x8b\x08\0\0\0\0\0", b"5\r\nhello\r\n0\r\n\r\n", b"x" * 70_000),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for this alone: its log must stay free of errors."""
    folder = tmp_path_factory.mktemp("fuzz")
    with tensorfarm(write_repository(folder / "models", MODELS, Flavour.ONNX), folder=folder / "run") as running:
        yield running


INFER = tuple(url for url in URLS if url.endswith("/infer"))
MILD = tuple(
    one for one in HEADERS if one.startswith((b"Connection", b"Expect", b"Accept", b"Content-Type", b"Inference", b"Origin", b"Y"))
)
CHANGES = (b"\r\n", b"\n", b"\0", b" ", b":", b"\r\n\r\n", b'"', b"[", b"}", b"-1", b"9" * 20, b"1e999", b"null", b"\xff")


@st.composite
def nearly_requests(draw: st.DrawFn) -> bytes:
    """A request whose parts are each possible, mostly even together, and then a few changes of its bytes."""
    wild = draw(st.integers(0, 3)) == 0
    if draw(st.booleans()):
        method, url = "POST", draw(st.sampled_from(INFER))
        body = draw(st.sampled_from((PLAIN_BODY, BINARY_HEAD + b"\1\2\3\4", *BODIES)))
    else:
        method, url, body = draw(st.sampled_from(METHODS if wild else ("GET", "POST", "HEAD"))), draw(st.sampled_from(URLS)), b""
        if method == "POST":
            body = draw(st.sampled_from(BODIES))
    line = f"{method} {url} {draw(st.sampled_from(VERSIONS)) if wild else 'HTTP/1.1'}".encode()
    lines = draw(st.lists(st.sampled_from(HEADERS if wild else MILD), max_size=4))
    if not wild or draw(st.booleans()):
        lines = [b"Host: localhost", *lines, b"Content-Length: %d" % len(body)]
    if body.startswith(BINARY_HEAD) and draw(st.booleans()):
        lines.append(b"Inference-Header-Content-Length: %d" % len(BINARY_HEAD))
    content = bytearray(b"\r\n".join((line, *lines, b"", body)))
    first = 0 if wild or not body else len(content) - len(body)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(first, min(len(content), first + 600)))
        size = draw(st.integers(0, 12))
        new = draw(st.one_of(st.binary(max_size=6), st.sampled_from(CHANGES)))
        # without this most would only be of a wrong length
        content[at : at + size] = new if wild else (new + b" " * size)[: min(size, len(content) - at)]
    return bytes(content)


_HEAD = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [A-Za-z -]+\r\n((?:[!#-'*+.^_`|~0-9A-Za-z-]+: ?[\t\x20-\x7e\x80-\xff]*\r\n)*)\r\n")


def replies(stream: bytes, without_bodies: bool) -> list[tuple[int, bytes]] | None:
    """The replies that a stream consists of, as (status, body), or None where it is no HTTP; to HEAD there may be no bodies."""
    if not stream:
        return []
    head = _HEAD.match(stream)
    if head is None:
        return None
    status = int(head[1])
    sizes = re.findall(rb"(?im)^content-length: ([0-9]+)\r$", head[2])
    if status < 200:
        rest = replies(stream[head.end() :], without_bodies)
        return None if rest is None or sizes else [(status, b""), *rest]
    if len(sizes) != 1:
        return None
    for size in {int(sizes[0]), 0} if without_bodies else {int(sizes[0])}:
        body = stream[head.end() : head.end() + size]
        rest = replies(stream[head.end() + size :], without_bodies) if len(body) == size else None
        if rest is not None:
            return [(status, body), *rest]
    return None


def answer(port: int, content: bytes, cuts: list[int]) -> bytes:
    """Send ``content`` in parts, say that no more comes, and read to the server's end, which must come."""
    stream = b""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client:
        try:
            for start, stop in zip([0, *cuts], [*cuts, len(content)], strict=True):
                client.sendall(content[start:stop])
            client.shutdown(socket.SHUT_WR)
        except (ConnectionError, OSError) as failure:
            # the server may have closed before it had everything
            assert isinstance(failure, ConnectionError) or failure.errno == 107, failure
        try:
            while piece := client.recv(1 << 16):
                stream += piece
        except ConnectionResetError:
            pass
    return stream


@settings(
    max_examples=600,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(nearly_requests(), st.data())
def test_whatever_comes_the_answer_is_http(server: Server, content: bytes, data: st.DataObject) -> None:
    """Well-formed replies and then the end of the connection; no reply that means a fault of the program."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=3)))
    stream = answer(server.http_port, content, cuts)
    said = replies(stream, b"HEAD " in content)
    assert said is not None, (content, stream)
    for status, body in said:
        # 500 is also how the protocol tells of a body that is not JSON, or of members with wrong types
        assert status < 500 or status in (501, 503, 505) or (status == 500 and b'"internal error"' not in body and body), (content, stream)


def test_the_server_is_as_before(server: Server) -> None:
    """No program error in its log, the same worker, and it works."""
    assert "Traceback" not in server.log and "handler failed" not in server.log, server.log
    assert not re.findall(r"^E\d{4} .*", server.log, re.MULTILINE), server.log
    assert server.ask("POST", "/v2/models/plain/infer", PLAIN_BODY).status == 200
    assert len(server.workers()) == 1
