"""``triton_python_backend_utils``: what a Python model imports under that name, and all it knows of the server.

Names and behaviour are those of Triton's Python backend, whose documentation is the reference for models.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...shm.datatypes import DATATYPES
from ..contract.messages import AskLoad, AskReady, AskUnload
from ..contract.status import StatusError
from . import host
from .errors import TritonError, TritonModelException, are, incompatible, refused
from .logger import Logger
from .metrics import Metric, MetricFamily, MetricKind
from .model_config import ModelConfig
from .preferred_memory import MemoryType, PreferredMemory
from .request import InferenceRequest
from .response import InferenceResponse
from .sender import InferenceResponseSender
from .strings import deserialize_bytes_tensor, serialize_byte_tensor
from .tensor import Tensor
from .trace import InferenceTrace

__all__ = [
    "TRITONSERVER_MEMORY_CPU",
    "TRITONSERVER_MEMORY_GPU",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START",
    "TRITONSERVER_REQUEST_RELEASE_ALL",
    "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE",
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL",
    "TRITON_STRING_TO_NUMPY",
    "InferenceRequest",
    "InferenceResponse",
    "InferenceResponseSender",
    "InferenceTrace",
    "Logger",
    "MemoryType",
    "Metric",
    "MetricFamily",
    "MetricKind",
    "ModelConfig",
    "PreferredMemory",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "deserialize_bytes_tensor",
    "get_input_config_by_name",
    "get_input_tensor_by_name",
    "get_model_dir",
    "get_output_config_by_name",
    "get_output_tensor_by_name",
    "is_model_ready",
    "load_model",
    "numpy_to_triton_type",
    "serialize_byte_tensor",
    "triton_string_to_numpy",
    "triton_to_numpy_type",
    "unload_model",
    "using_decoupled_model_transaction_policy",
]

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = 2
TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
TRITONSERVER_REQUEST_RELEASE_ALL = 1
TRITONSERVER_REQUEST_RELEASE_RESCHEDULE = 2
TRITONSERVER_MEMORY_GPU = MemoryType.TRITONSERVER_MEMORY_GPU
TRITONSERVER_MEMORY_CPU = MemoryType.TRITONSERVER_MEMORY_CPU

# numpy has no BF16, and elements of BYTES are objects
_NUMPY: dict[str, type[Any]] = {
    datatype.config_name: np.object_ if datatype.name == "BYTES" else datatype.dtype.type
    for datatype in DATATYPES.values()
    if datatype.name != "BF16"
}
_NUMPY_BY_NUMBER = {datatype.number: _NUMPY[datatype.config_name] for datatype in DATATYPES.values() if datatype.name != "BF16"}
_NUMBERS: dict[type[Any], int] = {numpy_type: number for number, numpy_type in _NUMPY_BY_NUMBER.items()} | {
    np.bytes_: DATATYPES["BYTES"].number
}

TRITON_STRING_TO_NUMPY: dict[str, type[Any]] = _NUMPY | {"TYPE_BOOL": bool}
"""numpy's type by a datatype's name in a configuration."""


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    """A request's input of this name, or None."""
    for tensor in inference_request._tensors():
        if tensor._name == name:
            return tensor
    return None


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    """A response's output of this name, or None."""
    for tensor in inference_response.tensors:
        if tensor._name == name:
            return tensor
    return None


def get_input_config_by_name(model_config: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The part of a configuration about the input of this name, or None."""
    return _named(model_config.get("input", []), name)


def get_output_config_by_name(model_config: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The part of a configuration about the output of this name, or None."""
    return _named(model_config.get("output", []), name)


def _named(tensors: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    return next((tensor for tensor in tensors if tensor["name"] == name), None)


def using_decoupled_model_transaction_policy(model_config: dict[str, Any]) -> bool:
    """Does a configuration say that a request may have any number of responses?"""
    policy = model_config.get("model_transaction_policy")
    return bool(policy["decoupled"]) if policy is not None else False


def triton_to_numpy_type(data_type: int) -> type[Any] | None:
    """numpy's type by a datatype's number, or None."""
    return _NUMPY_BY_NUMBER.get(data_type)


def numpy_to_triton_type(data_type: Any) -> int | None:
    """A datatype's number by numpy's type or dtype, or None."""
    if isinstance(data_type, np.dtype):
        data_type = data_type.type
    return _NUMBERS.get(data_type)


def triton_string_to_numpy(triton_type_string: str) -> type[Any]:
    """numpy's type by a datatype's name in a configuration. Raises KeyError for others."""
    return TRITON_STRING_TO_NUMPY[triton_type_string]


def get_model_dir() -> str:
    """The folder that holds the model's file."""
    return host.required().model_directory


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """Is a model of this server ready, the newest version where none is given? Raises TritonModelException for a bad version."""
    if not are(str, model_name, model_version):
        raise incompatible("is_model_ready(model_name: str, model_version: str = '')", model_name, model_version)
    try:
        return bool(host.required().ask(AskReady(0, model_name, model_version)))
    except StatusError as error:
        raise refused("Failed to check model readiness", error) from error


def load_model(model_name: str, config: str = "", files: dict[str, bytes] | None = None) -> None:
    """Load a model of the repository, with another configuration (JSON), with other files (``{"file:1/model.py": content}``).

    Raises TritonModelException where it does not load, TypeError for other types.
    """
    if not are(str, model_name, config):
        raise incompatible("load_model(model_name: str, config: str = '', files: dict[str, bytes] = None)", model_name, config, files)
    if files is not None and not isinstance(files, dict):
        raise TritonModelException(f"failed to load model '{model_name}', files should be a dictionary of file paths and file contents")
    for path, content in (files or {}).items():
        if not isinstance(path, str):
            raise TypeError(f"Object of type '{type(path).__name__}' is not an instance of 'str'")
        if not isinstance(content, bytes):
            raise TypeError(f"Object of type '{type(content).__name__}' is not an instance of 'bytes'")
    try:
        host.required().ask(AskLoad(0, model_name, config, files or {}))
    except StatusError as error:
        raise refused("Failed to load model", error) from error


def unload_model(model_name: str, unload_dependents: bool = False) -> None:
    """Unload a model, and with it those that only it needs. Raises TritonModelException where that fails, TypeError for other types."""
    if not are(str, model_name) or not are(bool, unload_dependents):
        raise incompatible("unload_model(model_name: str, unload_dependents: bool = False)", model_name, unload_dependents)
    try:
        host.required().ask(AskUnload(0, model_name, unload_dependents))
    except StatusError as error:
        raise refused("Failed to unload model", error) from error


for _shown in (
    InferenceRequest,
    InferenceResponse,
    InferenceResponseSender,
    InferenceTrace,
    Logger,
    Metric,
    MetricFamily,
    PreferredMemory,
    Tensor,
    TritonError,
    TritonModelException,
):
    # What the names of types say in errors is part of what users know.
    _shown.__module__ = "c_python_backend_utils"
