"""How ONNX models are loaded in the worker of a GPU; what they compute there is asked in tests/system/test_gpus.py and tests/gpu."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from tensorfarm.workers.backends import onnxruntime as module
from tensorfarm.workers.backends.onnxruntime_device import Graphs, GraphSpec, OnnxDeviceExecutor, graphs_of
from tensorfarm.workers.contract.configuration import parse_text
from tensorfarm.workers.contract.messages import InstanceSpec
from tensorfarm.workers.contract.status import StatusError

from .fake_device import FakeDeviceMemory
from .onnx_source import add_sub, source

CUDA = "CUDAExecutionProvider"
GRAPHS = "max_batch_size: 8 optimization { cuda { graphs: true } }"
ON_GPU = InstanceSpec(1, "m_0", "KIND_GPU", 0)


class Library:
    """ONNX Runtime with a CUDA that is not there: what sessions were asked for, and what it refuses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[dict[str, dict[str, str]]] = []
        self.refusal = ""
        self.lacks: set[str] = set()
        self._session = onnxruntime.InferenceSession
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
        monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
        monkeypatch.setattr(onnxruntime, "InferenceSession", self.session)

    def session(self, path: str, options: Any, providers: list[tuple[str, dict[str, str]]], **more: Any) -> Any:
        self.asked.append(dict(providers))
        if self.refusal and "enable_cuda_graph" in self.asked[-1].get(CUDA, {}):
            raise RuntimeError(self.refusal)
        made = self._session(path, options, providers=["CPUExecutionProvider"], **more)
        made.get_providers = lambda: [name for name, _ in providers if name not in self.lacks]
        return made


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    return Library(monkeypatch)


def backend() -> Any:
    surroundings: Any = SimpleNamespace(memory=SimpleNamespace(device=FakeDeviceMemory()))
    return module.backend(surroundings)


def test_instances_share_a_session_unless_each_captures_graphs(library: Library, tmp_path: Path) -> None:
    for config, sessions in (("max_batch_size: 8", 1), (GRAPHS, 2)):
        library.asked.clear()
        model = backend().load(source(tmp_path / str(sessions), add_sub(), _with_io(config)))
        made = [model.executor(ON_GPU) for _ in range(2)]
        assert all(isinstance(one, OnnxDeviceExecutor) for one in made)
        assert len(library.asked) == sessions and all(asked[CUDA]["device_id"] == "0" for asked in library.asked)
        assert len({id(one._native) for one in made}) == sessions


def test_a_model_that_graphs_cannot_be_captured_of_runs_without(
    library: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library.refusal = "This session cannot use the graph capture feature as requested by the user as the model has control flow nodes"
    model = backend().load(source(tmp_path, add_sub(), _with_io(GRAPHS)))
    executors = [model.executor(ON_GPU) for _ in range(2)]
    assert [executor._graphs for executor in executors] == [None, None]
    assert ["enable_cuda_graph" in asked[CUDA] for asked in library.asked] == [True, False]
    assert "model 'm' runs without CUDA graphs: onnx runtime error 1: This session cannot" in capsys.readouterr().err


def test_any_other_refusal_fails_the_load(library: Library, tmp_path: Path) -> None:
    library.refusal = "out of memory"
    with pytest.raises(StatusError, match="out of memory"):
        backend().load(source(tmp_path, add_sub(), _with_io(GRAPHS)))
    assert len(library.asked) == 1


def test_a_model_for_tensorrt_where_there_is_none(library: Library, tmp_path: Path) -> None:
    """ONNX Runtime's words, which name places in its sources, are for those who build it."""
    library.refusal = (
        "onnxruntime_pybind_state.cc:729 void RegisterTensorRTPluginsAsCustomOps() Please install TensorRT libraries as mentioned"
    )
    with pytest.raises(StatusError) as caught:
        backend().load(source(tmp_path, add_sub(), _with_io(GRAPHS)))
    assert caught.value.message == "ONNX Runtime finds no TensorRT here, which model 'm' asks for: it comes with tensorfarm[tensorrt]"


def test_a_provider_that_is_silently_left_out_fails_the_load(library: Library, tmp_path: Path) -> None:
    library.lacks = {CUDA}
    with pytest.raises(StatusError, match="ONNX Runtime has no CUDAExecutionProvider here, and would run model 'm' without"):
        backend().load(source(tmp_path, add_sub(), _with_io("max_batch_size: 8")))


def test_an_instance_for_a_gpu_in_a_worker_of_the_cpu(tmp_path: Path) -> None:
    model = module.backend().load(source(tmp_path, add_sub(), _with_io("max_batch_size: 8")))
    with pytest.raises(StatusError, match="is to run on a GPU, this worker has none"):
        model.executor(ON_GPU)


SPECS = """
optimization { cuda { graphs: true
  graph_spec { batch_size: 4 input { key: "A" value { dim: [ 16 ] } } }
  graph_spec { batch_size: 8 }
} }
"""


def test_graph_specs() -> None:
    graphs = graphs_of(parse_text(f'name: "m" max_batch_size: 8 {SPECS}', "the test"))
    assert graphs == Graphs((GraphSpec(4, {"A": (16,)}), GraphSpec(8, {})), True)
    assert graphs.fit({"A": (4, 16), "B": (4, 3)}) and graphs.fit({"A": (8, 5), "B": (8, 3)})
    assert not graphs.fit({"A": (4, 5), "B": (4, 3)}) and not graphs.fit({"A": (2, 16), "B": (2, 3)}) and not graphs.fit({"B": (4, 3)})
    assert Graphs((GraphSpec(0, {"A": (2, 3)}),), False).fit({"A": (2, 3), "B": ()})
    assert not Graphs((GraphSpec(0, {"A": (2, 3)}),), False).fit({"A": (3, 3)})
    assert Graphs((), True).fit({"A": (7, 1)})


def _with_io(config: str) -> str:
    def tensor(name: str) -> str:
        return f'{{ name: "{name}" data_type: TYPE_INT32 dims: [ 16 ] }}'

    inputs, outputs = (", ".join(map(tensor, names)) for names in (("IN0", "IN1"), ("SUM", "DIFFERENCE")))
    return f"{config} input [ {inputs} ] output [ {outputs} ]"
