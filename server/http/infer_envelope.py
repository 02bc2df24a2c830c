"""The JSON part of an inference request as ordinary clients send it, for one typed decode."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType

from ...shm.datatypes import MAX_COUNT

Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]


class InputParameters(msgspec.Struct, gc=False):
    binary_data_size: Size | UnsetType = UNSET
    shared_memory_region: str | UnsetType = UNSET
    shared_memory_offset: Size | UnsetType = UNSET
    shared_memory_byte_size: Size | UnsetType = UNSET


class Input(msgspec.Struct, gc=False):
    name: str
    datatype: str
    shape: tuple[Size, ...]
    parameters: InputParameters | UnsetType = UNSET
    data: msgspec.Raw | UnsetType = UNSET


class OutputParameters(msgspec.Struct, gc=False):
    binary_data: bool | UnsetType = UNSET
    classification: Size | UnsetType = UNSET
    shared_memory_region: str | UnsetType = UNSET
    shared_memory_offset: Size | UnsetType = UNSET
    shared_memory_byte_size: Size | UnsetType = UNSET


class Output(msgspec.Struct, gc=False):
    name: str
    parameters: OutputParameters | UnsetType = UNSET


class Envelope(msgspec.Struct, gc=False):
    inputs: list[Input]
    id: str | UnsetType = UNSET
    parameters: dict[str, bool | int | float | str] | UnsetType = UNSET
    outputs: list[Output] | UnsetType = UNSET


DECODER = msgspec.json.Decoder(Envelope)
