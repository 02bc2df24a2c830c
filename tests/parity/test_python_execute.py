"""What one execute() of a Python model does to its one request: errors and their texts, answers, tensors, what the model sees."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from ..wire import compact, exchange
from .case import Case, Difference, check, infer, tensor, verb

FAULTS = (
    *("value", "empty", "key", "own", "two lines", "not ascii", "quotes", "os", "unicode", "keyboard", "base", "stop", "model"),
    *("not an exception", "deep", "chained", "comprehended", "division", "exit", "name", "import", "none of them"),
)

RETURNED = (
    *("tuple", "number", "text", "dict", "iterator", "array", "true", "false", "no responses", "two responses"),
    *("list of numbers", "list of errors", "list of tensors", "list of lists"),
)

RESPONSES = (
    *("nothing", "no outputs", "tuple of outputs", "named arguments", "none as output", "error and outputs", "error by position"),
    *("error without text", "error not ascii"),
    *("UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED", "ALREADY_EXISTS", "CANCELLED"),
)

OUTPUTS = (
    *("unknown name", "unknown name beside a known one", "other datatype", "double", "too long", "too short", "other rank", "own order"),
    *("twice", "scalar", "empty", "empty in two dims", "not finite", "booleans", "bytes as numbers", "big numbers", "long long"),
    *("transposed", "strided", "reversed", "broadcast", "read only", "matrix", "foreign byte order", "complex", "times", "records"),
    *("unicode array", "byte array", "texts", "bytes", "odd objects", "text in two dims", "text scalar", "no texts", "no byte strings"),
    *("not utf-8", "escapes", "large", "empty name", "halves"),
)

BINARY = ("own order", "scalar", "empty", "halves", "strided", "odd objects", "texts", "large")
"""Outputs that are asked for as bytes, too."""

ANSWERS = [
    *(verb("faults", what) for what in FAULTS),
    *(verb("answers", what) for what in (*RETURNED, *RESPONSES, *OUTPUTS)),
    *(verb("answers", what, f"answers: {what}, binary", parameters={"binary_data_output": True}) for what in BINARY),
    verb("answers", "own order", "one output asked", outputs=[{"name": "TWO"}]),
    verb("answers", "own order", "outputs asked in another order", outputs=[{"name": "SAID"}, {"name": "MANY"}]),
    verb("answers", "scalar", "another output asked", outputs=[{"name": "SAID"}]),
    verb("answers", "own order", "classes", outputs=[{"name": "MANY", "parameters": {"classification": 1}}]),
    verb("faults", "value", "fault of a request with an id", id="seven"),
    verb("answers", "NOT_FOUND", "error of a request with an id", id="seven"),
    infer("no execute", "no_execute", {"inputs": [tensor("X", "INT32", [1], [1])]}),
]

ANSWER_DIFFERENCES: dict[str, Difference] = {}


@pytest.mark.parametrize("case", ANSWERS, ids=lambda case: case.id)
def test_answer(case: Case, python_oracle: int, python_farm: int) -> None:
    check(case, python_oracle, python_farm, ANSWER_DIFFERENCES)


def _typed(name: str, shape: list[int], content: bytes, id: str = "") -> Case:
    """An input of the model that echoes every datatype, binary both ways."""
    wanted = [] if name == "REFUSED" else [{"name": f"{name}_OUT", "parameters": {"binary_data": True}}]
    datatype = "BF16" if name == "REFUSED" else name
    request = {"inputs": [tensor(name, datatype, shape, binary_data_size=len(content))], "outputs": [{"name": "FACTS"}, *wanted]}
    return infer(id or f"{name} {shape}", "typed", request, content)


def _texts(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


DATATYPES = {
    **{"BOOL": "<2?", "UINT8": "<2B", "UINT16": "<2H", "UINT32": "<2I", "UINT64": "<2Q"},
    **{"INT8": "<2b", "INT16": "<2h", "INT32": "<2i", "INT64": "<2q", "FP16": "<2e", "FP64": "<2d"},
}
"""How two elements are packed."""

TYPED = [
    *(_typed(name, [2], struct.pack(layout, 1, 0)) for name, layout in DATATYPES.items()),
    *(_typed(name, [0], b"") for name in (*DATATYPES, "BYTES", "BF16")),
    _typed("FP32", [2, 3], struct.pack("<6f", *range(6))),
    _typed("FP32", [2, 0], b""),
    _typed("BF16", [2], b"\x80\x3f\0\x40"),
    _typed("REFUSED", [2], b"\x80\x3f\0\x40"),
    _typed("BYTES", [3], _texts(b"a", "é".encode(), b"")),
    _typed("BYTES", [2], _texts(b"\0\xff", b"x\0"), "BYTES not utf-8"),
    infer("no inputs at all", "typed", {"inputs": []}),
    infer(
        "several inputs in an order of their own",
        "typed",
        {"inputs": [tensor("INT32", "INT32", [1], [5]), tensor("BOOL", "BOOL", [2], [True, False]), tensor("BYTES", "BYTES", [1], ["x"])]},
    ),
    infer("FP32 as JSON", "typed", {"inputs": [tensor("FP32", "FP32", [1, 2], [[1.5, -0.0]])]}),
    infer("UINT64 as JSON", "typed", {"inputs": [tensor("UINT64", "UINT64", [1], [2**64 - 1])]}),
]


@pytest.mark.parametrize("case", TYPED, ids=lambda case: case.id)
def test_tensor(case: Case, python_oracle: int, python_farm: int) -> None:
    check(case, python_oracle, python_farm, {})


def _asked(name: str, **more: Any) -> Case:
    inputs = [tensor(name, "INT32", [1], [at]) for at, name in enumerate(("THIRD", "FIRST"))]
    return infer(name, "asked", {**more, "inputs": inputs})


def _parameters(id: str, text: str) -> Case:
    return infer(id, "asked", b'{"parameters":' + text.encode() + b',"inputs":' + compact([tensor("FIRST", "INT32", [1], [1])]) + b"}")


ASKED = [
    _asked("nothing but inputs"),
    _asked("an id", id="my id é"),
    _asked("outputs", outputs=[{"name": "SAID"}, {"name": "PARAMETERS"}]),
    _asked("no outputs listed", outputs=[]),
    _asked("parameters", parameters={"z": 1, "b": "two", "c": True, "d": 1.5, "n": -3, "e": False, "": "", "headers": "x"}),
    _asked("names of the front end", parameters={"timeout": 5, "priority": 1, "binary_data_output": False, "x": 1}),
    _asked("a sequence", parameters={"sequence_id": 7, "sequence_start": True, "sequence_end": True, "x": 1}),
    _asked("a sequence's start", parameters={"sequence_id": 7, "sequence_start": True}),
    _asked("a sequence's end", parameters={"sequence_id": 2**64 - 1, "sequence_end": True}),
    _asked("a sequence with a name", parameters={"sequence_id": "seven"}),
    _parameters("floats", '{"a":1.0,"b":1e300,"c":1e-7,"d":-0.0,"e":0.1,"f":123456789.125,"g":1e21,"h":5e-324,"i":100000.0}'),
    _parameters("big integers", '{"a":9223372036854775807,"b":-9223372036854775808,"c":9223372036854775808}'),
    _parameters("texts", '{"a":"\\u00e9\\"\\\\\\/\\b\\f\\n\\r\\t\\u0001\\u007f","\\u20ac":"😀"}'),
    _parameters("one name twice", '{"a":1,"b":2,"a":"three"}'),
    _parameters("nested", '{"a":{"b":1}}'),
    _parameters("list", '{"a":[1]}'),
    _parameters("null", '{"a":null}'),
    _parameters("reserved", '{"triton_x":1}'),
]

ASKED_DIFFERENCES = {
    "one name twice": Difference("24.10 shows the model the first value as often as the name came; here a name has one value", 200),
}


@pytest.mark.parametrize("case", ASKED, ids=lambda case: case.id)
def test_request(case: Case, python_oracle: int, python_farm: int) -> None:
    check(case, python_oracle, python_farm, ASKED_DIFFERENCES)


def test_kept_inputs(python_oracle: int, python_farm: int) -> None:
    """A model may write to its inputs and keep them: later requests leave them as they were."""
    for start in range(4):
        case = infer(f"kept {start}", "kept", {"inputs": [tensor("X", "INT64", [50], list(range(start, start + 50)))]})
        check(case, python_oracle, python_farm, {})


IMPORTED = {".json", ".np", ".struct"}
"""Names in triton_python_backend_utils that are there only because it uses these modules itself."""


def _surroundings(port: int) -> list[Any]:
    reply = exchange(port, "POST", "/v2/models/surroundings/infer", compact({"inputs": [tensor("X", "INT32", [1], [1])]}))
    return [json.loads(text) for text in reply.json["outputs"][0]["data"]]


def test_surroundings(python_oracle: int, python_farm: int) -> None:
    theirs, ours = _surroundings(python_oracle), _surroundings(python_farm)
    assert list(ours[0].items()) == list(theirs[0].items()), "initialize()'s args"
    assert ours[1] == theirs[1], "names"
    missing = set(theirs[2]) - set(ours[2]) - IMPORTED
    assert not missing, "public names that triton_python_backend_utils lacks"


def test_configuration(python_oracle: int, python_farm: int) -> None:
    """`model_config` is, byte for byte, what the configuration endpoint answers."""
    for port in (python_oracle, python_farm):
        text = _surroundings(port)[0]["model_config"]
        assert exchange(port, "GET", "/v2/models/surroundings/config").body.decode() == text


@pytest.mark.parametrize("model", ["adder", "batches", "streams", "typed"])
@pytest.mark.parametrize("what", ["", "/config"])
def test_metadata(model: str, what: str, python_oracle: int, python_farm: int) -> None:
    check(Case(model, "GET", f"/v2/models/{model}{what}"), python_oracle, python_farm, {})
