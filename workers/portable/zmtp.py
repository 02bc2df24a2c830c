"""One ZMTP 3 connection of a DEALER over a unix socket, in plain Python.

Sending never waits: what the system's buffer has no room for goes out in a thread of the connection's own. Receiving
is for one thread at a time. PINGs are answered while somebody receives; a server that checks heartbeats on connections
which only send would need more.

Source: ZMTP 3.1 (rfc.zeromq.org/spec/37), mechanism NULL.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections import deque
from typing import Any

HANDSHAKE_TIMEOUT_SECS = 30.0
"""How long the other side may take for its part of the greeting."""

_READ_BYTE_SIZE = 65536
_MAX_COMMAND_BYTE_SIZE = 65536
_JOIN_BYTE_SIZE = 16384
"""Messages up to this size are copied behind their heads: one buffer is sent faster than two."""

_MORE, _LONG, _COMMAND = 1, 2, 4
_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_MECHANISM = b"NULL"
_GREETING = _SIGNATURE + bytes((3, 1)) + _MECHANISM.ljust(20, b"\0") + bytes(32)
_SIZE = struct.Struct(">Q")


class LinkError(OSError):
    """The connection cannot be made, has ended, or speaks another protocol."""


class Connection:
    """Connects to ``path`` and greets. Raises OSError."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(HANDSHAKE_TIMEOUT_SECS)
        try:
            self._socket.connect(path)
            self._input = self._socket.makefile("rb", _READ_BYTE_SIZE)
        except OSError:
            self._socket.close()
            raise
        self._lock = threading.Condition()
        self._unsent: deque[memoryview] = deque()
        self._sender: threading.Thread | None = None
        self._closed = False
        self._broken = False
        try:
            self._greet()
            self._socket.settimeout(None)
        except BaseException:
            self.close()
            raise

    def _greet(self) -> None:
        ready = b"\x05READY" + _property(b"Socket-Type", b"DEALER") + _property(b"Identity", b"")
        self._socket.sendall(_GREETING + bytes((_COMMAND, len(ready))) + ready)
        theirs = self._read(len(_GREETING))
        if theirs[0] != 0xFF or not theirs[9] & 1 or theirs[10] < 3 or theirs[12:32].rstrip(b"\0") != _MECHANISM:
            raise LinkError("the server's socket does not speak ZMTP 3 without security")
        flags, size = self._head()
        if not flags & _COMMAND:
            raise LinkError("the server's socket sent a message before it was ready")
        name, words = self._command(size)
        if name != b"READY":
            raise LinkError(f"the server's socket refused the connection: {words[1:].decode(errors='replace')}")

    # receiving

    def receive(self) -> tuple[bytes, bool]:
        """Wait for a frame; also says whether more of the same message follow. Raises LinkError once the other side has gone."""
        while True:
            flags, size = self._head()
            if not flags & _COMMAND:
                return self._read(size), bool(flags & _MORE)
            name, words = self._command(size)
            if name == b"PING":
                # Two bytes say how long the other side will wait; what follows them is wanted back.
                self._send(_COMMAND, b"\x04PONG" + words[2:18])
            elif name == b"ERROR":
                raise LinkError("the server's socket has reported an error")

    def _head(self) -> tuple[int, int]:
        flags, size = self._read(2)
        if flags & ~(_MORE | _LONG | _COMMAND):
            raise LinkError("the server's socket has broken the protocol")
        if flags & _LONG:
            (size,) = _SIZE.unpack(bytes((size,)) + self._read(7))
        return flags, size

    def _command(self, size: int) -> tuple[bytes, bytes]:
        """A command's name, and what follows it."""
        if size > _MAX_COMMAND_BYTE_SIZE:
            raise LinkError("the server's socket has broken the protocol")
        body = self._read(size)
        end = 1 + (body[0] if body else 0)
        return body[1:end], body[end:]

    def _read(self, size: int) -> bytes:
        try:
            content: bytes = self._input.read(size)
        except (ConnectionError, ValueError):  # ValueError: closed meanwhile
            content = b""
        if len(content) < size:
            raise LinkError("the server's socket has gone")
        return content

    # sending

    def send(self, content: Any) -> None:
        """Send a message of one frame, from any thread. For a server that has gone it is dropped: its lifeline tells."""
        self._send(0, content)

    def _send(self, flags: int, content: Any) -> None:
        size = len(content)
        head = bytes((flags, size)) if size <= 0xFF else bytes((flags | _LONG,)) + _SIZE.pack(size)
        parts = [head + content] if size <= _JOIN_BYTE_SIZE else [head, content]
        with self._lock:
            if self._closed or self._broken:
                return
            sent = 0
            if not self._unsent:
                try:
                    sent = self._socket.sendmsg(parts, (), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    pass
                except OSError:
                    self._broken = True
                    return
            for part in parts:
                if sent < len(part):
                    self._unsent.append(memoryview(part)[sent:])
                sent = max(0, sent - len(part))
            if self._unsent and self._sender is None:
                self._sender = threading.Thread(target=self._send_rest, name="zmtp", daemon=True)
                self._sender.start()
            self._lock.notify()

    def _send_rest(self) -> None:
        while True:
            with self._lock:
                while not self._unsent:
                    if self._closed:
                        self._socket.close()
                        return
                    self._lock.wait()
                part = self._unsent[0]
            try:
                self._socket.sendall(part, socket.MSG_NOSIGNAL)
            except OSError:
                with self._lock:
                    self._broken = True
                    self._unsent.clear()
                continue
            with self._lock:
                self._unsent.popleft()

    # end

    def close(self) -> None:
        """End the connection; what was sent is still delivered. Not while another thread receives."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._input.close()
            if self._sender is None:
                self._socket.close()
            self._lock.notify()


def _property(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + struct.pack(">I", len(value)) + value
