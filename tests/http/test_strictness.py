"""What is HTTP/1.1 and what is not: bytes on the wire, and what becomes of them however they arrive.

Each refused row is followed by a request that must not be answered: whatever it could be, after an error nobody knows where
the next request begins. Sources: RFC 9112, RFC 9110, and the request smuggling that other servers have had.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfarm.server.http.connection import Connection
from tensorfarm.server.http.limits import Limits
from tensorfarm.server.http.listener import HttpDoor
from tests.http.doors import QuietTransport, Recorder, a_client, a_door, an_arena, replies_in, run

FOLLOW_UP = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
_SPLIT_BYTE_SIZE = 200
"""Rows up to this size are also sent in two parts, divided everywhere."""
_SINGLE_BYTE_SIZE = 20_000
"""Rows up to this size are also sent byte by byte."""


def get(headers: bytes = b"Host: x\r\n", line: bytes = b"GET /v2 HTTP/1.1") -> bytes:
    """A request without a body."""
    return line + b"\r\n" + headers + b"\r\n"


def with_header(header: bytes) -> bytes:
    """A request with one more header line."""
    return get(b"Host: x\r\n" + header + b"\r\n")


def post(headers: bytes, body: bytes = b"") -> bytes:
    """A request with a body."""
    return b"POST /p HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n" + body


def length(value: bytes, body: bytes = b"{}") -> bytes:
    """A request with a length."""
    return post(b"Content-Length:" + value + b"\r\n", body)


def coding(value: bytes) -> bytes:
    """An empty chunked request, if that is what it is."""
    return post(b"Transfer-Encoding:" + value + b"\r\n", b"0\r\n\r\n")


def chunked(body: bytes) -> bytes:
    """A request in chunks."""
    return post(b"Transfer-Encoding: chunked\r\n", body)


def trailer(line: bytes) -> bytes:
    """A chunked request with a trailer."""
    return chunked(b"2\r\n{}\r\n0\r\n" + line + b"\r\n\r\n")


def headers(count: int) -> bytes:
    """So many header lines."""
    return b"Host: x\r\n" + b"".join(b"A%d: b\r\n" % number for number in range(count - 1))


REFUSED: dict[str, tuple[bytes, int]] = {
    # both lengths
    "length and chunked": (post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), 400),
    "length 0 and chunked": (post(b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), 400),
    "chunked and length": (post(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), 400),
    "chunked and length in other case": (post(b"TRANSFER-ENCODING: chunked\r\ncontent-length: 5\r\n", b"0\r\n\r\n"), 400),
    # Transfer-Encoding that is not exactly "chunked"
    "chunked twice": (post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), 400),
    "identity, then chunked": (post(b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), 400),
    "nothing, then chunked": (post(b"Transfer-Encoding:\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), 400),
    "chunked, chunked": (coding(b" chunked, chunked"), 400),
    "xchunked": (coding(b" xchunked"), 400),
    "chunkedx": (coding(b" chunkedx"), 400),
    "chunked, gzip": (coding(b" chunked, gzip"), 400),
    "gzip, chunked": (coding(b" gzip, chunked"), 400),
    "chunked and a comma": (coding(b" chunked,"), 400),
    "a comma and chunked": (coding(b" ,chunked"), 400),
    "chunked with a parameter": (coding(b" chunked;q=1"), 400),
    "chunked in quotes": (coding(b' "chunked"'), 400),
    "identity": (coding(b" identity"), 400),
    "no coding": (coding(b""), 400),
    "chunked folded": (coding(b"\r\n chunked"), 400),
    "chunked, folded comma": (coding(b" chunked\r\n , gzip"), 400),
    "chunked, folded blank": (coding(b" chunked\r\n "), 400),
    "chunked after a blank before the colon": (post(b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"), 400),
    "chunked after a tab before the colon": (post(b"Transfer-Encoding\t: chunked\r\n", b"0\r\n\r\n"), 400),
    "chunked after a vertical tab": (coding(b" \x0bchunked"), 400),
    "chunked before a vertical tab": (coding(b" chunked\x0b"), 400),
    "chunked before a NUL": (coding(b" chunked\0"), 400),
    "chunked after a hard blank": (coding(b" \xa0chunked"), 400),
    "chunked on HTTP/1.0": (b"POST /p HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked on HTTP/1.0, kept alive": (
        b"POST /p HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    # Content-Length
    "two equal lengths": (post(b"Content-Length: 2\r\nContent-Length: 2\r\n", b"{}"), 400),
    "two lengths": (post(b"Content-Length: 2\r\nContent-Length: 3\r\n", b"{}"), 400),
    "two lengths, one empty": (post(b"Content-Length:\r\nContent-Length: 2\r\n", b"{}"), 400),
    "length +2": (length(b" +2"), 400),
    "length -1": (length(b" -1"), 400),
    "length -0": (length(b" -0", b""), 400),
    "length 2,2": (length(b" 2,2"), 400),
    "length 2, 2": (length(b" 2, 2"), 400),
    "length 0x2": (length(b" 0x2"), 400),
    "length 5 5": (length(b"  5 5"), 400),
    "length 2.0": (length(b" 2.0"), 400),
    "length 0_2": (length(b" 0_2"), 400),
    "length 2e0": (length(b" 2e0"), 400),
    "length in quotes": (length(b' "2"'), 400),
    "length empty": (length(b""), 400),
    "length folded": (length(b"\r\n 2"), 400),
    "length folded on": (length(b" 2\r\n 3"), 400),
    "length after a vertical tab": (length(b" \x0b2"), 400),
    "length before a form feed": (length(b" 2\x0c"), 400),
    "length in Arabic digits": (length(" ٣".encode()), 400),
    "length in wide digits": (length(" ２".encode()), 400),
    "length in superscript": (length(b" \xb2"), 400),
    "length of 23 digits": (length(b" 99999999999999999999999"), 400),
    "length of 2 to the power of 64 and 2": (length(b" 18446744073709551618"), 400),
    "length beyond the arena": (length(b" 1000000000000000000"), 413),
    # chunks
    "chunk size 0x2": (chunked(b"0x2\r\n{}\r\n0\r\n\r\n"), 400),
    "chunk size -1": (chunked(b"-1\r\n{}\r\n0\r\n\r\n"), 400),
    "chunk size +2": (chunked(b"+2\r\n{}\r\n0\r\n\r\n"), 400),
    "chunk size 0_2": (chunked(b"0_2\r\n{}\r\n0\r\n\r\n"), 400),
    "chunk size 2h": (chunked(b"2h\r\n{}\r\n0\r\n\r\n"), 400),
    "chunk size empty": (chunked(b"\r\n{}\r\n0\r\n\r\n"), 400),
    "chunk size with only an extension": (chunked(b";a\r\n{}\r\n0\r\n\r\n"), 400),
    "chunk size after a blank": (chunked(b" 2\r\n{}\r\n0\r\n\r\n"), 400),
    "chunk size before a blank": (chunked(b"2 \r\n{}\r\n0\r\n\r\n"), 400),
    "chunk size of 17 digits": (chunked(b"00000000000000002\r\n{}\r\n0\r\n\r\n"), 400),
    "chunk size of 300 digits": (chunked(b"0" * 299 + b"2\r\n{}\r\n0\r\n\r\n"), 400),
    "chunk size in wide digits": (chunked("２\r\n{}\r\n0\r\n\r\n".encode()), 400),
    "chunk beyond the arena": (chunked(b"ffffffffffffffff\r\n{}"), 413),
    "chunk size ends in LF": (chunked(b"2\n{}\r\n0\r\n\r\n"), 400),
    "chunk size ends in CR": (chunked(b"2\r{}\r\n0\r\n\r\n"), 400),
    "chunk size ends in CR CR LF": (chunked(b"2\r\r\n{}\r\n0\r\n\r\n"), 400),
    "last chunk size ends in LF": (chunked(b"2\r\n{}\r\n0\n\r\n"), 400),
    "last line ends in LF": (chunked(b"2\r\n{}\r\n0\r\n\n"), 400),
    "LF in an extension": (chunked(b"2;a\nb\r\n{}\r\n0\r\n\r\n"), 400),
    "CR in an extension": (chunked(b"2;a\rb\r\n{}\r\n0\r\n\r\n"), 400),
    "NUL in an extension": (chunked(b"2;a\0\r\n{}\r\n0\r\n\r\n"), 400),
    "extension without a semicolon": (chunked(b"2 a=b\r\n{}\r\n0\r\n\r\n"), 400),
    "extension of 257 bytes": (chunked(b"2;" + b"a" * 256 + b"\r\n{}\r\n0\r\n\r\n"), 400),
    "extension of 257 bytes on the last chunk": (chunked(b"2\r\n{}\r\n0;" + b"a" * 256 + b"\r\n\r\n"), 400),
    "extension without end": (chunked(b"2;" + b"a" * 5000), 400),
    "chunk too long": (chunked(b"5\r\nhelloXX0\r\n\r\n"), 400),
    "chunk too long by a byte": (chunked(b"5\r\nhelloX\r\n0\r\n\r\n"), 400),
    "chunk too short": (chunked(b"6\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk ends in LF": (chunked(b"5\r\nhello\n0\r\n\r\n"), 400),
    "chunk ends in CR": (chunked(b"5\r\nhello\rX0\r\n\r\n"), 400),
    # trailers
    "trailer Content-Length": (trailer(b"Content-Length: 5"), 400),
    "trailer Transfer-Encoding": (trailer(b"Transfer-Encoding: chunked"), 400),
    "trailer Host": (trailer(b"Host: y"), 400),
    "trailer Authorization": (trailer(b"authorization: y"), 400),
    "trailer Content-Encoding": (trailer(b"Content-Encoding: gzip"), 400),
    "trailer Connection": (trailer(b"Connection: close"), 400),
    "trailer that is none": (trailer(b"nonsense"), 400),
    "trailer without a name": (trailer(b": y"), 400),
    "trailer with a blank before the colon": (trailer(b"A : b"), 400),
    "trailer folded": (trailer(b"A: b\r\n c"), 400),
    "trailer ends in LF": (chunked(b"2\r\n{}\r\n0\r\nA: b\n\r\n"), 400),
    "CR in a trailer": (trailer(b"A: b\rc"), 400),
    "NUL in a trailer": (trailer(b"A: b\0"), 400),
    "trailers of 9,000 bytes": (chunked(b"0\r\n" + b"A: bbbbbb\r\n" * 900 + b"\r\n"), 400),
    # header lines
    "CR in a header": (with_header(b"A: b\rc"), 400),
    "CR at a header's end": (with_header(b"A: b\r"), 400),
    "LF in a header": (with_header(b"A: b\nB: c"), 400),
    "NUL in a header": (with_header(b"A: b\0c"), 400),
    "vertical tab in a header": (with_header(b"A: b\x0bc"), 400),
    "control character in a header": (with_header(b"A: b\x01c"), 400),
    "DEL in a header": (with_header(b"A: b\x7fc"), 400),
    "CR in a name": (with_header(b"A\rB: c"), 400),
    "NUL in a name": (with_header(b"A\0: c"), 400),
    "parenthesis in a name": (with_header(b"A(: c"), 400),
    "blank in a name": (with_header(b"A b: c"), 400),
    "name that is not ASCII": (with_header(b"A\xe9: c"), 400),
    "blank before a colon": (with_header(b"A : b"), 400),
    "tab before a colon": (with_header(b"A\t: b"), 400),
    "folded header": (with_header(b"A: b\r\n c"), 400),
    "folded by a tab": (with_header(b"A: b\r\n\tc"), 400),
    "blank before the first header": (get(b" Host: x\r\n"), 400),
    "blank before a first header of no meaning": (get(b" A: b\r\nHost: x\r\n"), 400),
    "header without a name": (with_header(b": b"), 400),
    "header without a colon": (with_header(b"nonsense"), 400),
    "blank line ends in LF": (b"GET /v2 HTTP/1.1\r\nHost: x\r\n\n", 400),
    "all lines end in LF": (b"GET /v2 HTTP/1.1\nHost: x\n\n", 400),
    "all lines end in CR": (b"GET /v2 HTTP/1.1\rHost: x\r\r", 400),
    # Host
    "no host": (get(b""), 400),
    "two hosts": (get(b"Host: x\r\nHost: x\r\n"), 400),
    "two hosts, one empty": (get(b"Host:\r\nHost: x\r\n"), 400),
    "two hosts on HTTP/1.0": (b"GET /v2 HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n", 400),
    "host folded": (get(b"Host:\r\n x\r\n"), 400),
    "hosts in a list": (get(b"Host: x, y\r\n"), 400),
    "host with a blank": (get(b"Host: x y\r\n"), 400),
    "host with a path": (get(b"Host: x/y\r\n"), 400),
    "host with a user": (get(b"Host: u@x\r\n"), 400),
    "host with a query": (get(b"Host: x?y\r\n"), 400),
    "host with a port of no digits": (get(b"Host: x:y\r\n"), 400),
    "host with two ports": (get(b"Host: x:1:2\r\n"), 400),
    "host that is not ASCII": (get(b"Host: \xe9\r\n"), 400),
    # the target
    "another authority": (get(line=b"GET http://y/v2 HTTP/1.1"), 400),
    "another port": (get(line=b"GET http://x:81/v2 HTTP/1.1"), 400),
    "an authority that begins alike": (get(line=b"GET http://x.y/v2 HTTP/1.1"), 400),
    "a user in the authority": (get(line=b"GET http://x@y/v2 HTTP/1.1"), 400),
    "our authority as a user": (get(line=b"GET http://y@x/v2 HTTP/1.1"), 400),
    "empty authority": (get(line=b"GET http:///v2 HTTP/1.1"), 400),
    "another scheme": (get(line=b"GET ftp://x/v2 HTTP/1.1"), 400),
    "relative target": (get(line=b"GET v2 HTTP/1.1"), 400),
    "no target": (get(line=b"GET HTTP/1.1"), 400),
    "asterisk": (get(line=b"GET * HTTP/1.1"), 400),
    "asterisk and more": (get(line=b"OPTIONS *x HTTP/1.1"), 400),
    "tunnel": (get(line=b"CONNECT x:1 HTTP/1.1"), 400),
    "NUL in the target": (get(line=b"GET /v2\0 HTTP/1.1"), 400),
    "control character in the target": (get(line=b"GET /v2\x01 HTTP/1.1"), 400),
    "target that is not ASCII": (get(line=b"GET /v2\xe9 HTTP/1.1"), 400),
    "request line of 8,193 bytes": (get(line=b"GET /" + b"a" * (8193 - 14) + b" HTTP/1.1"), 400),
    "request line of 9,000 bytes": (get(line=b"GET /" + b"a" * (9000 - 14) + b" HTTP/1.1"), 400),
    "request line without end": (b"GET /" + b"a" * 10_000, 400),
    # the request line's other parts
    "two blanks before the target": (get(line=b"GET  /v2 HTTP/1.1"), 400),
    "two blanks behind the target": (get(line=b"GET /v2  HTTP/1.1"), 400),
    "tab before the target": (get(line=b"GET\t/v2 HTTP/1.1"), 400),
    "blank in the target": (get(line=b"GET /v2 x HTTP/1.1"), 400),
    "blank before the method": (get(line=b" GET /v2 HTTP/1.1"), 400),
    "blank at the line's end": (get(line=b"GET /v2 HTTP/1.1 "), 400),
    "CR before the line": (b"\r" + get(), 400),
    "LF before the line": (b"\n" + get(), 400),
    "method in small letters": (get(line=b"get /v2 HTTP/1.1"), 400),
    "unknown method": (get(line=b"NONSENSE /v2 HTTP/1.1"), 400),
    "HTTP/0.9": (get(line=b"GET /v2 HTTP/0.9"), 400),
    "HTTP/0.9, bare": (b"GET /v2\r\n\r\n", 400),
    "HTTP/1.2": (get(line=b"GET /v2 HTTP/1.2"), 400),
    "HTTP/1.10": (get(line=b"GET /v2 HTTP/1.10"), 400),
    "HTTP/01.1": (get(line=b"GET /v2 HTTP/01.1"), 400),
    "HTTP/1": (get(line=b"GET /v2 HTTP/1"), 400),
    "HTTP/2.0": (get(line=b"GET /v2 HTTP/2.0"), 400),
    "HTTP/3.0": (get(line=b"GET /v2 HTTP/3.0"), 400),
    "http/1.1": (get(line=b"GET /v2 http/1.1"), 400),
    "RTSP/1.0": (get(line=b"GET /v2 RTSP/1.0"), 400),
    "RTSP/1.1": (get(line=b"GET /v2 RTSP/1.1"), 400),
    "HTTP/2's preface where it is off": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    # the head's size
    "101 headers": (get(headers(101)), 431),
    "a header of 16,385 bytes": (with_header(b"A: " + b"b" * 16_384), 431),
    "a header of 70,000 bytes": (with_header(b"A: " + b"b" * 70_000), 431),
    "a header without end": (b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 70_000, 431),
    "headers without end": (b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + b"A: bbbbbbbbbbbbbbbbbbbbbbbbbb\r\n" * 3000, 431),
}

Request = tuple[str, str, str, bytes]


def _v2(query: str = "", body: bytes = b"") -> Request:
    return "GET", "/v2", query, body


def _p(body: bytes = b"{}") -> Request:
    return "POST", "/p", "", body


GOES_ON: dict[str, tuple[bytes, Request]] = {
    "get": (get(), _v2()),
    "query": (get(line=b"GET /v2?x=1&y HTTP/1.1"), _v2("x=1&y")),
    "empty query": (get(line=b"GET /v2? HTTP/1.1"), _v2()),
    "query with another": (get(line=b"GET /v2?a?b HTTP/1.1"), _v2("a?b")),
    "percent": (get(line=b"GET /%76%32 HTTP/1.1"), ("GET", "/%76%32", "", b"")),
    "percent and a zero": (get(line=b"GET /%00 HTTP/1.1"), ("GET", "/%00", "", b"")),
    "fragment, which is part of the path here": (get(line=b"GET /v2#x HTTP/1.1"), ("GET", "/v2#x", "", b"")),
    "two slashes": (get(line=b"GET //v2 HTTP/1.1"), ("GET", "//v2", "", b"")),
    "own authority": (get(line=b"GET http://X/v2?q HTTP/1.1"), _v2("q")),
    "own authority with a port": (get(b"Host: x:8000\r\n", b"GET http://x:8000/v2 HTTP/1.1"), _v2()),
    "own authority, no path": (get(line=b"GET http://x HTTP/1.1"), ("GET", "/", "", b"")),
    "own authority, query only": (get(line=b"GET http://x?q HTTP/1.1"), ("GET", "/", "q", b"")),
    "asterisk of OPTIONS": (get(line=b"OPTIONS * HTTP/1.1"), ("OPTIONS", "*", "", b"")),
    "method with a dash": (get(line=b"M-SEARCH /v2 HTTP/1.1"), ("M-SEARCH", "/v2", "", b"")),
    "request line of 8,192 bytes": (
        get(line=b"GET /" + b"a" * (8192 - 14) + b" HTTP/1.1"),
        ("GET", "/" + "a" * (8192 - 14), "", b""),
    ),
    "empty lines first": (b"\r\n\r\n" + get(), _v2()),
    "names in small letters": (get(b"host: x\r\naccept: y\r\n"), _v2()),
    "names in capitals": (get(b"HOST: x\r\nACCEPT: y\r\n"), _v2()),
    "no blank behind the colon": (get(b"Host:x\r\n"), _v2()),
    "blanks and tabs around values": (get(b"Host: \t x \t \r\nA:\t\t b c \t\r\n"), _v2()),
    "names of odd tokens": (with_header(b"!#$%&'*+-.^_`|~9: b"), _v2()),
    "names with underscores": (post(b"Content_Length: 7\r\nTransfer_Encoding: chunked\r\nContent-Length: 2\r\n", b"{}"), _p()),
    "value in Latin-1": (with_header(b"A: b\xe9"), _v2()),
    "value with a tab": (with_header(b"A: b\tc"), _v2()),
    "empty value": (with_header(b"A:"), _v2()),
    "one header twice": (with_header(b"A: b\r\nA: c"), _v2()),
    "100 headers": (get(headers(100)), _v2()),
    "a header of 16,384 bytes": (with_header(b"A: " + b"b" * 16_383), _v2()),
    "headers of 60,000 bytes": (with_header(b"\r\n".join(b"A: " + b"b" * 15_000 for _ in range(4))), _v2()),
    "empty host": (get(b"Host:\r\n"), _v2()),
    "host with a port": (get(b"Host: x.example:8000\r\n"), _v2()),
    "host with an underscore": (get(b"Host: my_service\r\n"), _v2()),
    "host by number": (get(b"Host: 127.0.0.1:8000\r\n"), _v2()),
    "host by IPv6 number": (get(b"Host: [::1]:8000\r\n"), _v2()),
    "host by IPv6 number with a zone": (get(b"Host: [fe80::1%25eth0]\r\n"), _v2()),
    "body": (length(b" 2"), _p()),
    "length with blanks": (length(b"  2 \t"), _p()),
    "length without a blank": (length(b"2"), _p()),
    "length with zeros": (length(b" 0002"), _p()),
    "length 0": (length(b" 0", b""), _p(b"")),
    "no length": (post(b""), _p(b"")),
    "body of a GET": (get(b"Host: x\r\nContent-Length: 2\r\n") + b"{}", _v2(body=b"{}")),
    "body that looks like a request": (length(b" %d" % len(FOLLOW_UP), FOLLOW_UP), _p(FOLLOW_UP)),
    "body in the arena": (length(b" 5000", b"x" * 5000), _p(b"x" * 5000)),
    "chunked": (chunked(b"2\r\n{}\r\n0\r\n\r\n"), _p()),
    "chunked in capitals": (post(b"Transfer-Encoding: CHUNKED\r\n", b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"), _p()),
    "chunked with blanks": (coding(b" \t chunked  "), _p(b"")),
    "chunk size in capitals": (chunked(b"A\r\n0123456789\r\n0\r\n\r\n"), _p(b"0123456789")),
    "chunk size in small letters": (chunked(b"a\r\n0123456789\r\n0\r\n\r\n"), _p(b"0123456789")),
    "chunk size of 16 digits": (chunked(b"0000000000000002\r\n{}\r\n0\r\n\r\n"), _p()),
    "last chunk of three zeros": (chunked(b"2\r\n{}\r\n000\r\n\r\n"), _p()),
    "chunk that looks like the end": (chunked(b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n"), _p(b"\r\n0\r\n\r\n")),
    "chunk extension": (chunked(b"2;a=b\r\n{}\r\n0;c\r\n\r\n"), _p()),
    "chunk extension in quotes": (chunked(b'2;a="b;c"\r\n{}\r\n0\r\n\r\n'), _p()),
    "chunk extension after blanks": (chunked(b"2 \t; a=b\r\n{}\r\n0\r\n\r\n"), _p()),
    "chunk extension of nothing": (chunked(b"2;\r\n{}\r\n0\r\n\r\n"), _p()),
    "chunk extension of 256 bytes": (chunked(b"0000000000000002;" + b"a" * 255 + b"\r\n{}\r\n0\r\n\r\n"), _p()),
    "chunks in the arena": (
        chunked(b"400\r\n" + b"x" * 1024 + b"\r\n" + b"c00\r\n" + b"y" * 3072 + b"\r\n0\r\n\r\n"),
        _p(b"x" * 1024 + b"y" * 3072),
    ),
    "trailer": (trailer(b"X-Checksum: y"), _p()),
    "trailers": (trailer(b"A: b\r\nC:\r\nExpires: never"), _p()),
    "upgrade not taken": (with_header(b"Connection: Upgrade\r\nUpgrade: h2c"), _v2()),
    "upgrade with a body": (post(b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n", b"{}"), _p()),
    "upgrade with chunks": (post(b"Connection: Upgrade\r\nUpgrade: x\r\nTransfer-Encoding: chunked\r\n", b"2\r\n{}\r\n0\r\n\r\n"), _p()),
    "keep-alive": (with_header(b"Connection: keep-alive"), _v2()),
    "a connection option": (with_header(b"Connection: x, TE"), _v2()),
    "nearly close": (with_header(b"Connection: closed"), _v2()),
    "trailers may come": (with_header(b"TE: trailers"), _v2()),
    "HTTP/1.0 kept alive": (b"GET /v2 HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", _v2()),
    "HTTP/1.0 kept alive, and more": (b"GET /v2 HTTP/1.0\r\nHost: x\r\nConnection: x, keep-alive\r\n\r\n", _v2()),
    "HTTP/1.0 with a body": (b"POST /p HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}", _p()),
}

ENDS: dict[str, tuple[bytes, Request]] = {
    "close": (with_header(b"Connection: close"), _v2()),
    "CLOSE": (with_header(b"Connection: CLOSE"), _v2()),
    "close, x": (with_header(b"Connection: close, x"), _v2()),
    "x, close": (with_header(b"Connection: x ,close"), _v2()),
    "keep-alive, then close": (with_header(b"Connection: keep-alive\r\nConnection: close"), _v2()),
    "close with a body": (post(b"Connection: close\r\nContent-Length: 2\r\n", b"{}"), _p()),
    "close with chunks": (post(b"Connection: close\r\nTransfer-Encoding: chunked\r\n", b"2\r\n{}\r\n0\r\n\r\n"), _p()),
    "HTTP/1.0": (b"GET /v2 HTTP/1.0\r\n\r\n", _v2()),
    "HTTP/1.0 with a host": (b"GET /v2 HTTP/1.0\r\nHost: x\r\n\r\n", _v2()),
    "HTTP/1.0 close": (b"GET /v2 HTTP/1.0\r\nConnection: close\r\n\r\n", _v2()),
    "HTTP/1.0 in two minds": (b"GET /v2 HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", _v2()),
}
"""Requests after which the client wants the connection closed: answered, and nothing behind them."""


def deliveries(raw: bytes) -> Iterable[tuple[str, list[int]]]:
    """Ways to send ``raw`` and the request behind it: where they are cut."""
    whole = len(raw) + len(FOLLOW_UP)
    yield "at once", []
    yield "the next request apart", [len(raw)]
    if whole <= _SINGLE_BYTE_SIZE:
        yield "byte by byte", list(range(1, whole))
    else:
        yield "in pieces of 997 bytes", list(range(997, whole, 997))
    if len(raw) <= _SPLIT_BYTE_SIZE:
        for cut in range(1, len(raw)):
            yield f"cut at {cut}", [cut]


def drive(stream: bytes, cuts: list[int]) -> tuple[list[tuple[int, bytes]], bytes, list[Request], bool]:
    """Send ``stream`` to a connection, cut that way: replies, the bytes they came as, requests seen, whether it closes then."""
    recorder = Recorder()
    transport = QuietTransport()
    with an_arena(1 << 20) as arena:
        connection = Connection(HttpDoor(recorder, arena, None, Limits(inline_byte_size=4096)))
        connection.connection_made(transport)
        for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            while start < stop:
                room = connection.get_buffer(-1)
                count = min(len(room), stop - start)
                room[:count] = stream[start : start + count]
                connection.buffer_updated(count)
                start += count
        connection.connection_lost(None)
    return replies_in(transport.written), transport.written, recorder.seen, transport.closed


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    """One reply with the status and a reason, then the connection closes, and what follows is not answered."""
    raw, status = REFUSED[name]
    for how, cuts in deliveries(raw):
        replies, stream, seen, closed = drive(raw + FOLLOW_UP, cuts)
        assert ([code for code, _ in replies], seen, closed) == ([status], [], True), how
        assert b"\r\nConnection: close\r\n" in stream, how
        assert replies[0][1].startswith(b'{"error":"'), how


@pytest.mark.parametrize("name", GOES_ON)
def test_accepted(name: str) -> None:
    """One reply, and the connection goes on: what follows is answered."""
    raw, request = GOES_ON[name]
    for how, cuts in deliveries(raw):
        replies, _, seen, closed = drive(raw + FOLLOW_UP, cuts)
        assert seen == [request, ("GET", "/v2/health/live", "", b"")], how
        assert (replies, closed) == ([(200, request[3]), (200, b"")], False), how


@pytest.mark.parametrize("name", ENDS)
def test_accepted_as_the_last(name: str) -> None:
    """One reply, then the connection closes, and what follows is not answered."""
    raw, request = ENDS[name]
    for how, cuts in deliveries(raw):
        replies, stream, seen, closed = drive(raw + FOLLOW_UP, cuts)
        assert (replies, seen, closed) == ([(200, request[3])], [request], True), how
        assert b"\r\nConnection: close\r\n" in stream, how


@pytest.mark.parametrize("name", ["chunked", "chunked in capitals", "body", "get", "HTTP/1.0 kept alive"])
def test_refused_behind_others(name: str) -> None:
    """A request that was good does not make the next one so: the good are answered, then the bad one, then nothing."""
    good, request = GOES_ON[name]
    for bad, status in (REFUSED["length and chunked"], REFUSED["chunk ends in LF"], REFUSED["two hosts"]):
        stream = good + good + bad + FOLLOW_UP
        for cuts in ([], list(range(1, len(stream))), [len(good)], [2 * len(good)], [2 * len(good) + 10]):
            replies, _, seen, closed = drive(stream, cuts)
            assert seen == [request, request]
            assert ([code for code, _ in replies], closed) == ([200, 200, status], True)


def test_a_refused_body_that_was_asked_for() -> None:
    """A client that waits for 100 gets it, and the refusal of what it then sends; that is all."""
    raw = post(b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n", b"2\r\n{}X\r\n")
    replies, _, seen, closed = drive(raw + FOLLOW_UP, [len(raw) - 8])
    assert ([code for code, _ in replies], seen, closed) == ([100, 400], [], True)


ON_SOCKETS = (
    *("length and chunked", "chunked twice", "two equal lengths", "chunk too long", "LF in an extension", "no host", "RTSP/1.0"),
    *("trailer Host", "headers without end", "request line of 9,000 bytes", "length beyond the arena", "HTTP/0.9, bare", "TLS"),
)


@pytest.mark.parametrize("name", ON_SOCKETS)
@pytest.mark.parametrize("apart", [False, True])
def test_refused_on_sockets(name: str, apart: bool) -> None:
    """The same through a real connection: the client reads the reply to its end although it was still sending."""
    raw, status = REFUSED[name]
    recorder = Recorder()

    async def scenario() -> bytes:
        with an_arena() as arena:
            async with a_door(recorder, arena) as door, a_client(door) as client:
                if apart:
                    half = len(raw) // 2
                    await client.send(raw[:half])
                    await client.send(raw[half:])
                    await client.send(FOLLOW_UP)
                else:
                    await client.send(raw + FOLLOW_UP)
                return await client.rest()

    stream = run(scenario)
    assert [code for code, _ in replies_in(stream)] == [status]
    assert b"\r\nConnection: close\r\n" in stream
    assert recorder.seen == []


ALPHABET = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"0",
    b"5",
    b"chunked",
    b"\r\n\r\n",
    b"\x0b",
    b"\xff",
    b"#",
    b"Host: y\r\n",
)
CORPUS = [raw for raw, _ in (*GOES_ON.values(), *ENDS.values(), *REFUSED.values()) if len(raw) < 400]


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(CORPUS), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 800), st.integers(0, 4), st.sampled_from(ALPHABET)), max_size=4),
    st.data(),
)
def test_nearly_requests_mean_the_same_however_they_arrive(
    parts: list[bytes], changes: list[tuple[int, int, bytes]], data: st.DataObject
) -> None:
    """Changed at random, and sent in any pieces: the same requests are seen, the same statuses come, nothing after an error."""
    stream = bytearray(b"".join(parts))
    for at, size, new in changes:
        at %= len(stream) + 1
        stream[at : at + size] = new
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    whole = bytes(stream)
    outcomes = []
    for way in ([], cuts, list(range(1, len(whole)))):
        replies, _, seen, closed = drive(whole, way)
        statuses = [code for code, _ in replies]
        outcomes.append((statuses, seen, closed))
        assert all(code in (100, 200) for code in statuses[:-1])
        assert closed or statuses.count(200) == len(seen) == len(statuses) - statuses.count(100)
    assert outcomes[0] == outcomes[1] == outcomes[2]
