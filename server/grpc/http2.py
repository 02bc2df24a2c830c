"""One HTTP/2 connection as a server of calls speaks it: bytes in, events and bytes out. Sans-IO. Source: RFC 9113.

Whoever has the socket feeds it with ``receive`` and sends what gathers in ``out``. A stream tells its call what comes, and sends what
the call answers. Nothing is pushed, nothing is prioritised, and no header that we send enters the client's table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from . import frames
from .frames import HEAD, HEAD_BYTE_SIZE, NUMBER, SETTING, ErrorCode, frame, frame_head
from .header_block import BlockReader, Fields, Undecodable
from .http2_stream import Call, Octets, Stream

H = TypeVar("H")

_CONNECTION_WINDOW = 2**30
_PING_BYTE_SIZE = 8
_SHARE_BYTE_SIZE = 256 * 1024
_TOLD_OF_BYTE_SIZE = 2048
"""A client may tell of that little that it has taken it, for its stream and for the connection."""


@dataclass(frozen=True, slots=True)
class Http2Limits:
    """What one client may do.

    ``streams`` are open at a time. ``window_byte_size`` may come on a stream before it is dealt with. A frame has at most
    ``frame_byte_size``, a header block ``block_byte_size`` in ``block_frames`` frames and no more when it is read, a SETTINGS frame
    ``settings``. ``idle_frames`` may come between two that
    bring something: each is work for nothing, and many are answered.
    """

    streams: int = 4096
    window_byte_size: int = 4 * 1024 * 1024
    frame_byte_size: int = 1024 * 1024
    block_byte_size: int = 16 * 1024
    block_frames: int = 32
    idle_frames: int = 1000
    settings: int = 64


class ConnectionFailure(Exception):
    """The client broke the protocol, or asks too much: it is to be told so, and the connection closed."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def _broken(text: str) -> ConnectionFailure:
    return ConnectionFailure(ErrorCode.PROTOCOL_ERROR, text)


class Http2(Generic[H]):
    """The connection. ``understand`` makes of a header block what ``begin`` needs to know; that gives each stream its call.

    ``begin`` raises ConnectionFailure, or StreamRefused. ``on_ping`` hears of each ping of the client, and whether it is an answer.
    """

    def __init__(
        self,
        understand: Callable[[Fields], H],
        begin: Callable[[Stream, H], Call],
        limits: Http2Limits | None = None,
        on_ping: Callable[[bool, bytes], None] = lambda answer, content: None,
    ) -> None:
        self.limits = limits or Http2Limits()
        self._begin = begin
        self._on_ping = on_ping
        self._blocks = BlockReader(understand, self.limits.block_byte_size)
        self.out: list[Octets] = []
        self.left: list[Callable[[], None]] = []
        self.streams: dict[int, Stream] = {}
        self.last_stream = 0
        self.window = frames.DEFAULT_WINDOW
        self.initial_window = frames.DEFAULT_WINDOW
        self.max_frame = frames.SMALLEST_MAX_FRAME
        self.leaving = False
        self.paused = False
        self.talked = False
        self.sent_byte_size = 0
        self.prefaced = False
        self._settled = False
        self._stash = b""
        self._taken = 0
        self._idle_frames = 0
        self._blocked: dict[Stream, None] = {}
        self._block: list[bytes] = []
        self._block_stream = 0
        self._block_ends = False
        self._data_left = 0
        self._padding_left = 0
        self._data_stream: Stream | None = None
        self._data_ends = False
        self.out += (
            frames.settings(
                {
                    frames.MAX_CONCURRENT_STREAMS: self.limits.streams,
                    frames.INITIAL_WINDOW_SIZE: self.limits.window_byte_size,
                    frames.MAX_FRAME_SIZE: self.limits.frame_byte_size,
                    frames.MAX_HEADER_LIST_SIZE: self.limits.block_byte_size,
                }
            ),
            frames.window_update(0, _CONNECTION_WINDOW - frames.DEFAULT_WINDOW),
        )

    # what comes in

    def receive(self, view: memoryview) -> None:
        """Take what has come, which is not read again. Raises ConnectionFailure."""
        stash = self._stash
        if stash:
            view = memoryview(b"".join((stash, view)))
            self._stash = b""
        at, end = 0, len(view)
        if not self.prefaced:
            given = bytes(view[: len(frames.PREFACE)])
            if not frames.PREFACE.startswith(given):
                raise _broken("this port speaks HTTP/2, without TLS or an upgrade before it")
            if len(given) < len(frames.PREFACE):
                self._stash = given
                return
            self.prefaced = True
            at = len(given)
        while True:
            if self._data_left or self._padding_left:
                at = self._data(view, at, end)
                if self._data_left or self._padding_left:
                    return
            if end - at < HEAD_BYTE_SIZE:
                break
            high, low, kind, flags, number = HEAD.unpack_from(view, at)
            size = high << 8 | low
            number &= frames.LARGEST_NUMBER
            if size > self.limits.frame_byte_size:
                raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "a frame is larger than our settings allow")
            if kind == frames.DATA and not self._block:
                padded = 1 if flags & frames.PADDED else 0
                if end - at < HEAD_BYTE_SIZE + padded:
                    break
                at = self._begin_data(view, at + HEAD_BYTE_SIZE, size, flags, number)
                continue
            if size > self.limits.block_byte_size:
                raise ConnectionFailure(ErrorCode.ENHANCE_YOUR_CALM, "a frame that is no data is too large")
            start = at + HEAD_BYTE_SIZE
            stop = start + size
            if stop > end:
                break
            at = stop
            self._control(kind, flags, number, bytes(view[start:stop]))
        self._stash = bytes(view[at:end])

    def _begin_data(self, view: memoryview, at: int, size: int, flags: int, number: int) -> int:
        """A data frame begins; returns where its content does."""
        if not self._settled:
            raise _broken("the first frame is not SETTINGS")
        padding = 0
        if flags & frames.PADDED:
            padding = view[at] + 1 if size else 1
            at += 1
            if padding > size:
                raise _broken("a data frame has more padding than bytes")
        stream = self.streams.get(number)
        if stream is None:
            if not number or number > self.last_stream:
                raise _broken("data on a stream that was not opened")
        elif stream.remote_ended:
            raise ConnectionFailure(ErrorCode.STREAM_CLOSED, "data on a stream behind its end")
        elif size > stream.allowed:
            raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, "more data than the stream's window allows")
        ends = bool(flags & frames.END_STREAM)
        self._taken += size
        if self._taken * 2 > _CONNECTION_WINDOW:
            self.out.append(frames.window_update(0, self._taken))
            self._taken = 0
        if size == padding and not ends:
            self._idle()
        elif size:
            self._idle_frames = min(self._idle_frames, 0)
        # Of the padding, the byte that tells its length has been read.
        self._padding_left = max(padding - 1, 0)
        self._data_left = size - padding
        self._data_stream = stream
        self._data_ends = ends
        if stream is not None and padding:
            stream.received(padding)
        if not self._data_left and not self._padding_left:
            self._end_data()
        return at

    def _data(self, view: memoryview, at: int, end: int) -> int:
        """Content of a data frame; returns where it stops."""
        count = min(self._data_left, end - at)
        if count:
            self._data_left -= count
            stream = self._data_stream
            if stream is not None:
                stream.call.data(view, at, at + count)
                stream.received(count)
            at += count
        if not self._data_left:
            count = min(self._padding_left, end - at)
            self._padding_left -= count
            at += count
            if not self._padding_left:
                self._end_data()
        return at

    def _end_data(self) -> None:
        stream, self._data_stream = self._data_stream, None
        if self._data_ends and stream is not None:
            self._remote_end(stream)

    def _remote_end(self, stream: Stream) -> None:
        stream.remote_ended = True
        if stream.number in self.streams:
            stream.call.end()

    def _idle(self) -> None:
        self._idle_frames += 1
        if self._idle_frames > self.limits.idle_frames:
            raise ConnectionFailure(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that bring nothing")

    def _control(self, kind: int, flags: int, number: int, content: bytes) -> None:
        if not self._settled and (kind != frames.SETTINGS or flags & frames.ACK):
            raise _broken("the first frame is not SETTINGS")
        if self._block and (kind != frames.CONTINUATION or number != self._block_stream):
            raise _broken("a header block is not continued")
        if kind == frames.HEADERS:
            self._headers(flags, number, content)
        elif kind == frames.WINDOW_UPDATE:
            self._window_update(number, content)
        elif kind == frames.RST_STREAM:
            self._reset(number, content)
        elif kind == frames.CONTINUATION:
            self._continue(flags, content)
        else:
            # A client may send these as it likes, but none of them asks for anything.
            self._idle()
            if kind == frames.PING:
                self._ping(flags, number, content)
            elif kind == frames.SETTINGS:
                self._settings(flags, number, content)
            elif kind == frames.PRIORITY:
                if len(content) != 5 or not number:
                    raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "a PRIORITY frame of a wrong size")
            elif kind == frames.PUSH_PROMISE:
                raise _broken("clients push nothing")
            # GOAWAY: the client closes when it has what it waits for. Frames of other kinds mean nothing.

    def _headers(self, flags: int, number: int, content: bytes) -> None:
        if not number & 1:
            raise _broken("a stream of a client has an odd number")
        at, end = 0, len(content)
        if flags & frames.PADDED:
            if not content:
                raise _broken("a HEADERS frame without its padding")
            at, end = 1, end - content[0]
        if flags & frames.WITH_PRIORITY:
            at += 5
        if at > end:
            raise _broken("a HEADERS frame has more padding than bytes")
        self._idle_frames = min(self._idle_frames, 0)
        self._block_ends = bool(flags & frames.END_STREAM)
        block = content[at:end] if at or end != len(content) else content
        if flags & frames.END_HEADERS:
            self._read_block(number, block)
        else:
            self._block_stream = number
            self._block = [block]

    def _continue(self, flags: int, content: bytes) -> None:
        if not self._block:
            raise _broken("a CONTINUATION frame that continues nothing")
        self._block.append(content)
        limits = self.limits
        if len(self._block) > limits.block_frames or sum(map(len, self._block)) > limits.block_byte_size:
            raise ConnectionFailure(ErrorCode.ENHANCE_YOUR_CALM, "a header block is too large")
        if flags & frames.END_HEADERS:
            block, self._block = b"".join(self._block), []
            self._read_block(self._block_stream, block)

    def _read_block(self, number: int, block: bytes) -> None:
        """A whole header block: a call begins, or ends with trailers, which mean nothing here."""
        try:
            understood = self._blocks.read(block)
        except Undecodable as error:
            raise ConnectionFailure(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        stream = self.streams.get(number)
        if stream is not None:
            if stream.remote_ended:
                raise ConnectionFailure(ErrorCode.STREAM_CLOSED, "headers on a stream behind its end")
            if not self._block_ends:
                raise _broken("trailers that do not end their stream")
            self._remote_end(stream)
            return
        if number <= self.last_stream:
            # It was answered or reset by us while these were on their way.
            return
        self.last_stream = number
        if self.leaving or len(self.streams) >= self.limits.streams:
            self.out.append(frames.reset(number, ErrorCode.REFUSED_STREAM))
            return
        stream = self.streams[number] = Stream(self, number)
        # Known before it begins: what is answered at once needs no RST_STREAM.
        ends, stream.remote_ended = self._block_ends, self._block_ends
        try:
            stream.call = self._begin(stream, understood)
        except BaseException:
            self.forget(stream)
            raise
        if ends:
            self._remote_end(stream)

    def _window_update(self, number: int, content: bytes) -> None:
        if len(content) != NUMBER.size:
            raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "a WINDOW_UPDATE frame of a wrong size")
        increment = NUMBER.unpack(content)[0] & frames.LARGEST_NUMBER
        if not increment:
            raise _broken("a window is updated by nothing")
        if not number:
            self.window += increment
            if self.window > frames.LARGEST_NUMBER:
                raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is too large")
            sent = len(self.out)
            self.pump_all()
            if len(self.out) == sent:
                self._idle()
            return
        stream = self.streams.get(number)
        if stream is None:
            if number > self.last_stream:
                raise _broken("a window of a stream that was not opened")
            self._idle()
            return
        stream.window += increment
        if stream.window > frames.LARGEST_NUMBER:
            raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window is too large")
        sent = len(self.out)
        if stream.unsent and self.pump(stream):
            self.pump_all()
        if len(self.out) == sent:
            self._idle()

    def _reset(self, number: int, content: bytes) -> None:
        if len(content) != NUMBER.size:
            raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "a RST_STREAM frame of a wrong size")
        if not number or number > self.last_stream:
            raise _broken("a stream that was not opened is reset")
        stream = self.streams.get(number)
        if stream is None:
            self._idle()
            return
        self.forget(stream)
        stream.call.gone()

    def _ping(self, flags: int, number: int, content: bytes) -> None:
        if len(content) != _PING_BYTE_SIZE or number:
            raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "a PING frame of a wrong size")
        answer = bool(flags & frames.ACK)
        if not answer:
            self.out.append(frame(frames.PING, frames.ACK, 0, content))
        self._on_ping(answer, content)

    def _settings(self, flags: int, number: int, content: bytes) -> None:
        if number:
            raise _broken("settings of a stream")
        if len(content) % SETTING.size or (flags & frames.ACK and content):
            raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "a SETTINGS frame of a wrong size")
        if flags & frames.ACK:
            return
        self._settled = True
        if len(content) > self.limits.settings * SETTING.size:
            raise ConnectionFailure(ErrorCode.ENHANCE_YOUR_CALM, "too many settings")
        before = self.initial_window
        for name, value in SETTING.iter_unpack(content):
            if name == frames.INITIAL_WINDOW_SIZE:
                if value > frames.LARGEST_NUMBER:
                    raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, "the initial window is too large")
                self.initial_window = value
            elif name == frames.MAX_FRAME_SIZE:
                if not frames.SMALLEST_MAX_FRAME <= value <= frames.LARGEST_MAX_FRAME:
                    raise _broken("a largest frame size that there is not")
                self.max_frame = value
            elif name == frames.ENABLE_PUSH and value > 1:
                raise _broken("a push setting that there is not")
        self.out.append(frame(frames.SETTINGS, frames.ACK, 0))
        if self.initial_window != before:
            self._widen(self.initial_window - before)

    def _widen(self, more: int) -> None:
        """Every stream has so many more bytes to send, or less."""
        for stream in self.streams.values():
            stream.window += more
            if stream.window > frames.LARGEST_NUMBER:
                raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window is too large")
            if stream.unsent and stream.window > 0:
                self._blocked[stream] = None
        self.pump_all()

    # what goes out

    def write_headers(self, flags: int, number: int, block: bytes) -> None:
        """Send a header block, in as many frames as the client wants it."""
        self.sent_data()
        most = self.max_frame
        if len(block) <= most:
            self.out.append(frame(frames.HEADERS, flags | frames.END_HEADERS, number, block))
            return
        self.out.append(frame(frames.HEADERS, flags, number, block[:most]))
        for at in range(most, len(block), most):
            last = frames.END_HEADERS if at + most >= len(block) else 0
            self.out.append(frame(frames.CONTINUATION, last, number, block[at : at + most]))

    def pump(self, stream: Stream) -> bool:
        """Send of a stream what the windows allow, but not so much that others wait for long; True where there is more to send now."""
        unsent = stream.unsent
        share = _SHARE_BYTE_SIZE
        while unsent and not self.paused and share > 0:
            room = min(self.window, stream.window, self.max_frame, share)
            if room <= 0:
                break
            view = unsent[0]
            if len(view) > room:
                unsent[0] = view[room:]
                view = view[:room]
            else:
                unsent.popleft()
            byte_size = len(view)
            self.window -= byte_size
            stream.window -= byte_size
            stream.unsent_byte_size -= byte_size
            share -= byte_size
            self.sent_data(byte_size)
            self.out += (frame_head(byte_size, frames.DATA, 0, stream.number), view)
        # It goes behind those that wait too. One that its own window holds waits for that alone.
        self._blocked.pop(stream, None)
        if unsent:
            stream.waiting = True
            if stream.window > 0:
                self._blocked[stream] = None
            return share <= 0
        if stream.waiting:
            stream.waiting = False
            stream.call.sent()
        if stream.trailers is not None and stream.number in self.streams:
            self.finish(stream)
        return False

    def pump_all(self) -> None:
        """Send what waits for the connection's window, each stream a share in its turn."""
        again = True
        while again and not self.paused and self.window > 0:
            again = False
            for stream in list(self._blocked):
                again |= self.pump(stream)

    def finish(self, stream: Stream) -> None:
        """All that a stream had to send has been sent: end it."""
        assert stream.trailers is not None
        self.write_headers(frames.END_STREAM, stream.number, stream.trailers)
        if not stream.remote_ended:
            # The client need not go on (section 8.1).
            self.out.append(frames.reset(stream.number, ErrorCode.NO_ERROR))
        self.forget(stream)

    def forget(self, stream: Stream) -> None:
        """A stream is no more."""
        self.streams.pop(stream.number, None)
        self._blocked.pop(stream, None)
        stream.unsent.clear()
        stream.unsent_byte_size = 0
        on_left, stream.on_left = stream.on_left, None
        if on_left is not None:
            self.left.append(on_left)

    def sent_data(self, byte_size: int = 0) -> None:
        """We have sent something: what the client has to say of that, frame by frame perhaps, is no idle talk."""
        self._idle_frames = min(self._idle_frames, 0) - 2 - byte_size // _TOLD_OF_BYTE_SIZE
        self.talked = True
        self.sent_byte_size += byte_size

    def ping(self, content: bytes) -> None:
        """Ask whether the client is there."""
        self.out.append(frame(frames.PING, 0, 0, content))

    def go_away(self, *, soon: bool = False) -> None:
        """Take no more streams. ``soon``: tell so, but still take those that are on their way."""
        self.leaving = not soon
        self.out.append(frames.go_away(frames.LARGEST_NUMBER if soon else self.last_stream, ErrorCode.NO_ERROR))

    def lost(self) -> None:
        """The connection is no more, and so are its streams. Raises what calls raise that are told so, once all have been."""
        failures: list[Exception] = []
        for stream in list(self.streams.values()):
            self.forget(stream)
            try:
                stream.call.gone()
            except Exception as failure:  # noqa: BLE001
                # The others hold memory, too.
                failures.append(failure)
        if failures:
            raise failures[0]
