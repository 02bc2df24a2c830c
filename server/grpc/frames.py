"""HTTP/2's frames: how they begin, and those that a server of calls sends. Source: RFC 9113, sections 4 to 6."""

from __future__ import annotations

import enum
from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTE_SIZE = 9
HEAD = Struct(">HBBBL")
"""Length (its upper two bytes, its lowest), kind, flags, stream; the stream's upper bit means nothing."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 2, 3, 4, 5, 6
SETTING = Struct(">HL")
NUMBER = Struct(">L")

LARGEST_NUMBER = 2**31 - 1
"""Of streams, and of windows."""

DEFAULT_WINDOW = 65_535
SMALLEST_MAX_FRAME = 16_384
LARGEST_MAX_FRAME = 2**24 - 1


class ErrorCode(enum.IntEnum):
    """Why a stream or a connection ends. Source: RFC 9113, section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


def frame_head(byte_size: int, kind: int, flags: int, stream: int) -> bytes:
    """What stands before a frame's content."""
    return HEAD.pack(byte_size >> 8, byte_size & 0xFF, kind, flags, stream)


def frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    """A whole frame."""
    return frame_head(len(content), kind, flags, stream) + content


def settings(values: dict[int, int]) -> bytes:
    """Our settings."""
    return frame(SETTINGS, 0, 0, b"".join([SETTING.pack(name, value) for name, value in values.items()]))


def window_update(stream: int, increment: int) -> bytes:
    """So many bytes more may be sent to us; ``stream`` 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream, NUMBER.pack(increment))


def reset(stream: int, code: ErrorCode) -> bytes:
    """The end of one stream."""
    return frame(RST_STREAM, 0, stream, NUMBER.pack(code))


def go_away(last_stream: int, code: ErrorCode, text: bytes = b"") -> bytes:
    """No stream beyond the last is or will be answered."""
    return frame(GOAWAY, 0, 0, NUMBER.pack(last_stream) + NUMBER.pack(code) + text)
