"""A server with GPUs that are made of ordinary memory: what it does with them, and what it leaves alone.

What real ones would say of the same is asked in tests/gpu, which also runs on the stand-in (tests/standins/test_gpu_suite.py).
"""

from __future__ import annotations

import base64
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..ensembles import write_ensembles
from ..gpu.models import CHAIN, LARGE, add_sub, on_cpu, on_gpu, write_dense
from ..model_repository import SIMPLE, Flavour, write_repository
from ..servers import Server, tensorfarm, wait_until
from ..standins.gpu.environment import environment, installed, ledgers, order_fault
from ..wire import Reply

PAIR = np.arange(32, dtype=np.int32).reshape(2, 1, 16)
ON_ZERO = replace(SIMPLE, name="on_zero", instances=0, extra="instance_group [ { kind: KIND_GPU gpus: [ 0 ] } ]")
MODELS = (on_gpu(SIMPLE), on_cpu(SIMPLE), ON_ZERO, on_gpu(LARGE), on_gpu(add_sub("FP32")))


@dataclass
class Machine:
    """A server on a machine with two GPUs, and this process as a client of both."""

    server: Server
    folder: Path

    def region(self, name: str, byte_size: int, device: int = 0, content: bytes = b"") -> Any:
        """An allocation that the server knows by this name."""
        import tritonclient.utils.cuda_shared_memory as cuda

        region = cuda.create_shared_memory_region(name, byte_size, device)
        if content:
            cuda.set_shared_memory_region(region, [np.frombuffer(content, np.uint8)])
        reply = self.register(name, cuda.get_raw_handle(region), device, byte_size)
        assert reply.status == 200, reply.body
        return region

    def register(self, name: str, handle: bytes, device: int, byte_size: int) -> Reply:
        body = {"raw_handle": {"b64": handle.decode()}, "device_id": device, "byte_size": byte_size}
        return self.server.ask("POST", f"/v2/cudasharedmemory/region/{name}/register", body)

    def forget(self, *regions: Any) -> None:
        """Unregister all, then free them."""
        import tritonclient.utils.cuda_shared_memory as cuda

        assert self.server.ask("POST", "/v2/cudasharedmemory/unregister").status == 200
        for region in regions:
            cuda.destroy_shared_memory_region(region)

    def content(self, region: Any, byte_size: int, offset: int = 0) -> bytes:
        import tritonclient.utils.cuda_shared_memory as cuda

        return bytes(cuda.get_contents_as_numpy(region, np.uint8, [offset + byte_size]).tobytes()[offset:])

    def infer(self, model: str, source: str, target: str | None, rows: int = 1) -> Reply:
        """Two tensors that follow each other in one region, 256 bytes apart; both outputs likewise to another."""
        byte_size = 64 * rows
        inputs = [
            {"name": f"INPUT{at}", "shape": [rows, 16], "datatype": "INT32", "parameters": part(source, at * 256, byte_size)}
            for at in (0, 1)
        ]
        outputs = [{"name": f"OUTPUT{at}", "parameters": part(target, at * 256, byte_size)} for at in (0, 1)] if target else []
        return self.server.ask("POST", f"/v2/models/{model}/infer", {"inputs": inputs, **({"outputs": outputs} if outputs else {})})

    def by_gpu(self) -> dict[str, dict[str, Any]]:
        """What the newest worker of each GPU has done."""
        own = [(pid, one) for pid, one in sorted(ledgers(self.folder).items()) if pid in self.server.workers()]
        return {one["uuids"][0]: one for _, one in own if one["contexts"]}


def part(region: str | None, offset: int, byte_size: int) -> dict[str, Any]:
    """The parameters of a tensor that lies in a region."""
    return {"shared_memory_region": region, "shared_memory_offset": offset, "shared_memory_byte_size": byte_size}


def _pair(rows: int = 1) -> bytes:
    """Two tensors, 256 bytes apart."""
    first, second = (np.repeat(row, rows, axis=0).tobytes().ljust(256, b"\0") for row in PAIR)
    return first + second


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_repository(tmp_path_factory.mktemp("gpus") / "models", MODELS, Flavour.ONNX)
    write_dense(root, "graphs", "optimization { cuda { graphs: true } }")
    write_ensembles(root, (CHAIN,))
    return root


@pytest.fixture(scope="module")
def machine(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    variables = environment(folder, gpus=2)
    with tensorfarm(repository, folder=folder / "run", environment=variables) as server, installed(variables):
        assert server.ready(), server.log
        yield Machine(server, folder)


def test_models_go_where_their_configurations_say(machine: Machine) -> None:
    def groups(model: str) -> list[tuple[str, int, list[int]]]:
        found = machine.server.ask("GET", f"/v2/models/{model}/config").json["instance_group"]
        return [(group["kind"], group["count"], group["gpus"]) for group in found]

    assert groups("simple") == [("KIND_GPU", 1, [0, 1])]
    assert groups("on_zero") == [("KIND_GPU", 1, [0])]
    assert groups("simple_cpu") == [("KIND_CPU", 1, [])]
    assert "cuda_shared_memory" in machine.server.ask("GET", "/v2").json["extensions"]


def test_only_the_workers_of_gpus_touch_cuda_and_each_its_own(machine: Machine) -> None:
    touched = {pid: one for pid, one in ledgers(machine.folder).items() if pid in (machine.server.pid, *machine.server.workers())}
    assert machine.server.pid not in touched
    assert sorted(one["uuids"] for one in touched.values()) == [["GPU-standin-0"], ["GPU-standin-1"]]
    # The pools that requests and answers lie in.
    assert {one["pinned_bytes"] for one in touched.values()} == {2 * 256 << 20}


@pytest.mark.parametrize("device", [0, 1])
def test_a_lone_request_is_not_copied_and_runs_on_its_gpu(machine: Machine, device: int) -> None:
    before = machine.by_gpu()
    source, target = machine.region("in", 512, device, _pair()), machine.region("out", 512, device)
    for _ in range(3):
        assert machine.infer("simple", "in", "out").status == 200
    got = np.frombuffer(machine.content(target, 512), np.int32).reshape(2, 64)[:, :16]
    np.testing.assert_array_equal(got, [(PAIR[0] + PAIR[1])[0], (PAIR[0] - PAIR[1])[0]])
    machine.forget(source, target)
    after = machine.by_gpu()
    assert {uuid: one["copies"] for uuid, one in after.items()} == {uuid: one["copies"] for uuid, one in before.items()}
    ran = {uuid: after[uuid]["runs"] - before[uuid]["runs"] for uuid in after}
    assert ran == {f"GPU-standin-{device}": 3, f"GPU-standin-{1 - device}": 0}


def test_a_shape_that_varies_is_known_the_second_time(machine: Machine) -> None:
    """Then the output is made where it is wanted; of an output that is not foreseen, there is one copy."""
    array = np.arange(6000, dtype=np.float32)
    source, target = machine.region("in", array.nbytes, 0, array.tobytes()), machine.region("out", array.nbytes)
    copies = []
    for count in (6000, 6000, 3000, 6000, 3000, 3000):
        before = machine.by_gpu()["GPU-standin-0"]["copies"]
        body = {
            "inputs": [{"name": "INPUT0", "shape": [count], "datatype": "FP32", "parameters": part("in", 0, count * 4)}],
            "outputs": [{"name": "OUTPUT0", "parameters": part("out", 0, count * 4)}],
        }
        assert machine.server.ask("POST", "/v2/models/large/infer", body).status == 200
        after = machine.by_gpu()["GPU-standin-0"]["copies"]
        copies.append({kind: after[kind]["count"] - before[kind]["count"] for kind in after})
    assert machine.content(target, array.nbytes) == array.tobytes()
    machine.forget(source, target)
    assert [one.pop("d2d") for one in copies] == [1, 0, 1, 0, 0, 0] and not any(any(one.values()) for one in copies), copies


@pytest.mark.parametrize(("model", "device"), [("simple_cpu", 0), ("simple_cpu", 1), ("on_zero", 1)])
def test_models_that_run_elsewhere_take_and_fill_the_same_regions(machine: Machine, model: str, device: int) -> None:
    source, target = machine.region("in", 512, device, _pair(2)), machine.region("out", 512, device)
    assert machine.infer(model, "in", "out", rows=2).status == 200
    got = np.frombuffer(machine.content(target, 512), np.int32).reshape(2, 64)[:, :16]
    np.testing.assert_array_equal(got, [(PAIR[0] + PAIR[1])[0], (PAIR[0] - PAIR[1])[0]])
    machine.forget(source, target)


def test_the_inputs_on_two_gpus_come_together(machine: Machine) -> None:
    first, second = (machine.region(f"on{device}", 64, device, PAIR[device].tobytes()) for device in (0, 1))
    inputs = [{"name": f"INPUT{at}", "shape": [1, 16], "datatype": "INT32", "parameters": part(f"on{at}", 0, 64)} for at in (0, 1)]
    outputs = [{"name": "OUTPUT0"}, {"name": "OUTPUT1", "parameters": part("on1", 0, 64)}]
    reply = machine.server.ask("POST", "/v2/models/simple/infer", {"inputs": inputs, "outputs": outputs})
    assert reply.json["outputs"][0]["data"] == (PAIR[0] + PAIR[1]).ravel().tolist()
    assert machine.content(second, 64) == (PAIR[0] - PAIR[1]).tobytes()
    machine.forget(first, second)


def test_a_tensor_between_steps_stays_on_the_gpu(machine: Machine) -> None:
    count = 1 << 18
    array = np.arange(count, dtype=np.float32)
    source, target = machine.region("in", array.nbytes, 1, array.tobytes()), machine.region("out", array.nbytes, 1)
    before = machine.by_gpu()
    body = {
        "inputs": [{"name": "IN", "shape": [count], "datatype": "FP32", "parameters": part("in", 0, array.nbytes)}],
        "outputs": [{"name": "OUT", "parameters": part("out", 0, array.nbytes)}],
    }
    for _ in range(3):
        reply = machine.server.ask("POST", "/v2/models/chain/infer", body)
        assert reply.status == 200, reply.body
    assert machine.content(target, array.nbytes) == array.tobytes()
    machine.forget(source, target)
    after = machine.by_gpu()
    for uuid in after:
        for kind in ("h2d", "d2h"):
            assert after[uuid]["copies"][kind] == before[uuid]["copies"][kind]
    assert after["GPU-standin-1"]["runs"] == before["GPU-standin-1"]["runs"] + 6


def test_graphs_replay_for_whatever_lies_wherever(machine: Machine) -> None:
    """The stand-in refuses a graph that is replayed with other addresses than it was captured with."""
    random = np.random.default_rng(3)
    answers = []
    for turn in range(6):
        x = random.standard_normal((1 + turn % 2, 64)).astype(np.float32)
        body = {"inputs": [{"name": "X", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}]}
        reply = machine.server.ask("POST", "/v2/models/graphs/infer", body)
        assert reply.status == 200, reply.body
        answers.append(np.array(reply.json["outputs"][0]["data"]).reshape(-1, 10))
    assert all(np.allclose(answer.sum(axis=1), 1, rtol=1e-3) for answer in answers)
    captured = [one["gpu_graph_ids"] for one in machine.by_gpu().values()]
    assert any(1 in ids for ids in captured)


def _complaint(reply: Reply) -> str:
    assert reply.status == 400, reply.body
    text: str = reply.json["error"]
    return text.removeprefix("failed to register CUDA shared memory region 'x': ")


def test_registrations_that_are_refused(machine: Machine) -> None:
    import tritonclient.utils.cuda_shared_memory as cuda

    region = cuda.create_shared_memory_region("x", 64, 0)
    handle = cuda.get_raw_handle(region)
    assert _complaint(machine.register("x", base64.b64encode(b"?" * 64), 0, 64)) == "it is no handle of an allocation that exists"
    assert _complaint(machine.register("x", handle, 0, 65)) == "the allocation has 64 bytes, 65 were registered"
    assert _complaint(machine.register("x", handle, 1, 64)) == "the allocation lies on another GPU"
    assert _complaint(machine.register("x", handle, 2, 64)) == "there is no GPU 2 here, but: 0 (GPU-standin-0), 1 (GPU-standin-1)"
    assert _complaint(machine.register("x", handle, 0, 0)) == "invalid args"
    assert machine.register("x", handle, 0, 64).status == 200
    assert _complaint(machine.register("x", handle, 0, 64)) == "shared memory region 'x' already in manager"
    machine.forget(region)
    opened = [one for pid, one in ledgers(machine.folder).items() if pid in machine.server.workers()]
    assert all(one["opened"] == 0 for one in opened)


def test_a_lost_context_costs_its_worker_alone(machine: Machine) -> None:
    """It ends with the reason, comes back, and opens again what clients have registered; the other GPU's goes on."""
    source, other = machine.region("in", 512, 1, _pair()), machine.region("other", 512, 0, _pair())
    assert machine.infer("simple", "in", None).status == 200
    workers = set(machine.server.workers())
    fault = order_fault(machine.folder, 700, "GPU-standin-1")
    reply = machine.infer("simple", "in", None)
    fault.unlink()
    assert reply.status == 503
    assert "lost its CUDA context: cudaErrorIllegalAddress: an illegal memory access was encountered" in reply.json["error"]
    assert machine.infer("simple", "other", None).status == 200
    wait_until(lambda: machine.infer("simple", "in", None).status == 200, "the worker to come back")
    assert len(workers & set(machine.server.workers())) == len(workers) - 1
    machine.forget(source, other)


def test_a_gpu_that_could_not_be_initialised_is_tried_again_in_a_fresh_process(repository: Path, tmp_path: Path) -> None:
    variables = environment(tmp_path, gpus=1)
    with tensorfarm(repository, "--model-control-mode=explicit", folder=tmp_path / "run", environment=variables) as server:
        fault = order_fault(tmp_path, 700)
        reply = server.ask("POST", "/v2/repository/models/on_zero/load")
        fault.unlink()
        assert reply.status == 400
        assert "cannot use its GPU: cudaErrorIllegalAddress: an illegal memory access was encountered" in reply.json["error"]
        assert server.ask("POST", "/v2/repository/models/on_zero/load").status == 200


def test_regions_outlive_a_killed_worker(machine: Machine) -> None:
    """They can be used, and unregistered, as if nothing had been; nobody waits for what it would have said."""
    regions = [machine.region(f"r{number}", 512, 0, _pair()) for number in range(3)]
    (pid,) = [pid for pid, one in ledgers(machine.folder).items() if pid in machine.server.workers() and one["uuids"] == ["GPU-standin-0"]]
    os.kill(pid, signal.SIGKILL)
    assert machine.server.ask("POST", "/v2/cudasharedmemory/region/r0/unregister").status == 200
    wait_until(lambda: machine.infer("on_zero", "r1", "r2").status == 200, "the worker to come back")
    got = np.frombuffer(machine.content(regions[2], 512), np.int32).reshape(2, 64)[:, :16]
    np.testing.assert_array_equal(got, [(PAIR[0] + PAIR[1])[0], (PAIR[0] - PAIR[1])[0]])
    machine.forget(*regions)
    assert machine.by_gpu()["GPU-standin-0"]["opened"] == 0


def test_a_session_that_would_run_on_the_cpu_is_not_loaded(repository: Path, tmp_path: Path) -> None:
    variables = environment(tmp_path, gpus=1, no_cuda_ep=1)
    flags = ("--model-control-mode=explicit", "--load-model=simple", "--exit-on-error=false", "--strict-readiness=false")
    with tensorfarm(repository, *flags, folder=tmp_path / "run", environment=variables) as server:
        reply = server.ask("POST", "/v2/repository/models/simple/load")
        assert (
            reply.status == 400
            and "ONNX Runtime has no CUDAExecutionProvider here, and would run model 'simple' without" in reply.json["error"]
        )


def test_a_gpu_that_is_full_takes_no_more_models(repository: Path, tmp_path: Path) -> None:
    variables = environment(tmp_path, gpus=1, used=0.5)
    flags = ("--model-control-mode=explicit", "--model-load-gpu-limit=0:0.4", "--min-supported-compute-capability=8.0")
    with tensorfarm(repository, *flags, folder=tmp_path / "run", environment=variables) as server:
        reply = server.ask("POST", "/v2/repository/models/simple/load")
        assert "can not create model 'simple_0': memory limit set for GPU 0 has exceeded, model loading is rejected." in reply.json["error"]
        assert server.ask("POST", "/v2/repository/models/simple_cpu/load").status == 200
        assert server.ask("POST", "/v2/repository/models/on_zero/load").status == 400


def test_front_ends_know_the_same_regions(repository: Path, tmp_path: Path) -> None:
    variables = environment(tmp_path, gpus=1)
    flags = ("--model-control-mode=explicit", "--load-model=simple", "--front-ends=2")
    with tensorfarm(repository, *flags, folder=tmp_path / "run", environment=variables) as server, installed(variables):
        machine = Machine(server, tmp_path)
        source, target = machine.region("in", 512, 0, _pair()), machine.region("out", 512, 0)
        for _ in range(6):
            assert machine.infer("simple", "in", "out").status == 200
        got = np.frombuffer(machine.content(target, 512), np.int32).reshape(2, 64)[:, :16]
        np.testing.assert_array_equal(got, [(PAIR[0] + PAIR[1])[0], (PAIR[0] - PAIR[1])[0]])
        machine.forget(source, target)
        assert server.ask("GET", "/v2/cudasharedmemory/status").json == []
        # They are freed with the last reference.
        del source, target
