"""Python models on GPUs that are made of ordinary memory: they get clients' regions as they are, and answer with memory there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..servers import tensorfarm, wait_until
from ..standins.gpu.environment import environment, installed, ledgers, order_fault
from ..wire import Reply
from .test_gpus import Machine, part

ECHO = '''
"""Answers X with a copy of it in device memory of its own, X as it is, whether X was in ordinary memory, and what "twice" makes of it."""

import ctypes

import numpy as np
import triton_python_backend_utils as pb_utils
from tensorfarm.workers.python import dlpack

NAME = ctypes.create_string_buffer(b"dltensor")
NEW = ctypes.pythonapi["PyCapsule_New"]
NEW.restype, NEW.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
CUDA, FLOAT = 2, 2


class Copy:
    """FP32 in memory of a GPU, given away in a capsule; the copy is only under way."""

    def __init__(self, source, shape, device):
        from cupy.cuda import runtime

        self.runtime = runtime
        self.shape = (ctypes.c_int64 * len(shape))(*shape)
        runtime.setDevice(device)
        self.address = runtime.malloc(4 * int(np.prod(shape)))
        stream = runtime.streamCreateWithFlags(runtime.streamNonBlocking)
        runtime.memcpyAsync(self.address, source, 4 * int(np.prod(shape)), runtime.memcpyDefault, stream)
        self.managed = dlpack._Managed()
        tensor = self.managed.tensor
        tensor.content, tensor.rank, tensor.shape = self.address, len(shape), self.shape
        tensor.device.kind, tensor.device.number = CUDA, device
        tensor.type.code, tensor.type.bits, tensor.type.lanes = FLOAT, 32, 1
        self.delete = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: self.runtime.free(self.address))
        self.managed.deleter = ctypes.cast(self.delete, ctypes.c_void_p).value
        self.capsule = NEW(ctypes.addressof(self.managed), ctypes.cast(NAME, ctypes.c_char_p), None)


class TritonPythonModel:
    def initialize(self, args):
        self.kept, self.device = [], int(args["model_instance_device_id"])

    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "X")
            if x.is_cpu():
                source = x.as_numpy().ctypes.data
            else:
                capsule = x.to_dlpack()
                source = dlpack._Managed.from_address(dlpack._pointer(capsule, dlpack._NAME)).tensor.content
            copy = Copy(source, x.shape(), self.device)
            self.kept.append(copy)
            call = pb_utils.InferenceRequest(model_name="twice", requested_output_names=["Y"], inputs=[x])
            answer = call.exec()
            if answer.has_error():
                raise pb_utils.TritonModelException(answer.error().message())
            outputs = [
                pb_utils.Tensor.from_dlpack("Y", copy.capsule),
                pb_utils.Tensor.from_dlpack("Z", x),
                pb_utils.Tensor("CPU", np.array([x.is_cpu()])),
                pb_utils.Tensor("W", pb_utils.get_output_tensor_by_name(answer, "Y").as_numpy()),
            ]
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses
'''

TWICE = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        arrays = [request.inputs()[0].as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", array * 2)]) for array in arrays]
"""

TENSORS = "".join(f'output [ {{ name: "{name}" data_type: TYPE_FP32 dims: [ -1 ] }} ]\n' for name in "YZW")
CONFIG = (
    'backend: "python"\ninput [ { name: "X" data_type: TYPE_FP32 dims: [ -1 ] } ]\n'
    + TENSORS
    + 'output [ { name: "CPU" data_type: TYPE_BOOL dims: [ 1 ] } ]\n'
)
AS_THEY_ARE = 'parameters { key: "FORCE_CPU_ONLY_INPUT_TENSORS" value { string_value: "no" } }'


def _put(root: Path, name: str, source: str, extra: str) -> None:
    (root / name / "1").mkdir(parents=True)
    (root / name / "1" / "model.py").write_text(source)
    (root / name / "config.pbtxt").write_text(CONFIG + extra)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    root = folder / "models"
    for gpu in (0, 1):
        _put(root, f"on_{gpu}_as_they_are", ECHO, f"instance_group [ {{ kind: KIND_GPU gpus: [ {gpu} ] }} ] {AS_THEY_ARE}")
    _put(root, "on_0", ECHO, "instance_group [ { kind: KIND_GPU gpus: [ 0 ] } ]")
    _put(root, "on_cpu", ECHO, f"instance_group [ {{ kind: KIND_CPU }} ] {AS_THEY_ARE}")
    _put(root, "twice", TWICE, "instance_group [ { kind: KIND_CPU } ]")
    variables = environment(folder, gpus=2)
    with tensorfarm(root, folder=folder / "run", environment=variables) as server, installed(variables):
        assert server.ready(), server.log
        yield Machine(server, folder)


@pytest.mark.parametrize("target", ["region", "message"])
@pytest.mark.parametrize("count", [4, 20_000])
@pytest.mark.parametrize(("model", "device"), [("on_0_as_they_are", 0), ("on_1_as_they_are", 1), ("on_0", 0), ("on_cpu", 0)])
def test_tensors_on_the_gpu(machine: Machine, model: str, device: int, count: int, target: str) -> None:
    x = np.arange(count, dtype=np.float32)
    for turn in range(2):
        source = machine.region("in", x.nbytes, device, (x + turn).tobytes())
        outcome = machine.region("out", 2 * x.nbytes, device)

        def wanted(at: int) -> dict[str, Any]:
            return {"parameters": part("out", at * x.nbytes, x.nbytes)} if target == "region" else {}

        body = {
            "inputs": [{"name": "X", "shape": [count], "datatype": "FP32", "parameters": part("in", 0, x.nbytes)}],
            "outputs": [{"name": "Y", **wanted(0)}, {"name": "Z", **wanted(1)}, {"name": "CPU"}, {"name": "W"}],
        }
        reply = machine.server.ask("POST", f"/v2/models/{model}/infer", body)
        assert reply.status == 200, reply.body
        found = {one["name"]: one.get("data") for one in reply.json["outputs"]}
        assert found["CPU"] == [not model.endswith("as_they_are")]
        assert found["W"] == (2 * (x + turn)).tolist()
        if target == "region":
            assert machine.content(outcome, 2 * x.nbytes) == (x + turn).tobytes() * 2
        else:
            assert found["Y"] == found["Z"] == (x + turn).tolist()
        machine.forget(source, outcome)


def _ask(machine: Machine, model: str) -> Reply:
    body = {"inputs": [{"name": "X", "shape": [2], "datatype": "FP32", "data": [1, 2]}], "outputs": [{"name": "CPU"}]}
    return machine.server.ask("POST", f"/v2/models/{model}/infer", body)


def test_a_model_that_has_lost_its_context_gets_a_new_process(machine: Machine) -> None:
    """Its own calls of CUDA fail, and it says so; without an end of its process all that follow would fail too."""
    assert _ask(machine, "on_1_as_they_are").status == 200
    fault = order_fault(machine.folder, 700, "GPU-standin-1")
    reply = _ask(machine, "on_1_as_they_are")
    fault.unlink()
    assert reply.status == 503 and "lost its CUDA context: cudaErrorIllegalAddress" in reply.json["error"]
    assert _ask(machine, "on_0_as_they_are").status == 200
    wait_until(lambda: _ask(machine, "on_1_as_they_are").status == 200, "the worker to come back")


def test_no_worker_has_a_context_that_its_model_did_not_make(machine: Machine) -> None:
    """The model of the CPU makes one itself, on the first GPU; the server and "twice" have none."""
    own = {pid: one["uuids"] for pid, one in ledgers(machine.folder).items() if pid in (machine.server.pid, *machine.server.workers())}
    assert machine.server.pid not in own
    assert all(len(uuids) == 1 for uuids in own.values()), own
    assert sum(uuids == ["GPU-standin-1"] for uuids in own.values()) == 2
