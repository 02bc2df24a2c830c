"""What is asked of the servers: add_sub and identity, the requests for them made beforehand, and what the answers must be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.add_sub import add_sub
from models.identity import identity

from .load import Reply

LENGTH = 16
OCTETS = "application/octet-stream"

_ADD_SUB = """
max_batch_size: 8
input [ { name: "INPUT0" data_type: TYPE_INT32 dims: [ 16 ] }, { name: "INPUT1" data_type: TYPE_INT32 dims: [ 16 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_INT32 dims: [ 16 ] }, { name: "OUTPUT1" data_type: TYPE_INT32 dims: [ 16 ] } ]
dynamic_batching { }
instance_group [ { count: 1 kind: KIND_CPU } ]
"""

IDENTITY = """
max_batch_size: 0
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""

_PYTHON_ADD_SUB = """
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

_PYTHON_IDENTITY = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        tensors = [pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("OUTPUT0", tensor)]) for tensor in tensors]
"""


class WrongAnswer(Exception):
    """A server's answer is not the right one."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request as bytes, and how to tell whether a reply to it is right: ``check`` raises WrongAnswer where it is not."""

    request: bytes
    check: Callable[[Reply], None]


def onnx_repository(folder: Path) -> Path:
    """A repository with both models in ONNX."""
    return _repository(folder, "onnxruntime", "model.onnx", add_sub(LENGTH), identity())


def python_repository(folder: Path) -> Path:
    """A repository with both models for Triton's Python backend."""
    return _repository(folder, "python", "model.py", _PYTHON_ADD_SUB.encode(), _PYTHON_IDENTITY.encode())


def _repository(folder: Path, backend: str, file: str, add_sub_model: bytes, identity_model: bytes) -> Path:
    for name, model, tensors in (("add_sub", add_sub_model, _ADD_SUB), ("identity", identity_model, IDENTITY)):
        version = folder / name / "1"
        version.mkdir(parents=True)
        (version / file).write_bytes(model)
        (version.parent / "config.pbtxt").write_text(f'name: "{name}"\nbackend: "{backend}"{tensors}')
    return folder


def post(path: str, body: bytes, content_type: str, json_byte_size: int | None = None) -> bytes:
    """A POST request; ``json_byte_size`` is said where binary tensors follow that many bytes of JSON."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n"
    if json_byte_size is not None:
        head += f"Inference-Header-Content-Length: {json_byte_size}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


# add_sub: 16 INT32 and as many ones


_FIRST = np.arange(LENGTH, dtype=np.int32)
_SECOND = np.ones(LENGTH, np.int32)
_INPUTS = {"INPUT0": _FIRST, "INPUT1": _SECOND}
_RIGHT = {"OUTPUT0": (_FIRST + _SECOND).tolist(), "OUTPUT1": (_FIRST - _SECOND).tolist()}


def _hold(found: dict[str, list[int]], reply: Reply) -> None:
    if found != _RIGHT:
        raise WrongAnswer(f"wrong sum or difference: {reply.body[:300]!r}")


def _halves(raw: bytes) -> dict[str, list[int]]:
    if len(raw) != 8 * LENGTH:
        return {}
    return {"OUTPUT0": np.frombuffer(raw[: 4 * LENGTH], np.int32).tolist(), "OUTPUT1": np.frombuffer(raw[4 * LENGTH :], np.int32).tolist()}


def add_sub_v2_binary(path: str) -> Ask:
    """V2 protocol, tensors and results in binary, as tritonclient sends it."""
    inputs = [
        {"name": name, "shape": [1, LENGTH], "datatype": "INT32", "parameters": {"binary_data_size": value.nbytes}}
        for name, value in _INPUTS.items()
    ]
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in _RIGHT]
    header = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    body = header + _FIRST.tobytes() + _SECOND.tobytes()

    def check(reply: Reply) -> None:
        tail = reply.body[-8 * LENGTH :]
        names = [output["name"] for output in _document(reply.body[: -8 * LENGTH]).get("outputs", ())]
        found = _halves(tail)
        _hold(dict(zip(names, found.values(), strict=True)) if len(names) == len(found) else {}, reply)

    return Ask(post(path, body, OCTETS, len(header)), check)


def add_sub_v2_binary_asked_once(path: str) -> Ask:
    """The same with one ``binary_data_output`` for all results and an id: the only form that KServe's server answers in binary."""
    inputs = [
        {"name": name, "shape": [1, LENGTH], "datatype": "INT32", "parameters": {"binary_data_size": value.nbytes}}
        for name, value in _INPUTS.items()
    ]
    header = json.dumps({"id": "1", "parameters": {"binary_data_output": True}, "inputs": inputs}).encode()
    body = header + _FIRST.tobytes() + _SECOND.tobytes()
    return Ask(post(path, body, OCTETS, len(header)), add_sub_v2_binary(path).check)


def add_sub_v2_json(path: str) -> Ask:
    """V2 protocol, all in JSON; with an id, because some servers make one up for each reply where none is given."""
    inputs = [{"name": name, "shape": [1, LENGTH], "datatype": "INT32", "data": value.tolist()} for name, value in _INPUTS.items()]

    def check(reply: Reply) -> None:
        _hold({output["name"]: output["data"] for output in _document(reply.body).get("outputs", ())}, reply)

    return Ask(post(path, json.dumps({"id": "1", "inputs": inputs}).encode(), "application/json"), check)


def add_sub_raw(path: str) -> Ask:
    """Both inputs one behind the other, and nothing else; the reply likewise."""
    return Ask(post(path, _FIRST.tobytes() + _SECOND.tobytes(), OCTETS), lambda reply: _hold(_halves(reply.body), reply))


def add_sub_json(path: str) -> Ask:
    """An object of two lists of numbers; the reply likewise."""
    return Ask(_plain_json(path), lambda reply: _hold(_document(reply.body), reply))


def add_sub_json_to_raw(path: str) -> Ask:
    """An object of two lists of numbers; sum and difference as bytes in the reply."""
    return Ask(_plain_json(path), lambda reply: _hold(_halves(reply.body), reply))


def add_sub_msgpack(path: str) -> Ask:
    """A msgpack map of both inputs' bytes; the reply likewise."""
    body = msgspec.msgpack.encode({name: value.tobytes() for name, value in _INPUTS.items()})

    def check(reply: Reply) -> None:
        found = msgspec.msgpack.decode(reply.body, type=dict[str, bytes])
        _hold({name: np.frombuffer(raw, np.int32).tolist() for name, raw in found.items()}, reply)

    return Ask(post(path, body, "application/msgpack"), check)


def _plain_json(path: str) -> bytes:
    return post(path, json.dumps({name: value.tolist() for name, value in _INPUTS.items()}).encode(), "application/json")


def _document(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        raise WrongAnswer(f"no JSON: {body[:300]!r}") from None
    return found if isinstance(found, dict) else {}


# identity: FP32 of any length


def tensor(byte_size: int) -> NDArray[np.float32]:
    """Numbers that compress and print as badly as real ones; the same in each run."""
    return np.random.default_rng(1).random(byte_size // 4, np.float32)


def identity_binary(byte_size: int) -> Ask:
    """The tensor as bytes, in and out."""
    value = tensor(byte_size)
    return tensor_binary("identity", value, value)


def tensor_binary(model: str, value: NDArray[np.float32], right: NDArray[np.float32]) -> Ask:
    """A tensor as bytes in the body, and in the reply what the model should make of it."""
    described = {"name": "INPUT0", "shape": [value.size], "datatype": "FP32", "parameters": {"binary_data_size": value.nbytes}}
    header = json.dumps({"inputs": [described], "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": True}}]}).encode()

    def check(reply: Reply) -> None:
        if not reply.body.endswith(right.tobytes()):
            raise WrongAnswer(f"not the tensor that it should be: {reply.body[:300]!r}")

    return Ask(post(f"/v2/models/{model}/infer", header + value.tobytes(), OCTETS, len(header)), check)


def identity_json(byte_size: int) -> Ask:
    """The tensor as numbers in JSON, in and out, written as tritonclient writes them."""
    value = tensor(byte_size)
    described = {"name": "INPUT0", "shape": [value.size], "datatype": "FP32", "data": value.tolist()}
    body = msgspec.json.encode({"inputs": [described], "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": False}}]})

    def check(reply: Reply) -> None:
        outputs = _document(reply.body).get("outputs", ())
        if len(outputs) != 1 or not np.array_equal(np.array(outputs[0]["data"], np.float32), value):
            raise WrongAnswer(f"not the tensor that was sent: {reply.body[:300]!r}")

    return Ask(post("/v2/models/identity/infer", body, "application/json"), check)
