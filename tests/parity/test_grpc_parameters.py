"""Parameters of requests: which kinds each takes, what the model is shown of them, and sequences that are told by them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from google.protobuf.message import Message

from .grpc_case import UNSET, Call, Differs, Pair, Script, check, infer, output, request, tensor, unsigned

FIRST = tensor("FIRST", "INT32", [2], int=[1, 2])
VALUES: Mapping[str, object] = {
    "true": True,
    "false": False,
    "0": 0,
    "1": 1,
    "-1": -1,
    "most": 2**63 - 1,
    "least": -(2**63),
    "text": "five",
    "no text": "",
    "number as text": "5",
    "double": 1.5,
    "whole double": 1.0,
    "small double": 1e-7,
    "large double": 1e300,
    "infinite": float("inf"),
    "unsigned 0": unsigned(0),
    "unsigned": unsigned(5),
    "unsigned most": unsigned(2**64 - 1),
    "unset": UNSET,
}
NAMES = (
    *("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "triton_enable_empty_final_response"),
    *("triton_foo", "triton_", "Triton_x", "custom", "", "headers", "binary_data_output", "binary_data_size", "classification"),
    *("shared_memory_region", "triton_final_response", "max_tokens", "é", 'quote"d', "a\nb"),
)


def _asked(parameters: Mapping[str, object], **more: Any) -> Call:
    """What the model is shown of parameters."""
    return infer("asked", FIRST, outputs=["SAID", "PARAMETERS"], parameters=parameters, **more)


def _sorted(response: Any) -> None:
    """The parameters that a model was shown, in order of names: the original has them in a map's."""
    contents = list(response.raw_output_contents)
    shown = json.loads(contents[1][4:], object_pairs_hook=lambda pairs: sorted(pairs, key=str))
    del response.raw_output_contents[:]
    response.raw_output_contents.extend([contents[0], str(shown).encode()])


def _several(message: Message) -> Call:
    return Call("ModelInfer", message, rewrite=_sorted)


def _duplicated() -> bytes:
    """Two map entries with one key: the last counts."""
    first, second = (request("asked", parameters={"custom": value}).SerializeToString() for value in (1, "x"))
    return bytes(request("asked", FIRST, outputs=["SAID", "PARAMETERS"]).SerializeToString() + first + second)


CASES: dict[str, Script] = {
    **{f"{name!r}": tuple(_asked({name: value}) for value in VALUES.values()) for name in NAMES},
    "several": (
        _several(request("asked", FIRST, outputs=["SAID", "PARAMETERS"], parameters={"b": 1, "a": "x", "c": True, "d": 1.5, "timeout": 5})),
        _several(request("asked", FIRST, outputs=["SAID", "PARAMETERS"], parameters={"b": 1, "sequence_id": 7, "sequence_start": True})),
    ),
    "one name twice": (Call("ModelInfer", _duplicated()),),
    "with an id": (_asked({"sequence_id": 1.5}, id="q"), _asked({"custom": UNSET}, id="q"), _asked({"triton_x": 1}, id="q")),
    "flags": tuple(
        _asked({"sequence_start": start, "sequence_end": end, "sequence_id": 5}) for start in (False, True) for end in (False, True)
    ),
    "flags without a sequence": (_asked({"sequence_start": True}), _asked({"sequence_end": True}), _asked({"sequence_id": 0})),
    "long names of sequences": (_asked({"sequence_id": "x" * 128}), _asked({"sequence_id": "x" * 129}), _asked({"sequence_id": "é" * 65})),
    "of inputs and outputs": tuple(
        infer("asked", tensor("FIRST", "INT32", [2], {name: value}, int=[1, 2]), outputs=[output("SAID", **{name: value}), "PARAMETERS"])
        for name in ("foo", "triton_z", "binary_data", "binary_data_size", "")
        for value in (1, True, "x", 1.5, UNSET)
    ),
    "classification of inputs": (infer("asked", tensor("FIRST", "INT32", [2], {"classification": 1}, int=[1, 2]), outputs=["SAID"]),),
}


def _sequence(x: int, id: str = "", model: str = "sequences", **parameters: object) -> Call:
    return infer(model, tensor("X", "INT32", [1, 1], int=[x]), id=id, parameters=parameters)


SEQUENCES: dict[str, Script] = {
    "no sequence": (
        _sequence(1),
        _sequence(1, "q"),
        _sequence(1, "q", sequence_start=True),
        _sequence(1, sequence_id=0, sequence_start=True),
    ),
    "not begun": (
        _sequence(1, sequence_id=3),
        _sequence(1, "q", sequence_id=3),
        _sequence(1, "q", sequence_id="three"),
        _sequence(1, sequence_id=""),
    ),
    "by number": (
        _sequence(1, sequence_id=4, sequence_start=True),
        _sequence(2, sequence_id=4),
        _sequence(3, sequence_id=4, sequence_end=True),
        _sequence(4, sequence_id=4),
    ),
    "by name": (
        _sequence(1, sequence_id="four", sequence_start=True),
        _sequence(2, sequence_id="four"),
        _sequence(3, "q", sequence_id="four", sequence_end=True),
        _sequence(4, "q", sequence_id="four"),
    ),
    "at once": (_sequence(1, sequence_id=-5, sequence_start=True, sequence_end=True), _sequence(1, sequence_id=-5)),
}

NUMBERED: dict[str, Script] = {
    "number where one is expected": (_sequence(1, model="numbered", sequence_id=2**40 + 7, sequence_start=True, sequence_end=True),),
    "name where a number is expected": (_sequence(1, model="numbered", sequence_id="five", sequence_start=True, sequence_end=True),),
}

BOTH = {**CASES, **SEQUENCES, **NUMBERED}
DIFFERENCES: dict[str, Sequence[Differs]] = {
    "name where a number is expected": [
        Differs(
            "the original gives the model the first bytes of the name as a number, where its documentation promises this error",
            "INVALID_ARGUMENT",
            "sequence batching control 'CORRID' data-type is 'BYTES', but model 'numbered' expects 'INT32'",
        )
    ],
}


@pytest.mark.parametrize("id", BOTH)
def test_parameters(id: str, grpc_ends: Pair) -> None:
    check(grpc_ends, id, BOTH[id], DIFFERENCES)
