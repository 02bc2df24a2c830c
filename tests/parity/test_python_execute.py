"""What one execute() of a Python model does to its one request: errors and their texts, answers, tensors, what the model sees."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from ..wire import compact, exchange
from .case import Case, Difference, check, infer, tensor


def verb(model: str, what: str, **more: Any) -> Case:
    """A request to one of the models that do what their input VERB says."""
    return infer(f"{model}: {what}", model, {"inputs": [tensor("VERB", "BYTES", [1], [what])], **more})


FAULTS = [
    *("value", "empty", "key", "own", "two lines", "not ascii", "quotes", "os", "unicode", "keyboard", "base", "stop", "model"),
    *("not an exception", "deep", "chained", "comprehended", "division", "exit", "name", "import", "none of them"),
]

RETURNED = [
    *("tuple", "number", "text", "dict", "iterator", "array", "true", "false", "no responses", "two responses"),
    *("list of numbers", "list of errors", "list of tensors", "list of lists"),
]

RESPONSES = [
    *("nothing", "no outputs", "tuple of outputs", "named arguments", "none as output", "error and outputs", "error by position"),
    *("error without text", "error not ascii"),
    *("UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED", "ALREADY_EXISTS", "CANCELLED"),
]

OUTPUTS = [
    *("unknown name", "unknown name beside a known one", "other datatype", "double", "too long", "too short", "other rank", "own order"),
    *("twice", "scalar", "empty", "empty in two dims", "not finite", "booleans", "bytes as numbers", "big numbers", "long long"),
    *("transposed", "strided", "reversed", "broadcast", "read only", "matrix", "foreign byte order", "complex", "times", "records"),
    *("unicode array", "byte array", "texts", "bytes", "odd objects", "text in two dims", "text scalar", "no texts", "no byte strings"),
    *("not utf-8", "escapes", "large", "empty name", "halves"),
]

BINARY: dict[str, Any] = {"parameters": {"binary_data_output": True}}

ANSWERS = [
    *(verb("faults", what) for what in FAULTS),
    *(verb("answers", what) for what in (*RETURNED, *RESPONSES, *OUTPUTS)),
    *(
        Case(f"{case.id}, binary", case.method, case.path, case.body, case.headers)
        for case in (verb("answers", what, **BINARY) for what in ("own order", "scalar", "empty", "halves", "strided", "odd objects", "large"))
    ),
    Case("own order, one asked", "POST", "/v2/models/answers/infer", verb("answers", "own order", outputs=[{"name": "TWO"}]).body),
    Case("own order, asked in another", "POST", "/v2/models/answers/infer")
    if False
    else verb("answers", "own order", outputs=[{"name": "SAID"}, {"name": "MANY"}]),
    verb("answers", "scalar", outputs=[{"name": "SAID"}]),
    verb("answers", "own order", outputs=[{"name": "MANY", "parameters": {"classification": 1}}]),
    infer("no execute", "no_execute", {"id": "7", "inputs": [tensor("X", "INT32", [1], [1])]}),
    infer("fault with an id", "faults", {"id": "7", "inputs": [tensor("VERB", "BYTES", [1], ["value"])]}),
]

DIFFERENCES: dict[str, Difference] = {}


@pytest.mark.parametrize("case", ANSWERS, ids=lambda case: case.id)
def test_answer(case: Case, python_oracle: int, python_farm: int) -> None:
    check(case, python_oracle, python_farm, DIFFERENCES)
