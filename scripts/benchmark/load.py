"""A load generator that takes as little of the machine as Python can: one process, epoll, requests made beforehand.

Run as a program of its own, so that its time is not its caller's: it reads one JSON line of settings and
after it the bytes of the request from standard input, and prints one JSON line of results.
"""

from __future__ import annotations

import hashlib
import json
import select
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass

_SPARE = 4096
"""Bytes by which a reply may be longer than the first: headers whose length varies, smaller chunks."""


class LoadError(Exception):
    """A server answered something else than it should."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one measurement gave; latencies in microseconds."""

    requests: int
    seconds: float
    p50_us: float
    p99_us: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply: what has to be the same in each, and how many bytes it took on the connection."""

    status: bytes
    body: bytes
    byte_size: int

    @property
    def sha256(self) -> str:
        """The body's hash, by which another process knows the right answer."""
        return hashlib.sha256(self.body).hexdigest()


def parse(received: bytes | bytearray, count: int) -> Reply | None:
    """Read the reply at the beginning of ``received``, of which ``count`` bytes are there; None while some are missing.

    Raises LoadError where it has neither a content length nor chunks, or its chunks make no sense.
    """
    end = received.find(b"\r\n\r\n", 0, count)
    if end < 0:
        return None
    status, *lines = bytes(received[:end]).split(b"\r\n")
    fields = dict(line.lower().split(b":", 1) for line in lines if b":" in line)
    start = end + 4
    if b"content-length" in fields:
        stop = start + int(fields[b"content-length"])
        return Reply(status, bytes(received[start:stop]), stop) if count >= stop else None
    if fields.get(b"transfer-encoding", b"").strip() != b"chunked":
        raise LoadError(f"a reply with neither a content length nor chunks: {bytes(received[:300])!r}")
    pieces: list[bytes] = []
    while True:
        end = received.find(b"\r\n", start, count)
        if end < 0:
            return None
        digits = bytes(received[start:end]).partition(b";")[0].strip()
        try:
            size = int(digits, 16)
        except ValueError:
            raise LoadError(f"a chunk's size is {digits[:50]!r}") from None
        stop = end + 2 + size
        if count < stop + 2:
            return None
        if received[stop : stop + 2] != b"\r\n":
            raise LoadError("a chunk is longer than it says, or a trailer follows the last")
        if not size:
            return Reply(status, b"".join(pieces), stop + 2)
        pieces.append(bytes(received[end + 2 : stop]))
        start = stop + 2


def exchange(address: tuple[str, int], request: bytes, timeout_secs: float = 120.0) -> tuple[Reply, bytes]:
    """Send one request on a connection of its own; returns the reply, and the same as it came. Raises LoadError or OSError."""
    with socket.create_connection(address, timeout=timeout_secs) as connection:
        connection.sendall(request)
        received = bytearray()
        while (reply := parse(received, len(received))) is None:
            piece = connection.recv(1 << 20)
            if not piece:
                raise LoadError(f"the connection ended after {bytes(received[:200])!r}")
            received += piece
        if reply.byte_size != len(received):
            raise LoadError(f"{len(received) - reply.byte_size} bytes follow the reply {bytes(received[:300])!r}")
        return reply, bytes(received)


def drive(address: tuple[str, int], request: bytes, concurrency: int, seconds: float, sha256: str = "") -> Result:
    """Keep ``concurrency`` connections busy for ``seconds``, each with one request at a time.

    Every reply must have the status line and the body of the first one, and that body the hash ``sha256`` where one is
    given; headers may differ (dates, request ids, timings). Raises LoadError where a reply is something else.
    """
    first, expected = exchange(address, request)
    if first.status.split(b" ")[1:2] != [b"200"]:
        raise LoadError(f"the server answered {expected[:300]!r}")
    if sha256 and first.sha256 != sha256:
        raise LoadError(f"the answer is not the one that was checked: {expected[:300]!r}")
    with ExitStack() as stack:
        connections: dict[int, socket.socket] = {}
        for _ in range(concurrency):
            connection = stack.enter_context(socket.create_connection(address))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connections[connection.fileno()] = connection
        latencies_ns, elapsed_ns = _busy(connections, request, seconds, first, expected)
    latencies_ns.sort()
    count = len(latencies_ns)
    return Result(count, elapsed_ns / 1e9, latencies_ns[count // 2] / 1000, latencies_ns[min(count - 1, count * 99 // 100)] / 1000)


def _busy(connections: dict[int, socket.socket], request: bytes, seconds: float, first: Reply, expected: bytes) -> tuple[list[int], int]:
    """The loop of ``drive``: every latency, and the time that all took. It goes on until there is one reply at least."""
    # Most replies are the same bytes as the one before, which is one comparison; the rest is parsed.
    size, least = len(expected), len(first.body)
    replies = {number: bytearray(size + _SPARE) for number in connections}
    filled = dict.fromkeys(connections, 0)
    sent_ns: dict[int, int] = {}
    latencies_ns: list[int] = []
    clock = time.perf_counter_ns
    with select.epoll() as poll:
        for number in connections:
            poll.register(number, select.EPOLLIN)
        start_ns = clock()
        end_ns = start_ns + int(seconds * 1e9)
        for number, connection in connections.items():
            sent_ns[number] = clock()
            connection.sendall(request)
        now_ns = start_ns
        while now_ns < end_ns or not latencies_ns:
            for number, _ in poll.poll(1.0):
                connection = connections[number]
                reply = replies[number]
                at = filled[number]
                count = connection.recv_into(memoryview(reply)[at:] if at else reply)
                if not count:
                    raise LoadError("the server closed a connection")
                at += count
                if at < least:
                    filled[number] = at
                    continue
                if at != size or not reply.startswith(expected):
                    parsed = parse(reply, at)
                    if parsed is None and at < len(reply):
                        filled[number] = at
                        continue
                    if parsed is None or parsed.byte_size != at or parsed.status != first.status or parsed.body != first.body:
                        raise LoadError(f"a reply differs from the first: {bytes(reply[: min(at, 300)])!r}")
                    expected, size = bytes(reply[:at]), at
                filled[number] = 0
                now_ns = clock()
                latencies_ns.append(now_ns - sent_ns[number])
                sent_ns[number] = now_ns
                connection.sendall(request)
            now_ns = clock()
    return latencies_ns, now_ns - start_ns


def main() -> None:
    """Measure as standard input says."""
    settings = json.loads(sys.stdin.buffer.readline())
    request = sys.stdin.buffer.read()
    address = ("127.0.0.1", settings["port"])
    try:
        result = drive(address, request, settings["concurrency"], settings["seconds"], settings["sha256"])
    except (LoadError, OSError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
