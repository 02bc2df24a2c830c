"""HTTP/1.1 as bytes on a socket, so that a test sends exactly what it means to and sees exactly what came back."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 20.0
"""How long to wait for any one read before the test fails."""


@dataclass(frozen=True)
class Reply:
    """A complete reply. Header names are lower-case. ``interim`` holds the status codes of 1xx replies that came first."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    interim: list[int] = field(default_factory=list)

    def header(self, name: str) -> str | None:
        """The only value of a header, or None; two values are a failure."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"header {name} came {len(values)} times"
        return values[0] if values else None

    @property
    def json(self) -> Any:
        """The JSON body, members as ordered pairs lost."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The message of a JSON error body, which has that one member."""
        content = self.json
        assert isinstance(content, dict) and list(content) == ["error"], f"not an error body: {content!r}"
        return str(content["error"])


class Connection:
    """One TCP connection to a server on this machine."""

    def __init__(self, port: int, timeout_s: float = TIMEOUT_S) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout_s)
        self._buffer = bytearray()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection in order."""
        self._socket.close()

    def fileno(self) -> int:
        """What selectors wait for."""
        return self._socket.fileno()

    def abort(self) -> None:
        """Close the connection with a reset, as a client that died does."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def send(self, content: bytes) -> None:
        """Write bytes as they are."""
        self._socket.sendall(content)

    def end(self) -> None:
        """Say that nothing more will be sent; replies can still be read."""
        self._socket.shutdown(socket.SHUT_WR)

    @property
    def received(self) -> bytes:
        """What has come of the reply that is being read, and was not taken yet."""
        return bytes(self._buffer)

    def wait_for(self, content: bytes) -> None:
        """Read until ``content`` has come."""
        while content not in self._buffer:
            if not self._fill():
                raise ConnectionError("the server closed the connection")

    def _fill(self) -> bool:
        chunk = self._socket.recv(1 << 20)
        self._buffer += chunk
        return bool(chunk)

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            if not self._fill():
                raise ConnectionError(f"the server closed the connection with {count - len(self._buffer)} bytes missing")
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if not self._fill():
                raise ConnectionError("the server closed the connection inside a line")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def receive(self, head: bool = False) -> Reply:
        """Read one reply, and the interim ones before it. ``head`` means that the reply has no body by rule."""
        interim: list[int] = []
        while True:
            version, status_text = self._line().split(b" ")[:2]
            assert version in (b"HTTP/1.1", b"HTTP/1.0"), f"not HTTP: {version!r}"
            status = int(status_text)
            headers: list[tuple[str, str]] = []
            while line := self._line():
                name, _, value = line.decode("latin-1").partition(":")
                headers.append((name.lower(), value.strip()))
            if status >= 200:
                break
            interim.append(status)
        return Reply(status, headers, b"" if head else self._body(headers), interim)

    def _body(self, headers: Sequence[tuple[str, str]]) -> bytes:
        fields = dict(headers)
        if "chunked" in fields.get("transfer-encoding", ""):
            parts: list[bytes] = []
            while size := int(self._line().split(b";")[0], 16):
                parts.append(self._take(size))
                assert self._take(2) == b"\r\n"
            while self._line():
                pass
            return b"".join(parts)
        if "content-length" in fields:
            return self._take(int(fields["content-length"]))
        while self._fill():
            pass
        return self._take(len(self._buffer))

    def closed_by_server(self) -> bool:
        """Whether the server closes the connection next, without a further byte; waits for it."""
        try:
            return not self._buffer and not self._fill()
        except ConnectionResetError:
            return True


def request_bytes(
    method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | Iterable[tuple[str, str]] = (), length: bool = True
) -> bytes:
    """The bytes of a request; ``length`` adds a Content-Length where there is a body or the method is POST."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    lines += [f"{name}: {value}" for name, value in pairs]
    if length and (body or method == "POST"):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def exchange(
    port: int,
    method: str,
    path: str,
    body: bytes | str | Mapping[str, Any] = b"",
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
) -> Reply:
    """Send one request on a connection of its own and return the reply. A mapping is sent as compact JSON."""
    content = body if isinstance(body, bytes) else compact(body)
    with Connection(port) as connection:
        connection.send(request_bytes(method, path, content, headers))
        return connection.receive(method == "HEAD")


def compact(content: Any) -> bytes:
    """JSON without blanks; a string is taken to be JSON already."""
    return content.encode() if isinstance(content, str) else json.dumps(content, separators=(",", ":")).encode()
