"""What is asked of the servers: the same model for each, and the request made beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from models.add_sub import add_sub

_LENGTH = 16

_TENSORS = """
max_batch_size: 8
input [ { name: "INPUT0" data_type: TYPE_INT32 dims: [ 16 ] }, { name: "INPUT1" data_type: TYPE_INT32 dims: [ 16 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_INT32 dims: [ 16 ] }, { name: "OUTPUT1" data_type: TYPE_INT32 dims: [ 16 ] } ]
dynamic_batching { }
instance_group [ { count: 1 kind: KIND_CPU } ]
"""

_PYTHON_MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            first = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
            second = pb_utils.get_input_tensor_by_name(request, "INPUT1").as_numpy()
            outputs = [pb_utils.Tensor("OUTPUT0", first + second), pb_utils.Tensor("OUTPUT1", first - second)]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return responses
"""


def onnx_repository(folder: Path) -> Path:
    """A repository with add_sub as an ONNX model."""
    version = folder / "add_sub" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(add_sub(_LENGTH))
    (version.parent / "config.pbtxt").write_text('name: "add_sub"\nbackend: "onnxruntime"' + _TENSORS)
    return folder


def python_repository(folder: Path) -> Path:
    """A repository with add_sub as a model of Triton's Python backend."""
    version = folder / "add_sub" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(_PYTHON_MODEL)
    (version.parent / "config.pbtxt").write_text('name: "add_sub"\nbackend: "python"' + _TENSORS)
    return folder


def binary_request() -> bytes:
    """The request, batch size 1, tensors and results in binary, as tritonclient sends it."""
    first = np.arange(_LENGTH, dtype=np.int32).reshape(1, _LENGTH)
    second = np.ones((1, _LENGTH), np.int32)
    inputs = [
        {"name": name, "shape": [1, _LENGTH], "datatype": "INT32", "parameters": {"binary_data_size": value.nbytes}}
        for name, value in (("INPUT0", first), ("INPUT1", second))
    ]
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in ("OUTPUT0", "OUTPUT1")]
    header = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    body = header + first.tobytes() + second.tobytes()
    head = (
        "POST /v2/models/add_sub/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {len(header)}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def check_reply(reply: bytes) -> None:
    """Are sum and difference in the reply? Raises ValueError where not."""
    _, _, body = reply.partition(b"\r\n\r\n")
    first = np.arange(_LENGTH, dtype=np.int32)
    results = {(first + 1).tobytes(), (first - 1).tobytes()}
    tail = body[-8 * _LENGTH :]
    if {tail[: 4 * _LENGTH], tail[4 * _LENGTH :]} != results:
        raise ValueError(f"wrong results: {reply[:300]!r}")
