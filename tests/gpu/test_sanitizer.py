"""compute-sanitizer's memcheck over every process of a server that computes on the GPU."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from ..ensembles import write_ensembles
from ..model_repository import BATCHED_BYTES, IDENTITIES, SIMPLE, Flavour, write_repository
from ..servers import Server, descendants, free_ports, spawn, stopping
from .doors import Given, open_door
from .models import CHAIN, DENSE_WIDTH, GATHERED, LARGE, on_gpu, write_dense
from .regions import CudaRegion, Part

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("real_gpu")]

TOOL = shutil.which("compute-sanitizer")
START_S = 400.0
"""Every kernel is instrumented when it is loaded."""


def _server_process(server: Server) -> int:
    """The server below the tool."""
    wanted = (b"-m", b"tensorfarm.server")
    for pid in descendants(server.pid):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if tuple(words[1:3]) == wanted:
            return pid
    raise AssertionError(f"no server below the tool\n{server.log}")


def test_memcheck_finds_nothing(tmp_path: Path) -> None:
    """In place, gathered, at odd offsets, BYTES, through an ensemble, captured as a graph; regions come and go. All processes end well."""
    if TOOL is None:
        pytest.skip("compute-sanitizer is not on the PATH")
    models = tmp_path / "models"
    write_repository(models, [on_gpu(model) for model in (SIMPLE, *IDENTITIES, BATCHED_BYTES, LARGE)] + [GATHERED], Flavour.ONNX)
    write_dense(models, "dense")
    write_dense(models, "dense_graphs", "optimization { cuda { graphs: true } }")
    write_ensembles(models, (CHAIN,))
    http_port, metrics_port, grpc_port = free_ports(3)
    reports = tmp_path / "reports"
    reports.mkdir()
    # The tool leaves its sockets where TMPDIR says.
    temporary = tempfile.mkdtemp(prefix="cs-")
    command = [
        *(TOOL, "--tool", "memcheck", "--target-processes", "all", "--report-api-errors", "no", "--log-file", str(reports / "%p")),
        *(sys.executable, "-m", "tensorfarm.server", f"--model-repository={models}"),
        *("--http-address=127.0.0.1", f"--http-port={http_port}", f"--metrics-port={metrics_port}"),
        *("--grpc-address=127.0.0.1", f"--grpc-port={grpc_port}"),
    ]
    server = spawn(command, {"TMPDIR": temporary}, http_port, metrics_port, tmp_path / "run")
    server.grpc_port = grpc_port
    try:
        server.wait_live(START_S)
        with stopping(server):
            _ask_all(server)
            os.kill(_server_process(server), signal.SIGTERM)
            assert server.wait_exit(120.0) == 0, server.log
    finally:
        if not server.stopped:
            server.kill()
        shutil.rmtree(temporary, ignore_errors=True)
    texts = [path.read_text() for path in reports.iterdir()]
    counts = [int(count) for text in texts for count in re.findall(r"ERROR SUMMARY: (\d+) error", text)]
    assert counts and not sum(counts), "\n".join(texts)


def _ask_all(server: Server) -> None:
    random = np.random.default_rng(11)
    pair = {name: random.integers(-1000, 1000, (3, 16), np.int32) for name in ("INPUT0", "INPUT1")}
    for protocol in ("http", "grpc"):
        with open_door(protocol, server) as door:
            for offset in (0, 256, 4099):
                with CudaRegion("in", 1 << 16) as source, CudaRegion("out", 1 << 16) as target, door.registered(source, target):
                    given = {name: Given(array, Part(source, offset + at * 1024)) for at, (name, array) in enumerate(pair.items())}
                    for model in ("simple", "gathered"):
                        got = door.ask(model, given, {"OUTPUT0": Part(target, offset, 192), "OUTPUT1": None})
                        np.testing.assert_array_equal(got["OUTPUT0"], pair["INPUT0"] + pair["INPUT1"])
                    for datatype, dtype in (("int8", np.int8), ("fp32", np.float32), ("fp64", np.float64)):
                        array = np.arange(77).astype(dtype)
                        got = door.ask(
                            f"identity_{datatype}", {"INPUT0": Given(array, Part(source, offset))}, {"OUTPUT0": Part(target, offset)}
                        )
                        np.testing.assert_array_equal(got["OUTPUT0"], array)
                    texts = np.array([[b"a", b""], [b"b" * 99, b"c"]], np.object_)
                    door.ask("batched_bytes", {"INPUT0": Given(texts, Part(source, offset))}, {"OUTPUT0": Part(target, offset)})
                    array = random.standard_normal(4001).astype(np.float32)
                    got = door.ask("chain", {"IN": Given(array, Part(source, offset))}, {"OUT": Part(target, offset)})
                    np.testing.assert_array_equal(got["OUT"], array)
                    for model in ("dense", "dense_graphs"):
                        for rows in (1, 8, 1, 8):
                            x = random.standard_normal((rows, DENSE_WIDTH)).astype(np.float32)
                            got = door.ask(model, {"X": Given(x, Part(source, offset))}, {"Y": Part(target, offset)})
                            np.testing.assert_allclose(got["Y"].sum(axis=1), 1, rtol=1e-3)
