"""Reading inference requests in tests: short forms of requests, inputs and the texts of refusals."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest

from tensorfarm.server.door.scratch import Scratch
from tensorfarm.server.http.infer_call import InferCall, infer_settings
from tensorfarm.server.http.infer_plan import known_plan
from tensorfarm.server.http.infer_request import read_request
from tensorfarm.shm.datatypes import DATATYPES
from tensorfarm.shm.placement import Inline
from tensorfarm.workers.contract.signature import Signature
from tensorfarm.workers.contract.status import Code, StatusError

from .echo_service import EchoService, echo_signature, http_request, spec

T = TypeVar("T")

TYPES = echo_signature("types", [spec(f"I{name}", name, -1, optional=True) for name in DATATYPES])
LIMIT = 64 * 1024 * 1024


def read(
    content: Any,
    tail: bytes = b"",
    *,
    signature: Signature = TYPES,
    headers: dict[str, str] | None = None,
    limit: int = LIMIT,
    forward: str = "",
    scratch: Scratch | None = None,
) -> InferCall:
    """Read a request: JSON values or text, with a header length where a tail follows."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    request = http_request(text + tail, headers)
    service = EchoService({}, regions_by_name={"r": 7})
    plan = None if forward else known_plan(request.body.view, len(text))
    if plan is not None:
        return replace(plan.terms, body=plan.request_body(request.body, signature, service.regions))
    return read_request(request, len(text), signature, service.regions, scratch or Scratch(), infer_settings(limit, forward))


def refusal(*args: Any, **more: Any) -> tuple[Code, str]:
    with pytest.raises(StatusError) as caught:
        read(*args, **more)
    return caught.value.code, caught.value.message


def tensor(name: str = "IINT32", datatype: str = "INT32", shape: Any = (1,), data: Any = None, **parameters: Any) -> dict[str, Any]:
    members: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
    if parameters:
        members["parameters"] = parameters
    if data is not None:
        members["data"] = data
    return members


def inputs(*items: Any, **more: Any) -> dict[str, Any]:
    return {**more, "inputs": list(items)}


def content_of(call: InferCall, at: int = 0) -> bytes:
    place = call.body.inputs[at].place
    assert type(place) is Inline
    return bytes(place.content)


def numbers(call: InferCall) -> list[Any]:
    return list(np.frombuffer(content_of(call), DATATYPES[call.body.inputs[0].datatype].dtype).tolist())


NOT_STRING = "attempt to access JSON non-string as string"
NOT_UNSIGNED = "attempt to access JSON non-unsigned-integer as unsigned-integer"
NOT_BOOLEAN = "attempt to access JSON non-boolean as boolean"
NOT_ARRAY = "attempt to access JSON non-array as array"
SOURCES = "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', 'shared_memory_region' in 'parameters'. But "


def absent(name: str) -> str:
    return f"Unable to parse '{name}': attempt to access non-existing object member '{name}'"


def finish(steps: Generator[None, None, T]) -> T:
    """What work in steps makes in the end."""
    while True:
        try:
            next(steps)
        except StopIteration as made:
            return made.value  # type: ignore[no-any-return]
