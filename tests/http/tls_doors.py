"""What the tests of TLS share: doors over TLS and their clients."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from tensorfarm.server.door.tls import Tls, TlsFiles
from tensorfarm.server.http.limits import Limits
from tensorfarm.server.http.listener import Handle, HttpDoor
from tensorfarm.server.log import Log
from tensorfarm.shm.arena import Arena
from tests.certificates import Pair
from tests.http.doors import PATIENCE_S, Client, a_door

MIB = 1 << 20


def tls_of_pair(pair: Pair, root: Path | None = None) -> Tls:
    """TLS with this certificate; with a ``root``, for clients whose certificates lead to it."""
    return Tls(TlsFiles(str(pair.cert), str(pair.key), str(root) if root else ""), Log())


@contextlib.asynccontextmanager
async def a_tls_door(handle: Handle, tls: Tls, arena: Arena | None = None, limits: Limits | None = None) -> AsyncIterator[HttpDoor]:
    """A door over TLS on a free loopback port."""
    async with a_door(handle, arena, limits, tls=tls) as door:
        yield door


@contextlib.asynccontextmanager
async def a_tls_client(door: HttpDoor, context: ssl.SSLContext, limit: int = 1 << 16) -> AsyncIterator[Client]:
    opened = asyncio.open_connection("127.0.0.1", door.port, ssl=context, server_hostname="localhost", limit=limit)
    client = Client(*await asyncio.wait_for(opened, PATIENCE_S))
    try:
        yield client
    finally:
        client.abort()


@contextlib.asynccontextmanager
async def a_plain_client(door: HttpDoor) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection("127.0.0.1", door.port))
    try:
        yield client
    finally:
        client.abort()


def blocking(door: HttpDoor, context: ssl.SSLContext, receive_buffer: int = 0) -> ssl.SSLSocket:
    """A blocking client that tells an end by close_notify (b"") from any other end (SSLEOFError, ConnectionResetError)."""
    raw = socket.socket()
    if receive_buffer:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    raw.settimeout(PATIENCE_S)
    raw.connect(("127.0.0.1", door.port))
    return context.wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False)


def receive_all(client: ssl.SSLSocket) -> bytes:
    """Everything up to the server's close_notify."""
    content = bytearray()
    while piece := client.recv(65_536):
        content += piece
    return bytes(content)


def post(body: bytes, *headers: str, path: str = "/x") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def shaken(session: ssl.SSLObject) -> bool:
    """Do a step of a client's handshake; whether it is over."""
    try:
        session.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
