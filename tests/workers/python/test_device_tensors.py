"""Tensors in a GPU's memory: those that a model gets where a client has put them, and those that it makes itself."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorfarm.shm import copy_on_write
from tensorfarm.shm.placement import Inline, Lease, Placement
from tensorfarm.workers.contract import messages
from tensorfarm.workers.contract.messages import Call, RequestBody, WantedOutput
from tensorfarm.workers.contract.status import StatusError
from tensorfarm.workers.output import INLINE_BYTE_SIZE
from tensorfarm.workers.python import host
from tensorfarm.workers.python import triton_python_backend_utils as pb
from tensorfarm.workers.python.devices import NO_CUPY, Devices
from tensorfarm.workers.python.errors import TritonModelException
from tensorfarm.workers.python.memory import ModelMemory, SharedInputs
from tensorfarm.workers.python.tensor import Tensor

from ..real_memory import request
from .device_bench import CUDA_REGION, GpuBench, Lent, Region, Work, gpu_bench
from .fake_host import FakeHost
from .test_calls import Line, line
from .test_dlpack import NOT_CONTIGUOUS, Consumer
from .test_execution import PATIENCE_S, Stage, stage

__all__ = ["line", "stage"]

# the process's one descriptor of it: opened before the leak check counts
copy_on_write._pagemap()

IN_GPU = "Tensor is stored in GPU and cannot be converted to NumPy."
X = np.arange(64, dtype=np.float32)
LARGE = np.arange(INLINE_BYTE_SIZE, dtype=np.float32)


@pytest.fixture
def cpu(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GpuBench]:
    """A worker of the CPU, on a machine with GPUs."""
    memory = stage.world.memory
    with gpu_bench(memory, tmp_path) as made:
        monkeypatch.setattr(host, "current", FakeHost(device=Devices(memory).opened))
        yield made
        monkeypatch.setattr(host, "current", FakeHost())
        stage.execution = None
        gc.collect()


@pytest.fixture
def gpu(cpu: GpuBench) -> GpuBench:
    """A worker of a GPU."""
    cpu.give_gpu()
    return cpu


def received(gpu: GpuBench, place: Placement, datatype: str = "FP32", cpu_only: bool = False) -> tuple[Tensor, SharedInputs]:
    """The input of a request."""
    inputs = SharedInputs(ModelMemory(gpu.memory, cpu_only=cpu_only))
    byte_size = 4 if datatype == "FP32" else 2
    tensor = Tensor.received(messages.Tensor("X", datatype, (2, place.byte_size // byte_size // 2), place), inputs)
    inputs.watch([tensor])
    return tensor, inputs


def given(tensor: Tensor, **more: Any) -> Any:
    """What a library finds in a tensor's capsule."""
    consumer = Consumer(tensor.__dlpack__(**more))
    told = consumer.managed.tensor
    found = told.content, (told.device.kind, told.device.number), told.shape[: told.rank], (told.type.code, told.type.bits)
    assert (told.byte_offset, told.type.lanes) == (0, 1)
    assert not told.strides or told.strides[: told.rank] == [*told.shape[1 : told.rank], 1]
    consumer.give_back()
    return found


def refused(work: Callable[[], object]) -> str:
    """What a model is told; nothing is kept of it but the words."""
    try:
        work()
    except TritonModelException as error:
        return str(error)
    raise AssertionError("it is not refused")


# inputs


def test_an_input_is_where_the_client_has_put_it(gpu: GpuBench) -> None:
    region = gpu.region(X.tobytes())
    tensor, inputs = received(gpu, region.span(64, 128))
    assert not tensor.is_cpu() and tensor.__dlpack_device__() == (2, 0) and tensor.shape() == [2, 16]
    for _ in range(2):
        assert given(tensor) == (region.address + 64, (2, 0), [2, 16], (2, 32))
    assert refused(tensor.as_numpy) == IN_GPU
    del tensor
    inputs.finish()
    assert gpu.copies == {}


def test_the_original_complains_of_the_gpu_first(gpu: GpuBench) -> None:
    tensor, _ = received(gpu, gpu.region(X.tobytes()).span(), "BF16")
    assert refused(tensor.as_numpy) == IN_GPU
    assert given(tensor)[2:] == ([2, 64], (4, 16))


def test_bool_and_nothing(gpu: GpuBench) -> None:
    region = gpu.region(bytes(8))
    _, inputs = received(gpu, region.span())
    flags = Tensor.received(messages.Tensor("B", "BOOL", (2, 4), region.span()), inputs)
    assert given(flags)[3] == (6, 8)
    nothing = Tensor.received(messages.Tensor("N", "FP32", (0, 3), region.span(4, 0)), inputs)
    assert given(nothing) == (region.address + 4, (2, 0), [0, 3], (2, 32))


@pytest.mark.parametrize("cpu_only", [True, False])
def test_what_lies_in_ordinary_memory_stays_there(stage: Stage, gpu: GpuBench, cpu_only: bool) -> None:
    stage.show(lambda requests: None)
    for place in (stage.world.leased(X.tobytes()), stage.world.spanned(0, X.tobytes()), Inline(memoryview(X.tobytes()))):
        tensor, inputs = received(gpu, place, cpu_only=cpu_only)
        assert tensor.is_cpu() and tensor.__dlpack_device__() == (1, 0)
        np.testing.assert_array_equal(tensor.as_numpy().ravel(), X)
        del tensor
        inputs.finish()
    assert not gpu.touched


def test_a_model_that_wants_ordinary_memory_gets_a_copy_of_its_own(gpu: GpuBench) -> None:
    region = gpu.region(X.tobytes())
    tensor, inputs = received(gpu, region.span(), cpu_only=True)
    assert tensor.is_cpu()
    tensor.as_numpy()[:] = 1
    assert given(tensor)[1] == (1, 0) and gpu.copies == {"d2h": 1}
    again, _ = received(gpu, region.span(), cpu_only=True)
    inputs.finish()
    np.testing.assert_array_equal(again.as_numpy().ravel(), X)
    assert (tensor.as_numpy() == 1).all() and region.content() == X.tobytes()


def test_strings_are_in_ordinary_memory(stage: Stage, gpu: GpuBench) -> None:
    region = gpu.region(b"\3\0\0\0abc\0\0\0\0")
    seen = []

    def work(requests: list[Any]) -> list[pb.InferenceResponse]:
        seen.extend((tensor.is_cpu(), tensor.as_numpy().tolist()) for tensor in requests[0].inputs())
        return [pb.InferenceResponse([])]

    stage.show(work, cpu_only=False)
    (result,) = stage.run(request([messages.Tensor("S", "BYTES", (2,), region.span())])).results
    assert result is not None and result.fault is None
    assert seen == [(True, [b"abc", b""])]


def test_a_region_that_is_broken_is_told_to_its_request_alone(stage: Stage, gpu: GpuBench) -> None:
    stage.show(lambda requests: [pb.InferenceResponse([]) for _ in requests], cpu_only=False)
    region = gpu.region(X.tobytes())
    inputs = [messages.Tensor("X", "FP32", (64,), place) for place in (region.span(), region.span(16, 256))]
    good, bad = stage.run(*[request([one]) for one in inputs]).results
    assert good is not None and good.fault is None
    assert bad is not None and bad.fault is not None and "beyond its region" in bad.fault.message


# tensors that a model hands over


def test_memory_of_a_library_is_given_back_once(gpu: GpuBench) -> None:
    lent = Lent(Work(256).address, (2, 32))
    tensor = Tensor.from_dlpack("Y", lent.capsule)
    assert "used_dltensor" in repr(lent.capsule)
    other = Tensor.from_dlpack("Z", tensor)
    assert not tensor.is_cpu() and other.shape() == [2, 32] and other.triton_dtype() == 11
    assert refused(other.as_numpy) == IN_GPU
    consumer = Consumer(other.to_dlpack())
    unused: Any = other.to_dlpack()
    for holder in (tensor, other):
        assert given(holder)[:2] == (lent._managed.tensor.content + 8, (2, 0))
    del tensor, holder
    gc.collect()
    del other, unused
    gc.collect()
    assert lent.returns == 0
    consumer.give_back()
    gc.collect()
    assert lent.returns == 1 and gpu.copies == {}


@pytest.mark.parametrize("kind", [2, 13])
def test_objects_that_give_capsules(gpu: GpuBench, kind: int) -> None:
    lent = Lent(Work(256).write(X.tobytes()).address, (64,), kind=kind)
    tensor = Tensor.from_dlpack("Y", lent)
    assert not tensor.is_cpu() and lent.returns == 0
    content = tensor.content()
    assert isinstance(content, np.ndarray) and content.tolist() == X.tolist()
    del tensor
    assert lent.returns == 1


@pytest.mark.parametrize(
    ("more", "text"),
    [({"strides": (1, 2)}, NOT_CONTIGUOUS), ({"kind": 4}, "DLPack tensors in a device's memory are not supported.")],
)
def test_what_is_refused_stays_the_library_s(gpu: GpuBench, more: Any, text: str) -> None:
    lent = Lent(1 << 20, (2, 2), **more)
    assert refused(lambda: Tensor.from_dlpack("Y", lent.capsule)) == text and lent.returns == 0 and '"dltensor"' in repr(lent.capsule)


def test_whoever_takes_a_model_s_tensor_finds_the_work_done(gpu: GpuBench) -> None:
    work = Work(256)
    tensor = Tensor.from_dlpack("Y", Lent(work.address, (2, 32)).capsule)
    for stream, expected in ((-1, b"\xcd" * 256), (1, X.tobytes())):
        work.write(X.tobytes())
        given(tensor, stream=stream)
        # One copy, in a stream of its own, shows what is there by now.
        assert bytes(gpu.memory.devices_own().read(work.address, 256)) == expected


# outputs


def answer(stage: Stage, gpu: GpuBench, respond: Callable[[Tensor], Tensor], body: RequestBody, decoupled: bool = False) -> messages.Tensor:
    """The output of a model that answers its input with what ``respond`` makes of it."""

    def work(requests: list[Any]) -> Any:
        responses = [pb.InferenceResponse([respond(one.inputs()[0])]) for one in requests]
        if not decoupled:
            return responses
        for one, response in zip(requests, responses, strict=True):
            one.get_response_sender().send(response, 1)
        return None

    stage.show(work, decoupled, cpu_only=False)
    done = stage.run(body)
    result = stage.said[-1].result if decoupled else done.results[0]
    assert result is not None and result.fault is None, result
    return result.outputs[0]


def asked(region: Region, output: Placement | None, byte_size: int | None = None) -> RequestBody:
    place = region.span(0, byte_size)
    wanted = WantedOutput("OUT", output)  # type: ignore[arg-type]
    return request([messages.Tensor("IN", "FP32", (place.byte_size // 4,), place)], outputs=[wanted])


def made(content: np.ndarray[Any, Any]) -> tuple[Callable[[Tensor], Tensor], Lent]:
    """What answers with memory of a model's own, into which it is still writing."""
    lent = Lent(Work(content.nbytes).write(content.tobytes()).address, content.shape)
    return lambda _: Tensor.from_dlpack("OUT", lent.capsule), lent


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("where", ["cuda", "system", "message", "arena"])
def test_an_output_is_copied_once_when_it_is_there(stage: Stage, gpu: GpuBench, where: str, decoupled: bool) -> None:
    source, content = gpu.region(bytes(4)), X if where == "message" else LARGE
    target = gpu.region(bytes(content.nbytes + 512), 10)
    span = {"cuda": target.span(256), "system": stage.world.spanned(64, bytes(content.nbytes))}.get(where)
    respond, lent = made(content)
    before = gpu.copies
    output = answer(stage, gpu, respond, asked(source, span), decoupled)
    assert (output.shape, output.datatype) == (content.shape, "FP32")
    assert lent.returns == 1
    # The request of a model that answers by a sender is still there when its input's memory is not its own any more.
    kept = {"d2d": 1} if decoupled else {}
    copied = {"d2d": 1 + decoupled} if where == "cuda" else {"d2h": 1, **kept}
    assert gpu.copies == {**before, **copied}
    if where == "cuda":
        assert target.content() == bytes(256) + content.tobytes() + bytes(256)
    else:
        assert type(output.place) is {"system": type(span), "message": Inline, "arena": Lease}[where]
        assert stage.world.content(output.place) == content.tobytes()


def test_an_output_without_room(stage: Stage, gpu: GpuBench) -> None:
    respond, lent = made(X)
    stage.show(lambda requests: [pb.InferenceResponse([respond(requests[0].inputs()[0])])], cpu_only=False)
    region = gpu.region(bytes(16))
    (result,) = stage.run(asked(region, region.span())).results
    assert result is not None and result.fault is not None and "16 bytes" in result.fault.message
    assert lent.returns == 1 and region.content() == bytes(16)


def test_nothing_stays_of_outputs_that_cannot_be_copied(stage: Stage, gpu: GpuBench) -> None:
    respond, _ = made(LARGE)
    astray = Lent(gpu.memory.devices_own().device.allocate(16), (1 << 16,))
    tensors = [Tensor("OTHER", LARGE), respond, Tensor.from_dlpack("OUT", astray.capsule)]
    stage.show(lambda requests: [pb.InferenceResponse([tensors[0], tensors[2]])], cpu_only=False)
    (result,) = stage.run().results
    assert result is not None and result.fault is not None and "a call of CUDA failed" in result.fault.message
    assert stage.world.outputs.used_byte_size == 0


@pytest.mark.parametrize("touched", [False, True])
@pytest.mark.parametrize("where", ["same", "overlapping", "cuda", "message"])
def test_an_input_that_is_an_output(stage: Stage, gpu: GpuBench, where: str, touched: bool) -> None:
    region, other = gpu.region(X.tobytes() + bytes(256)), gpu.region(bytes(256), 10)
    span = {"same": region.span(0, 256), "overlapping": region.span(64, 256), "cuda": other.span()}.get(where)
    writing = Work(1)
    changed = X + 1 if touched else X

    def respond(tensor: Tensor) -> Tensor:
        if touched:
            writing.write(changed.tobytes(), given(tensor)[0])
        return Tensor.from_dlpack("OUT", tensor)

    output = answer(stage, gpu, respond, asked(region, span, 256))
    if where == "cuda":
        assert other.content() == changed.tobytes()
    elif where == "message":
        assert stage.world.content(output.place) == changed.tobytes()
    else:
        offset = 0 if where == "same" else 64
        assert region.content()[offset : offset + 256] == changed.tobytes()
    copies = {"same": {}, "overlapping": {"d2h": 1, "h2d": 1}, "cuda": {"d2d": 1}, "message": {"d2h": 1}}[where]
    writes = {"h2d": copies.get("h2d", 0) + 1} if touched else {}
    assert gpu.copies == {**copies, **writes}


def test_an_output_on_another_gpu(stage: Stage, gpu: GpuBench) -> None:
    region = gpu.region(bytes(256))
    lent = Lent(Work(256, ordinal=1).write(X.tobytes()).address, (64,), ordinal=1)
    answer(stage, gpu, lambda _: Tensor.from_dlpack("OUT", lent.capsule), asked(region, region.span()))
    assert region.content() == X.tobytes()


# tensors that are kept


def test_a_kept_tensor_keeps_what_the_request_had(gpu: GpuBench) -> None:
    region = gpu.region(X.tobytes())
    tensor, inputs = received(gpu, region.span())
    other = Tensor.from_dlpack("Y", tensor)
    inputs.finish()
    inputs.finish()
    assert gpu.copies == {"d2d": 1}
    gpu.memory.detach(CUDA_REGION)
    for kept in (tensor, other):
        content = kept.content()
        assert not kept.is_cpu() and kept.place is None
        assert isinstance(content, np.ndarray) and content.ravel().tolist() == X.tolist()


def test_a_kept_tensor_that_nobody_had_looked_at(gpu: GpuBench) -> None:
    tensor, inputs = received(gpu, gpu.region(X.tobytes()).span())
    inputs.finish()
    gpu.memory.detach(CUDA_REGION)
    assert not tensor.is_cpu() and tensor.content().tobytes() == X.tobytes()  # type: ignore[union-attr]


def test_what_a_model_still_does_with_a_region_is_waited_for(gpu: GpuBench) -> None:
    region = gpu.region(bytes(256))
    tensor, inputs = received(gpu, region.span())
    consumer = Consumer(tensor.to_dlpack())
    Work(1).write(X.tobytes(), consumer.managed.tensor.content)
    del tensor
    assert region.content() == bytes(256)
    inputs.finish()
    assert region.content() == X.tobytes() and gpu.copies == {"h2d": 1}
    consumer.give_back()


def test_the_memory_of_kept_tensors_is_used_again(gpu: GpuBench) -> None:
    region, memory = gpu.region(X.tobytes()), gpu.memory
    model_memory = ModelMemory(memory, cpu_only=False)
    addresses, consumers = [], []
    for turn in range(4):
        inputs = SharedInputs(model_memory)
        tensor = Tensor.received(messages.Tensor("X", "FP32", (2, 32), region.span()), inputs)
        inputs.watch([tensor])
        inputs.finish()
        addresses.append(given(tensor)[0])
        if turn == 2:
            consumers.append(Consumer(tensor.to_dlpack()))
        del tensor
    assert len(set(addresses[:3])) == 1 and addresses[3] != addresses[2], "a capsule holds it"
    consumers.pop().give_back()


def test_a_kept_tensor_without_room(cpu: GpuBench, monkeypatch: pytest.MonkeyPatch) -> None:
    device = cpu.give_gpu(0)
    tensor, inputs = received(cpu, cpu.region(X.tobytes()).span())
    monkeypatch.setattr(device, "reserve", lambda byte_size: (_ for _ in ()).throw(StatusError(14, "no room")))
    inputs.finish()
    for use in (tensor.content, tensor.to_dlpack):
        with pytest.raises(StatusError, match="has ended"):
            use()


# calls of other models


@pytest.fixture
def call(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Caller]:
    """What makes calls in a worker of a GPU."""
    with gpu_bench(line.world.memory, tmp_path) as gpu:
        monkeypatch.setattr(host, "current", line.calls)
        gpu.give_gpu()
        yield Caller(line, gpu)
        monkeypatch.setattr(host, "current", None)


@dataclass
class Caller:
    """Calls another model with one tensor, and gets an empty answer."""

    line: Line
    gpu: GpuBench

    def place_of(self, tensor: Tensor, decoupled: bool = False) -> tuple[Placement, bytes]:
        """Where the call has its input, and what lies there."""
        outcome = self.line.exec(tensor, decoupled=decoupled)
        asked = self.line.heard(Call)
        place = asked.body.inputs[0].place
        content = self.line.world.content(place)
        self.line.answer(asked)
        for response in [outcome.get(timeout=PATIENCE_S)] if not decoupled else outcome.get(timeout=PATIENCE_S):
            assert not response.has_error()
        return place, content


def test_an_untouched_input_is_passed_on_where_it_lies(call: Caller) -> None:
    span = call.gpu.region(LARGE.tobytes()).span()
    tensor, inputs = received(call.gpu, span)
    assert not tensor.is_cpu() and call.place_of(tensor)[0] == span
    # What a model may have written to is copied, and so is what is still wanted when its request has ended.
    place, content = call.place_of(tensor, decoupled=True)
    assert isinstance(place, Lease) and content == LARGE.tobytes()
    Work(1).write(LARGE[::-1].tobytes(), given(Tensor.from_dlpack("T", tensor))[0])
    place, content = call.place_of(tensor)
    assert isinstance(place, Lease) and content == LARGE[::-1].tobytes()
    assert call.line.world.outputs.used_byte_size == 0
    del tensor
    inputs.finish()


@pytest.mark.parametrize("array", [X, LARGE])
@pytest.mark.parametrize("decoupled", [False, True])
def test_a_call_with_memory_of_the_model_s_own(call: Caller, array: np.ndarray[Any, Any], decoupled: bool) -> None:
    respond, lent = made(array)
    place, content = call.place_of(respond(Tensor("X", X)), decoupled)
    assert type(place) is (Inline if array is X else Lease) and content == array.tobytes()
    assert lent.returns == 1 and call.gpu.copies == {"h2d": 1, "d2h": 1}
    assert call.line.world.outputs.used_byte_size == 0


# workers of the CPU


def test_a_worker_of_the_cpu_opens_nothing(stage: Stage, cpu: GpuBench) -> None:
    def work(requests: list[Any]) -> list[pb.InferenceResponse]:
        (tensor,) = requests[0].inputs()
        assert tensor.is_cpu()
        return [pb.InferenceResponse([pb.Tensor("OUT", tensor.as_numpy() + 1)])]

    stage.show(work, cpu_only=False)
    for place in (stage.world.leased(X.tobytes()), stage.world.spanned(0, X.tobytes()), Inline(memoryview(X.tobytes()))):
        (result,) = stage.run(request([messages.Tensor("X", "FP32", (64,), place)])).results
        assert result is not None and result.fault is None
    assert not cpu.touched and "cupy" not in sys.modules


def test_a_worker_of_the_cpu_takes_what_its_model_has_on_a_gpu(stage: Stage, cpu: GpuBench) -> None:
    lents = [Lent(Work(256, ordinal).write((X + ordinal).tobytes()).address, (64,), ordinal=ordinal) for ordinal in (1, 0)]
    stage.show(lambda requests: [pb.InferenceResponse([pb.Tensor.from_dlpack("OUT", lent.capsule) for lent in lents])])
    (result,) = stage.run().results
    assert result is not None and result.fault is None
    assert [np.frombuffer(stage.world.content(output.place), np.float32)[0] for output in result.outputs] == [1, 0]
    assert [lent.returns for lent in lents] == [1, 1] and cpu.copies == {"h2d": 2, "d2h": 2}


def test_an_interpreter_without_cupy(cpu: GpuBench) -> None:
    lent = Lent(Work(256).address, (64,))
    # In a block of its own: it is to be undone before the stand-in goes.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", None)
        assert refused(lambda: Tensor.from_dlpack("Y", lent.capsule)) == NO_CUPY
        gc.collect()
        assert lent.returns == 1


def test_a_gpu_that_is_not_there(cpu: GpuBench) -> None:
    with pytest.raises(TritonModelException, match="the GPU cannot be used: .*invalid device ordinal"):
        Tensor.from_dlpack("Y", Lent(1 << 20, (64,), ordinal=7).capsule)
