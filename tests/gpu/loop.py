"""A client that costs little: the same HTTP request over and over, the reply read into memory that is there already."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..servers import Server

TIMEOUT_S = 60.0

WARM_RUNS = 20
"""How often anything is done before it is measured."""


class Asker:
    """One connection that asks one model for the same thing again and again. ``content`` is what follows the JSON in the body."""

    def __init__(self, server: Server, model: str, request: Mapping[str, Any], content: bytes = b"") -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.http_port), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = json.dumps(request).encode()
        lines = [f"POST /v2/models/{model}/infer HTTP/1.1", "Host: localhost", f"Content-Length: {len(head) + len(content)}"]
        if content:
            lines.append(f"Inference-Header-Content-Length: {len(head)}")
        self._request = memoryview("\r\n".join([*lines, "", ""]).encode() + head + content)
        self._reply = memoryview(bytearray(len(content) + (1 << 16)))

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def ask(self) -> memoryview:
        """One request; the body of its reply, which the next one overwrites."""
        self._socket.sendall(self._request)
        got, body, length = 0, -1, 0
        while body < 0 or got < body + length:
            count = self._socket.recv_into(self._reply[got:])
            if not count:
                raise ConnectionError("the server closed the connection")
            got += count
            if body < 0:
                head = bytes(self._reply[: min(got, 4096)])
                end = head.find(b"\r\n\r\n")
                if end >= 0:
                    body, length = end + 4, _content_length(head[:end])
        if not bytes(self._reply[:12]) == b"HTTP/1.1 200":
            raise AssertionError(f"not answered: {bytes(self._reply[body:got])!r}")
        return self._reply[body:got]

    def times(self, seconds: float) -> list[float]:
        """Seconds of each request, asked one after the other for so long."""
        found: list[float] = []
        end = time.monotonic() + seconds
        while not found or time.monotonic() < end:
            start = time.perf_counter()
            self.ask()
            found.append(time.perf_counter() - start)
        return found


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise AssertionError(f"no Content-Length: {head!r}")


def seconds_per_request(askers: Sequence[Asker], seconds: float) -> float:
    """How long a request takes of several askers' throughput together."""
    counts = [0] * len(askers)

    def ask(index: int) -> None:
        counts[index] = len(askers[index].times(seconds))

    threads = [threading.Thread(target=ask, args=(index,), daemon=True) for index in range(len(askers))]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(counts), "an asker failed"
    return (time.perf_counter() - start) / sum(counts)
