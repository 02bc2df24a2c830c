"""How fast the GPU is reached: a few figures beside what they were meant to be.

    python -m tests.gpu.figures [--seconds S] [--rounds N] [--json FILE]

Each figure is a median over rounds, in which everything takes turns. Exit status 1: there is no GPU, or a target was missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..model_repository import SIMPLE, Flavour, write_repository
from ..servers import Server, tensorfarm
from .doors import Door, open_door
from .loop import WARM_RUNS, Asker, seconds_per_request
from .models import LARGE, on_gpu
from .presence import missing, on_standin
from .regions import CudaRegion
from .resnet import BATCH_SIZE, CLASSES, DIMS, INPUT, OUTPUT, write_resnet50

MIB = 1 << 20
LARGE_BYTE_SIZE = (1 if on_standin() else 64) * MIB
PICTURES_BYTE_SIZE = BATCH_SIZE * int(np.prod(DIMS)) * 4
SCORES_BYTE_SIZE = BATCH_SIZE * CLASSES * 4


@dataclass(frozen=True)
class Row:
    """A figure: milliseconds of ours and of what it is held against. ``ratio`` is theirs through ours, which more is better of."""

    what: str
    against: str
    ours_ms: float
    theirs_ms: float | None = None
    target: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times as fast ours is."""
        return None if self.theirs_ms is None else self.theirs_ms / self.ours_ms

    @property
    def missed(self) -> bool:
        """Is it less than it was meant to be?"""
        return self.target is not None and (self.ratio is None or self.ratio < self.target)

    def cells(self) -> list[str]:
        """For a table."""
        theirs = "" if self.theirs_ms is None else f"{self.theirs_ms:.3f}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        target = "" if self.target is None else f">= {self.target:g}"
        return [
            self.what,
            self.against,
            f"{self.ours_ms:.3f}",
            theirs,
            ratio,
            target,
            "" if not target else "missed" if self.missed else "met",
        ]


HEAD = ["what", "against", "ms", "theirs, ms", "as fast", "target", "result"]


def table(rows: list[Row]) -> str:
    """For a terminal."""
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    left = {0, 1, 5, 6}
    return "\n".join(
        "  ".join(cell.ljust(width) if at in left else cell.rjust(width) for at, (cell, width) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def place(region: str, byte_size: int, offset: int = 0) -> dict[str, Any]:
    """Parameters of a tensor that lies in a region."""
    return {"shared_memory_region": region, "shared_memory_byte_size": byte_size, "shared_memory_offset": offset}


def through_regions(name: str, output: str, shape: list[int], byte_size: int, output_byte_size: int) -> dict[str, Any]:
    """A request with its input in the region ``in`` and its output in the region ``out``."""
    source = {"name": name, "shape": shape, "datatype": "FP32", "parameters": place("in", byte_size)}
    return {"inputs": [source], "outputs": [{"name": output, "parameters": place("out", output_byte_size)}]}


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[Server, Path]]:
    """A server with all models that are measured, and the file of the largest."""
    repository = write_repository(folder / "models", (on_gpu(SIMPLE), on_gpu(LARGE)), Flavour.ONNX)
    path = write_resnet50(repository)
    flags = ("--http-max-input-size=268435456", f"--cuda-memory-pool-byte-size=0:{256 * MIB}", "--allow-metrics=false")
    with tensorfarm(repository, *flags, folder=folder / "run") as server:
        yield server, path


def copy_times(seconds: float) -> list[float]:
    """Seconds of each copy of ``LARGE_BYTE_SIZE`` bytes on the device, each waited for."""
    from cupy.cuda import runtime

    source, target = (runtime.malloc(LARGE_BYTE_SIZE) for _ in range(2))
    stream = runtime.streamCreateWithFlags(runtime.streamNonBlocking)

    def copy() -> float:
        start = time.perf_counter()
        runtime.memcpyAsync(target, source, LARGE_BYTE_SIZE, runtime.memcpyDefault, stream)
        runtime.streamSynchronize(stream)
        return time.perf_counter() - start

    try:
        for _ in range(WARM_RUNS):
            copy()
        found: list[float] = []
        end = time.monotonic() + seconds
        while not found or time.monotonic() < end:
            found.append(copy())
    finally:
        runtime.streamDestroy(stream)
        for address in (source, target):
            runtime.free(address)
    return found


def compute_s(door: Door, model: str, run: Callable[[], object]) -> float:
    """Seconds that an inference computes, by the server's statistics, of all that ``run`` does."""
    before = _computed(door, model)
    run()
    now = _computed(door, model)
    return (now[1] - before[1]) / (now[0] - before[0]) / 1e9


def _computed(door: Door, model: str) -> tuple[int, int]:
    (found,) = door.client.get_inference_statistics(model)["model_stats"]
    compute = found["inference_stats"]["compute_infer"]
    return compute["count"], compute["ns"]


def _extend(times: list[float], asker: Asker, seconds: float) -> None:
    times.extend(asker.times(seconds))


def _median_ms(times: list[float]) -> float:
    return statistics.median(times) * 1e3


def identity_rows(server: Server, door: Door, seconds: float, rounds: int) -> list[Row]:
    """A large tensor in place, beside a copy of it on the device and beside the same through the body of a request."""
    count = LARGE_BYTE_SIZE // 4
    array = np.random.default_rng(1).integers(0, 1 << 20, count, np.int32)
    content = array.tobytes()
    binary = {
        "inputs": [{"name": "INPUT0", "shape": [count], "datatype": "FP32", "parameters": {"binary_data_size": len(content)}}],
        "parameters": {"binary_data_output": True},
    }
    by_round: list[list[float]] = []
    with CudaRegion("in", LARGE_BYTE_SIZE) as source, CudaRegion("out", LARGE_BYTE_SIZE) as target:
        source.write(content)
        with contextlib.ExitStack() as stack:
            stack.enter_context(door.registered(source, target))
            request = through_regions("INPUT0", "OUTPUT0", [count], LARGE_BYTE_SIZE, LARGE_BYTE_SIZE)
            regions = stack.enter_context(contextlib.closing(Asker(server, "large", request)))
            body = stack.enter_context(contextlib.closing(Asker(server, "large", binary, content)))
            for _ in range(WARM_RUNS):
                regions.ask()
            assert target.read(LARGE_BYTE_SIZE) == content, "a wrong answer through regions"
            assert body.ask()[-LARGE_BYTE_SIZE:] == content, "a wrong answer in the body"
            for _ in range(rounds):
                copies = _median_ms(copy_times(seconds))
                whole: list[float] = []
                compute = compute_s(door, "large", partial(_extend, whole, regions, seconds)) * 1e3
                by_round.append([copies, compute, _median_ms(whole), _median_ms(body.times(seconds))])
    copies, compute, whole_ms, body_ms = (statistics.median(column) for column in zip(*by_round, strict=True))
    name = f"identity {LARGE_BYTE_SIZE // MIB} MiB, CUDA regions"
    return [
        Row(f"{name}, computing", "a copy on the device", compute, copies, 0.8),
        Row(f"{name}, whole request", "a copy on the device", whole_ms, copies),
        Row(f"{name}, whole request", "binary HTTP", whole_ms, body_ms, 20.0),
    ]


@contextlib.contextmanager
def reference(model: Path) -> Iterator[Callable[[float], float]]:
    """ONNX Runtime by itself: a function that runs it for so many seconds and gives the median milliseconds."""
    command = [sys.executable, "-m", "tests.gpu.reference", str(model)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("ONNX Runtime by itself failed")
        requests, answers = process.stdin, process.stdout

        def measure(seconds: float) -> float:
            print(seconds, file=requests, flush=True)
            return float(answers.readline())

        yield measure


def resnet_rows(server: Server, door: Door, model: Path, seconds: float, rounds: int) -> list[Row]:
    """Pictures in one region, scores in another, by one client and by two, beside ONNX Runtime by itself."""
    request = through_regions(INPUT, OUTPUT, [BATCH_SIZE, *DIMS], PICTURES_BYTE_SIZE, SCORES_BYTE_SIZE)
    by_round: list[list[float]] = []
    with CudaRegion("in", PICTURES_BYTE_SIZE) as source, CudaRegion("out", SCORES_BYTE_SIZE) as target:
        source.write(np.ones(PICTURES_BYTE_SIZE // 4, np.float32).tobytes())
        with contextlib.ExitStack() as stack:
            stack.enter_context(door.registered(source, target))
            askers = [stack.enter_context(contextlib.closing(Asker(server, "resnet50", request))) for _ in range(2)]
            for _ in range(WARM_RUNS):
                askers[0].ask()
            scores = np.frombuffer(target.read(SCORES_BYTE_SIZE), np.float32).reshape(BATCH_SIZE, CLASSES)
            np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-3)
            alone = stack.enter_context(reference(model))
            for _ in range(rounds):
                by_round.append([alone(seconds), *(seconds_per_request(askers[:count], seconds) * 1e3 for count in (1, 2))])
    theirs, one, two = (statistics.median(column) for column in zip(*by_round, strict=True))
    name, against = f"ResNet-50, batch {BATCH_SIZE}, CUDA regions", "ONNX Runtime's IOBinding loop"
    return [Row(f"{name}, 1 client", against, one, theirs, 0.95), Row(f"{name}, 2 clients, each batch", against, two, theirs, 0.95)]


def small_rows(server: Server, door: Door, seconds: float, rounds: int) -> list[Row]:
    """What a request costs that computes next to nothing: through regions, and in the message."""
    array = np.arange(16, dtype=np.int32)
    names = ("INPUT0", "INPUT1")
    tensor = {"shape": [1, 16], "datatype": "INT32"}
    through = {
        "inputs": [{**tensor, "name": name, "parameters": place("in", 64, at * 256)} for at, name in enumerate(names)],
        "outputs": [{"name": f"OUTPUT{at}", "parameters": place("out", 64, at * 256)} for at in range(2)],
    }
    message = {
        "inputs": [{**tensor, "name": name, "parameters": {"binary_data_size": 64}} for name in names],
        "parameters": {"binary_data_output": True},
    }
    by_round: list[list[float]] = []
    with CudaRegion("in", 4096) as source, CudaRegion("out", 4096) as target, contextlib.ExitStack() as stack:
        stack.enter_context(door.registered(source, target))
        source.write(array.tobytes() + bytes(256 - 64) + array.tobytes())
        ways: Mapping[str, Asker] = {
            "regions": stack.enter_context(contextlib.closing(Asker(server, "simple", through))),
            "message": stack.enter_context(contextlib.closing(Asker(server, "simple", message, array.tobytes() * 2))),
        }
        for asker in ways.values():
            for _ in range(WARM_RUNS):
                asker.ask()
        assert target.read(64) == (2 * array).tobytes(), "a wrong answer through regions"
        for _ in range(rounds):
            by_round.append([_median_ms(asker.times(seconds)) for asker in ways.values()])
    regions_ms, message_ms = (statistics.median(column) for column in zip(*by_round, strict=True))
    return [Row("add_sub INT32[1,16], CUDA regions", "binary HTTP", regions_ms, message_ms)]


def device_name() -> str:
    """The GPU and its driver."""
    if on_standin():
        return "no GPU, a stand-in: these figures mean nothing"
    import pynvml

    pynvml.nvmlInit()
    try:
        words = [pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)), pynvml.nvmlSystemGetDriverVersion()]
    finally:
        pynvml.nvmlShutdown()
    name, driver = (word.decode() if isinstance(word, bytes) else word for word in words)
    return f"{name}, driver {driver}"


def measure(seconds: float, rounds: int) -> list[Row]:
    """All figures."""
    with tempfile.TemporaryDirectory(prefix="tensorfarm-figures-") as folder, serving(Path(folder)) as (server, model):
        with open_door("http", server) as door:
            return [
                *identity_rows(server, door, seconds, rounds),
                *resnet_rows(server, door, model, seconds, rounds),
                *small_rows(server, door, seconds, rounds),
            ]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.figures", description="Figures of requests that compute on a GPU.")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep them in this file as well")
    arguments = parser.parse_args()
    reason = missing()
    if on_standin():
        from .standin import enter

        enter()
    if reason:
        print(f"no figures of a GPU: {reason}", file=sys.stderr)
        return 1
    device = device_name()
    rows = measure(arguments.seconds, arguments.rounds)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "device": device,
            "seconds": arguments.seconds,
            "rounds": arguments.rounds,
            "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
        }
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{device}; medians of {arguments.rounds} rounds of {arguments.seconds:g} s\n\n{table(rows)}")
    return 1 if any(row.missed for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
