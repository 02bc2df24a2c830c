"""Reads a request of the generate extension: a JSON object whose members are the model's inputs, or else parameters.

Source of the rules, their order and their texts: release 24.10 of the protocol's own server, asked case by case (tests/parity).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from ...shm.datatypes import DATATYPES
from ...shm.placement import Inline
from ...workers.contract.messages import Parameters, RequestBody, Tensor
from ...workers.contract.signature import Signature, TensorSpec
from ...workers.contract.status import StatusError, internal, invalid, label
from .generate_elements import Gathered
from .infer_call import Scratch
from .infer_request import UNDECODABLE, check_datatype, clean, custom_parameter, numbers_byte_size, too_large
from .json_cutting import measured
from .json_elements import read_elements
from .json_tensor import string_tensor_bytes, tensor_bytes
from .json_text import MAX_DEPTH, check_containers, no_member, parse, quote, wrong_type
from .long_request import LONG_BYTE_SIZE, REST_BYTE_SIZE
from .turns import Steps

_NESTED = "parameters"
_OWN_DEPTH = 2
"""Levels that a request has around a tensor's data."""

_NOTHING = memoryview(b"")
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ABSENT: Any = object()


@dataclass(slots=True)
class GenerateCall:
    """A request that has been read; ``id_text`` is its id as JSON, empty where it has none."""

    body: RequestBody
    id_text: bytes


def read_generate(text: bytes, signature: Signature, scratch: Scratch, max_input_size: int) -> GenerateCall:
    """Read a request; tensors beyond what rides inside messages are placed in ``scratch``. Raises StatusError."""
    if len(text) > max_input_size:
        raise too_large("request JSON size", len(text), max_input_size)
    check_containers(text)
    reading = _Reading(signature, scratch, max_input_size)
    document = parse(text, MAX_DEPTH + _OWN_DEPTH)
    reading.take_id(document)
    reading.take_members(document)
    reading.check_unique(text)
    return reading.finished()


def read_long_generate(view: memoryview, signature: Signature, scratch: Scratch, max_input_size: int) -> Steps[GenerateCall]:
    """Do what ``read_generate`` does, in steps. What is unusual in its form is read in one, where it is not too long for that.

    Raises StatusError.
    """
    if len(view) > max_input_size:
        raise too_large("request JSON size", len(view), max_input_size)
    text = bytes(view)
    members = _raw_members(text)
    if members is None:
        _check_rest(text)
        return read_generate(text, signature, scratch, max_input_size)
    yield
    reading = _Reading(signature, scratch, max_input_size)
    if "id" in members:
        reading.take_id({"id": _parsed(members["id"])})
    for name, raw in members.items():
        if name == _NESTED and _NESTED not in signature.inputs:
            nested = _raw_members(raw) if len(raw) > LONG_BYTE_SIZE else None
            if nested is None:
                reading.take_nested(_parsed(raw))
                continue
            for inner, inner_raw in nested.items():
                with reading.nested:
                    yield from _take_raw(reading, inner, inner_raw, nested)
        else:
            yield from _take_raw(reading, name, raw, members)
    return reading.finished()
