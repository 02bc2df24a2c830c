"""What the gRPC tests share: a door with methods of the test's own, and clients of it that speak HTTP/2 through the library h2."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingReceived,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import StreamClosedError
from h2.settings import SettingCodes, Settings

from tensorfarm.server.admission import Admission
from tensorfarm.server.door.body import Body
from tensorfarm.server.door.tls import Tls
from tensorfarm.server.grpc.frames import HEAD_BYTE_SIZE
from tensorfarm.server.grpc.http2 import Http2Limits
from tensorfarm.server.grpc.limits import Limits
from tensorfarm.server.grpc.listener import GrpcDoor, own_door
from tensorfarm.server.grpc.rpc import Receiver, Rpc
from tensorfarm.shm.arena import Arena
from tests.http.doors import PATIENCE_S

BRISK = Limits(sweep_s=0.02, head_s=0.2, stalled_reply_s=0.3)
PREFIX = struct.Struct(">BL")
Handler = Callable[[Rpc], Receiver]


def message(content: bytes, packed: bool = False) -> bytes:
    """A message as it is sent: behind its prefix."""
    return PREFIX.pack(packed, len(content)) + content


def messages_in(content: bytes) -> list[tuple[int, bytes]]:
    """The whole messages of a body, as (flag, content); anything left over fails."""
    found = []
    while content:
        flag, size = PREFIX.unpack_from(content)
        assert len(content) >= PREFIX.size + size
        found.append((flag, content[PREFIX.size : PREFIX.size + size]))
        content = content[PREFIX.size + size :]
    return found


def options(**given: Any) -> Any:
    """The flags that the door looks at, as they are unless they are given."""
    values = {
        "grpc_restricted_protocol": {},
        "grpc_keepalive_time": 7_200_000,
        "grpc_keepalive_timeout": 20_000,
        "grpc_keepalive_permit_without_calls": False,
        "grpc_http2_max_pings_without_data": 2,
        "grpc_http2_min_recv_ping_interval_without_data": 300_000,
        "grpc_http2_max_ping_strikes": 2,
        "grpc_max_connection_age": 0,
        "grpc_max_connection_age_grace": 0,
        "grpc_infer_response_compression_level": "none",
    }
    assert set(given) <= set(values)
    return SimpleNamespace(**values | given)


class Echo:
    """Takes the messages of a call, keeps them, and answers in the end with all of them in one."""

    idle = False

    def __init__(self, rpc: Rpc) -> None:
        self.rpc = rpc
        self.messages: list[bytes] = []
        self.places: list[str] = []
        self.has_ended = False
        self.has_gone = False
        self.released = 0

    def message(self, body: Body) -> None:
        self.places.append(type(body).__name__)
        self.messages.append(bytes(body.view))
        body.release()

    def ended(self) -> None:
        self.has_ended = True
        self.rpc.reply((b"".join(self.messages),), self._release)

    def gone(self) -> None:
        self.has_gone = True

    def _release(self) -> None:
        self.released += 1


class Silent(Echo):
    """Answers nothing by itself."""

    def ended(self) -> None:
        self.has_ended = True


class Methods:
    """Methods of a test: ``/echo`` and those that are given; every receiver that was begun is kept."""

    def __init__(self, **kinds: Callable[[Rpc], Receiver]) -> None:
        self.begun: list[Any] = []
        self._kinds: dict[str, Callable[[Rpc], Receiver]] = {"echo": Echo, "silent": Silent, **kinds}

    @property
    def handlers(self) -> dict[str, Handler]:
        """As the door has them."""
        return {f"/{name}": self._beginning(kind) for name, kind in self._kinds.items()}

    def _beginning(self, kind: Callable[[Rpc], Receiver]) -> Handler:
        def begin(rpc: Rpc) -> Receiver:
            receiver = kind(rpc)
            self.begun.append(receiver)
            return receiver

        return begin


@contextlib.asynccontextmanager
async def a_grpc_door(
    methods: Methods,
    arena: Arena | None = None,
    limits: Limits | None = None,
    http2_limits: Http2Limits | None = None,
    tls: Tls | None = None,
    admission: Admission | None = None,
    **flags: Any,
) -> AsyncIterator[GrpcDoor]:
    """A door on a free loopback port; in the end it has no connection, and holds nothing of any."""
    admission = admission or Admission()
    service = SimpleNamespace(options=options(**flags), arena=arena, admission=admission)
    door = own_door(cast(Any, service), limits or Limits(), http2_limits)
    door.handlers = methods.handlers
    await door.start("127.0.0.1", 0, False, tls)
    try:
        yield door
    finally:
        await asyncio.wait_for(door.close(), PATIENCE_S)
    assert admission.held_byte_size == 0, "something is still counted that nobody has"


@dataclass
class Reply:
    """What came on one stream."""

    headers: list[tuple[str, str]] = field(default_factory=list)
    content: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> tuple[int, str]:
        """The number of its status, and the text that tells more, as it came."""
        found = dict(self.headers) | dict(self.trailers)
        return int(found["grpc-status"]), found.get("grpc-message", "")

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None


class Http2Client:
    """A client of HTTP/2. ``taking``: what has come is taken, so that more may come."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.state = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.replies: dict[int, Reply] = {}
        self.terminated: ConnectionTerminated | None = None
        self.pings = 0
        self.taking = True
        self._rest = b""

    async def begin(self, **settings: int) -> None:
        """Say hello, with these settings."""
        given = {SettingCodes[name.upper()]: value for name, value in settings.items()}
        # From the beginning, and not only once the server has said that it knows.
        self.state.local_settings = Settings(initial_values=cast(Any, {**self.state.local_settings, **given}))
        self.state.initiate_connection()
        await self.flush()

    async def flush(self) -> None:
        """Send what the library has to send."""
        self.writer.write(self.state.data_to_send())
        await asyncio.wait_for(self.writer.drain(), PATIENCE_S)

    def open(self, path: str, *more: tuple[str, str], end: bool = False) -> int:
        """Begin a call; returns its stream."""
        number = self.state.get_next_available_stream_id()
        head = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x"), ("te", "trailers")]
        self.state.send_headers(number, [*head, ("content-type", "application/grpc"), *more], end_stream=end)
        self.replies[number] = Reply()
        return number

    async def send(self, number: int, content: bytes, end: bool = True) -> None:
        """Send bytes on a stream, as fast as the server lets them come, and as long as it wants them."""
        with contextlib.suppress(StreamClosedError):
            await self._send(number, content, end)

    async def _send(self, number: int, content: bytes, end: bool) -> None:
        at = 0
        while at < len(content) or end:
            room = min(self.state.local_flow_control_window(number), self.state.max_outbound_frame_size)
            piece = content[at : at + room]
            at += len(piece)
            if at == len(content) or piece:
                self.state.send_data(number, piece, end_stream=end and at == len(content))
            await self.flush()
            if at == len(content):
                return
            if not piece:
                await self.receive()

    async def call(self, path: str, content: bytes, *more: tuple[str, str]) -> Reply:
        """A whole call."""
        number = self.open(path, *more)
        await self.send(number, content)
        return await self.reply(number)

    async def reply(self, number: int) -> Reply:
        """What comes on a stream, up to its end."""
        reply = self.replies[number]
        while not reply.over:
            await self.receive()
        return reply

    async def until(self, condition: Callable[[], bool]) -> None:
        """Receive until something is true."""
        while not condition():
            await self.receive()

    async def receive(self) -> None:
        """Take some of what comes."""
        content = await asyncio.wait_for(self.reader.read(65_536), PATIENCE_S)
        if not content:
            raise ConnectionError("the server closed the connection")
        self._rest += content
        while len(self._rest) >= HEAD_BYTE_SIZE:
            stop = HEAD_BYTE_SIZE + int.from_bytes(self._rest[:3], "big")
            if len(self._rest) < stop:
                break
            whole, self._rest = self._rest[:stop], self._rest[stop:]
            for event in self.state.receive_data(whole):
                self._note(event)
        await self.flush()

    def _note(self, event: Event) -> None:
        if isinstance(event, ConnectionTerminated):
            self.terminated = event
            # The library takes it for the end of everything.
            self.state.state_machine.state = ConnectionState.CLIENT_OPEN
        elif isinstance(event, PingReceived):
            self.pings += 1
        elif isinstance(event, ResponseReceived):
            self.replies[event.stream_id].headers = texts(event.headers)
        elif isinstance(event, TrailersReceived):
            self.replies[event.stream_id].trailers = texts(event.headers)
        elif isinstance(event, DataReceived):
            self.replies[event.stream_id].content += event.data
            if self.taking and event.flow_controlled_length:
                self.state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            self.replies[event.stream_id].ended = True
        elif isinstance(event, StreamReset):
            self.replies[event.stream_id].reset = event.error_code
        else:
            assert not isinstance(event, RequestReceived)

    async def end_of_server(self) -> None:
        """Receive until the server closes."""
        with contextlib.suppress(ConnectionError):
            while True:
                await self.receive()


def texts(headers: Any) -> list[tuple[str, str]]:
    """Header fields as text."""
    return [(str(name), str(value)) for name, value in headers]


@contextlib.asynccontextmanager
async def a_grpc_client(door: GrpcDoor, context: ssl.SSLContext | None = None, **settings: int) -> AsyncIterator[Http2Client]:
    """A connection to a door."""
    more: Mapping[str, Any] = {"ssl": context, "server_hostname": "localhost"} if context is not None else {}
    client = Http2Client(*await asyncio.wait_for(asyncio.open_connection("127.0.0.1", door.port, **more), PATIENCE_S))
    try:
        await client.begin(**settings)
        yield client
    finally:
        client.writer.transport.abort()


def cut(content: bytes, places: Iterable[int]) -> list[bytes]:
    """Content in pieces, cut at these places."""
    at, pieces = 0, []
    for place in sorted({place for place in places if 0 < place < len(content)}):
        pieces.append(content[at:place])
        at = place
    return [*pieces, content[at:]]
