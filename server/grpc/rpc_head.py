"""What a client says before its first message, and what a server says before and behind its own.

Source: gRPC over HTTP/2 (PROTOCOL-HTTP2.md), "Requests" and "Responses".
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from dataclasses import dataclass

from .header_block import STATUS_200, Fields, written
from .status import INTERNAL, RESOURCE_EXHAUSTED

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_RESERVED = frozenset((b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"content-length", b"host"))
_CONTENT_TYPE = (b"content-type", b"application/grpc")
_MOST_METADATA = 512
_MOST_MESSAGE_BYTE_SIZE = 6 * 1024
"""Clients take 8 KiB of metadata; where there is more, they know neither the message nor the status."""

_PRINTABLE = frozenset(range(0x20, 0x7F)) - {0x25}

OK_TRAILERS = written(((b"grpc-status", b"0"),))
REPLY_HEAD = STATUS_200 + written((_CONTENT_TYPE,))

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True, eq=False)
class RpcHead:
    """The head of a call. ``path`` names the method; ``refusal`` is a header block that is the whole answer, where there is nothing
    to be said but that.

    ``timeout_s`` is how long the client waits; ``encoding`` is how its messages may be compressed, ``accepts`` which encodings it
    understands. Of the ``metadata``, those whose names end in ``-bin`` are bytes.
    """

    path: str
    timeout_s: float | None = None
    encoding: str = "identity"
    accepts: tuple[str, ...] = ()
    metadata: Metadata = ()
    refusal: bytes | None = None

    def value(self, name: str) -> str | bytes | None:
        """The first value of this name in the metadata."""
        return next((value for key, value in self.metadata if key == name), None)


def understand(fields: Fields) -> RpcHead:
    """The head of a call as its header block says it."""
    found = dict(reversed(fields))
    path = found.get(b":path", b"").decode("latin-1")
    if found.get(b":method") != b"POST":
        return RpcHead(path, refusal=written(((b":status", b"405"), (b"allow", b"POST"))))
    if not found.get(b"content-type", b"").startswith(b"application/grpc"):
        return RpcHead(path, refusal=written(((b":status", b"415"), (b"accept-post", b"application/grpc"))))
    timeout_s: float | None = None
    if b"grpc-timeout" in found:
        match = _TIMEOUT.fullmatch(found[b"grpc-timeout"])
        if match is None:
            return RpcHead(path, refusal=trailers_only(INTERNAL, "Bad grpc-timeout"))
        timeout_s = int(match[1]) * _UNITS_S[match[2]]
    metadata = _metadata(fields)
    if len(metadata) > _MOST_METADATA:
        return RpcHead(path, refusal=trailers_only(RESOURCE_EXHAUSTED, f"a call has at most {_MOST_METADATA} metadata"))
    return RpcHead(
        path,
        timeout_s,
        found.get(b"grpc-encoding", b"identity").decode("latin-1"),
        tuple(name.strip() for name in found.get(b"grpc-accept-encoding", b"").decode("latin-1").split(",")),
        tuple(metadata),
    )


def _metadata(fields: Fields) -> list[tuple[str, str | bytes]]:
    kept: list[tuple[str, str | bytes]] = []
    for name, value in fields:
        if name.startswith(b":") or name in _RESERVED:
            continue
        key = name.decode("latin-1")
        if key.endswith("-bin"):
            kept += [(key, _binary(piece)) for piece in value.split(b",", _MOST_METADATA)]
        else:
            kept.append((key, value.decode("utf-8", "surrogateescape")))
        if len(kept) > _MOST_METADATA:
            break
    return kept


def _binary(text: bytes) -> bytes:
    try:
        return b64decode(text + b"=" * (-len(text) % 4))
    except binascii.Error:
        return b""


def reply_head(encoding: str) -> bytes:
    """What stands before messages that are compressed like this."""
    return STATUS_200 + written((_CONTENT_TYPE, (b"grpc-encoding", encoding.encode())))


def trailers(number: int, message: str, more: tuple[tuple[str, str], ...] = ()) -> bytes:
    """What stands behind a reply: its status, and what is wrong."""
    fields = [(b"grpc-status", b"%d" % number)]
    if message:
        fields.append((b"grpc-message", _percent_encoded(message)))
    return written([*fields, *[(name.encode(), value.encode()) for name, value in more]])


def trailers_only(number: int, message: str, more: tuple[tuple[str, str], ...] = ()) -> bytes:
    """A reply that is nothing but a status."""
    return REPLY_HEAD + trailers(number, message, more)


def _percent_encoded(message: str) -> bytes:
    content = message.encode("utf-8", "replace")
    if len(content) <= _MOST_MESSAGE_BYTE_SIZE and _PRINTABLE.issuperset(content):
        return content
    pieces: list[bytes] = []
    byte_size = 0
    for index, character in enumerate(message):
        piece = b"".join([b"%c" % byte if byte in _PRINTABLE else b"%%%02X" % byte for byte in character.encode("utf-8", "replace")])
        byte_size += len(piece)
        if byte_size > _MOST_MESSAGE_BYTE_SIZE:
            return b"".join(pieces) + b" ... (%d more characters)" % (len(message) - index)
        pieces.append(piece)
    return b"".join(pieces)
