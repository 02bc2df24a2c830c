from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tensorfarm.workers.contract.messages import AskLoad, AskReady, AskUnload
from tensorfarm.workers.contract.status import internal
from tensorfarm.workers.python import triton_python_backend_utils as pb
from tensorfarm.workers.python.errors import TritonModelException

from .fake_host import FakeHost

FROM = "Failed to process the request for model 'm_0_0', message: "
TYPES = [
    np.bool_,
    np.uint8,
    np.uint16,
    np.uint32,
    np.uint64,
    np.int8,
    np.int16,
    np.int32,
    np.int64,
    np.float16,
    np.float32,
    np.float64,
    np.object_,
]


def test_names() -> None:
    assert [name for name in pb.__all__ if not hasattr(pb, name)] == []
    assert (pb.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START, pb.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END) == (1, 2)
    assert (pb.TRITONSERVER_REQUEST_RELEASE_ALL, pb.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE) == (1, 2)
    assert (pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL, pb.TRITONSERVER_MEMORY_GPU, pb.TRITONSERVER_MEMORY_CPU) == (1, 0, 1)


def test_types() -> None:
    assert [pb.triton_to_numpy_type(number) for number in range(16)] == [None, *TYPES, None, None]
    assert [pb.numpy_to_triton_type(numpy_type) for numpy_type in TYPES] == list(range(1, 14))
    assert [pb.numpy_to_triton_type(given) for given in (np.dtype("int8"), np.bytes_, str, bool)] == [6, 13, None, None]
    assert pb.triton_string_to_numpy("TYPE_STRING") is np.object_
    assert pb.triton_string_to_numpy("TYPE_BOOL") is bool
    assert len(pb.TRITON_STRING_TO_NUMPY) == 13
    with pytest.raises(KeyError):
        pb.triton_string_to_numpy("TYPE_BF16")


def test_parts_of_a_configuration() -> None:
    config: dict[str, Any] = {"input": [{"name": "a"}, {"name": "b", "dims": [1]}], "output": [{"name": "c"}]}
    assert pb.get_input_config_by_name(config, "b") == {"name": "b", "dims": [1]}
    assert pb.get_output_config_by_name(config, "c") == {"name": "c"}
    assert pb.get_input_config_by_name(config, "c") is None and pb.get_output_config_by_name({}, "c") is None


def test_decoupled() -> None:
    assert not pb.using_decoupled_model_transaction_policy({})
    assert pb.using_decoupled_model_transaction_policy({"model_transaction_policy": {"decoupled": True}})
    assert not pb.using_decoupled_model_transaction_policy({"model_transaction_policy": {"decoupled": False}})


def test_model_dir(fake_host: FakeHost) -> None:
    assert pb.get_model_dir() == fake_host.model_directory


def test_traces_say_their_context_if_any() -> None:
    assert pb.InferenceTrace().get_context() is None
    assert pb.InferenceTrace("{}").get_context() == "{}"


def test_models_are_loaded_unloaded_and_asked_for(fake_host: FakeHost) -> None:
    fake_host.replies = {AskReady: True}
    pb.load_model("a")
    pb.load_model("b", config="{}", files={"file:1/model.py": b"x"})
    pb.unload_model("a")
    pb.unload_model(model_name="b", unload_dependents=True)
    assert pb.is_model_ready("a") is True
    fake_host.replies = {AskReady: False}
    assert pb.is_model_ready("a", "3") is False
    assert fake_host.asked == [
        AskLoad(0, "a", "", {}),
        AskLoad(0, "b", "{}", {"file:1/model.py": b"x"}),
        AskUnload(0, "a", False),
        AskUnload(0, "b", True),
        AskReady(0, "a", ""),
        AskReady(0, "a", "3"),
    ]


def test_what_the_server_refuses(fake_host: FakeHost) -> None:
    fake_host.replies = {kind: internal("no") for kind in (AskLoad, AskReady, AskUnload)}
    for function, text in (
        (pb.load_model, "Failed to load model"),
        (pb.unload_model, "Failed to unload model"),
        (pb.is_model_ready, "Failed to check model readiness"),
    ):
        with pytest.raises(TritonModelException) as raised:
            function("a")
        assert str(raised.value) == f"{text}: {FROM}no"


def test_files_are_a_dictionary_of_bytes(fake_host: FakeHost) -> None:
    with pytest.raises(TritonModelException) as raised:
        pb.load_model("m", files=[1])  # type: ignore[arg-type]
    assert str(raised.value) == "failed to load model 'm', files should be a dictionary of file paths and file contents"
    with pytest.raises(TypeError, match=r"^Object of type 'str' is not an instance of 'bytes'$"):
        pb.load_model("m", files={"file:1/model.py": "text"})  # type: ignore[dict-item]
    assert fake_host.asked == []


@pytest.mark.parametrize(
    "operation",
    [
        lambda: pb.load_model(5),  # type: ignore[arg-type]
        lambda: pb.load_model("m", config={}),  # type: ignore[arg-type]
        lambda: pb.unload_model(5),  # type: ignore[arg-type]
        lambda: pb.unload_model("m", 1),  # type: ignore[arg-type]
        lambda: pb.is_model_ready(5),  # type: ignore[arg-type]
        lambda: pb.is_model_ready("m", 1),  # type: ignore[arg-type]
    ],
)
def test_other_types(fake_host: FakeHost, operation: Any) -> None:
    with pytest.raises(TypeError, match="incompatible"):
        operation()
    assert fake_host.asked == []
