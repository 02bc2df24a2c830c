"""A load generator that takes as little of the machine as Python can: one process, epoll, requests made beforehand.

Run as a program of its own, so that its time is not its caller's: it reads one JSON line of
settings from standard input and prints one JSON line of results.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass


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


def exchange(address: tuple[str, int], request: bytes) -> bytes:
    """Send one request on a connection of its own; returns the whole reply, head and body."""
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(request)
        received = b""
        while b"\r\n\r\n" not in received or len(received) < _whole(received):
            piece = connection.recv(1 << 20)
            if not piece:
                raise LoadError(f"the connection ended after {received[:200]!r}")
            received += piece
        return received


def _whole(received: bytes) -> int:
    head, _, _ = received.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return len(head) + 4 + int(value)
    raise LoadError(f"a reply without a content length: {head[:200]!r}")


def drive(address: tuple[str, int], request: bytes, concurrency: int, seconds: float) -> Result:
    """Keep ``concurrency`` connections busy for ``seconds``, each with one request at a time.

    Every reply must be the same bytes as the first one. Raises LoadError where one is not.
    """
    expected = exchange(address, request)
    if not expected.startswith(b"HTTP/1.1 200"):
        raise LoadError(f"the server answered {expected[:300]!r}")
    connections: dict[int, socket.socket] = {}
    poll = select.epoll()
    for _ in range(concurrency):
        connection = socket.create_connection(address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connections[connection.fileno()] = connection
        poll.register(connection, select.EPOLLIN)
    size = len(expected)
    # One byte more than a reply has: one that is too long is found out too.
    replies = {number: bytearray(size + 1) for number in connections}
    filled = dict.fromkeys(connections, 0)
    sent_ns: dict[int, int] = {}
    latencies_ns: list[int] = []
    clock = time.perf_counter_ns
    start_ns = clock()
    end_ns = start_ns + int(seconds * 1e9)
    for number, connection in connections.items():
        sent_ns[number] = clock()
        connection.sendall(request)
    now_ns = start_ns
    while now_ns < end_ns:
        for number, _ in poll.poll(1.0):
            connection = connections[number]
            reply = replies[number]
            at = filled[number]
            count = connection.recv_into(memoryview(reply)[at:] if at else reply)
            if not count:
                raise LoadError("the server closed a connection")
            at += count
            if at < size:
                filled[number] = at
                continue
            if at > size or not reply.startswith(expected):
                raise LoadError(f"a reply differs from the first: {bytes(reply[:300])!r}")
            filled[number] = 0
            now_ns = clock()
            latencies_ns.append(now_ns - sent_ns[number])
            sent_ns[number] = now_ns
            connection.sendall(request)
        now_ns = clock()
    for connection in connections.values():
        connection.close()
    poll.close()
    latencies_ns.sort()
    count = len(latencies_ns)
    if not count:
        raise LoadError("no reply came in the time given")
    return Result(count, (now_ns - start_ns) / 1e9, latencies_ns[count // 2] / 1000, latencies_ns[min(count - 1, count * 99 // 100)] / 1000)


def main() -> None:
    """Measure as the line on standard input says."""
    settings = json.loads(sys.stdin.readline())
    try:
        result = drive(("127.0.0.1", settings["port"]), bytes.fromhex(settings["request"]), settings["concurrency"], settings["seconds"])
    except (LoadError, OSError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
