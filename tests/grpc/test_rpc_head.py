"""What clients say before their messages, and how statuses are written."""

from __future__ import annotations

from base64 import b64encode
from urllib.parse import unquote_to_bytes

import pytest
from hpack import Decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfarm.server.grpc.rpc_head import OK_TRAILERS, REPLY_HEAD, RpcHead, reply_head, trailers, trailers_only, understand

Pairs = list[tuple[bytes, bytes]]


def head(*more: tuple[bytes, bytes], kind: bytes = b"application/grpc", method: bytes = b"POST") -> RpcHead:
    """A call's head with these fields more."""
    return understand(
        [(b":method", method), (b":scheme", b"http"), (b":path", b"/s/m"), (b":authority", b"x"), (b"content-type", kind), *more]
    )


def read(block: bytes | None) -> Pairs:
    """A block's fields."""
    assert block is not None
    return [(bytes(name), bytes(value)) for name, value in Decoder(1 << 20).decode(block, raw=True)]


def test_a_plain_head() -> None:
    found = head((b"te", b"trailers"), (b"user-agent", b"x/1"))
    assert (found.path, found.timeout_s, found.encoding, found.refusal) == ("/s/m", None, "identity", None)
    assert found.metadata == (("user-agent", "x/1"),)
    assert (found.value("user-agent"), found.value("none")) == ("x/1", None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"20m", 0.02), (b"5u", 5e-6), (b"7n", 7e-9), (b"0S", 0), (b"99999999H", 99_999_999 * 3600)],
)
def test_timeouts(text: bytes, seconds: float) -> None:
    assert head((b"grpc-timeout", text)).timeout_s == pytest.approx(seconds)


@pytest.mark.parametrize("text", [b"", b"1", b"S", b"1s", b"-1S", b"123456789S", b"1 S", b" 1S", b"1.5S", b"1S\n", "１S".encode()])
def test_no_timeouts(text: bytes) -> None:
    assert read(head((b"grpc-timeout", text)).refusal)[2:] == [(b"grpc-status", b"13"), (b"grpc-message", b"Bad grpc-timeout")]


def test_what_is_no_call_is_answered_as_http() -> None:
    assert read(head(method=b"GET").refusal)[0] == (b":status", b"405")
    assert read(understand([]).refusal)[0] == (b":status", b"405")
    for kind in (b"text/html", b"", b"application/json"):
        assert read(head(kind=kind).refusal)[0] == (b":status", b"415")
    for kind in (b"application/grpc", b"application/grpc+proto", b"application/grpc; charset=utf-8"):
        assert head(kind=kind).refusal is None


def test_encodings() -> None:
    found = head((b"grpc-encoding", b"gzip"), (b"grpc-accept-encoding", b"identity, deflate ,gzip"))
    assert (found.encoding, found.accepts) == ("gzip", ("identity", "deflate", "gzip"))
    assert head((b"grpc-encoding", b"\xff")).encoding == "\xff"


def test_the_first_of_several_counts() -> None:
    found = head((b"grpc-encoding", b"gzip"), (b"grpc-encoding", b"deflate"), (b"a", b"1"), (b"a", b"2"))
    assert found.encoding == "gzip" and found.value("a") == "1"
    assert found.metadata == (("a", "1"), ("a", "2"))


@given(st.binary(max_size=40), st.booleans())
@settings(max_examples=100, deadline=None)
def test_binary_metadata(content: bytes, padded: bool) -> None:
    text = b64encode(content)
    assert head((b"k-bin", text if padded else text.rstrip(b"="))).metadata == (("k-bin", content),)


def test_binary_metadata_that_is_a_list_or_none() -> None:
    assert head((b"k-bin", b"YQ==,Yg,")).metadata == (("k-bin", b"a"), ("k-bin", b"b"), ("k-bin", b""))
    assert head((b"k-bin", b"a")).metadata == (("k-bin", b""),)


def test_text_metadata_is_kept_as_it_is() -> None:
    value = head((b"a", b"\xff\xc3\xa9 ")).value("a")
    assert isinstance(value, str) and value.encode("utf-8", "surrogateescape") == b"\xff\xc3\xa9 "


def test_there_is_only_so_much_metadata() -> None:
    """A byte of a header block may stand for thousands of values."""
    assert len(head(*[(b"a", b"")] * 512).metadata) == 512
    for many in ([(b"a", b"")] * 513, [(b"a-bin", b"," * 512)], [(b"a-bin", b"," * 4000)] * 15):
        assert read(head(*many).refusal)[2] == (b"grpc-status", b"8")


def test_what_stands_before_and_behind_messages() -> None:
    assert read(REPLY_HEAD) == [(b":status", b"200"), (b"content-type", b"application/grpc")]
    assert read(reply_head("gzip")) == [*read(REPLY_HEAD), (b"grpc-encoding", b"gzip")]
    assert read(OK_TRAILERS) == [(b"grpc-status", b"0")]
    assert read(trailers(5, "")) == [(b"grpc-status", b"5")]
    assert read(trailers_only(14, "x", (("grpc-retry-pushback-ms", "7"),))) == [
        *read(REPLY_HEAD),
        (b"grpc-status", b"14"),
        (b"grpc-message", b"x"),
        (b"grpc-retry-pushback-ms", b"7"),
    ]


@given(st.text(max_size=60) | st.text(alphabet="a%\n\x00\x7fé~ \ud800", max_size=60))
@settings(max_examples=200, deadline=None)
def test_messages_are_percent_encoded(message: str) -> None:
    fields = dict(read(trailers(2, message)))
    told = fields.get(b"grpc-message", b"")
    assert all(0x20 <= byte < 0x7F for byte in told)
    assert unquote_to_bytes(told) == message.encode("utf-8", "replace")


@pytest.mark.parametrize("message", ["x" * 6144, "x" * 6145, "x" * 100_000, "é" * 5000, "%" * 3000, "x" * 6143 + "é", "\n" * 10_000_000])
def test_a_long_message_is_cut_to_what_clients_take(message: str) -> None:
    told = dict(read(trailers(2, message)))[b"grpc-message"]
    assert len(told) <= 6200
    text = unquote_to_bytes(told).decode()
    assert message.startswith(text.partition(" ... (")[0])
    assert (text == message) == (len(told) <= 6144 and " ... (" not in text)
