"""The pipelines asked as any program can ask them, without a client library: one HTTP request, a JSON header and a file in it."""

from __future__ import annotations

import http.client
import json
import struct
from collections.abc import Sequence
from typing import Any

from .served import ServerError

_TIMEOUT_S = 120


def ask(address: str, model: str, tensor: str, content: bytes, shape: Sequence[int] = (1,)) -> dict[str, list[Any]]:
    """A pipeline's outputs by name, flat, for the one string that it takes as input ``tensor`` of ``shape``.

    Raises ServerError with what the server says where it refuses.
    """
    # a string travels behind its length
    value = struct.pack("<I", len(content)) + content
    asked = {"name": tensor, "datatype": "BYTES", "shape": list(shape), "parameters": {"binary_data_size": len(value)}}
    header = json.dumps({"inputs": [asked]}).encode()
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT_S)
    try:
        connection.request("POST", f"/v2/models/{model}/infer", header + value, {"Inference-Header-Content-Length": str(len(header))})
        reply = connection.getresponse()
        answer = json.loads(reply.read())
    finally:
        connection.close()
    if reply.status != 200:
        raise ServerError(f"{model} was answered with {reply.status}: {answer['error']}")
    return {output["name"]: output["data"] for output in answer["outputs"]}


def readable(outputs: dict[str, list[Any]]) -> str:
    """The answer of one of the pipelines, one line for each thing that it found."""
    if "label" in outputs:
        return "\n".join(f"{score:6.1%}  {label}" for score, label in zip(outputs["score"], outputs["label"], strict=True))
    if "text" in outputs:
        return "\n".join(outputs["text"])
    return "\n".join(f"{start:.2f} s to {stop:.2f} s" for start, stop in zip(outputs["start_s"], outputs["stop_s"], strict=True))
