"""A tensorfarm with front ends, and clients of each of them: the kernel chooses who serves a connection, so enough are opened."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from ..servers import child_pids, stopping, wait_until
from ..wire import Connection, Reply, compact, request_bytes
from .grpc_farm import GrpcFarm, start_grpc_farm, wait_open

COUNT = 2
FLAG = f"--front-ends={COUNT}"

CHANNEL = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
"""What gives each gRPC channel a connection of its own, and lets through what is large."""

_TRIES = 200
_ESTABLISHED = "01"

T = TypeVar("T")


def _sockets(pid: int) -> set[str]:
    """The inodes of a process's sockets."""
    found = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                kind, _, inode = os.readlink(entry.path).partition(":")
                if kind == "socket":
                    found.add(inode.strip("[]"))
    return found


def _is_front_end(pid: int) -> bool:
    try:
        return b"front_end" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


class FrontEndFarm(GrpcFarm):
    """A running server with front ends."""

    def front_ends(self) -> list[int]:
        """Their process ids."""
        return [pid for pid in child_pids(self.server.pid) if _is_front_end(pid)]

    def workers(self) -> list[int]:
        """The process ids of the server's other children."""
        return [pid for pid in child_pids(self.server.pid) if not _is_front_end(pid)]

    def serving(self, port: int) -> dict[int, int]:
        """Which front end serves each open connection to a port of the server, by the client's port."""
        owners = {inode: pid for pid in self.front_ends() for inode in _sockets(pid)}
        found = {}
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, state, *_, inode = line.split()[:10]
            if state == _ESTABLISHED and inode in owners and int(local.rpartition(":")[2], 16) == port:
                found[int(remote.rpartition(":")[2], 16)] = owners[inode]
        return found

    def one_each(self, port: int, connect: Callable[[], T], close: Callable[[T], object]) -> dict[int, T]:
        """One client for each front end, by its process id, oldest first; a client has a connection to ``port`` once ``connect`` returns."""
        wait_until(lambda: len(self.front_ends()) == COUNT, "all front ends to be there")
        found: dict[int, T] = {}
        for _ in range(_TRIES):
            before = self.serving(port).keys()
            client = connect()
            wait_until(lambda before=before: self.serving(port).keys() - before, "a connection to be accepted")  # type: ignore[misc]
            after = self.serving(port)
            (pid,) = {after[number] for number in after.keys() - before}
            if pid in found:
                close(client)
                continue
            found[pid] = client
            if len(found) == COUNT:
                return {pid: found[pid] for pid in sorted(found)}
        raise AssertionError(f"{_TRIES} connections, and not all of {self.front_ends()} were reached")

    @contextlib.contextmanager
    def _clients(self, port: int, connect: Callable[[], T], close: Callable[[T], object]) -> Iterator[tuple[T, ...]]:
        with contextlib.ExitStack() as stack:
            made = tuple(self.one_each(port, connect, close).values())
            for one in made:
                stack.callback(close, one)
            yield made

    def connections(self) -> contextlib.AbstractContextManager[tuple[Connection, ...]]:
        """A raw HTTP connection to each front end."""
        return self._clients(self.server.http_port, lambda: Connection(self.server.http_port), Connection.close)

    def http_clients(self) -> contextlib.AbstractContextManager[tuple[Any, ...]]:
        """A stock HTTP client of each front end, with one connection."""

        def connect() -> Any:
            client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{self.server.http_port}", concurrency=1)
            assert client.is_server_live()
            return client

        return self._clients(self.server.http_port, connect, lambda client: client.close())

    def http2_clients(self) -> contextlib.AbstractContextManager[tuple[httpx.Client, ...]]:
        """A client of each front end that speaks HTTP/2 from the start."""

        def connect() -> httpx.Client:
            client = httpx.Client(base_url=f"http://127.0.0.1:{self.server.http_port}", http1=False, http2=True)
            assert client.get("/v2/health/live").http_version == "HTTP/2"
            return client

        return self._clients(self.server.http_port, connect, httpx.Client.close)

    def grpc_clients(self) -> contextlib.AbstractContextManager[tuple[Any, ...]]:
        """A stock gRPC client of each front end."""

        def connect() -> Any:
            client = self.client(channel_args=CHANNEL)
            assert client.is_server_live()
            return client

        return self._clients(self.port, connect, lambda client: client.close())

    def channels(self) -> contextlib.AbstractContextManager[tuple[grpc.Channel, ...]]:
        """A gRPC channel to each front end."""

        def connect() -> grpc.Channel:
            channel = grpc.insecure_channel(self.address, options=CHANNEL)
            grpc.channel_ready_future(channel).result(20)
            return channel

        return self._clients(self.port, connect, lambda channel: channel.close())

    def all_descriptors(self) -> dict[int, int]:
        """How many descriptors the server and its front ends have open, by process id."""
        return {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in (self.server.pid, *self.front_ends())}

    def settled_descriptors(self) -> dict[int, int]:
        """As many as they have once the connections of earlier tests have gone."""
        seen = [self.all_descriptors()]

        def settled() -> bool:
            seen.append(self.all_descriptors())
            return len(seen) > 20 and all(one == seen[-1] for one in seen[-20:])

        wait_until(settled, "the descriptors to be as many as before")
        return seen[-1]


@contextlib.contextmanager
def front_end_farm(repository: Path, *flags: str, folder: Path) -> Iterator[FrontEndFarm]:
    """A running tensorfarm with front ends; stopped by SIGTERM in the end, unless the test has done so."""
    started = start_grpc_farm(repository, FLAG, *flags, folder=folder)
    farm = FrontEndFarm(started.server, started.port)
    with stopping(farm.server):
        wait_open(farm)
        yield farm


def say(connection: Connection, method: str, path: str, body: Any = b"", **headers: str) -> Reply:
    """One request on an open connection; underscores of header names become dashes."""
    content = body if isinstance(body, bytes) else compact(body)
    connection.send(request_bytes(method, path, content, {name.replace("_", "-"): value for name, value in headers.items()}))
    return connection.receive(method == "HEAD")


def http_tensor(name: str, array: np.ndarray, datatype: str, binary: bool = True) -> Any:
    """An input of the stock HTTP client."""
    made = tritonclient.http.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def binary_infer(array: np.ndarray, datatype: str, request_id: str = "", name: str = "INPUT0") -> tuple[bytes, dict[str, str]]:
    """The body of an inference request with binary output, and its headers."""
    content = array.tobytes()
    source = {"name": name, "datatype": datatype, "shape": list(array.shape), "parameters": {"binary_data_size": len(content)}}
    head = compact({"id": request_id, "parameters": {"binary_data_output": True}, "inputs": [source]})
    return head + content, {"Inference-Header-Content-Length": str(len(head))}


def refused(call: Callable[[], object]) -> tuple[str | None, str]:
    """The status and text of the error that a call ends with."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value.status(), caught.value.message()
