"""Loads, asks and unloads a model with a process of its own, over and over: does the server give everything back?

After each cycle, with nothing loaded, the resident memory of the server and of all its processes, its file descriptors and its
processes are counted. Exit code 1 where one of them has grown since the first cycles by more than it may.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmark.processes import descendants, resident_byte_size

MODEL = "isolated"
WIDTH = 512
TIMEOUT_S = 30.0
SETTLE_S = 1.0
MIB = 1 << 20

CONFIGS = {
    "onnxruntime": 'parameters { key: "isolate" value { string_value: "true" } }',
    "python": "",
}
CONFIG = """\
name: "{name}"
backend: "{backend}"
max_batch_size: 0
input [ {{ name: "X", data_type: TYPE_FP32, dims: [ {width} ] }} ]
output [ {{ name: "Y", data_type: TYPE_FP32, dims: [ {width} ] }} ]
instance_group [ {{ count: 1, kind: KIND_CPU }} ]
{extra}
"""
PYTHON = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "X").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", one)]) for one in inputs]
"""


@dataclass(frozen=True, slots=True)
class Count:
    """What there is after a cycle. Sizes are in bytes."""

    server: int
    children: int
    descriptors: int
    processes: int


def write_model(repository: Path, backend: str) -> None:
    """Write the model's folder."""
    folder = repository / MODEL / "1"
    folder.mkdir(parents=True)
    (folder.parent / "config.pbtxt").write_text(CONFIG.format(name=MODEL, backend=backend, width=WIDTH, extra=CONFIGS[backend]))
    if backend == "python":
        (folder / "model.py").write_text(PYTHON)
        return
    weights = onnx.numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32), "weights")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["X", "weights"], ["Y"])],
        MODEL,
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [WIDTH])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [WIDTH])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def serving(repository: Path, log: Path) -> Iterator[tuple[int, Client]]:
    """A running server; gives its process id and a client."""
    port = free_port()
    flags = (
        "--model-control-mode=explicit",
        "--http-address=127.0.0.1",
        f"--http-port={port}",
        "--allow-metrics=false",
        "--allow-grpc=false",
    )
    command = [sys.executable, "-m", "tensorfarm.server", f"--model-repository={repository}", *flags]
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=log.parent)  # noqa: S603
    client = Client(port)
    try:
        wait_until(lambda: process.poll() is not None or client.ask("GET", "/v2/health/ready")[0] == 200, "the server to be ready")
        yield process.pid, client
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


class Client:
    """One connection that is kept: connections leave garbage that the server collects rarely, which is not what is asked here."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """One request; status 0 where nobody listens."""
        try:
            self._connection.request(method, path, body)
            reply = self._connection.getresponse()
            return reply.status, reply.read()
        except ConnectionRefusedError:
            self._connection.close()
            return 0, b""


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Poll until ``condition()`` is true."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.005)


def cycle(pid: int, client: Client, requests: int, idle: Count) -> Count:
    """Load the model, ask it, unload it, wait until it has gone, and count what there is then."""
    values = [float(number) for number in range(WIDTH)]
    body = json.dumps({"inputs": [{"name": "X", "datatype": "FP32", "shape": [WIDTH], "data": values}]}).encode()
    _must(client.ask("POST", f"/v2/repository/models/{MODEL}/load"))
    for _ in range(requests):
        answer = json.loads(_must(client.ask("POST", f"/v2/models/{MODEL}/infer", body)))
        if answer["outputs"][0]["data"] != values:
            raise ValueError("a wrong answer")
    _must(client.ask("POST", f"/v2/repository/models/{MODEL}/unload"))
    wait_until(lambda: b"UNLOADING" not in client.ask("POST", "/v2/repository/index")[1], "the unload")
    wait_until(lambda: len(descendants(pid)) <= idle.processes, "the model's process to end")
    with suppress(TimeoutError):  # the server hears of its end a moment later
        wait_until(lambda: count(pid).descriptors <= idle.descriptors, "its descriptors to be closed", SETTLE_S)
    return count(pid)


def _must(reply: tuple[int, bytes]) -> bytes:
    status, body = reply
    if status != 200:
        raise ValueError(f"status {status}: {body.decode(errors='replace')}")
    return body


def count(pid: int) -> Count:
    """Count what there is now."""
    children = descendants(pid)
    resident = sum(resident_byte_size(child) for child in children)
    return Count(resident_byte_size(pid), resident, len(os.listdir(f"/proc/{pid}/fd")), len(children))


def growth(counts: Sequence[Count], first: int, read: Callable[[Count], int]) -> float:
    """In per cent: the last cycles against those after the first ``first``; medians of ``first`` cycles, or of what there is."""
    rest = counts[first:]
    span = max(1, min(first, len(rest) // 2))
    before = statistics.median(map(read, rest[:span]))
    return 100.0 * (statistics.median(map(read, rest[-span:])) / before - 1.0) if before else 0.0


def table(counts: Sequence[Count], every: int) -> Table:
    """Some of the cycles."""
    grid = Table(title="After so many cycles, nothing loaded", title_justify="left")
    for name in ("cycles", "server MiB", "children MiB", "descriptors", "processes"):
        grid.add_column(name, justify="right")
    for number in sorted({1, *range(every, len(counts) + 1, every), len(counts)}):
        one = counts[number - 1]
        grid.add_row(str(number), f"{one.server / MIB:.2f}", f"{one.children / MIB:.2f}", str(one.descriptors), str(one.processes))
    return grid


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=200, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=20, help="cycles that do not count (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=5, help="in each cycle (default: %(default)s)")
    parser.add_argument("--backend", choices=sorted(CONFIGS), default="onnxruntime")
    parser.add_argument("--most-growth", type=float, default=2.0, help="in per cent, of resident memory (default: %(default)s)")
    options = parser.parse_args()
    console = Console()
    counts: list[Count] = []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        repository = Path(folder) / "models"
        write_model(repository, options.backend)
        with serving(repository, Path(folder) / "log") as (pid, client):
            idle = count(pid)
            for _ in track(range(options.cycles), "cycles", console=console, disable=not console.is_terminal):
                counts.append(cycle(pid, client, options.requests, idle))
                idle = counts[0]
    console.print(table(counts, max(1, options.cycles // 10)))
    grown = {name: growth(counts, options.first, read) for name, read in READ.items()}
    flat = {name: len({read(one) for one in counts[options.first :]}) == 1 for name, read in EXACT.items()}
    for name, per_cent in grown.items():
        console.print(f"{name}: {per_cent:+.2f} %")
    for name, right in flat.items():
        console.print(f"{name}: {'the same after each cycle' if right else 'not the same after each cycle'}")
    return 0 if all(flat.values()) and all(per_cent < options.most_growth for per_cent in grown.values()) else 1


READ: dict[str, Callable[[Count], int]] = {
    "resident memory of the server": lambda one: one.server,
    "resident memory of its processes": lambda one: one.children,
}
EXACT: dict[str, Callable[[Count], int]] = {"descriptors": lambda one: one.descriptors, "processes": lambda one: one.processes}


if __name__ == "__main__":
    sys.exit(main())
