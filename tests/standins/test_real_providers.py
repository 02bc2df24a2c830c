"""ONNX Runtime's own providers for CUDA and TensorRT, on libraries that compute in ordinary memory: what it makes of all that we ask of it.

Skipped unless ``./scripts/test --gpu-rehearsal`` has built those libraries; it runs tests/gpu on them as well.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ..gpu.doors import Door, Given, open_door
from ..gpu.models import write_dense, write_gpu_repository
from ..gpu.regions import CudaRegion, Part
from ..servers import Server, tensorfarm, wait_until
from .gpu.environment import LEDGER_FOLDER, LIBRARIES, environment, installed, order_fault

pytestmark = pytest.mark.skipif(not os.environ.get(LIBRARIES), reason="needs ./scripts/test --gpu-rehearsal")

MIB = 1 << 20
BYTES = 48 * MIB
CAPTURE_US = 30_000
LOADED = ("simple", "large", "large_cpu", "dense_cpu", "dense_graphs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("machine")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """A server on one small GPU, whose captures take their time; the very process that runs the tests has the GPU, too."""
    models = write_gpu_repository(folder / "models")
    for number in range(3):
        write_dense(models, f"graphs{number}", "optimization { cuda { graphs: true } } instance_group [ { count: 2, kind: KIND_GPU } ]")
    variables = environment(folder, gpus=1, bytes=BYTES, capture_us=CAPTURE_US)
    loaded = [f"--load-model={name}" for name in (*LOADED, *(f"graphs{number}" for number in range(3)))]
    flags = ("--model-control-mode=explicit", f"--cuda-memory-pool-byte-size=0:{8 * MIB}", *loaded)
    with tensorfarm(models, *flags, folder=folder / "run", environment=variables, grpc=True) as server, installed(variables):
        assert server.ready(), server.log
        yield server


@pytest.fixture
def door(server: Server) -> Iterator[Door]:
    with open_door("http", server) as opened:
        yield opened


def calls(server: Server, folder: Path) -> list[str]:
    """What the living workers of the server have called of CUDA."""
    files = [folder / LEDGER_FOLDER / f"{pid}.calls" for pid in server.workers()]
    return [line for file in files if file.exists() for line in file.read_text().splitlines()]


@contextlib.contextmanager
def calling(server: Server, folder: Path) -> Iterator[list[str]]:
    """A list of what is called in the block, filled at its end."""
    before = len(calls(server, folder))
    made: list[str] = []
    yield made
    made += calls(server, folder)[before:]


def held(server: Server, folder: Path) -> tuple[int, int]:
    """Bytes that ONNX Runtime holds on the device, and its streams."""
    byte_size = streams = 0
    for line in calls(server, folder):
        match line.split():
            case ["malloc", number]:
                byte_size += int(number)
            case ["free", number]:
                byte_size -= int(number)
            case ["stream"]:
                streams += 1
            case ["end", "of", "a", "stream"]:
                streams -= 1
    return byte_size, streams


def ask(model: str, array: np.ndarray[tuple[int, ...], np.dtype[np.float32]], door: Door, *parts: Part) -> None:
    """One request of an identity model, and its answer; with ``parts``, the places of input and output."""
    given, wanted = parts or (None, None)
    got = door.ask(model, {"INPUT0": Given(array, given)}, {"OUTPUT0": wanted})["OUTPUT0"]
    np.testing.assert_array_equal(got, array)


def test_a_lone_request_costs_no_copy_but_the_models_own(server: Server, folder: Path, door: Door) -> None:
    array = np.arange(1000, dtype=np.float32)
    pair = {name: np.arange(16, dtype=np.int32).reshape(1, 16) for name in ("INPUT0", "INPUT1")}
    with CudaRegion("in", 1 << 14) as source, CudaRegion("out", 1 << 14) as target, door.registered(source, target):
        given = {name: Given(one, Part(source, 4096 * at)) for at, (name, one) in enumerate(pair.items())}
        for _ in range(2):
            ask("large", array, door, Part(source), Part(target))
            door.ask("simple", given, {name: Part(target, at * 4096, 64) for at, name in enumerate(("OUTPUT0", "OUTPUT1"))})
        with calling(server, folder) as made:
            ask("large", array, door, Part(source), Part(target))
        # An identity is a copy.
        assert made == ["copy d2d 4000"]
        with calling(server, folder) as made:
            got = door.ask("simple", given, {name: Part(target, at * 4096, 64) for at, name in enumerate(("OUTPUT0", "OUTPUT1"))})
        assert [line.split()[0] for line in made] == ["kernel", "kernel"]
        np.testing.assert_array_equal(got["OUTPUT0"], pair["INPUT0"] * 2)


def test_a_graph_is_captured_once_and_replayed(server: Server, folder: Path, door: Door) -> None:
    x = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    made: list[list[str]] = []
    for _ in range(3):
        with calling(server, folder) as lines:
            door.ask("dense_graphs", {"X": x})
        made.append([line for line in lines if line.startswith(("capture", "graph", "kernel"))])
    # In the global mode, which forbids what others do meanwhile: workers/quiet.py is there for that.
    assert "capture in mode 0" in made[0] and made[0][-1] == "graph"
    assert made[1:] == [["graph"], ["graph"]]


def test_nobody_disturbs_a_capture(server: Server, folder: Path) -> None:
    """While graphs are captured, other models run, grow and are loaded; no call of CUDA is made that would end the capture."""
    end = time.monotonic() + 6
    done: Counter[str] = Counter()
    faults: list[str] = []

    def client(number: int) -> None:
        random = np.random.default_rng(number)
        with open_door("grpc" if number % 2 else "http", server) as door:
            while time.monotonic() < end:
                done[one_request(number, random, door)] += 1

    def one_request(number: int, random: np.random.Generator, door: Door) -> str:
        match (number + int(random.integers(3))) % 3:
            case 0:
                x = random.standard_normal((int(random.integers(1, 9)), 64)).astype(np.float32)
                got = door.ask(f"graphs{random.integers(3)}", {"X": x})["Y"]
                np.testing.assert_allclose(got, door.ask("dense_cpu", {"X": x})["Y"], rtol=1e-3, atol=1e-5)
                return "graphs"
            case 1:
                ask("large", random.standard_normal(int(random.integers(1, 1 << 18))).astype(np.float32), door)
                return "large"
            case _:
                for action in ("load", "unload"):
                    reply = server.ask("POST", f"/v2/repository/models/identity_fp{16 << number % 3}/{action}")
                    assert reply.status == 200, reply.body
                return "loads"

    def watched(number: int) -> None:
        try:
            client(number)
        except Exception as error:
            faults.append(repr(error))
            raise

    threads = [threading.Thread(target=watched, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not faults and min(done[kind] for kind in ("graphs", "large", "loads")) > 10, (faults, done)
    made = Counter(line.split()[0] for line in calls(server, folder))
    assert made["capture"] > 5 and made["graph"] > 20 and not made["unsafe"], made


UNSAFE_SCRIPT = """
import ctypes
cuda = ctypes.CDLL("libcudart.so.13")
stream, graph, address = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
assert cuda.cudaStreamCreate(ctypes.byref(stream)) == 0
assert cuda.cudaStreamBeginCapture(stream, 0) == 0
print(cuda.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(64)), cuda.cudaDeviceSynchronize())
assert cuda.cudaStreamEndCapture(stream, ctypes.byref(graph)) == 0
print(cuda.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(64)), cuda.cudaDeviceSynchronize())
"""


def test_a_disturbed_capture_would_be_noticed(tmp_path: Path) -> None:
    variables = {**os.environ, **environment(tmp_path)}
    done = subprocess.run([sys.executable, "-c", UNSAFE_SCRIPT], env=variables, capture_output=True, text=True, timeout=60)  # noqa: S603
    assert done.stdout.split() == ["900", "900", "0", "0"], done.stderr
    (file,) = (tmp_path / LEDGER_FOLDER).glob("*.calls")
    assert "unsafe cudaMalloc" in file.read_text()


def test_a_request_that_the_gpu_has_no_room_for(server: Server, door: Door) -> None:
    """It fails with ONNX Runtime's words, and nothing else does."""
    workers = server.workers()
    for count in (1000, BYTES // 4, 1000):
        array = np.arange(count, dtype=np.float32)
        if count == 1000:
            ask("large", array, door)
        else:
            with pytest.raises(Exception, match="onnx runtime error 1: .*Failed to allocate memory for requested buffer"):
                ask("large", array, door)
    assert server.workers() == workers


def test_unloading_gives_everything_back(server: Server, folder: Path, door: Door) -> None:
    x = np.ones((2, 64), np.float32)
    seen = []
    for _ in range(12):
        for action in ("unload", "load"):
            assert server.ask("POST", f"/v2/repository/models/dense_graphs/{action}").status == 200
        door.ask("dense_graphs", {"X": x})
        seen.append(held(server, folder))
    assert seen[2:] == [seen[2]] * 10, seen


def test_a_lost_context_is_known_by_the_words_of_onnx_runtime(server: Server, folder: Path, door: Door) -> None:
    """It ends its worker, with the reason, and the next one serves."""
    array = np.arange(1000, dtype=np.float32)
    ask("large", array, door)
    before = set(server.workers())
    fault = order_fault(folder, 700)
    with pytest.raises(Exception, match="lost its CUDA context: cudaErrorIllegalAddress"):
        ask("large", array, door)
    fault.unlink()

    def back() -> bool:
        with contextlib.suppress(Exception):
            ask("large", array, door)
            return True
        return False

    wait_until(back, "the worker to come back")
    assert len(before - set(server.workers())) == 1


def test_the_log_says_nothing_that_is_of_no_use(server: Server, door: Door) -> None:
    assert "plugin EP device" not in server.log and "stand-in for CUDA" not in server.log


def test_a_model_for_tensorrt_where_there_is_none(server: Server, folder: Path) -> None:
    write_dense(folder / "models", "trt", 'optimization { execution_accelerators { gpu_execution_accelerator: [ { name: "tensorrt" } ] } }')
    reply = server.ask("POST", "/v2/repository/models/trt/load")
    assert reply.status == 400 and "which model 'trt' asks for: it comes with tensorfarm[tensorrt]" in reply.json["error"]


OPTIONS_SCRIPT = """
import sys
import onnxruntime
from onnx import TensorProto, helper
from tensorfarm.workers.backends import onnxruntime_gpu_options as ours

onnxruntime.set_default_logger_severity(4)
onnxruntime.preload_dlls()
tensor = helper.make_tensor_value_info("X", TensorProto.FLOAT, [4])
graph = helper.make_graph([], "nothing", [tensor], [tensor])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
quiet = onnxruntime.SessionOptions()
quiet.log_severity_level = 4

def refusal(provider, options):
    try:
        session = onnxruntime.InferenceSession(model, quiet, providers=[(provider, {"device_id": "0", **options})], enable_fallback=0)
    except Exception as error:
        return str(error)
    return "" if session.get_providers()[0] == provider else "left out"

VALUES = {
    "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested", "0", "1"),
    "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT", "0", "1", "2"),
    "gpu_mem_limit": ("0", "18446744073709551615"),
    "precision_mode": ("FP32", "FP16", "BF16", "INT8"),
    "max_workspace_size_bytes": ("1073741824",),
    "trt_engine_cache_prefix": ("x",),
    "trt_tactic_sources": ("-CUBLAS",),
    **{f"trt_profile_{which}_shapes": ("X:4",) for which in ("min", "max", "opt")},
    **dict.fromkeys(("trt_dump_subgraphs", "trt_dump_ep_context_model"), ("false",)),
    "trt_ep_context_file_path": ("",),
}
cuda = [(name, value, {name: read(value)}) for name, read in ours._CUDA.items() for value in VALUES.get(name, ("0", "1"))]
tensorrt = [(name, value, read(value)) for name, read in ours._TENSORRT.items() for value in VALUES.get(name, ("0", "1"))]
paths = ("trt_engine_cache_path", "trt_timing_cache_path", "trt_int8_calibration_table_name", "trt_extra_plugin_lib_paths")
tensorrt += [(name, "x", {name: "x"}) for name in paths]
for provider, asked in (("CUDAExecutionProvider", cuda), ("TensorrtExecutionProvider", tensorrt)):
    assert "option" in refusal(provider, {"no_such_option": "1"}), "nothing is refused"
    for name, value, options in asked:
        said = refusal(provider, options)
        if said:
            print(provider, name, value, said)
    print(provider, len(asked))
"""


def test_onnx_runtime_knows_every_option_that_a_model_may_set(tmp_path: Path) -> None:
    """By the names and in the words that its own readers take, for CUDA and for TensorRT."""
    variables = {**os.environ, **environment(tmp_path)}
    variables["LD_LIBRARY_PATH"] += f":{os.environ[LIBRARIES]}/tensorrt"
    done = subprocess.run([sys.executable, "-c", OPTIONS_SCRIPT], env=variables, capture_output=True, text=True, timeout=60)  # noqa: S603
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 2, done.stdout[-2000:] + done.stderr[-2000:]
    assert all(int(line.split()[1]) > 30 for line in lines), lines
