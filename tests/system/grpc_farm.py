"""A tensorfarm with its gRPC port open, what the stock gRPC client sends it, and what it says of itself meanwhile."""

from __future__ import annotations

import contextlib
import os
import queue
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as client_module

from ..servers import Server, metric, start_tensorfarm, stopping, wait_until
from ..wire import exchange

PATIENCE_S = 30.0
"""How long any one answer may take before its test fails."""


@dataclass(frozen=True)
class GrpcFarm:
    """A running server and its gRPC port."""

    server: Server
    port: int

    @property
    def address(self) -> str:
        """What clients connect to."""
        return f"127.0.0.1:{self.port}"

    def client(self, **options: Any) -> Any:
        """The stock synchronous client; close it."""
        return client_module.InferenceServerClient(self.address, **options)

    def metrics(self) -> str:
        """The text of the metrics port."""
        return exchange(self.server.metrics_port, "GET", "/metrics").body.decode()

    def metric(self, name: str, **labels: str) -> float:
        """One value of it."""
        value = metric(self.metrics(), name, **labels)
        assert value is not None, f"no {name} {labels}"
        return value

    def under_way(self) -> list[str]:
        """The series that say that a request waits, runs, or is being received or sent; none where nothing is."""
        names = "nv_inference_pending_request_count|tensorfarm_requests_in_flight|tensorfarm_requests_held_bytes"
        found = re.findall(rf"^(?:{names})(?:\{{.*\}})? .*$", self.metrics(), re.M)
        assert found, "the series have got other names"
        return [line for line in found if float(line.rpartition(" ")[2])]

    def arenas(self) -> list[str]:
        """What is in use of all shared memory."""
        return re.findall(r"^(?:tensorfarm_arena_used_bytes|nv_pinned_memory_pool_used_bytes).*$", self.metrics(), re.M)

    def descriptors(self) -> int:
        """How many the server has open."""
        return len(os.listdir(f"/proc/{self.server.pid}/fd"))

    def own_memory(self) -> int:
        """Bytes of the server's memory that it shares with nobody."""
        (found,) = re.findall(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{self.server.pid}/status").read_text(), re.M)
        return int(found) * 1024


def start_grpc_farm(repository: Path, *flags: str, folder: Path, port: int | None = None) -> GrpcFarm:
    """Start a tensorfarm with a gRPC port, a free one unless ``port`` names it; for a caller that stops it itself."""
    own = () if port is None else (f"--grpc-port={port}",)
    server = start_tensorfarm(repository, *own, *flags, folder=folder, wait=False, grpc=True)
    return GrpcFarm(server, server.grpc_port if port is None else port)


@contextlib.contextmanager
def grpc_farm(repository: Path, *flags: str, folder: Path, port: int | None = None) -> Iterator[GrpcFarm]:
    """A running tensorfarm with a gRPC port; stopped by SIGTERM in the end, unless the test has done so."""
    farm = start_grpc_farm(repository, *flags, folder=folder, port=port)
    with stopping(farm.server):
        wait_open(farm)
        yield farm


def wait_open(farm: GrpcFarm) -> None:
    """Wait for the gRPC port, which is the last to open."""
    wait_until(
        lambda: f"Started GRPCInferenceService at 127.0.0.1:{farm.port}" in farm.server.log.replace(" over TLS", ""), "the gRPC port"
    )


@dataclass
class Answers:
    """What a client's callback has been given, in order of its coming: results, and errors in their place."""

    arrived: queue.SimpleQueue[tuple[Any, Any]] = field(default_factory=queue.SimpleQueue)

    def __call__(self, result: Any, error: Any) -> None:
        self.arrived.put((result, error))

    def next(self) -> tuple[Any, Any]:
        """The next result or error; waits for it."""
        return self.arrived.get(timeout=PATIENCE_S)

    def result(self) -> Any:
        """The next one, which must be a result."""
        result, error = self.next()
        assert error is None, error
        return result

    def error(self) -> Any:
        """The next one, which must be an error."""
        result, error = self.next()
        assert result is None and error is not None, result.get_response()
        return error

    @property
    def empty(self) -> bool:
        """Whether all that has come was taken."""
        return self.arrived.empty()


def tensor(name: str, array: np.ndarray, datatype: str) -> Any:
    """An input of the stock client."""
    made = client_module.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def text_tensor(name: str, *texts: str) -> Any:
    """A BYTES input of one dim."""
    return tensor(name, np.array([text.encode() for text in texts], np.object_), "BYTES")


def wanted(name: str, **options: Any) -> Any:
    """An output that the stock client asks for."""
    return client_module.InferRequestedOutput(name, **options)


def is_final(result: Any) -> bool:
    """What a response of a stream says of itself: is it the last one of its request?"""
    return bool(result.get_response().parameters["triton_final_response"].bool_param)
