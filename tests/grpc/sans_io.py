"""HTTP/2 without a socket: a server's side whose calls write down what they hear, and frames as a client makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from tensorfarm.server.grpc import frames
from tensorfarm.server.grpc.frames import HEAD, HEAD_BYTE_SIZE, SETTING, ErrorCode
from tensorfarm.server.grpc.header_block import Fields, written
from tensorfarm.server.grpc.http2 import ConnectionFailure, Http2, Http2Limits
from tensorfarm.server.grpc.http2_stream import Stream

REQUEST = written(((b":method", b"POST"), (b":path", b"/x"), (b"content-type", b"application/grpc")))
HELLO = frames.PREFACE + frames.settings({})
SMALL = Http2Limits(streams=4, window_byte_size=1000, frame_byte_size=20_000, block_byte_size=400, block_frames=4, idle_frames=10)


class Frame(NamedTuple):
    """A frame."""

    kind: int
    flags: int
    number: int
    content: bytes


def frames_in(content: bytes) -> list[Frame]:
    """The frames that bytes consist of; anything left over fails."""
    found = []
    while content:
        high, low, kind, flags, number = HEAD.unpack_from(content)
        stop = HEAD_BYTE_SIZE + (high << 8 | low)
        assert stop <= len(content)
        found.append(Frame(kind, flags, number, content[HEAD_BYTE_SIZE:stop]))
        content = content[stop:]
    return found


class Heard:
    """A call that writes down what it hears."""

    def __init__(self, server: Server, stream: Stream, head: Fields) -> None:
        self.stream = stream
        self.head = head
        self.content = bytearray()
        self.on_data: Callable[[], None] = lambda: None
        self.on_sent: Callable[[], None] = lambda: None
        self._server = server
        self._tell("begin")

    idle = True

    def _tell(self, what: str) -> None:
        self._server.events.append((self.stream.number, what))

    def data(self, view: memoryview, start: int, stop: int) -> None:
        if start < stop:
            self.content += view[start:stop]
            if not self._server.events or self._server.events[-1] != (self.stream.number, "data"):
                self._tell("data")
        self.on_data()

    def end(self) -> None:
        self._tell("end")

    def gone(self) -> None:
        self._tell("gone")

    def sent(self) -> None:
        self._tell("sent")
        self.on_sent()

    def sweep(self, now: float) -> None:
        self._tell("sweep")


class Server:
    """The server's side of a connection, with all that it heard."""

    def __init__(self, limits: Http2Limits | None = None, hello: bytes = HELLO) -> None:
        self.events: list[tuple[int, str]] = []
        self.calls: dict[int, Heard] = {}
        self.pings: list[tuple[bool, bytes]] = []
        self.http2: Http2[Fields] = Http2(
            lambda fields: fields, self._begin, limits, lambda answer, content: self.pings.append((answer, content))
        )
        if hello:
            self.feed(hello)
            self.sent()

    def _begin(self, stream: Stream, head: Fields) -> Heard:
        call = self.calls[stream.number] = Heard(self, stream, head)
        return call

    def feed(self, *pieces: bytes) -> None:
        """Hand over bytes as a socket would: what they lie in is used again."""
        for piece in pieces:
            place = bytearray(piece)
            self.http2.receive(memoryview(place))
            place[:] = bytes(len(place))

    def failure(self, *pieces: bytes) -> ConnectionFailure:
        """What is wrong with bytes that end the connection."""
        try:
            self.feed(*pieces)
        except ConnectionFailure as failure:
            return failure
        raise AssertionError("they were taken")

    def taken(self) -> bytes:
        """What the server has sent since it was asked last."""
        out, self.http2.out = self.http2.out, []
        return b"".join(out)

    def sent(self) -> list[Frame]:
        """As frames."""
        return frames_in(self.taken())

    def open(self, number: int, flags: int = frames.END_HEADERS, block: bytes = REQUEST) -> Heard:
        """Begin a call."""
        self.feed(frames.frame(frames.HEADERS, flags, number, block))
        return self.calls[number]


def data(number: int, content: bytes = b"", flags: int = 0) -> bytes:
    """A data frame."""
    return frames.frame(frames.DATA, flags, number, content)


def headers(number: int, block: bytes = REQUEST, flags: int = frames.END_HEADERS) -> bytes:
    """A frame that begins a call."""
    return frames.frame(frames.HEADERS, flags, number, block)


def setting(*values: tuple[int, int]) -> bytes:
    """A SETTINGS frame, where names may come again."""
    return frames.frame(frames.SETTINGS, 0, 0, b"".join([SETTING.pack(name, value) for name, value in values]))


def cancel(number: int) -> bytes:
    """The client's reset of a stream."""
    return frames.reset(number, ErrorCode.CANCEL)


def sent_on(number: int, found: Iterable[Frame]) -> bytes:
    """The data of one stream in what was sent."""
    return b"".join([one.content for one in found if one.kind == frames.DATA and one.number == number])
