"""What Python models are asked: a repository that both servers run unchanged, the requests made beforehand, what the answers must be.

The models do next to nothing, so that what is left is the server. ``hop`` is asked how long a call from model to model takes. It makes its
tensor once, when it is loaded, calls another model with it and answers with a few of the elements that came back: the tensor
goes to the other model and returns, and no large transfer between client and server hides how long that takes. The other model is
``identity``, which answers with its input (a server may notice and move nothing), or ``plus_one``, whose output is new.
``relay`` is what a client sees of such a chain, through regions: it passes its input on to ``identity`` and answers with what came back.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from . import workload
from .load import Reply
from .workload import OCTETS, Ask, WrongAnswer, post, tensor

STREAM_LENGTH = 100
"""Responses of one stream."""

TINY_BYTE_SIZE = 64
LARGE_BYTE_SIZE = 16 << 20

_PLUS_ONE = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        tensors = [pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("OUTPUT0", tensor + 1)]) for tensor in tensors]
"""

_RELAY = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "INPUT0")
            call = pb_utils.InferenceRequest(model_name="identity", requested_output_names=["OUTPUT0"], inputs=[tensor])
            response = call.exec()
            if response.has_error():
                raise pb_utils.TritonModelException(response.error().message())
            output = pb_utils.get_output_tensor_by_name(response, "OUTPUT0")
            responses.append(pb_utils.InferenceResponse(output_tensors=[output]))
        return responses
"""

_HOP = """
import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.called = parameters["called"]["string_value"]
        self.array = np.arange(int(parameters["length"]["string_value"]), dtype=np.float32)

    def execute(self, requests):
        responses = []
        for request in requests:
            stride = int(pb_utils.get_input_tensor_by_name(request, "STRIDE").as_numpy()[0])
            tensor = pb_utils.Tensor("INPUT0", self.array)
            call = pb_utils.InferenceRequest(model_name=self.called, requested_output_names=["OUTPUT0"], inputs=[tensor])
            response = call.exec()
            if response.has_error():
                raise pb_utils.TritonModelException(response.error().message())
            output = pb_utils.get_output_tensor_by_name(response, "OUTPUT0").as_numpy()
            values = np.ascontiguousarray(output[::stride])
            responses.append(pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("VALUES", values)]))
        return responses
"""

_COUNT = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for number in range(int(pb_utils.get_input_tensor_by_name(request, "LENGTH").as_numpy()[0])):
                tensor = pb_utils.Tensor("NUMBER", np.array([number], np.int32))
                sender.send(pb_utils.InferenceResponse(output_tensors=[tensor]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

_HOP_TENSORS = """
max_batch_size: 0
input [ { name: "STRIDE" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "VALUES" data_type: TYPE_FP32 dims: [ -1 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""

_COUNT_TENSORS = """
max_batch_size: 0
model_transaction_policy { decoupled: true }
input [ { name: "LENGTH" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "NUMBER" data_type: TYPE_INT32 dims: [ 1 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""


def python_repository(folder: Path) -> Path:
    """The repository with add_sub and identity, and those of this page beside them."""
    workload.python_repository(folder)
    models = {"plus_one": (_PLUS_ONE, workload.IDENTITY), "relay": (_RELAY, workload.IDENTITY), "count": (_COUNT, _COUNT_TENSORS)}
    for called, byte_size in (("identity", TINY_BYTE_SIZE), ("identity", LARGE_BYTE_SIZE), ("plus_one", LARGE_BYTE_SIZE)):
        said = {"called": called, "length": byte_size // 4}
        lines = "".join(f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}\n' for key, value in said.items())
        models[_hop(called, byte_size)] = (_HOP, _HOP_TENSORS + lines)
    for name, (model, tensors) in models.items():
        version = folder / name / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(model)
        (version.parent / "config.pbtxt").write_text(f'name: "{name}"\nbackend: "python"{tensors}')
    return folder


def _hop(called: str, byte_size: int) -> str:
    return f"hop_{called}_{byte_size}"


def plus_one_binary(byte_size: int) -> Ask:
    """The tensor as bytes in the body; each element one more in the reply."""
    return workload.tensor_binary("plus_one", tensor(byte_size), plus_one(byte_size))


def plus_one(byte_size: int) -> NDArray[np.float32]:
    """What ``plus_one`` makes of the tensor of that size."""
    return tensor(byte_size) + np.float32(1)


def hop(called: str, byte_size: int, values: int = 16) -> Ask:
    """Have a tensor of that size go to the model ``called`` and back; about ``values`` of its elements are in the reply."""
    stride = max(1, byte_size // 4 // values)
    right = np.arange(0, byte_size // 4, stride, dtype=np.float32) + np.float32(called == "plus_one")
    described = {"name": "STRIDE", "shape": [1], "datatype": "INT32", "parameters": {"binary_data_size": 4}}
    header = json.dumps({"inputs": [described], "outputs": [{"name": "VALUES", "parameters": {"binary_data": True}}]}).encode()

    def check(reply: Reply) -> None:
        if not reply.body.endswith(right.tobytes()) or f'"shape":[{right.size}]'.encode() not in reply.body[: -right.nbytes]:
            raise WrongAnswer(f"not the elements of the tensor that was passed on: {reply.body[:300]!r}")

    return Ask(post(f"/v2/models/{_hop(called, byte_size)}/infer", header + np.int32(stride).tobytes(), OCTETS, len(header)), check)


def stream(length: int = STREAM_LENGTH) -> Ask:
    """A stream of server-sent events, one for each response."""

    def check(reply: Reply) -> None:
        lines = [line for line in reply.body.splitlines() if line]
        try:
            numbers = [msgspec.json.decode(line.removeprefix(b"data: "))["NUMBER"] for line in lines]
        except (msgspec.DecodeError, KeyError, TypeError):
            numbers = []
        if numbers != list(range(length)):
            raise WrongAnswer(f"not the events from 0 to {length - 1}: {reply.body[:300]!r}")

    return Ask(post("/v2/models/count/generate_stream", json.dumps({"LENGTH": length}).encode(), "application/json"), check)
