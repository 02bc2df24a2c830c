"""A server's side of HTTP/2 against another implementation's client: after any exchange both have equal views, and no byte is lost."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field

import h2.exceptions
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, RemoteSettingsChanged, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.settings import SettingCodes
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tensorfarm.server.grpc.frames import HEAD_BYTE_SIZE, ErrorCode
from tensorfarm.server.grpc.header_block import written
from tensorfarm.server.grpc.http2 import Http2Limits

from .sans_io import Heard, Server

REPLY = written(((b":status", b"200"), (b"content-type", b"application/grpc")))
TRAILERS = written(((b"grpc-status", b"0"),))
LIMITS = Http2Limits(streams=4, window_byte_size=1000, frame_byte_size=20_000)
PATTERN = random.Random(5).randbytes(300_000)


@dataclass
class Told:
    """What each side has said on a stream, and what the client has heard."""

    by_client: bytes = b""
    client_ended: bool = False
    client_reset: bool = False
    by_server: bytes = b""
    server_ended: bool = False
    server_reset: bool = False
    got: bytes = b""
    got_trailers: bool = False
    got_end: bool = False
    got_reset: int | None = None
    untaken: int = 0
    begun: bool = False
    lengths: list[int] = field(default_factory=list)


class Peers(RuleBasedStateMachine):
    """One connection. Bytes between the two wait, and are handed over in pieces of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.server = Server(LIMITS, b"")
        self.client = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.client.initiate_connection()
        self.to_server = bytearray()
        self.to_client = bytearray()
        self.told: dict[int, Told] = {}
        self.acknowledged = 0
        self.rest = b""
        # A client that does not know our settings may send more than a window of theirs allows.
        self.reach_server(1 << 30)
        self.reach_client(1 << 30)

    def gather(self) -> None:
        self.to_server += self.client.data_to_send()
        self.to_client += self.server.taken()

    def open_for_client(self) -> list[int]:
        return [number for number, told in self.told.items() if not told.client_ended and not told.client_reset and not self._over(told)]

    def open_for_server(self) -> list[int]:
        return sorted(number for number in self.server.http2.streams if not self.told[number].server_ended)

    @staticmethod
    def _over(told: Told) -> bool:
        return told.got_reset is not None

    # the client

    @precondition(lambda self: len(self.told) < 12)
    @rule(end=st.booleans())
    def open(self, end: bool) -> None:
        number = self.client.get_next_available_stream_id()
        fields = [(":method", "POST"), (":path", "/x"), (":scheme", "http"), (":authority", "x"), ("content-type", "application/grpc")]
        with contextlib.suppress(h2.exceptions.TooManyStreamsError):
            self.client.send_headers(number, [*fields, ("x-number", str(number))], end_stream=end)
            self.told[number] = Told(client_ended=end)

    @precondition(lambda self: self.open_for_client())
    @rule(data=st.data(), size=st.integers(0, 1200), padding=st.none() | st.integers(0, 100), end=st.booleans())
    def send(self, data: st.DataObject, size: int, padding: int | None, end: bool) -> None:
        number = data.draw(st.sampled_from(self.open_for_client()))
        room = self.client.local_flow_control_window(number) - (0 if padding is None else padding + 1)
        if room < 0:
            return
        told = self.told[number]
        content = PATTERN[len(told.by_client) :][: min(size, room)]
        try:
            self.client.send_data(number, content, end_stream=end, pad_length=padding)
        except h2.exceptions.StreamClosedError:
            assert told.got_end
            return
        told.by_client += content
        told.client_ended = end

    @precondition(lambda self: self.open_for_client())
    @rule(data=st.data())
    def trailers(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.open_for_client()))
        with contextlib.suppress(h2.exceptions.StreamClosedError):
            self.client.send_headers(number, [("x", "y")], end_stream=True)
            self.told[number].client_ended = True

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.told)))
        with contextlib.suppress(h2.exceptions.StreamClosedError):
            self.client.reset_stream(number, ErrorCode.CANCEL)
            self.told[number].client_reset = True

    @rule()
    def take(self) -> None:
        for number, told in self.told.items():
            if told.untaken:
                self.client.acknowledge_received_data(told.untaken, number)
                told.untaken = 0

    @rule(window=st.integers(0, 100_000), frame=st.sampled_from([16_384, 20_000, 100_000]))
    def settings_of_client(self, window: int, frame: int) -> None:
        self.client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window, SettingCodes.MAX_FRAME_SIZE: frame})

    @rule(increment=st.integers(1, 10_000))
    def more_room(self, increment: int) -> None:
        self.client.increment_flow_control_window(increment)

    @rule()
    def ping(self) -> None:
        self.client.ping(b"12345678")

    # the server

    @precondition(lambda self: self.open_for_server())
    @rule(data=st.data(), size=st.sampled_from([0, 1, 500, 20_000, 70_000]), end=st.booleans())
    def answer(self, data: st.DataObject, size: int, end: bool) -> None:
        number = data.draw(st.sampled_from(self.open_for_server()))
        told, stream = self.told[number], self.server.calls[number].stream
        content = PATTERN[::-1][len(told.by_server) :][:size]
        if not told.begun:
            told.begun = True
            stream.send_headers(REPLY)
        told.by_server += content
        told.server_ended = end
        stream.send([content[:5], memoryview(content)[5:]], TRAILERS if end else None)

    @precondition(lambda self: self.open_for_server())
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.open_for_server()))
        self.told[number].server_reset = True
        self.server.calls[number].stream.reset(ErrorCode.INTERNAL_ERROR)

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        self.server.http2.paused = paused
        if not paused:
            self.server.http2.pump_all()

    # between them

    @rule(size=st.integers(1, 5000))
    def reach_server(self, size: int) -> None:
        self.gather()
        piece = bytes(self.to_server[:size])
        del self.to_server[:size]
        self.server.feed(piece)

    @rule(size=st.integers(1, 50_000))
    def reach_client(self, size: int) -> None:
        self.gather()
        piece = bytes(self.to_client[:size])
        del self.to_client[:size]
        # The library looks only once at how long the frames in what it is given may be.
        self.rest += piece
        while len(self.rest) >= HEAD_BYTE_SIZE and len(self.rest) >= (stop := HEAD_BYTE_SIZE + int.from_bytes(self.rest[:3], "big")):
            whole, self.rest = self.rest[:stop], self.rest[stop:]
            for event in self.client.receive_data(whole):
                self.note(event)

    def note(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            told = self.told[event.stream_id]
            told.got += event.data
            told.untaken += event.flow_controlled_length
        elif isinstance(event, TrailersReceived):
            self.told[event.stream_id].got_trailers = True
        elif isinstance(event, StreamEnded):
            self.told[event.stream_id].got_end = True
        elif isinstance(event, StreamReset) and event.remote_reset:
            self.told[event.stream_id].got_reset = event.error_code
        elif isinstance(event, RemoteSettingsChanged):
            self.acknowledged += 1
        else:
            assert not isinstance(event, ResponseReceived) or self.told[event.stream_id].begun

    @invariant()
    def nothing_came_out_of_order(self) -> None:
        for number, told in self.told.items():
            assert told.by_server.startswith(told.got)
            call = self.server.calls.get(number)
            if call is not None:
                assert told.by_client.startswith(bytes(call.content))
        assert len(self.server.http2.streams) <= LIMITS.streams

    def teardown(self) -> None:
        """Let all arrive that is on its way; then both must know the same."""
        self.server.http2.paused = False
        self.server.http2.pump_all()
        self.client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 2**20})
        self.client.increment_flow_control_window(2**20)
        self.gather()
        while self.to_server or self.to_client:
            self.reach_server(1 << 30)
            self.reach_client(1 << 30)
            self.gather()
        self.nothing_came_out_of_order()
        for number, told in self.told.items():
            self._compare(number, told, self.server.calls.get(number))
        assert sorted(self.server.http2.streams) == sorted(
            number
            for number, told in self.told.items()
            if number in self.server.calls and not told.client_reset and not told.server_ended and not told.server_reset
        )
        super().teardown()

    def _compare(self, number: int, told: Told, call: Heard | None) -> None:
        heard = [what for stream, what in self.server.events if stream == number]
        if call is None:
            assert told.got_reset == ErrorCode.REFUSED_STREAM or told.client_reset
            return
        assert (b"x-number", str(number).encode()) in call.head
        assert ("gone" in heard) <= (told.client_reset or told.server_reset)
        if told.client_reset:
            return
        if told.server_ended:
            assert (told.got, told.got_trailers, told.got_end) == (told.by_server, True, True)
            assert told.got_reset in (None, ErrorCode.NO_ERROR)
        elif told.server_reset:
            assert told.got_reset == ErrorCode.INTERNAL_ERROR
        else:
            assert told.got == told.by_server and told.got_reset is None
            assert bytes(call.content) == told.by_client
            assert heard.count("end") == told.client_ended
            assert not call.stream.unsent
            stream = call.stream
            assert min(stream.window, self.server.http2.window) == self.client.remote_flow_control_window(number)
            if not told.client_ended:
                assert stream.allowed == self.client.local_flow_control_window(number)


Peers.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPeers = Peers.TestCase
