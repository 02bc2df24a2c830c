"""The stand-in for CUDA itself: what it is to catch, it catches; what the stock client and ONNX Runtime do with CUDA, they do with it."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from .gpu.environment import environment, installed, ledger, ledgers, order_fault
from .gpu.exporter import Exporter

PAGE = 4096

ORT_SCRIPT = """
import json, sys
import numpy as np
import onnxruntime
from cupy.cuda import runtime
from onnxruntime.capi import onnxruntime_pybind11_state as native

CUDA = onnxruntime.OrtDevice.make("cuda", 0)._get_c_device()
CPU = native.OrtDevice(native.OrtDevice.cpu(), native.OrtDevice.default_memory(), 0)
FLOAT, SHAPE = 1, [2, 4]
X = np.arange(8, dtype=np.float32).reshape(SHAPE)
said = {}

def opened(**options):
    asked = [("CUDAExecutionProvider", {"device_id": 0, **options}), ("CPUExecutionProvider", {})]
    return onnxruntime.InferenceSession(sys.argv[1], onnxruntime.SessionOptions(), providers=asked, enable_fallback=0)

def numbered(number):
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options

def put(array):
    address = runtime.malloc(array.nbytes)
    runtime.memcpyAsync(address, array.ctypes.data, array.nbytes, runtime.memcpyDefault, 0)
    runtime.streamSynchronize(0)
    return address

def got(address):
    array = np.zeros(SHAPE, np.float32)
    runtime.memcpyAsync(array.ctypes.data, address, array.nbytes, runtime.memcpyDefault, 0)
    runtime.streamSynchronize(0)
    return array.tolist()

def message(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """c = a + b."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "abc"]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "sum", tensors[:2], tensors[2:])
    file = tmp_path_factory.mktemp("sum") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


def run(script: str, variables: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python with the stand-in."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60)  # noqa: S603  # our own program


def told(script: str, variables: Mapping[str, str], model: Path) -> dict[str, Any]:
    """What a script of ONNX Runtime has put into ``said``."""
    done = run(f"{ORT_SCRIPT}\n{script}\nprint(json.dumps(said))", variables, str(model))
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


# memory


@pytest.mark.parametrize(
    "touch",
    [
        "ctypes.string_at(address, 1)",
        "ctypes.memset(address, 0, 1)",
        "np.frombuffer((ctypes.c_char * 8).from_address(address), np.uint8).sum()",
    ],
)
def test_who_touches_device_memory_dies(tmp_path: Path, touch: str) -> None:
    script = f"import ctypes, numpy as np\nfrom cupy.cuda import runtime\naddress = runtime.malloc(4096)\nprint('here', flush=True)\n{touch}\nprint('there')"
    done = run(script, environment(tmp_path))
    assert done.returncode == -signal.SIGSEGV and done.stdout == "here\n"


def test_new_memory_is_not_zero(tmp_path: Path) -> None:
    with Exporter(environment(tmp_path)) as exporter:
        address, _ = exporter.allocate(100)
        assert exporter.read(address, 100) == b"\xcd" * 100


def test_nothing_has_a_name_and_nothing_is_left(tmp_path: Path) -> None:
    before = os.listdir("/dev/shm")
    with Exporter(environment(tmp_path)) as exporter:
        exporter.allocate(PAGE)
        assert os.listdir("/dev/shm") == before
        content = ledger(tmp_path, exporter.pid)
        assert content is not None and content["contexts"] == 1 and content["device_bytes"] == PAGE
    assert os.listdir("/dev/shm") == before


def test_what_has_not_touched_cuda_has_no_ledger(tmp_path: Path) -> None:
    assert run("import cupy, pynvml; pynvml.nvmlInit(); pynvml.nvmlDeviceGetCount()", environment(tmp_path)).returncode == 0
    assert ledgers(tmp_path) == {}


def test_only_the_name_of_the_driver_is_taken(tmp_path: Path) -> None:
    script = (
        "import ctypes, cupy\nassert ctypes.CDLL('libc.so.6').getpid() and isinstance(ctypes.CDLL(None), ctypes.CDLL)\n"
        "library = ctypes.CDLL('libcuda.so.1')\nbase, size = ctypes.c_uint64(), ctypes.c_size_t()\n"
        "def ask(address): return library.cuMemGetAddressRange_v2(ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(address))\n"
        "assert ask(4096) == 201\naddress = cupy.cuda.runtime.malloc(100)\n"
        "assert ask(4096) == 1 and ask(address + 99) == 0 and (base.value, size.value) == (address, 100) and ask(address + 100) == 1"
    )
    done = run(script, environment(tmp_path))
    assert done.returncode == 0, done.stderr


def test_arguments_are_checked_as_the_real_ones(tmp_path: Path) -> None:
    with installed(environment(tmp_path)):
        from cupy.cuda import runtime

        for wrong, kind in ((1.5, TypeError), ("1", TypeError), (None, TypeError), (-1, OverflowError), (1 << 64, OverflowError)):
            with pytest.raises(kind):
                runtime.malloc(wrong)
        with pytest.raises(TypeError):
            runtime.ipcOpenMemHandle(bytearray(64))
        with pytest.raises(IndexError):
            runtime.ipcOpenMemHandle(bytes(63))
        error = runtime.CUDARuntimeError(700)
        assert isinstance(error, RuntimeError) and error.status == 700
        assert str(error) == "cudaErrorIllegalAddress: an illegal memory access was encountered"


# what the server and the stock client ask


@pytest.mark.parametrize(
    ("visible", "ordinals"), [("1", {"GPU-standin-1": 0}), ("GPU-standin-2,0", {"GPU-standin-2": 0, "GPU-standin-0": 1})]
)
def test_visible_devices(tmp_path: Path, visible: str, ordinals: dict[str, int]) -> None:
    variables = {**environment(tmp_path, gpus=3), "CUDA_VISIBLE_DEVICES": visible}
    for uuid, ordinal in ordinals.items():
        with Exporter(variables) as exporter:
            exporter.allocate(1, device=ordinal)
            content = ledger(tmp_path, exporter.pid)
            assert content is not None and content["uuids"] == [uuid]


def test_what_nvml_says(tmp_path: Path) -> None:
    with installed(environment(tmp_path, gpus=2, used=0.25)), Exporter(environment(tmp_path, gpus=2)) as exporter:
        import pynvml

        with pytest.raises(pynvml.NVMLError, match="Uninitialized"):
            pynvml.nvmlDeviceGetCount()
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        assert [pynvml.nvmlDeviceGetUUID(handle) for handle in handles] == ["GPU-standin-0", "GPU-standin-1"]
        memory = pynvml.nvmlDeviceGetMemoryInfo(handles[0])
        assert memory.used / memory.total == 0.25
        exporter.allocate(PAGE, device=1)
        running = [[one.pid for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)] for handle in handles]
        assert running == [[], [exporter.pid]]
        with pytest.raises(pynvml.NVMLError, match="Not Found"):
            pynvml.nvmlDeviceGetHandleByUUID("GPU-other")
        pynvml.nvmlShutdown()


def test_the_stock_clients_regions(tmp_path: Path) -> None:
    with installed(environment(tmp_path)):
        import tritonclient.utils.cuda_shared_memory as cuda

        region = cuda.create_shared_memory_region("name", 64, 0)
        cuda.set_shared_memory_region(region, [np.arange(4, dtype=np.float32), np.arange(6.0)])
        assert cuda.get_contents_as_numpy(region, np.float32, [2, 2]).tolist() == [[0, 1], [2, 3]]
        assert len(base64.b64decode(cuda.get_raw_handle(region))) == 64
        words = np.array([b"one", b"", b"three"], np.object_)
        from tritonclient.utils import serialize_byte_tensor

        cuda.set_shared_memory_region(region, [serialize_byte_tensor(words)])
        assert cuda.get_contents_as_numpy(region, np.object_, [3]).tolist() == words.tolist()
        cuda.destroy_shared_memory_region(region)
        del region
        content = ledger(tmp_path, os.getpid())
        assert content is not None and content["device_bytes"] == 0
        with pytest.raises(cuda.CudaSharedMemoryException):
            cuda.create_shared_memory_region("name", 2 << 30, 0)
        with pytest.raises(cuda.CudaSharedMemoryException):
            cuda.create_shared_memory_region("name", 64, 1)


def test_the_modules_are_gone_afterwards(tmp_path: Path) -> None:
    path = list(sys.path)
    with installed(environment(tmp_path)):
        import cupy

        assert "standins" in str(cupy.__file__)
    assert sys.path == path and not {"cupy", "cuda", "gpu_standin", "pynvml"}.intersection(sys.modules)


# ONNX Runtime


def test_sessions_say_what_was_asked_for(tmp_path: Path, model: Path) -> None:
    script = (
        "session = opened(enable_cuda_graph='1')\nonnxruntime.preload_dlls()\n"
        "said.update(file=onnxruntime.__file__, there=onnxruntime.get_available_providers(), "
        "providers=session.get_providers(), options=session.get_provider_options())"
    )
    said = told(script, environment(tmp_path), model)
    assert "standins" not in said["file"] and said["there"][:2] == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    assert said["providers"] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert said["options"]["CUDAExecutionProvider"] == {"device_id": "0", "enable_cuda_graph": "1"}
    (content,) = ledgers(tmp_path).values()
    assert content["preload_calls"] == 1 and content["provider_options"] == [
        {"CUDAExecutionProvider": said["options"]["CUDAExecutionProvider"]}
    ]


def test_one_whose_libraries_are_missing_runs_on_the_cpu(tmp_path: Path, model: Path) -> None:
    script = "session = opened()\nsaid.update(providers=session.get_providers(), c=session.run(['c'], {'a': X, 'b': X})[0].tolist())"
    said = told(script, environment(tmp_path, no_cuda_ep=1), model)
    assert said["providers"] == ["CPUExecutionProvider"] and said["c"][1] == [8, 10, 12, 14]
    assert ledgers(tmp_path) == {}


def test_bindings_in_both_kinds_of_memory(tmp_path: Path, model: Path) -> None:
    script = """
session = opened()
binding = native.SessionIOBinding(session._sess)
a, c = put(X), put(X * 0)
for place in (c, 0):
    binding.bind_input("a", CUDA, FLOAT, SHAPE, a)
    binding.bind_ortvalue_input("b", native.OrtValue.ortvalue_from_numpy(X, CPU))
    binding.synchronize_inputs()
    binding.bind_output("c", CUDA, *((FLOAT, SHAPE, place) if place else ()))
    session._sess.run_with_iobinding(binding, numbered(-1))
    binding.synchronize_outputs()
    (value,) = binding.get_outputs()
    assert value.device_name() == "cuda" and value.shape() == SHAPE and (value.data_ptr() == c) == (place == c)
    assert got(value.data_ptr()) == (X + X).tolist() and "RuntimeError" in message(value.numpy)
    del value
    binding.clear_binding_inputs()
    binding.clear_binding_outputs()
binding.bind_ortvalue_input("a", native.OrtValue.ortvalue_from_numpy(X, CUDA))
binding.bind_input("b", CUDA, FLOAT, SHAPE, c)
binding.bind_output("c", CPU)
session._sess.run_with_iobinding(binding, numbered(-1))
said["c"] = binding.get_outputs()[0].numpy().tolist()
plain = onnxruntime.InferenceSession(sys.argv[1])
bound = native.SessionIOBinding(plain._sess)
said["refused"] = message(bound.bind_input, "a", CUDA, FLOAT, SHAPE, a)
del binding
"""
    said = told(script, environment(tmp_path), model)
    assert said["c"] == (3 * np.arange(8).reshape(2, 4)).tolist() and "no data transfer registered" in said["refused"]
    (content,) = ledgers(tmp_path).values()
    # The two that the script has made are there still.
    assert content["device_bytes"] == 64 and content["runs"] == 3


def test_a_run_does_not_wait_for_copies(tmp_path: Path, model: Path) -> None:
    script = """
session = opened()
binding = native.SessionIOBinding(session._sess)
a, c = put(X * 0), put(X * 0)
stream = runtime.streamCreateWithFlags(runtime.streamNonBlocking)
runtime.memcpyAsync(a, X.ctypes.data, X.nbytes, runtime.memcpyDefault, stream)
for name in ("early", "late"):
    for tensor in "ab":
        binding.bind_input(tensor, CUDA, FLOAT, SHAPE, a)
    binding.bind_output("c", CUDA, FLOAT, SHAPE, c)
    session._sess.run_with_iobinding(binding, numbered(-1))
    said[name] = got(c)
    runtime.streamSynchronize(stream)
"""
    said = told(script, environment(tmp_path), model)
    assert not np.any(said["early"]) and said["late"] == (2 * np.arange(8).reshape(2, 4)).tolist()


def test_a_cuda_graph_wants_the_addresses_that_it_was_captured_with(tmp_path: Path, model: Path) -> None:
    script = """
session = opened(enable_cuda_graph="1")
binding = native.SessionIOBinding(session._sess)
a, c, d = put(X), put(X), put(X)
def bound(place, options):
    for tensor in "ab":
        binding.bind_input(tensor, CUDA, FLOAT, SHAPE, a)
    binding.bind_output("c", CUDA, FLOAT, SHAPE, place)
    session._sess.run_with_iobinding(binding, options)
said["same"] = [message(bound, c, numbered(1)), message(bound, c, numbered(1)), message(bound, d, numbered(2))]
said["other"] = message(bound, d, numbered(1))
said["none"] = [message(bound, c, numbered(-1)), message(bound, d, numbered(-1))]
feeds = {"a": X, "b": X}
said["arrays"] = [message(session._sess.run, ["c"], feeds, numbered(-1)) for _ in range(2)]
said["first"] = [message(session._sess.run, ["c"], feeds, onnxruntime.RunOptions()) for _ in range(2)]
"""
    said = told(script, environment(tmp_path), model)
    assert said["same"] == ["", "", ""] and said["none"] == ["", ""] and said["arrays"] == ["", ""]
    assert said["other"] == "RuntimeError: CUDA graph 1 was captured with other addresses"
    assert said["first"] == ["", "RuntimeError: CUDA graph 0 was captured with other addresses"]
    (content,) = ledgers(tmp_path).values()
    assert content["gpu_graph_ids"] == [1, 1, 2, 1, -1, -1, -1, -1, 0, 0]


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        ("c + 16", 716, "misaligned address"),
        ("c + 256", 700, "an illegal memory access was encountered"),
        ("X.ctypes.data", 700, "an illegal memory access was encountered"),
    ],
)
def test_a_run_on_what_is_no_memory_of_the_device_loses_the_context(
    tmp_path: Path, model: Path, address: str, status: int, words: str
) -> None:
    script = f"""
session = opened()
binding = native.SessionIOBinding(session._sess)
a, c = put(X), put(np.zeros((2, 4 + 4), np.float32))
for tensor in "ab":
    binding.bind_input(tensor, CUDA, FLOAT, SHAPE, a)
binding.bind_output("c", CUDA, FLOAT, SHAPE, {address})
said["run"] = message(session._sess.run_with_iobinding, binding, numbered(-1))
said["after"] = message(runtime.deviceSynchronize)
"""
    said = told(script, environment(tmp_path), model)
    assert said["run"].startswith(
        f"RuntimeError: Error in execution: CUDA failure {status}: {words} ; GPU=0 ; hostname=x ; file=/onnxruntime_src/"
    )
    assert said["after"].startswith("CUDARuntimeError: cudaError") and said["after"].endswith(words)


def test_faults_on_demand(tmp_path: Path, model: Path) -> None:
    variables = environment(tmp_path)
    script = """
import os, pathlib
file = pathlib.Path(os.environ["TENSORFARM_STANDIN_FAULT"])
session = opened()
file.write_text("700")
said["run"] = message(session._sess.run, ["c"], {"a": X, "b": X}, numbered(-1))
file.unlink()
said["after"] = message(runtime.deviceSynchronize)
said["open"] = message(opened)
"""
    said = told(script, variables, model)
    assert said["run"].startswith("Fail: [ONNXRuntimeError] : 1 : FAIL : CUDA failure 700: an illegal memory access was encountered ; ")
    assert said["after"] == "CUDARuntimeError: cudaErrorIllegalAddress: an illegal memory access was encountered"
    assert said["open"].startswith("Fail: [ONNXRuntimeError] : 1 : FAIL : CUDA failure 700: ")
    # Another process is as good as new; one without a context does not feel a fault at all.
    with Exporter(variables) as exporter:
        address, _ = exporter.allocate(PAGE, b"healthy")
        assert exporter.read(address, 7) == b"healthy"
    order_fault(tmp_path)
    with installed(variables):
        from cupy.cuda import runtime

        assert runtime.getDeviceCount() == 1
        with pytest.raises(runtime.CUDARuntimeError):
            runtime.malloc(1)
